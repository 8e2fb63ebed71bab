"""`stream`: against the published loop with masks, against its arithmetic floor, and what settling adds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ann2snn.config import SpikingConfig
from ann2snn.nets import UNet

from .forward import STREAM, call
from .masked import MaskedDenoiser
from .networks import PUBLISHED, inputs, make_ann, make_snn, window
from .results import Bench, Case, Section

AUTO = SpikingConfig("stream", settle_steps="auto")
LAYERWISE, STEPWISE = "masks, layer by layer", "masks, step by step"
OURS, OURS_PUBLISHED, FLOOR = "stream", "stream, published norm and neuron", "the ANN's convolutions, once"


@torch.no_grad()
def convolutions(ann: UNet, x: Tensor, t: Tensor) -> Callable[[], None]:
    """A job: all convolutions and linear layers of one call of `ann`, on the inputs they had, and nothing else."""
    calls: list[tuple[nn.Module, Tensor]] = []
    layers = [module for module in ann.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0]))) for layer in layers]
    try:
        ann(x, t)
    finally:
        for handle in handles:
            handle.remove()

    def job() -> None:
        with torch.inference_mode():
            for layer, x in calls:
                layer(x)

    return job


def stream(bench: Bench) -> Section:
    """Both targets in the same rounds, at two widths and every T."""
    header = ["network", "ms (quartiles)", "over stream", "over T × convolutions"]
    section = Section("stream against a loop with masks, and against its arithmetic floor", header)
    for width, (ch, batch) in (("wide", bench.plan.wide), ("narrow", bench.plan.narrow)):
        for bits in bench.plan.stream_bits:
            _stream_rows(bench, section, width, ch, batch, bits)
    section.note = (
        "The quicker of the loops measured is the baseline. stream runs with its defaults (running norm, bounded "
        "neuron), the loops with the published norm and neuron; stream with those, and the loop that takes the whole "
        "network step by step, are measured at the smallest T only."
    )
    return section


def _stream_rows(bench: Bench, section: Section, width: str, ch: int, batch: int, bits: int) -> None:
    ann = make_ann(bench, ch, bits)
    x, t = inputs(bench, ann, batch)
    published = make_snn(bench, ch, bits, PUBLISHED)
    jobs = {
        FLOOR: convolutions(ann, x, t),
        OURS: call(make_snn(bench, ch, bits, STREAM), x, t),
        LAYERWISE: call(MaskedDenoiser(published), x, t),
    }
    loops = [LAYERWISE]
    if bits == min(bench.plan.stream_bits):
        jobs[OURS_PUBLISHED] = call(published, x, t)
        jobs[STEPWISE] = call(MaskedDenoiser(published, whole_window=False), x, t)
        loops.append(STEPWISE)
    times, steps = bench.time(jobs), window(bits)
    for name in jobs:
        floor = None if name == FLOOR else str(times.ratio(name, FLOOR, steps))
        section.rows.append([f"ch {ch}, batch {batch}, T = {steps}: {name}", *times.row(name, OURS), floor])
    loop = min(loops, key=lambda name: times.spread(name).median)
    label = f"T = {steps}"
    section.cases.setdefault(f"masked_{width}", []).append(Case.of(label, times.ratio(loop, OURS)))
    section.cases.setdefault(f"floor_{width}", []).append(Case.of(label, times.ratio(OURS, FLOOR, steps)))


def settle(bench: Bench) -> Section:
    """What running on until nothing fires costs, against the steps it takes."""
    header = ["network", "T", "settling steps", "stream, ms", "settling, ms", "ratio", "allowed"]
    section = Section("stream that settles by itself", header)
    for width, (ch, batch) in (("wide", bench.plan.wide), ("narrow", bench.plan.narrow)):
        for bits in bench.plan.settle_bits:
            plain, auto = make_snn(bench, ch, bits, STREAM), make_snn(bench, ch, bits, AUTO)
            x, t = inputs(bench, plain, batch)
            times = bench.time({"plain": call(plain, x, t), "auto": call(auto, x, t)})
            steps, ratio = window(bits), times.ratio("auto", "plain")
            allowed = (steps + auto.last_settle_steps + 1) / steps  # the last step is the silent one
            cells = [f"ch {ch}, batch {batch}", steps, auto.last_settle_steps, *times.row("plain"), *times.row("auto")]
            section.rows.append([*cells, str(ratio), allowed])
            case = Case.of(f"T = {steps}, {auto.last_settle_steps} settling steps", ratio, allowed)
            section.cases.setdefault(f"settle_{width}", []).append(case)
    return section
