"""Counted operations of our networks: against explicit loops, recorded spike trains and runs of the quantized ANN."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ann2snn
from ann2snn.config import SpikingConfig
from ann2snn.convert import convert, fold_thresholds, measure_gap
from ann2snn.convert.gap import SpikeTotals
from ann2snn.cost import count_operations
from ann2snn.cost.converted import NORM_MACS
from ann2snn.cost.layers import SYNAPTIC
from ann2snn.cost.synapses import effective_operations, layer_fan_out
from tests.helpers import ann_counts, random_ann, random_batch, spike_trains

LAYER_SYNC, STREAM = SpikingConfig(), SpikingConfig("stream")
AUTO = replace(STREAM, settle_steps="auto")
MODES = {"layer_sync": LAYER_SYNC, "stream": STREAM, "settled": AUTO, "burst": replace(AUTO, burst=3)}
modes = pytest.mark.parametrize("mode", MODES)
#: Fed by real values, whatever the schedule.
REAL = {
    "head", "time_embedding.timembedding.1", "downblocks.1.main", "upblocks.2.main", "downblocks.2.shortcut",
    *(f"upblocks.{i}.shortcut" for i in (0, 1, 3, 4)),
}  # fmt: skip


@pytest.fixture(scope="module")
def ann():
    return random_ann()


@pytest.fixture(scope="module")
def batch(ann):
    return random_batch(ann, 3)


@pytest.fixture(scope="module")
def reports(ann, batch):
    snn = convert(ann)
    return {name: count_operations(snn, *batch, mode) for name, mode in MODES.items()}


@pytest.fixture(scope="module")
def calls(ann, batch):
    """A trajectory of four calls: the image moves a little, then stands still, then is another."""
    x, t = batch
    other = random_batch(ann, 3, seed=1)[0]
    return [(x, t), (x + 0.1 * other, t), (x + 0.1 * other, t), (other, t)]


def test_latency_of_carried_calls_is_that_of_the_first_from_rest(ann, batch):
    """A carried call has no window, so its steps do not come on top of one, however many they are."""
    snn, (x, t) = convert(ann, AUTO), batch
    pair = [(x, t), (-x, t)]  # the second call has more to settle than the first
    rest, carried = ann2snn.cost(snn, trajectory=pair[:1]), ann2snn.cost(snn, trajectory=pair, carry=True)
    with snn.carrying():
        settled = [(snn(*call), snn.last_settle_steps)[1] for call in pair]
    assert settled[1] > settled[0] == rest.settle_steps
    assert carried.latency_steps == rest.latency_steps == snn.clock.spike_steps + settled[0]


def by_name(report):
    return {layer.name: layer for layer in report.layers}


def sparse(shape, generator):
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values * (torch.rand(shape, generator=generator) < 0.4)


def follower_of(neuron: str) -> str:
    """The layer behind a neuron layer; a dropout stands between in block2."""
    stem, index = neuron.rsplit(".", 1)
    return f"{stem}.{int(index) + (2 if stem.endswith('block2') else 1)}"


def through(layer: nn.Module, values: torch.Tensor) -> float:
    """Sum of what a layer of ones makes of `values` [R, …]: how many synapses they meet, times what they are."""
    ones = torch.ones_like(layer.weight)
    conv = isinstance(layer, nn.Conv2d)
    return float((F.conv2d(values, ones, None, layer.stride, layer.padding) if conv else F.linear(values, ones)).sum())


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 4), (3, 2, 4), (3, 2, 5), (1, 1, 3), (3, 1, 1)])
def test_operations_of_a_convolution_by_loops(kernel, stride, size):
    generator = torch.Generator().manual_seed(kernel + 10 * stride)
    conv = nn.Conv2d(2, 3, kernel, stride=stride, padding=kernel // 2).double()
    conv.weight.data = sparse(conv.weight.shape, generator)
    x = sparse((2, 2, size, size), generator)
    out = conv(x).shape[-1]
    effective = dense = 0
    for n, o, i, c, a, b, d in itertools.product(
        range(2), range(out), range(out), range(3), range(kernel), range(kernel), range(2)
    ):
        row, column = o * stride + a - kernel // 2, i * stride + b - kernel // 2
        if 0 <= row < size and 0 <= column < size:  # padding is no input
            dense += 1
            effective += bool(x[n, d, row, column] != 0 and conv.weight[c, d, a, b] != 0)
    reach, total = layer_fan_out(conv, x.shape[1:])
    assert (effective_operations(x != 0, reach), 2 * total) == (effective, dense)


def test_operations_of_a_linear_layer_by_loops():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(5, 4).double()
    linear.weight.data = sparse((4, 5), generator)
    x = sparse((3, 5), generator)
    effective = sum(
        bool(x[n, i] != 0 and linear.weight[o, i] != 0) for n in range(3) for o in range(4) for i in range(5)
    )
    reach, total = layer_fan_out(linear, x.shape[1:])
    assert (effective_operations(x != 0, reach), total) == (effective, 20)


# ---- a call from rest ------------------------------------------------------------------------------------------------


@modes
def test_only_layers_behind_neurons_accumulate(reports, mode):
    layers = [layer for layer in reports[mode].layers if layer.kind in SYNAPTIC]
    assert {layer.name for layer in layers if layer.inputs == "real"} == REAL
    assert all(layer.inputs == "spikes" and layer.mac == 0 < layer.ac for layer in layers if layer.name not in REAL)
    assert all(layer.ac == 0 < layer.mac for layer in layers if layer.name in REAL)
    norms = [layer for layer in reports[mode].layers if layer.kind == "norm"]
    assert norms and all(layer.mac > 0 == layer.ac for layer in norms)


def test_spike_driven_network_multiplies_in_its_first_layers_alone():
    """Spikes stay spikes through upsampling, which copies them."""
    net = random_ann(spike_driven=True)
    for mode in (LAYER_SYNC, STREAM):
        report = count_operations(convert(net), *random_batch(net), mode)
        real = {layer.name for layer in report.layers if layer.inputs == "real"}
        assert real == {"head", "time_embedding.timembedding.1"}


@pytest.mark.parametrize("mode", [LAYER_SYNC, AUTO], ids=["layer_sync", "stream"])
def test_thresholds_per_channel_and_unit_events_are_spikes_too(ann, batch, mode):
    snn = convert(ann, mode)
    generator = torch.Generator().manual_seed(1)
    modules = dict(snn.net.named_modules())
    for name, neuron in snn.neurons():
        channels = modules[follower_of(name)].weight.shape[1]
        shape = (channels,) if "temb" in name or "time" in name else (channels, 1, 1)
        neuron.act_alpha.data = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
    plain, folded = (count_operations(net, *batch) for net in (snn, fold_thresholds(snn)))
    for report in (plain, folded):
        assert {layer.name for layer in report.layers if layer.inputs == "real"} == REAL
    assert plain.total("ac") == folded.total("ac") > 0 and plain.total("spikes") == folded.total("spikes")


def test_real_values_that_look_like_spikes_are_real(ann):
    """A black-and-white image, and time features of 0 and 1 at t = 0: no neuron sent them."""
    snn = fold_thresholds(convert(ann, STREAM))
    x = torch.where(torch.arange(16).view(4, 4) % 3 > 0, 1.0, -1.0).double().expand(1, 3, 4, 4)
    layers = by_name(count_operations(snn, x, torch.zeros(1, dtype=torch.int64)))
    assert layers["head"].inputs == layers["time_embedding.timembedding.1"].inputs == "real"


def test_levels_that_are_no_longer_levels_feed_multiplications(ann, batch):
    snn = convert(ann, STREAM)
    snn.net.tail[2].register_forward_pre_hook(lambda m, args: (args[0] * torch.linspace(1, 2, 4, dtype=args[0].dtype),))
    rows = count_operations(snn, *batch).layers
    (tail,) = (row for row in rows if row.name.startswith("tail.2") and row.kind == "conv")
    assert tail.inputs == "real" and tail.ac == 0 < tail.mac


@modes
def test_spikes_are_those_of_the_monitor_and_the_gap_table(ann, batch, reports, mode):
    report, snn, totals = reports[mode], convert(ann), SpikeTotals()
    with torch.no_grad(), snn.running_as(MODES[mode]), snn.monitored(totals):
        snn(*batch)
    assert report.total("spikes") == pytest.approx(totals.total() / 3, rel=1e-12)
    gap = measure_gap(ann, snn, *batch, MODES[mode])
    assert report.firing_rate == pytest.approx(gap.prediction.firing_rate, rel=1e-12)
    assert report.settle_steps == gap.settle_steps


@modes
def test_accumulates_by_convolving_recorded_trains(ann, batch, reports, mode):
    """Independent of what follows tensors: |events| as a monitor sees them, convolved with ones."""
    snn = convert(ann, MODES[mode])
    _, trains = spike_trains(snn, *batch)
    modules, layers = dict(snn.net.named_modules()), by_name(reports[mode])
    assert mode not in ("burst", "layer_sync") or max(float(events.abs().max()) for events in trains.values()) > 1
    for name, events in trains.items():
        layer, counted = modules[follower_of(name)], layers[follower_of(name)]
        fired = events.abs().flatten(0, 1)
        assert counted.ac == pytest.approx(through(layer, fired) / 3, rel=1e-12)
        assert counted.weight_fetches == pytest.approx(through(layer, (fired != 0).double()) / 3, rel=1e-12)


def test_settling_adds_its_steps(ann, batch, reports):
    assert (reports["layer_sync"].steps_run, reports["stream"].steps_run) == (1, 3)
    assert count_operations(convert(ann, replace(STREAM, settle_steps=2)), *batch).steps_run == 5
    auto = reports["settled"]
    assert auto.settle_steps >= 1 and auto.steps_run == 3 + auto.settle_steps + 1  # the silent step that ends it
    assert auto.total("spikes") > reports["stream"].total("spikes")


@modes
def test_constant_inputs_are_computed_once(ann, batch, reports, mode):
    expected, found = by_name(count_operations(ann, *batch)), by_name(reports[mode])
    for name in ("head", "time_embedding.timembedding.1", "downblocks.0.block1.0"):
        assert (found[name].mac, found[name].dense) == (expected[name].mac, expected[name].dense), name


@modes
def test_real_arithmetic_is_done_again_where_its_input_changed(ann, batch, reports, mode):
    """Inputs as hooks see them, step by step: a norm costs its multiplications per value of an image that changed."""
    snn, seen = convert(ann, MODES[mode]), {}

    def keep(name: str):
        return lambda module, args: seen.setdefault(name, []).extend(args[0].view(-1, 3, *args[0].shape[1:]))

    chosen = {name: m for name, m in snn.net.named_modules() if isinstance(m, nn.GroupNorm) or name in REAL}
    for name, module in chosen.items():
        module.register_forward_pre_hook(keep(name))
    with torch.no_grad():
        snn(*batch)
    layers = by_name(reports[mode])
    for name, module in chosen.items():
        macs = 0.0
        for before, now in zip([None, *seen[name]], seen[name], strict=False):
            differences = torch.ones(3) if before is None else (now - before).abs().flatten(1).amax(1)
            changed = now[differences > 1e-9]
            if isinstance(module, nn.GroupNorm):
                macs += NORM_MACS * changed.numel()
            elif len(changed):
                macs += through(module, (changed != 0).double())
        assert layers[name].mac == pytest.approx(macs / 3, rel=1e-12), name


def test_dense_operations_of_an_ann_by_hand(ann, batch):
    """4×4 images: a 3×3 convolution with padding has (3·4 − 2)² = 100 positions inside, on 2×2 it has 16."""
    report = count_operations(ann, *batch)
    layers = by_name(report)
    expected = {"head": 100 * 3 * 8, "downblocks.0.block1.2": 100 * 8 * 8, "downblocks.1.main": 25 * 8 * 8}
    expected |= {"downblocks.2.block2.3": 16 * 16 * 16, "upblocks.2.main": 100 * 16 * 16, "tail.2": 100 * 8 * 3}
    expected |= {"downblocks.2.shortcut": 4 * 8 * 16, "time_embedding.timembedding.3": 32 * 32}
    assert {name: layers[name].dense for name in expected} == expected
    assert {name: layers[name].synapses for name in expected} == expected
    assert layers["head"].mac == expected["head"] and layers["head"].inputs == "real"
    assert layers["tail.2"].inputs == "levels" and 0 < layers["tail.2"].mac < expected["tail.2"]
    assert layers["downblocks.0.sum"].additions == 2 * 8 * 16  # time embedding, residual
    assert (report.total("ac"), report.total("spikes"), report.latency_steps) == (0, 0, None)
    assert report.total("parameters") == sum(p.numel() for p in ann.parameters())
    assert report.total("states") == report.total("state_words") == 0


def test_state_by_hand(ann, batch, reports):
    """A value per output of every linear map and of every sum, a level per neuron, two sums per group of a norm."""
    layers = by_name(reports["layer_sync"])
    assert layers["head"].state_words == 8 * 16 and layers["tail.2"].state_words == 3 * 16
    assert layers["downblocks.0.block1.0"].state_words == 2 * 2
    assert layers["downblocks.0.block1.1"].state_words == 8 * 16
    assert layers["downblocks.0.sum"].state_words == 2 * 8 * 16
    assert layers["downblocks.0.block1.2"].states == 2 * 8 * 16  # its accumulators, read and written once
    counted, spikes = layers["downblocks.0.block1.1"], spike_trains(convert(ann), *batch)[1]["downblocks.0.block1.1"]
    assert counted.states == pytest.approx(8 * 16 + float(spikes.count_nonzero()) / 3)  # a look each, and the changes


def test_zero_weights_of_quantized_layers_take_no_operations(batch):
    net = random_ann(weight_bits=2)
    layer = net.tail[2].bits, net.downblocks[0].block1[2]
    assert layer[0] == 8 and float((layer[1].quantized_weight() == 0).double().mean()) > 0.1
    found = by_name(count_operations(convert(net, STREAM), *batch))["downblocks.0.block1.2"]
    _, trains = spike_trains(convert(net, STREAM), *batch)
    fired = (trains["downblocks.0.block1.1"] != 0).double().flatten(0, 1)
    expected = F.conv2d(fired, (layer[1].quantized_weight() != 0).double(), padding=1).sum() / 3
    assert found.ac == pytest.approx(float(expected), rel=1e-12)
    assert found.weight_bits == 2 and found.parameter_bits == 2 * 8 * 8 * 9 + 32 * (8 + 1)


@pytest.mark.parametrize(
    "mode", ["layer_sync", "burst", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stream", "settled"))]
)
def test_counts_do_not_depend_on_the_batch_size_and_leave_nothing_behind(ann, batch, mode):
    snn = convert(ann, MODES[mode]).train()
    one, all_at_once = (count_operations(snn, *batch, batch_size=n) for n in (1, 3))
    snn.set_spike_chunk(2)  # nor on how many time steps run at once
    for other in (one, count_operations(snn, *batch)):
        for a, b in zip(other.layers, all_at_once.layers, strict=True):
            for field in ("ac", "mac", "spikes", "dense", "values", "states", "updates", "touched", "state_words"):
                assert getattr(a, field) == pytest.approx(getattr(b, field), rel=1e-12), (a.name, field)
    assert snn.clock.monitor is None and snn.spiking == MODES[mode] and snn.training and snn.net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in snn.modules())
    with pytest.raises(ValueError, match="no images"):
        count_operations(snn, batch[0][:0], batch[1][:0])


# ---- carried from call to call ---------------------------------------------------------------------------------------


def test_carried_events_are_the_changes_of_the_quantizers_levels(ann, calls):
    """Σ|change of level| from runs of the quantized ANN alone; m = 1 takes no fewer."""
    levels = [ann_counts(ann, *call)[1] for call in calls]
    expected = [
        sum(float((now[name] - before[name]).abs().sum()) for name in now) / 3
        for before, now in itertools.pairwise(levels)
    ]
    account = ann2snn.cost(convert(ann), trajectory=calls, carry=True)
    from_rest = sum(float(level.sum()) for level in levels[0].values()) / 3
    assert (account.first.total("spikes"), account.first.calls) == (pytest.approx(from_rest), 1)
    assert account.later.total("spikes") == pytest.approx(sum(expected) / 3) and account.later.calls == 3
    assert account.per_image("spikes") == pytest.approx(from_rest + sum(expected)) == 4 * account.total("spikes")
    single = ann2snn.cost(convert(ann, AUTO), trajectory=calls, carry=True)
    assert single.later.total("spikes") >= account.later.total("spikes") > 0
    assert account.label == "layer_sync carried"


def test_differences_of_an_ann_by_unfolding_its_levels(ann, calls):
    levels = [ann_counts(ann, *call)[1] for call in calls]
    account, modules = ann2snn.cost(ann, trajectory=calls), dict(ann.named_modules())
    layers, differences = by_name(account), {layer.name: layer for layer in account.difference_layers}
    for name in levels[0]:
        reader, nothing = follower_of(name), torch.zeros_like(levels[0][name])
        pairs = itertools.pairwise([nothing, *(found[name] for found in levels)])
        changed = sum(through(modules[reader], (now != before).double()) for before, now in pairs) / 12
        active = sum(through(modules[reader], (found[name] != 0).double()) for found in levels) / 12
        assert differences[reader].mac == pytest.approx(changed, rel=1e-12) and differences[reader].ac == 0
        assert layers[reader].mac == pytest.approx(active, rel=1e-12)
    assert differences["head"].mac == layers["head"].mac * 3 / 4  # one of four images is that of the call before
    assert ann2snn.cost(ann, trajectory=calls[:1]).difference_layers is None


def test_a_norm_makes_every_neuron_look_again(ann, calls):
    """One event in an image is enough; the time embedding's neurons, behind linear maps alone, need not look."""
    later = ann2snn.cost(convert(ann), trajectory=calls, carry=True).later
    norm_values = sum(layer.mac / NORM_MACS for layer in later.layers if layer.kind == "norm")
    looks, neurons = later.by_kind("updates"), later.by_kind("neurons")
    assert looks["neuron, norm"] == pytest.approx(norm_values) == pytest.approx(neurons["neuron, norm"] * 2 / 3)
    assert looks["neuron"] == 0 < neurons["neuron"] and sum(neurons.values()) == later.total("neurons")
    at_rest = ann2snn.cost(convert(ann, AUTO), *calls[0])
    assert at_rest.by_kind("updates")["neuron"] < at_rest.steps_run * neurons["neuron"]


