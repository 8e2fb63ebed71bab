"""Threshold folding: unit events and weights that carry θ are the same network."""

import pytest
import torch
from torch import nn

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.config import SpikingConfig
from ann2snn.convert import SpikingNetwork, convert, measure_gap
from ann2snn.convert.fold import fold_thresholds, senders
from ann2snn.errors import UserError
from tests.helpers import assert_close, assert_equal, random_ann, random_batch, spike_trains

EXACT = 1e-12
MODES = {
    "layer_sync": SpikingConfig(),
    "stream": SpikingConfig("stream"),
    "settled": SpikingConfig("stream", settle_steps="auto"),
    "unsigned": SpikingConfig("stream", signed=False),
    "reference": SpikingConfig("stream", stream_norm="per_step", if_neuron="reference"),
}
NETWORKS = {
    "standard": {"bits": 3},
    "spike_driven": {"bits": 3, "spike_driven": True},
    "apot": {"bits": 2, "weight_bits": 4},
    "ternary": {"bits": 2, "weight_bits": 2, "spike_driven": True},
}
networks = pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
modes = pytest.mark.parametrize("config", MODES.values(), ids=MODES)


def random_snn(**options: object) -> SpikingNetwork:
    return convert(random_ann(5, ch_mult=(1, 2, 1), image_size=8, **options))


def give_channels_their_own_thresholds(snn: SpikingNetwork) -> None:
    _, trains = spike_trains(snn, *random_batch(snn))
    generator = torch.Generator().manual_seed(7)
    for name, neuron in snn.neurons():
        shape = [trains[name].shape[2], *[1] * (trains[name].dim() - 3)]  # [C, 1, 1] or [C]
        values = torch.empty(shape, dtype=torch.float64).uniform_(0.7, 2.0, generator=generator)
        neuron.act_alpha = nn.Parameter(values)


def assert_same_network(folded: SpikingNetwork, snn: SpikingNetwork, config: SpikingConfig) -> None:
    batch = random_batch(snn)
    results = []
    for net in (folded, snn):
        with net.running_as(config):
            results.append(spike_trains(net, *batch))
    (out, trains), (expected, expected_trains) = results
    assert_close(out, expected, EXACT)
    assert trains.keys() == expected_trains.keys()
    for name, events in trains.items():
        assert_equal(events, expected_trains[name])


@modes
@networks
def test_spikes_are_the_same_and_outputs_agree_to_rounding(options, config):
    snn = random_snn(**options)
    assert_same_network(fold_thresholds(snn), snn, config)


@modes
@pytest.mark.parametrize("driven", [False, True])
def test_thresholds_per_channel_fold_channel_by_channel(driven, config):
    snn = random_snn(bits=3, spike_driven=driven)
    give_channels_their_own_thresholds(snn)
    assert_same_network(fold_thresholds(snn), snn, config)


