"""Directly trained networks: counts by hand, by unfolding what layers read, and what may be folded into weights."""

import copy
import functools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ann2snn
from ann2snn.cost import FP32, INT8, count_operations
from ann2snn.cost.layers import SYNAPTIC
from ann2snn.kernels import LIFRule
from ann2snn.nets.direct import DirectConfig, DirectDenoiser, StepConv, mean_over_time, over_time
from ann2snn.nets.fsddim import FSDDIM, FSDDIMConfig
from ann2snn.nets.sddpm import SDDPM, SDDPMConfig, with_tsm
from ann2snn.neurons import LIFNeuron, StepBatchNorm
from tests.fill import deterministic_fill
from tests.helpers import random_batch

SMALL = {"in_channels": 1, "image_size": 8, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "diffusion_steps": 20}
SHORTCUTS = ("downblocks.2", "upblocks.0", "upblocks.1", "upblocks.3", "upblocks.4")
BLOCKS = ("downblocks.0", "downblocks.2", "middleblocks.0", "middleblocks.1", *SHORTCUTS[1:])
#: Fed by real values in SDDPM.
ONCE = {"conv", "time_embedding.timembedding.1", "time_embedding.timembedding.3"} | {f"{b}.temb_proj.1" for b in BLOCKS}
REAL = ONCE | {"tail_conv", "T_output_layer"} | {f"{block}.shortcut" for block in SHORTCUTS}


def filled(net: DirectDenoiser) -> DirectDenoiser:
    deterministic_fill(net)
    return net.double().eval()


def sddpm(**changes) -> SDDPM:
    return filled(SDDPM(SDDPMConfig(**SMALL | {"spike_steps": 3} | changes)))


def fsddim(**changes) -> FSDDIM:
    return filled(FSDDIM(FSDDIMConfig(**SMALL | {"spike_steps": 3} | changes)))


def by_name(report):
    return {layer.name.replace(".tsmconv", ""): layer for layer in report.layers if layer.kind != "factor"}


def reading(report, *inputs: str) -> set[str]:
    return {name for name, layer in by_name(report).items() if layer.inputs in inputs}


@dataclass(frozen=True)
class TinyConfig(DirectConfig):
    arch = "tiny"


class Tiny(DirectDenoiser):
    """1×1 convolution of the image, one neuron layer, 3×3 convolution to two channels, mean."""

    repeats = False  # the image itself, as published code does

    def __init__(self, rule: LIFRule) -> None:
        super().__init__(TinyConfig(in_channels=1, image_size=4, ch_mult=(1,), spike_steps=4))
        self.first, self.neuron, self.last = nn.Conv2d(1, 1, 1), LIFNeuron(rule, 4), StepConv(1, 2, 3)
        nn.init.ones_(self.first.weight), nn.init.zeros_(self.first.bias)

    def forward(self, x, t):
        current = self.first(over_time(x, 4)) if self.repeats else over_time(self.first(x), 4)
        return mean_over_time(self.last(self.neuron(current)), 4)


def tiny(rule: LIFRule):
    """Currents 1/2 in a corner, which reaches 4 pixels, 1 inside, which reaches 9; two output channels."""
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 0, 0], x[0, 0, 1, 1] = 0.5, 1.0
    return count_operations(Tiny(rule).double(), x, torch.zeros(1))


