"""What quantized weights cost beyond plain ones, where each call quantizes them and where a sampler does once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ann2snn.quant import quantized_once

from .networks import inputs, make_ann
from .results import Bench, Section

BITS = 2  # of the activations
WEIGHTS: dict[str, dict[str, object]] = {  # fields of `UNetConfig`
    "4 bits, APoT": {"weight_bits": 4},
    "8 bits, uniform": {"weight_bits": 8, "weight_quant": "uniform"},
}
PLAIN = "plain weights"


def weights(bench: Bench) -> Section:
    """Several calls of the quantized ANN."""
    (ch, batch), count = bench.plan.wide, bench.plan.sampler_steps
    plain = make_ann(bench, ch, BITS)
    x, t = inputs(bench, plain, batch)
    jobs = {PLAIN: _calls(plain, x, t, count, once=True)}
    for name, options in WEIGHTS.items():
        net = make_ann(bench, ch, BITS, **options)
        jobs[f"{name}, quantized in every call"] = _calls(net, x, t, count, once=False)
        jobs[f"{name}, quantized once"] = _calls(net, x, t, count, once=True)
    times = bench.time(jobs)
    title = f"Quantized weights, {count} calls of the {BITS}-bit ANN, ch {ch}, batch {batch}"
    return Section(
        title, ["weights", "ms (quartiles)", "over plain weights"], [[name, *times.row(name, PLAIN)] for name in jobs]
    )


def _calls(net: nn.Module, x: Tensor, t: Tensor, count: int, once: bool) -> Callable[[], None]:
    def job() -> None:
        with torch.inference_mode(), quantized_once(net) if once else contextlib.nullcontext():
            for _ in range(count):
                net(x, t)

    return job
