"""`norm_follow` for CUDA, a program for each group of a sample, which it keeps in registers.

Not run on a GPU yet: tested under Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .choice import device_of
from .follow import Neurons, Pace
from .layout import laid_out_as, steps_outermost
from .norm import NormRule


@triton.jit
def _places(groups, width, pixels, stride_n, stride_c, stride_p, CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr):
    """This program's group: offsets, channels and whether there is such a value, [BLOCK] each, in memory order."""
    sample, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    value = tl.arange(0, BLOCK)
    if CHANNELS_INNER:
        channel, pixel = value % width, value // width
    else:
        channel, pixel = value // pixels, value % pixels
    channel += group * width
    at = sample * stride_n + channel.to(tl.int64) * stride_c + pixel * stride_p
    return at, channel, value < width * pixels


@triton.jit
def _normalized(x, inside, size, eps, weight, bias):
    """GroupNorm of the values `inside`, [BLOCK]; `size` of them."""
    mean = tl.sum(tl.where(inside, x, 0.0), axis=0) / size
    deviation = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(deviation * deviation, axis=0) / size
    return deviation * (1 / tl.sqrt(variance + eps)) * weight + bias


@triton.jit
def _per_channel(ptr, channel, inside, STRIDE: tl.constexpr):
    """The value of each channel, [BLOCK]; 1 where there is none. STRIDE 0: one for all."""
    return tl.load(ptr + channel * STRIDE, mask=inside, other=1.0)


@triton.jit
def _clip(x, low, high):
    """`where` hands NaN on, as torch's clamp does; plain minima and maxima drop it."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _follow(
    x_ptr, answers_ptr, level_ptr, weight_ptr, bias_ptr, scale_ptr, charge_ptr, worth_ptr, shares_ptr, most_ptr,
    steps, low, high, zero, eps, groups, width, pixels, stride_l, stride_n, stride_c, stride_p,
    SCALE: tl.constexpr, CHARGE: tl.constexpr, WORTH: tl.constexpr, TAKES_BACK: tl.constexpr, BYTES: tl.constexpr,
    KEEPS: tl.constexpr, CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The level follows its target step by step, as in `norm_follow_reference`. most: of each step's events."""
    at, channel, inside = _places(groups, width, pixels, stride_n, stride_c, stride_p, CHANNELS_INNER, BLOCK)
    weight, bias = _per_channel(weight_ptr, channel, inside, 1), _per_channel(bias_ptr, channel, inside, 1)
    scale, charge = _per_channel(scale_ptr, channel, inside, SCALE), _per_channel(charge_ptr, channel, inside, CHARGE)
    worth = _per_channel(worth_ptr, channel, inside, WORTH)
    level = tl.zeros([BLOCK], tl.float32) + tl.minimum(tl.maximum(low, 0.0), high)
    if KEEPS:
        level = tl.load(level_ptr + at, mask=inside, other=0.0)
    row = at
    for step in range(steps):
        share, most = tl.load(shares_ptr + step), tl.load(most_ptr + step)
        x = tl.load(x_ptr + row, mask=inside, other=0.0).to(tl.float32)
        target = tl.floor(_normalized(x, inside, width * pixels, eps, weight, bias) * (scale * share) + charge)
        event = _clip(_clip(target, low, high) - level, -most if TAKES_BACK else 0.0, most)
        level += tl.where(event == event, event, 0.0)
        if BYTES:
            tl.store(answers_ptr + row, level + zero, mask=inside)
        else:
            answer = tl.where(event == event, level, event) * tl.div_rn(worth, share)
            tl.store(answers_ptr + row, answer, mask=inside)
        row += stride_l
    if KEEPS:
        tl.store(level_ptr + at, level, mask=inside)


def norm_follow(
    x: Tensor, norm: NormRule, level: Tensor | None, neurons: Neurons, paces: Sequence[Pace], as_bytes: bool
) -> Tensor:
    """See `norm.norm_follow`, which has checked that this can be done."""
    x, levels = steps_outermost(_pixels_in_line(x)), neurons.levels
    answers = torch.empty_like(x, dtype=torch.uint8 if as_bytes else torch.float32)
    state = None if level is None else laid_out_as(level, torch.empty_like(x[0], dtype=torch.float32))
    half = torch.full_like(levels.step, 0.5) if neurons.charge is None else neurons.charge
    scale, charge, worth = (value.contiguous() for value in (levels.per_unit, half, neurons.worth))
    shares = torch.tensor([pace.share for pace in paces], dtype=torch.float32, device=x.device)
    most = [float("inf") if pace.most is None else pace.most for pace in paces]
    grid, places = _plan(x[0], norm)
    with device_of(x):
        _follow[grid](
            x, answers, state, norm.weight.contiguous(), norm.bias.contiguous(), scale, charge, worth, shares,
            torch.tensor(most, dtype=torch.float32, device=x.device), len(x), float(levels.lo), float(levels.hi),
            float(-levels.lo), norm.eps, stride_l=x[0].numel(), SCALE=_stride(scale), CHARGE=_stride(charge),
            WORTH=_stride(worth), TAKES_BACK=neurons.takes_back, BYTES=as_bytes, KEEPS=level is not None,
            **places,
        )  # fmt: skip
    if state is not level:
        level.copy_(state)
    return answers


def _stride(value: Tensor) -> int:
    """From one channel's value to the next."""
    return int(value.dim() > 0)


def _pixels_in_line(x: Tensor) -> Tensor:
    """x [..., H, W] whose pixels, rows after rows, are equally far apart in memory; a copy where they are not."""
    height, width = x.shape[-2:]
    return x if min(height, width) == 1 or x.stride(-2) == width * x.stride(-1) else x.contiguous()


def _plan(x: Tensor, norm: NormRule) -> tuple[tuple[int], dict[str, object]]:
    """x [N, C, H, W], dense, pixels in line → one program per sample and group, and where each finds its values."""
    samples, channels, height, width = x.shape
    stride_n, stride_c, stride_h, stride_w = x.stride()
    stride_p = stride_w if width > 1 else stride_h
    per_group = channels // norm.groups
    block = triton.next_power_of_2(per_group * height * width)
    return (samples * norm.groups,), {
        **{"groups": norm.groups, "width": per_group, "pixels": height * width},
        **{"stride_n": stride_n, "stride_c": stride_c, "stride_p": stride_p, "CHANNELS_INNER": stride_c < stride_p},
        **{"BLOCK": block, "num_warps": min(max(block // 512, 4), 16), "enable_fp_fusion": False},
    }