def test_counts_of_a_tiny_network_by_hand():
    report = tiny(LIFRule())
    layers = by_name(report)
    assert (report.total("spikes"), report.total("neurons"), report.total("updates")) == (2 + 4, 16, 4 * 16)
    assert (layers["last"].inputs, layers["last"].ac, layers["last"].mac) == ("spikes", 2 * (2 * 4 + 4 * 9), 0)
    assert layers["last"].dense == 4 * 2 * 100  # (3·4 − 2)² positions inside, in every step
    assert (layers["first"].inputs, layers["first"].mac, layers["first"].dense) == ("real", 2, 16)  # once per call
    assert (layers["readout"].additions, layers["readout"].mac) == (4 * 32, 32)
    assert report.firing_rate == 6 / (16 * 4)
    assert (report.latency_steps, report.latency_steps_delayed, report.spike_steps, report.depth) == (4, 5, 4, 1)
    assert report.energy(FP32).compute == pytest.approx(0.9 * (88 + 64 + 128) + 4.6 * (2 + 32))
    assert report.energy(FP32, all_mac=True).compute == pytest.approx(0.9 * (64 + 128) + 4.6 * (88 + 2 + 32))
    bits = 8 * (1 + 4 * 18) + 8 * (16 + 16 + 4 * 16 + 4 * 32 + 4 * 32) + (64 + 64) + 32 * 2 * (64 + 128)
    assert report.energy(INT8).memory == pytest.approx(bits / 32 * 50)


def test_a_leak_is_one_multiplication_per_update():
    leaky, plain = tiny(LIFRule(decay=0.8)), tiny(LIFRule())
    assert by_name(leaky)["neuron"].mac == 64 == leaky.total("updates") and by_name(plain)["neuron"].mac == 0


def test_only_these_layers_of_sddpm_multiply():
    report = count_operations(net := sddpm(), *random_batch(net))
    assert reading(report, "real") == REAL and not reading(report, "mixed", "levels")
    for name, layer in by_name(report).items():
        if layer.kind in SYNAPTIC:
            assert (layer.ac == 0 < layer.mac) if name in REAL else (layer.mac == 0 < layer.ac), name
    full = sddpm(ch=4, ch_mult=(1, 2, 2, 4), num_res_blocks=2)
    real = reading(count_operations(full, *random_batch(full)), "real")
    assert sum("shortcut" in name for name in real) == 14
    others = {name for name in real if "shortcut" not in name and "tem" not in name and "time" not in name}
    assert others == {"conv", "tail_conv", "T_output_layer"}


def test_corrections_turn_their_layers_to_accumulates():
    for correction, layers in (("shortcut", {f"{b}.shortcut" for b in SHORTCUTS}), ("tail", {"tail_conv"})):
        report = count_operations(net := sddpm(corrections=(correction,)), *random_batch(net))
        assert reading(report, "real") == REAL - layers
        assert all(by_name(report)[name].ac > 0 for name in layers)


def test_constant_currents_are_computed_once():
    """The time path and the first convolution do not depend on how many steps follow."""
    short, long = (count_operations(net := sddpm(spike_steps=s), *random_batch(net)) for s in (2, 6))
    for name, layer in by_name(short).items():
        if layer.kind in SYNAPTIC:
            assert by_name(long)[name].dense == layer.dense * (1 if name in ONCE else 3), name
    assert by_name(short)["conv"].dense == 8 * 22**2
    for net in (fsddim(), fsddim(spike_steps=5)):  # its first block reads what the first convolution gives
        first = by_name(count_operations(net, *random_batch(net)))["downs.0.0.conv1"]
        assert (first.inputs, first.dense) == ("real", 8 * 8 * 22**2)


#: Layers of FSDDIM that read real values, and in which input channels; the sheet's list of real-valued tensors.
FSDDIM_REAL = {
    "temb.0": (0, 8), "conv_in": (0, 1), "downs.0.0.conv1": (0, 8), "downs.1.0.conv1": (0, 8),
    "ups.1.0.conv1": (0, 8), "ups.1.0.nin_shortcut": (0, 8), "conv_out": (8, 16),  # behind an upsampler; conv_in
    "final_res_block.conv1": (8, 16), "final_res_block.nin_shortcut": (8, 16),
}  # fmt: skip
#: Of these, the ones whose real values are the first convolution's: the same in every step.
FSDDIM_ONCE = {"downs.0.0.conv1", "final_res_block.conv1", "final_res_block.nin_shortcut", "conv_out"}


