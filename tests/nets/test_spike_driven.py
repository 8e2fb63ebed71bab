"""`--spike_driven`: every convolution but the head receives spikes; conversion is as exact as the standard net's."""

import json
import math

import pytest
import torch
from torch import nn

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.config import SpikingConfig, UNetConfig
from ann2snn.convert import SpikingNetwork, convert
from ann2snn.diffusion import VP
from ann2snn.errors import UserError
from ann2snn.nets import UNet, unet
from ann2snn.nets.parts import Parts
from quant import QuantReLU, calibrate_activations
from tests.helpers import ann_counts, assert_close, assert_equal, random_ann, random_batch, spike_trains
from tests.scripts import NETWORK, SAMPLING, check, script, train_flags

EXACT = 1e-12
STREAM = SpikingConfig("stream")
SETTLED = SpikingConfig("stream", settle_steps="auto")
LEVELS = {"ch_mult": (1, 2, 1), "image_size": 8}  # narrowing too: every kind of shortcut, two of each resampling


def spike_driven(seed: int = 0, **options: object) -> UNet:
    return random_ann(seed, spike_driven=True, **LEVELS | options)


def inputs_without_spikes(snn: SpikingNetwork, config: SpikingConfig) -> set[str]:
    """Convolutions that are given anything but whole levels of one layer, in any step."""
    found, seen = set(), set()
    senders = {s.name: next(iter(s.reads[0])) for s in snn.describe().synapses}
    neurons = dict(snn.neurons())

    def watch(name: str):
        def hook(conv: nn.Conv2d, args: tuple) -> None:
            seen.add(name)
            if senders[name] not in neurons:
                found.add(name)
                return
            clock, step = snn.clock, neurons[senders[name]].levels.step
            for index, row in enumerate(clock.unfold(args[0])):
                levels = row / step * clock.paces()[index].share
                if (levels - levels.round()).abs().max() > 1e-9 or levels.round().max() > clock.spike_steps:
                    found.add(name)

        return hook

    convs = [(name, module) for name, module in snn.net.named_modules() if isinstance(module, nn.Conv2d)]
    handles = [conv.register_forward_pre_hook(watch(name)) for name, conv in convs]
    with torch.no_grad(), snn.running_as(config):
        snn(*random_batch(snn))
    for handle in handles:
        handle.remove()
    assert seen == {name for name, _ in convs}
    return found


@pytest.mark.parametrize("config", [SpikingConfig(), STREAM, SETTLED], ids=["layer_sync", "stream", "settled"])
def test_every_convolution_but_the_head_receives_whole_levels_of_one_layer(config):
    assert inputs_without_spikes(convert(spike_driven(bits=3)), config) == {"head"}


@pytest.mark.parametrize("config", [SpikingConfig(), STREAM], ids=["layer_sync", "stream"])
def test_in_the_standard_network_shortcuts_and_resampling_receive_real_values(config):
    ann = random_ann(bits=3, **LEVELS)
    real = {name for name, module in ann.named_modules() if isinstance(module, nn.Conv2d)}
    real = {name for name in real if name == "head" or name.endswith(("shortcut", "main"))}
    assert len(real) == 1 + 4 + 8  # head; two resamplings each way; all shortcuts but downblocks.0
    assert inputs_without_spikes(convert(ann), config) == real


@pytest.mark.parametrize("options", [{"bits": 2}, {"bits": 3, "weight_bits": 4}, {"bits": 4, "num_res_blocks": 2}])
@pytest.mark.parametrize("seed", range(2))
def test_both_schedules_equal_the_quantized_network(options, seed):
    ann = spike_driven(seed, **options)
    x, t = random_batch(ann, 2, seed)
    expected, levels = ann_counts(ann, x, t)
    for config in (SpikingConfig(), SETTLED):
        out, trains = spike_trains(convert(ann, config), x, t)
        assert_close(out, expected, EXACT)
        assert trains.keys() == levels.keys()
        for name, events in trains.items():
            assert_equal(events.sum(0), levels[name])


