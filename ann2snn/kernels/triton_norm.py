"""`norm_scan` and `norm_count` for CUDA, a program for each group of a sample, which it keeps in registers.

Not run on a GPU yet: tested under Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .choice import device_of
from .layout import dense, laid_out_as, steps_outermost
from .norm import Firing, NormIFState, NormRule
from .torch_ref import IFRule


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
def _count(
    x_ptr, out_ptr, weight_ptr, bias_ptr, scale_ptr, charge_ptr, size_ptr, zero, window, eps,
    groups, width, pixels, stride_n, stride_c, stride_p,
    SCALE: tl.constexpr, CHARGE: tl.constexpr, SIZE: tl.constexpr, CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, channel, inside = _places(groups, width, pixels, stride_n, stride_c, stride_p, CHANNELS_INNER, BLOCK)
    weight, bias = _per_channel(weight_ptr, channel, inside, 1), _per_channel(bias_ptr, channel, inside, 1)
    scale = _per_channel(scale_ptr, channel, inside, SCALE)
    charge = _per_channel(charge_ptr, channel, inside, CHARGE)
    high = window + 0.0
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.floor(_normalized(x, inside, width * pixels, eps, weight, bias) * scale + charge)
    count = tl.where(count < 0, 0.0, tl.where(count > high, high, count))
    tl.store(out_ptr + at, count * _per_channel(size_ptr, channel, inside, SIZE) + zero, mask=inside)


@triton.jit
def _scan(
    x_ptr, events_ptr, total_ptr, count_ptr, weight_ptr, bias_ptr, theta_ptr, charge_ptr, size_ptr,
    zero, steps, elapsed, window, eps, groups, width, pixels, stride_l, stride_n, stride_c, stride_p,
    THETA: tl.constexpr, CHARGE: tl.constexpr, SIZE: tl.constexpr,
    SIGNED: tl.constexpr, BURST: tl.constexpr, CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The neuron's count follows the level that its total charge reaches, as in `norm_scan_reference`."""
    at, channel, inside = _places(groups, width, pixels, stride_n, stride_c, stride_p, CHANNELS_INNER, BLOCK)
    weight, bias = _per_channel(weight_ptr, channel, inside, 1), _per_channel(bias_ptr, channel, inside, 1)
    theta, charge = _per_channel(theta_ptr, channel, inside, THETA), _per_channel(charge_ptr, channel, inside, CHARGE)
    size = _per_channel(size_ptr, channel, inside, SIZE)
    total = tl.load(total_ptr + at, mask=inside, other=0.0)
    count = tl.load(count_ptr + at, mask=inside, other=0.0)
    high = window + 0.0
    row = at
    for step in range(steps):
        total += tl.load(x_ptr + row, mask=inside, other=0.0).to(tl.float32)
        time = tl.minimum(elapsed + step + 1, window).to(tl.float32)
        scale = tl.div_rn(time, theta)
        level = _normalized(total, inside, width * pixels, eps * time * time, weight * scale, bias * scale + charge)
        level = tl.minimum(tl.maximum(tl.floor(level), 0.0), high)
        most = tl.where(elapsed + step >= window - 1, BURST, 1).to(tl.float32)
        event = tl.minimum(tl.maximum(level - count, -most if SIGNED else 0.0), most)
        tl.store(events_ptr + row, event * size + zero, mask=inside)
        count += event
        row += stride_l
    tl.store(total_ptr + at, total, mask=inside)
    tl.store(count_ptr + at, count, mask=inside)


def norm_scan(x: Tensor, norm: NormRule, firing: Firing, rule: IFRule, state: NormIFState, spike_steps: int) -> Tensor:
    """See `norm.norm_scan`, which has checked that this can be done."""
    x = steps_outermost(_pixels_in_line(x))
    (size, zero, kind), first = _answer(firing), torch.empty_like(x[0], dtype=torch.float32)
    events = torch.empty_like(x, dtype=kind)
    state.total, state.count = laid_out_as(state.total, first), laid_out_as(state.count, first)
    theta, charge = firing.theta.contiguous(), firing.charge.contiguous()
    grid, places = _plan(x[0], norm)
    with device_of(x):
        _scan[grid](
            x, events, state.total, state.count, norm.weight.contiguous(), norm.bias.contiguous(), theta, charge, size,
            zero, len(x), state.steps, spike_steps, norm.eps, stride_l=x[0].numel(),
            THETA=_stride(theta), CHARGE=_stride(charge), SIZE=_stride(size),
            SIGNED=rule.signed, BURST=rule.burst, **places,
        )  # fmt: skip
    state.steps += len(x)
    return events


def norm_count(x: Tensor, norm: NormRule, firing: Firing, spike_steps: int) -> Tensor:
    """See `norm.norm_count`, which has checked that this can be done."""
    x = dense(_pixels_in_line(x))
    size, zero, kind = _answer(firing)
    counts = torch.empty_like(x, dtype=kind)
    scale, charge = (spike_steps / firing.theta).contiguous(), firing.charge.contiguous()
    grid, places = _plan(x, norm)
    with device_of(x):
        _count[grid](
            x, counts, norm.weight.contiguous(), norm.bias.contiguous(), scale, charge, size,
            zero, spike_steps, norm.eps, SCALE=_stride(scale), CHARGE=_stride(charge), SIZE=_stride(size), **places,
        )  # fmt: skip
    return counts


def _answer(firing: Firing) -> tuple[Tensor, float, torch.dtype]:
    """What a spike is multiplied with, what is added to that, and the type that holds it."""
    if firing.zero is None:
        return firing.size.contiguous(), 0.0, torch.float32
    return torch.ones_like(firing.size).contiguous(), float(firing.zero), torch.uint8


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