def operations(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Products of nonzero inputs and weights, by input channel, by unfolding patches."""
    if isinstance(layer, nn.Linear):
        return (x != 0).double().sum(0) * (layer.weight != 0).double().sum(0)
    weight = layer.weight[..., 0] if layer.weight.dim() == 5 else layer.weight
    kernel, stride = weight.shape[-1], layer.stride[0]
    patches = F.unfold(x, kernel, padding=kernel // 2, stride=stride)  # [R, C·k·k, positions]
    met = patches.sum((0, 2)) * (weight != 0).double().sum(0).flatten()
    return met.view(weight.shape[1], -1).sum(1)


def unfolded(net: DirectDenoiser, x: torch.Tensor, t: torch.Tensor, real: dict) -> dict[str, tuple[float, float]]:
    """(accumulates, multiplications) of every layer per image; real: layer → range of its real input channels."""
    found: dict[str, tuple[float, float]] = {}

    def look(layer, args, name):
        rows = args[0]
        pooled = name.endswith("conv.1")  # spikes of four pixels, each with its own synapse
        by_channel = operations(layer, 4 * rows if pooled else (rows != 0).double())
        is_real = torch.zeros(len(by_channel), dtype=torch.bool)
        is_real[slice(*real.get(name, (0, 0)))] = True
        once = operations(layer, (rows[: len(x)] != 0).double()) if name in FSDDIM_ONCE else by_channel
        found[name] = (float(by_channel[~is_real].sum()) / len(x), float(once[is_real].sum()) / len(x))

    handles = []
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, StepConv, nn.Linear)):
            hook = functools.partial(look, name=name.replace(".tsmconv", ""))
            handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        net(x, t)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", ["sddpm", "sdm", "fsddim", "fsddim one step"])
def test_operations_by_unfolding_what_every_layer_reads(kind):
    if kind.startswith("fsddim"):
        net, real = fsddim(spike_steps=1 if "one" in kind else 3), FSDDIM_REAL
    else:
        net, real = sddpm(tsm=kind == "sdm"), {name: (None, None) for name in REAL}
    x, t = random_batch(net, 3)
    report = by_name(count_operations(net, x, t))
    expected = unfolded(net, x, t, real)
    assert set(expected) == {name for name, layer in report.items() if layer.kind in SYNAPTIC}
    for name, (accumulates, multiplications) in expected.items():
        assert (report[name].ac, report[name].mac) == pytest.approx((accumulates, multiplications), rel=1e-12), name
        assert (multiplications > 0) == (name in real)
        silent = accumulates == 0  # with one step, some layers are
        assert report[name].inputs == ("spikes" if name not in real else "real" if silent else "mixed"), name


def test_averaged_spikes_are_spikes():
    """The average of four pixels and the convolution behind it are one synapse for each of the four."""
    layers = by_name(count_operations(net := fsddim(), *random_batch(net)))
    down, sent = layers["downs.0.1.conv.1"], layers["downs.0.0.neuron2"]
    assert (down.inputs, down.ac, down.mac) == ("spikes", 8 * sent.spikes, 0) and sent.spikes > 0
    assert (down.dense, down.activations, down.values) == (3 * 64 * 8 * 8, 3 * 8 * 64, 3 * 8 * 16)


def test_memory_of_a_constant_current_and_of_a_mixed_input():
    layers = by_name(count_operations(net := fsddim(), *random_batch(net)))
    first, last = layers["downs.0.0.conv1"], layers["conv_out"]
    assert (first.values, first.activations, first.weight_reads) == (2 * 8 * 64, 0, 8 * 8 * 9)
    # 32 channels: 24 of spikes in three steps; of 8 the same current in each.
    assert (last.values, last.activations, last.weight_reads) == (8 * 64 + 3 * 64, 3 * 24 * 64, 24 * 3 + 8)


def test_tsm_multiplies_no_spike():
    """Factors fold into the weights of their step; only the constant current of the first convolution is left."""
    net = sddpm()
    x, t = random_batch(net)
    plain, tsm = (count_operations(n, x, t) for n in (net, with_tsm(net)))
    assert (plain.label, tsm.label) == ("SDDPM 3 steps", "SDM 3 steps")
    factors = [layer for layer in tsm.layers if layer.kind == "factor"]
    assert len(factors) == sum(isinstance(m, nn.Conv2d) for m in net.modules())
    assert {layer.name: layer.mac for layer in factors if layer.mac} == {"conv": 3 * 8 * 64}
    assert tsm.total("mac") - plain.total("mac") == 3 * 8 * 64
    for name, layer in by_name(tsm).items():
        assert replace(layer, name=name) == by_name(plain)[name]


NOT_FOLDED = {"sddpm": {"tail_bn"}}
NOT_FOLDED["fsddim"] = {f"{b}.nin_shortcut" for b in ("downs.0.0", "downs.1.0", "mid_block1", "mid_block2")}


@torch.no_grad()
def fold(net: DirectDenoiser, name: str) -> None:
    """Take a batch norm into the convolution before it, and into the time embedding that is added in between."""
    modules = dict(net.named_modules())
    norm: StepBatchNorm = modules[name]
    owner, _, own = name.rpartition(".")
    conv = {"bn": owner if isinstance(net, FSDDIM) else f"{owner}.conv".strip("."), "last_bn": "T_output_layer"}
    conv = modules[conv.get(own) or f"{owner}.{own.replace('bn', 'conv')}".strip(".")]
    scale = norm.gain * norm.weight / torch.sqrt(norm.running_var + norm.eps)
    conv.weight *= scale.view(-1, *[1] * (conv.weight.dim() - 1))
    conv.bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)
    if own == "bn1" and isinstance(net, FSDDIM):
        modules[f"{owner}.temb_proj"].weight *= scale[:, None]
        modules[f"{owner}.temb_proj"].bias *= scale
    norm.running_mean.zero_(), norm.running_var.fill_(1 - norm.eps), norm.bias.zero_(), norm.weight.fill_(1 / norm.gain)


@pytest.mark.parametrize("kind", ["sddpm", "fsddim"])
def test_norms_that_cost_nothing_fold_into_weights(kind):
    net = sddpm() if kind == "sddpm" else fsddim(norm="scaled")
    x, t = random_batch(net)
    norms = {layer.name: layer for layer in count_operations(net, x, t).layers if layer.kind == "norm"}
    free = {name for name, layer in norms.items() if layer.mac == layer.ac == layer.values == 0}
    assert set(norms) - free == NOT_FOLDED[kind] and len(norms) == sum(
        isinstance(m, StepBatchNorm) for m in net.modules()
    )
    folded = copy.deepcopy(net)
    for name in free:
        fold(folded, name)
    with torch.no_grad():
        torch.testing.assert_close(folded(x, t), net(x, t), rtol=1e-9, atol=1e-9)


def test_norms_that_do_not_fold_multiply_real_values_and_add_up_spikes():
    tail = by_name(count_operations(net := sddpm(), *random_batch(net)))["tail_bn"]
    assert (tail.mac, tail.ac) == (3 * 8 * 64, 0)
    layers = by_name(count_operations(net := fsddim(), *random_batch(net)))
    assert (layers["downs.0.0.nin_shortcut"].mac, layers["downs.0.0.nin_shortcut"].ac) == (8 * 64, 0)  # constant
    assert (layers["downs.1.0.nin_shortcut"].mac, layers["downs.1.0.nin_shortcut"].ac) == (3 * 8 * 16, 0)
    spiking = layers["mid_block1.nin_shortcut"]
    assert (spiking.mac, spiking.ac) == (0, layers["downs.1.1.neuron"].spikes) and spiking.ac > 0


def test_sums_readout_and_activations():
    layers = by_name(count_operations(net := sddpm(), *random_batch(net)))
    assert layers["downblocks.2.sum"].additions == 2 * 3 * 16 * 16  # time embedding and residual, in every step
    readout = layers["readout"]
    assert (readout.mac, readout.additions, readout.updates) == (3 * 64, 3 * 64, 3 * 64)  # leaky sum; side branch
    assert layers["tail_neuron"].updates == 3 * 8 * 64 and layers["time_embedding.timembedding.2"].updates == 32
    layers = by_name(count_operations(net := fsddim(), *random_batch(net)))
    assert (layers["readout"].mac, layers["readout"].additions) == (64, 3 * 64)
    assert layers["downs.1.0.neuron1"].mac == layers["downs.1.0.neuron1"].updates == 3 * 8 * 16  # they leak


@pytest.mark.parametrize("make", [sddpm, fsddim])
def test_spikes_are_those_a_monitor_sees_and_parameters_those_that_learn(make):
    net = make()
    x, t = random_batch(net)
    fired = []
    monitor = type("Total", (), {"record": lambda self, neuron, events, is_count: fired.append(float(events.sum()))})()
    with torch.no_grad(), net.monitored(monitor):
        net(x, t)
    report = count_operations(net, x, t)
    assert report.total("spikes") == sum(fired) / 2 > 0 and report.steps_run == 3
    assert report.total("updates") - sum(y.updates for y in report.layers if y.kind != "neuron") == 3 * report.total(
        "neurons"
    )
    assert report.total("parameters") == sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_real_values_that_look_like_spikes_are_real():
    for net in (sddpm(), fsddim()):
        x = (torch.arange(64).view(1, 1, 8, 8) % 3 > 0).double()
        report = count_operations(net, x, torch.zeros(1, dtype=torch.int64))  # time features of 0 and 1
        first = ("conv", "time_embedding.timembedding.1") if isinstance(net, SDDPM) else ("conv_in", "temb.0")
        assert set(first) <= reading(report, "real")
    net = Tiny(LIFRule()).double()
    net.repeats = True
    first = by_name(count_operations(net, x[..., :4, :4], torch.zeros(1)))["first"]
    assert (first.inputs, first.dense) == ("real", 16)


def test_counts_do_not_depend_on_the_batch_size_and_leave_nothing_behind():
    for net in (sddpm(tsm=True), fsddim()):
        batch = random_batch(net, 3)
        one, together = (count_operations(net, *batch, batch_size=n) for n in (1, 3))
        for field in ("ac", "mac", "spikes", "dense", "values", "activations", "states", "weight_reads"):
            assert one.total(field) == pytest.approx(together.total(field), rel=1e-12)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
        assert ann2snn.cost(net, *batch).to_dict() == together.to_dict()


def test_a_threshold_changes_the_counts_and_the_label():
    net = sddpm(tsm=True)
    batch = random_batch(net)
    before = count_operations(net, *batch)
    net.set_threshold(0.5)
    after = count_operations(net, *batch)
    assert after.total("ac") > before.total("ac") and after.label == "SDM 3 steps, threshold 0.5"


@pytest.mark.parametrize(
    ("net", "depth"),
    [
        (lambda: SDDPM(SDDPMConfig(**SMALL)), 1 + 2 * 8 + 2),  # stem, blocks, resampling
        (lambda: SDDPM(SDDPMConfig(**SMALL, corrections=("tail",))), 20),
        (lambda: SDDPM(SDDPMConfig()), 51),
        (lambda: FSDDIM(FSDDIMConfig(**SMALL)), 2 + 2 * 7 + 2),  # time embedding, blocks, where none resamples
        (lambda: FSDDIM(FSDDIMConfig()), 2 + 2 * 19 + 2),
    ],
)
def test_depth_by_hand(net, depth):
    with torch.device("meta"):
        assert net().depth == depth