def test_the_variant_is_another_function_of_the_same_weights():
    plain, variant = random_ann(**LEVELS), spike_driven()
    variant.load_state_dict(plain.state_dict(), strict=False)
    x, t = random_batch(plain)
    with torch.no_grad():
        assert (variant(x, t) - plain(x, t)).norm() > 0.01 * plain(x, t).norm()


# ---- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 32])
def test_it_adds_a_norm_and_a_threshold_per_resampling_and_nothing_else(bits):
    plain, variant = random_ann(bits=bits, **LEVELS).state_dict(), spike_driven(bits=bits).state_dict()
    added = {name: tuple(value.shape) for name, value in variant.items() if name not in plain}
    channels = {"downblocks.1": 8, "downblocks.3": 16, "upblocks.2": 8, "upblocks.5": 16}
    expected = {f"{name}.norm.{leaf}": (c,) for name, c in channels.items() for leaf in ("weight", "bias")}
    if bits != 32:
        expected |= {f"{name}.act.act_alpha": () for name in channels}
    assert added == expected
    assert {name: value.shape for name, value in variant.items() if name in plain} == {
        name: value.shape for name, value in plain.items()
    }


def test_weights_of_both_networks_start_from_the_same_random_numbers():
    nets = []
    for driven in (False, True):
        torch.manual_seed(3)
        nets.append(ann2snn.build_unet(ch=8, ch_mult=(1, 2), norm_groups=2, image_size=4, bit=2, spike_driven=driven))
    plain, variant = (net.state_dict() for net in nets)
    for name, value in plain.items():
        assert_equal(variant[name], value)


def test_weight_quantization_reaches_the_convolutions_that_now_read_spikes():
    net = spike_driven(weight_bits=4)
    bits = {
        name: m.bits for name, m in net.named_modules() if name.endswith(("shortcut", "main")) and hasattr(m, "bits")
    }
    assert len(bits) == 12 and set(bits.values()) == {4}


def test_calibration_sets_every_clip():
    net = spike_driven()
    before = {name for name, module in net.named_modules() if isinstance(module, QuantReLU)}
    x, t = random_batch(net, 4)
    assert calibrate_activations(net, [(VP(net.diffusion).diffuse(x, t, torch.randn_like(x)), t)]).keys() == before
    assert {"downblocks.1.act", "upblocks.2.act"} <= before


def test_the_setting_is_yes_or_no():
    with pytest.raises(UserError, match="--spike_driven=1"):
        UNetConfig(spike_driven=1)


# ---- depth ----------------------------------------------------------------------------------------------------------

FACTOR = 1e3  # larger than any number of terms summed between two convolutions of the networks below


def exponent(x: torch.Tensor) -> int:
    """Neuron layers behind the largest value of x."""
    return math.floor(math.log(x.max()) / math.log(FACTOR) + 1e-9)


class Peak(nn.Conv2d):
    """A convolution that only tells how many neuron layers its largest input has passed."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__(c_in, c_out, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = [-(-length // self.stride[0]) for length in x.shape[2:]]
        return torch.full((len(x), self.out_channels, *size), FACTOR ** exponent(x), dtype=x.dtype)


class PeakLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), self.out_features), FACTOR ** exponent(x), dtype=x.dtype)


class Count(nn.Module):
    """A neuron layer multiplies by FACTOR, so that the largest term of a sum tells the longest path to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * FACTOR


class Ones(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(t), self.dim, dtype=torch.float64)


class CountingParts(Parts):
    def activation(self, *args: object) -> nn.Module:
        return Count()

    def norm(self, channels: int) -> nn.Module:
        return nn.Identity()

    def conv(self, c_in: int, c_out: int, kernel: int, stride: int = 1, edge: str = "") -> nn.Conv2d:
        return Peak(c_in, c_out, stride)

    def linear(self, features_in: int, features_out: int) -> nn.Linear:
        return PeakLinear(features_in, features_out)

    def time_table(self) -> nn.Module:
        return Ones(self.config.ch)