def received_values(snn: SpikingNetwork, config: SpikingConfig) -> dict[str, set[float]]:
    """Layer → the set of values it is given, for every convolution and linear layer."""
    values: dict[str, set[float]] = {}

    def watch(name: str):
        return lambda layer, args: values.setdefault(name, set()).update(args[0].unique().tolist())

    layers = [(n, m) for n, m in snn.net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for name, layer in layers:
        layer.register_forward_pre_hook(watch(name))
    with torch.no_grad(), snn.running_as(config):
        snn(*random_batch(snn))
    assert values.keys() == {name for name, _ in layers}
    return values


@modes
@pytest.mark.parametrize("driven", [False, True])
def test_folded_layers_receive_unit_events(driven, config):
    folded = ann2snn.fold_thresholds(random_snn(bits=3, spike_driven=driven))
    values = received_values(folded, config)
    if config.stream_norm == "per_step":
        real = {name for name, received in values.items() if not received <= {-1, 0, 1}}
    else:  # levels by the steps so far, 1 to 7
        whole = 420
        real = {n for n, received in values.items() if any(abs(whole * v - round(whole * v)) > 1e-6 for v in received)}
    expected = {"head", "time_embedding.timembedding.1"}  # they read the image and the time features
    if not driven:
        expected |= {name for name in values if name.endswith(("shortcut", "main"))}
    assert real == expected
    if config.stream_norm == "per_step":
        assert any(-1 in values[name] for name in values.keys() - real)


@networks
def test_weights_are_those_in_use_times_the_threshold_of_the_layer_before(options):
    snn = random_snn(**options)
    folded = fold_thresholds(snn)
    before, after = dict(snn.net.named_modules()), dict(folded.net.named_modules())
    for name, sender in [
        ("tail.2", "tail.1"),
        ("middleblocks.1.block2.3", "middleblocks.1.block2.1"),
        ("downblocks.2.temb_proj.1", "downblocks.2.temb_proj.0"),
        ("time_embedding.timembedding.3", "time_embedding.timembedding.2"),
        *([("downblocks.2.shortcut", "downblocks.2.block1.1")] if "spike_driven" in options else []),
        *([("upblocks.2.main", "upblocks.2.act")] if "spike_driven" in options else []),
    ]:
        theta = before[sender].act_alpha
        assert_equal(after[name].weight, before[name].quantized_weight() * theta)
        assert_equal(after[name].quantized_weight(), after[name].weight)
        assert_equal(after[name].folded_theta, theta.detach())
        assert_equal(after[name].bias, before[name].bias)
        assert after[name].bits == 32 and not hasattr(after[name], "wgt_alpha")
    for name in ["head", "time_embedding.timembedding.1"]:
        assert_equal(after[name].quantized_weight(), before[name].quantized_weight())


@networks
def test_every_layer_but_those_of_real_values_is_traced_to_the_neurons_before_it(options):
    snn = random_snn(**options)
    found = senders(snn.describe())
    driven = options.get("spike_driven", False)
    layers = [name for name, module in snn.net.named_modules() if hasattr(module, "quantized_weight")]
    for name in layers:
        sender = found.get(name)
        block, _, leaf = name.rpartition(".")
        if name == "head" or name == "time_embedding.timembedding.1":
            assert sender is None
        elif leaf == "shortcut":
            assert sender == (f"{block}.block1.1" if driven else None)
        elif leaf == "main":
            assert sender == (f"{block}.act" if driven else None)
        else:
            step = 2 if ".block2." in name else 1  # a dropout lies between
            assert sender == f"{block}.{int(leaf) - step}"


def test_the_original_is_left_alone_and_shares_nothing():
    snn = random_snn(bits=2, weight_bits=4)
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    batch = random_batch(snn)
    with torch.no_grad():
        expected = snn(*batch)
        folded = fold_thresholds(snn)
        for parameter in folded.parameters():
            parameter.zero_()
        assert_equal(snn(*batch), expected)
    assert snn.state_dict().keys() == before.keys()
    for name, value in snn.state_dict().items():
        assert_equal(value, before[name])
    assert not any(neuron.unit_events for _, neuron in snn.neurons())
    assert folded.clock is not snn.clock and not any(module._forward_hooks for module in folded.modules())


def test_folding_twice_changes_nothing():
    once = fold_thresholds(random_snn(bits=2))
    twice = fold_thresholds(once)
    assert twice.state_dict().keys() == once.state_dict().keys()
    for name, value in twice.state_dict().items():
        assert_equal(value, once.state_dict()[name])
    assert_same_network(twice, once, SpikingConfig("stream"))


def test_the_gap_of_a_folded_network_is_that_of_the_network():
    ann = random_ann(bits=2, spike_driven=True)
    x, t = random_batch(ann)
    assert max(row.error for row in measure_gap(ann, fold_thresholds(convert(ann)), x, t).rows()) < EXACT


def test_a_saved_folded_network_is_not_taken_for_an_ordinary_one(tmp_path):
    for options in ({"bits": 2}, {"bits": 2, "weight_bits": 4}):
        folded = fold_thresholds(random_snn(**options))
        checkpoint.save(tmp_path / "snn.pt", checkpoint.payload_of(folded))
        with pytest.raises(UserError, match="refusing .*(folded_theta|wgt_alpha)"):
            ann2snn.load(tmp_path / "snn.pt")


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="UNet: convert it first"):
        fold_thresholds(random_ann())


def test_spikes_that_reach_the_residual_stream_are_refused_by_name():
    snn = random_snn(bits=2)
    snn.net.middleblocks[0].block2[3] = nn.Identity()
    with pytest.raises(UserError, match=r"spikes of middleblocks\.0\.block2\.1 go into add"):
        fold_thresholds(snn)


def test_spikes_that_leave_the_network_are_refused_by_name():
    snn = random_snn(bits=2, in_channels=1)
    snn.net.tail[2] = nn.Identity()
    with pytest.raises(UserError, match=r"spikes of tail\.1 go into"):
        fold_thresholds(snn)


def test_pooling_is_refused():
    snn = random_snn(bits=2)
    block = snn.net.middleblocks[0].block1
    block[2] = nn.Sequential(nn.AvgPool2d(1), block[2])
    with pytest.raises(UserError, match=r"spikes of middleblocks\.0\.block1\.1 go into avg_pool2d"):
        fold_thresholds(snn)


def test_a_layer_of_two_senders_is_refused():
    snn = random_snn(bits=2)
    snn.net.middleblocks[0].block1[2] = snn.net.middleblocks[1].block1[2]
    with pytest.raises(UserError, match=r"reads middleblocks\.0\.block1\.1 and middleblocks\.1\.block1\.1"):
        fold_thresholds(snn)
    snn = random_snn(bits=2)
    snn.net.upblocks[2].main = snn.net.middleblocks[0].block1[2]
    with pytest.raises(UserError, match=r"reads middleblocks\.0\.block1\.1 and real values"):
        fold_thresholds(snn)
