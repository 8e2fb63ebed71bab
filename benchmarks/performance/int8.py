"""Networks of few weight levels: spikes and weights as bytes, against the same networks in fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from ann2snn.kernels import SpikeConv, Spikes, convolves_spikes, kernels_by
from ann2snn.quant import quantized_once

from .forward import STREAM, SYNC, call
from .masked import MaskedDenoiser
from .networks import PUBLISHED, inputs, make_ann, window
from .results import Bench, Section

BITS = 2  # of the activations
STEPS = window(BITS)
WEIGHTS: dict[str, object] = {"weight_bits": 4}  # APoT
NETWORKS: dict[str, SpikingConfig | None] = {"quantized ANN": None, "layer_sync": SYNC, f"stream, T = {STEPS}": STREAM}


def int8(bench: Bench) -> list[Section]:
    """Whole networks, then single convolutions."""
    if not convolves_spikes(torch.zeros(1, device=bench.device)):
        why = "not measured: needs a CPU with 8-bit dot products (VNNI), and oneDNN's integer convolution"
        return [Section("Spikes and weights as bytes", ["network"], [[why]])]
    return [_networks(bench), _convolutions(bench)]


def _networks(bench: Bench) -> Section:
    """As samplers call them: weights are quantized, and prepared, once."""
    header = ["network", "ms (quartiles)", "over the fp32 ANN", "over itself in fp32"]
    section = Section(f"{BITS}-bit networks with 4-bit APoT weights, in fp32 and with bytes", header)
    for ch, batch in (bench.plan.wide, bench.plan.narrow):
        fp32, ann = make_ann(bench, ch), make_ann(bench, ch, BITS, **WEIGHTS)
        x, t = inputs(bench, fp32, batch)
        prefix = f"ch {ch}, batch {batch}: "
        jobs = {f"{prefix}fp32 ANN": call(fp32, x, t)}
        with contextlib.ExitStack() as stack:
            published = convert(ann, PUBLISHED)
            stack.enter_context(quantized_once(published))
            jobs[f"{prefix}loop with masks, T = {STEPS}"] = call(MaskedDenoiser(published), x, t)
            for name, spiking in NETWORKS.items():
                net = ann if spiking is None else convert(ann, spiking)
                stack.enter_context(quantized_once(net))
                jobs[f"{prefix}{name}"] = _in_floats(net, x, t)
                jobs[f"{prefix}{name}, bytes"] = call(net, x, t)
            times = bench.time(jobs)
        for name in jobs:
            itself = str(times.ratio(name, name.removesuffix(", bytes"))) if name.endswith("bytes") else None
            section.rows.append([name, *times.row(name, next(iter(jobs))), itself])
    return section


def _in_floats(net: nn.Module, x: Tensor, t: Tensor) -> Callable[[], None]:
    quick = call(net, x, t)

    def job() -> None:
        with kernels_by("torch"):
            quick()

    return job


def _convolutions(bench: Bench) -> Section:
    """A 3×3 convolution of T·N rows of spikes."""
    section = Section("Convolution of spikes", ["convolution", "ms (quartiles)", "over fp32"])
    for ch, batch in (bench.plan.wide, bench.plan.narrow):
        for size in (32, 16):
            section.rows += _compare(bench, ch, STEPS * batch, size)
    return section


@torch.inference_mode()
def _compare(bench: Bench, ch: int, batch: int, size: int) -> list[list]:
    torch.manual_seed(0)
    unit, step = torch.ones(()), torch.tensor(0.01)
    spikes, weight = torch.randint(-1, 2, (batch, ch, size, size)), torch.randint(-10, 11, (ch, ch, 3, 3))
    floats, weights = spikes.float(), weight * step
    numbers, conv = Spikes((spikes + 1).to(torch.uint8), 1, unit), SpikeConv(weight, step, (1, 1), (1, 1))
    label = f"ch {ch}, {batch} rows, {size}×{size}"
    jobs = {
        f"{label}: fp32": lambda: F.conv2d(floats, weights, padding=1),
        f"{label}: bytes": lambda: conv(numbers),
    }
    times = bench.time(jobs)
    return [[name, *times.row(name, f"{label}: fp32")] for name in jobs]