@pytest.mark.parametrize("driven", [False, True])
@pytest.mark.parametrize(("mult", "blocks"), [((1,), 1), ((1, 2), 1), ((1, 2, 1), 1), ((1, 1), 2)])
def test_depth_is_the_longest_path_in_neuron_layers(mult, blocks, driven):
    settings = {"ch": 4, "norm_groups": 2, "image_size": 4, "bits": 2, "ch_mult": mult, "num_res_blocks": blocks}
    config = UNetConfig(**settings, dropout=0.0, spike_driven=driven)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet, "Parts", CountingParts)
        counting = UNet(config).double().eval()
    with torch.no_grad():
        out = counting(torch.ones(1, 3, 4, 4, dtype=torch.float64), torch.zeros(1))
    assert convert(UNet(config)).depth == exponent(out)


# ---- files and flags ------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_and_an_older_one_without_the_field_is_standard(tmp_path):
    path = tmp_path / "ckpt.pt"
    for ann, stored in ((spike_driven().float(), True), (random_ann(**LEVELS).float(), False)):
        config = {"unet": ann.config.to_dict(), "diffusion": ann.diffusion.to_dict()}
        assert config["unet"]["spike_driven"] is stored
        if not stored:
            del config["unet"]["spike_driven"]
        checkpoint.save(path, {"kind": "ann", "format": 1, "ema_model": ann.state_dict(), "config": config})
        loaded = ann2snn.load(path)
        assert loaded.config == ann.config
        x, t = random_batch(ann)
        with torch.no_grad():
            assert_equal(loaded(x.float(), t), ann(x.float(), t))
        snn = convert(ann, STREAM)
        checkpoint.save(path, checkpoint.payload_of(snn))
        with torch.no_grad():
            assert_equal(ann2snn.load(path)(x.float(), t), snn(x.float(), t))


def test_a_file_without_configuration_is_never_taken_for_the_variant(tmp_path):
    net = spike_driven(ch=32, norm_groups=32, ch_mult=(1, 2))
    torch.save({"ema_model": net.float().state_dict()}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=r"unknown entry .*\.act\.act_alpha"):
        ann2snn.load(tmp_path / "ckpt.pt", bit=2)


def test_all_stages_remember_it_and_refuse_a_contradiction(tmp_path):
    logdir = tmp_path / "run"
    check(script("ANN_train.py", *train_flags(logdir, 2, "--spike_driven", "--sample_size=1", *SAMPLING)))
    convert_flags = ["--eval", f"--logdir={logdir}", *NETWORK, *SAMPLING, "--gen_images=0", "--gap_images=1"]
    check(script("SNN_conversion.py", *convert_flags))  # the flag is on file
    assert ann2snn.load(logdir / "converted_snn.pt").config.spike_driven
    gaps = json.loads((logdir / "gap.json").read_text())
    assert gaps["depth"] == 2 * 8 + 2 + 2  # eight residual blocks, tail and time embedding, two resamplings
    assert check(script("SNN_conversion.py", *convert_flags, "--spike_driven", "--gap_images=0"))
    done = script("SNN_conversion.py", *convert_flags, "--nospike_driven")
    assert done.returncode == 2 and f"--spike_driven=False contradicts {logdir}/ckpt.pt" in done.stderr
    assert "made with True" in done.stderr
    resumed = script("ANN_train.py", *train_flags(logdir, 4, "--sample_size=1", *SAMPLING))
    assert resumed.returncode == 2 and "trained with spike_driven=True, now spike_driven=False" in resumed.stderr


def test_the_flag_against_a_standard_checkpoint_is_refused_naming_both_values(tmp_path):
    ann = random_ann(diffusion_steps=50).float()
    config = {"unet": ann.config.to_dict(), "diffusion": ann.diffusion.to_dict()}
    checkpoint.save(tmp_path / "ckpt.pt", {"kind": "ann", "format": 1, "ema_model": ann.state_dict(), "config": config})
    done = script("SNN_conversion.py", "--eval", f"--logdir={tmp_path}", "--spike_driven", "--sampler=ddim", *SAMPLING)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--spike_driven=True contradicts" in done.stderr and "made with False" in done.stderr
    assert not (tmp_path / "converted_snn.pt").exists()
