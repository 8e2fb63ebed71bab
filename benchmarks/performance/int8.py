"""Does an integer convolution on unit spikes pay? Events are −1, 0 or 1, so that 8-bit integers hold them exactly."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .results import Bench, Section

STEPS = 3
SHIFT = 1  # oneDNN takes unsigned values with a zero point


def int8(bench: Bench) -> Section:
    """A 3×3 convolution of T·N rows of spikes: fp32, and int8 with sums in int32 and results in fp32 (oneDNN).

    The weights are rounded to 8 bits, one scale per output channel: the last column is what that rounding does to the
    result. The integer arithmetic itself is exact.
    """
    title = "Convolution of spikes, fp32 against int8 with fp32 results"
    header = ["convolution", "ms (quartiles)", "over fp32", "error by 8-bit weights"]
    if bench.device.type != "cpu" or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        return Section(title, header, [["not measured: needs oneDNN's integer convolution on a CPU", None, None, None]])
    rows = []
    for ch, batch in (bench.plan.wide, bench.plan.narrow):
        for size in (32, 16):
            rows += _compare(bench, ch, STEPS * batch, size)
    return Section(title, header, rows)


def _compare(bench: Bench, ch: int, batch: int, size: int) -> list[list]:
    torch.manual_seed(0)
    spikes = torch.randint(-1, 2, (batch, ch, size, size)).float()
    weight, bias = torch.randn(ch, ch, 3, 3) / (9 * ch) ** 0.5, torch.randn(ch)
    scale = weight.abs().amax((1, 2, 3)) / 127
    integers = (weight / scale[:, None, None, None]).round().to(torch.int8)
    sides = [1, 1], [1, 1], [1, 1], 1  # stride, padding, dilation, groups
    packed = torch.ops.onednn.qconv_prepack(integers, scale, 1.0, SHIFT, *sides, list(spikes.shape))
    zeros = torch.zeros(ch, dtype=torch.int64)

    def convolve(events: Tensor) -> Tensor:
        output = (1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qconv2d_pointwise(events, 1.0, SHIFT, packed, scale, zeros, bias, *sides, *output)

    def encode() -> Tensor:
        return (spikes + SHIFT).to(torch.uint8).contiguous(memory_format=torch.channels_last)

    encoded = encode()
    exact = F.conv2d(spikes, weight, bias, padding=1)
    error = float((convolve(encoded) - exact).norm() / exact.norm())
    where = f"ch {ch}, {batch} rows, {size}×{size}"
    jobs = {
        f"{where}: fp32": lambda: F.conv2d(spikes, weight, bias, padding=1),
        f"{where}: int8": lambda: convolve(encoded),
        f"{where}: int8, fp32 in and out": lambda: convolve(encode()).contiguous(),
    }
    times = bench.time(jobs)
    return [[name, *times.row(name, f"{where}: fp32"), None if name.endswith("fp32") else error] for name in jobs]