def test_nothing_is_done_for_a_call_like_the_one_before(ann, batch):
    for net in (convert(ann), convert(ann, AUTO)):
        later = ann2snn.cost(net, trajectory=[batch, batch], carry=True).later
        for field in ("spikes", "ac", "mac", "additions", "updates", "dense", "weight_reads", "states", "values"):
            assert later.total(field) == 0, field
        assert (later.touched_neurons, later.touched_synapses) == (0, 0)


def test_neurons_and_weights_that_are_touched(ann, calls):
    levels = [ann_counts(ann, *call)[1] for call in calls]
    account = ann2snn.cost(convert(ann), trajectory=calls, carry=True)
    ever = sum(int(((levels[2][n] != levels[0][n]) | (levels[3][n] != levels[2][n])).sum()) for n in levels[0]) / 3
    assert account.touched_neurons == pytest.approx(ever / account.total("neurons"))
    readers = [layer for layer in account.later.layers if layer.inputs == "spikes"]
    assert account.touched_synapses == pytest.approx(
        sum(layer.weight_fetches for layer in readers) / sum(layer.synapses for layer in readers)
    )
    fired = sum(int((level != 0).sum()) for level in levels[0].values()) / 3
    assert account.first.touched_neurons == pytest.approx(fired / account.total("neurons"))


def test_a_trajectory_without_carrying_is_calls_from_rest(ann, calls):
    for net in (ann, convert(ann, AUTO)):
        whole = ann2snn.cost(net, trajectory=calls[:2])
        single = [ann2snn.cost(net, *call) for call in calls[:2]]
        for field in ("spikes", "ac", "mac", "updates", "dense", "states"):
            assert whole.total(field) == pytest.approx(sum(one.total(field) for one in single) / 2), field
        assert whole.calls == 2 and whole.first is None
