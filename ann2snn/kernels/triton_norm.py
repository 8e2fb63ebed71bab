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
from .norm import NormRule, NormState
from .torch_ref import IFRule, IFState


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
def _count(
    x_ptr, out_ptr, weight_ptr, bias_ptr, scale_ptr, charge_ptr, scale_stride, charge_stride, window, eps,
    groups, width, pixels, stride_n, stride_c, stride_p, CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, channel, inside = _places(groups, width, pixels, stride_n, stride_c, stride_p, CHANNELS_INNER, BLOCK)
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + channel * scale_stride, mask=inside, other=0.0)
    charge = tl.load(charge_ptr + channel * charge_stride, mask=inside, other=0.0)
    high, size = window + 0.0, width * pixels
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.floor(_normalized(x, inside, size, eps, weight, bias) * scale + charge)
    count = tl.where(count < 0, 0.0, tl.where(count > high, high, count))
    tl.store(out_ptr + at, count, mask=inside)


@triton.jit
def _scan(
    x_ptr, spikes_ptr, total_ptr, emitted_ptr, charge_ptr, count_ptr, weight_ptr, bias_ptr, theta_ptr, theta_stride,
    steps, elapsed, window, eps, groups, width, pixels, stride_l, stride_n, stride_c, stride_p,
    SIGNED: tl.constexpr, BURST: tl.constexpr, CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The neuron by its total charge, as `torch_ref` runs it: its count follows the level that the charge reaches."""
    at, channel, inside = _places(groups, width, pixels, stride_n, stride_c, stride_p, CHANNELS_INNER, BLOCK)
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0)
    theta = tl.load(theta_ptr + channel * theta_stride, mask=inside, other=1.0)
    total = tl.load(total_ptr + at, mask=inside, other=0.0)
    emitted = tl.load(emitted_ptr + at, mask=inside, other=0.0)
    charge = tl.load(charge_ptr + at, mask=inside, other=0.0)
    count = tl.load(count_ptr + at, mask=inside, other=0.0)
    high, size = window + 0.0, width * pixels
    row = at
    for step in range(steps):
        total += tl.load(x_ptr + row, mask=inside, other=0.0).to(tl.float32)
        time = tl.minimum(elapsed + step + 1, window).to(tl.float32)
        now = _normalized(tl.div_rn(total, time), inside, size, eps, weight, bias) * time
        charge += now - emitted
        emitted = now
        level = tl.minimum(tl.maximum(tl.floor(tl.div_rn(charge, theta)), 0.0), high)
        most = tl.where(elapsed + step >= window - 1, BURST, 1).to(tl.float32)
        spike = tl.minimum(tl.maximum(level - count, -most if SIGNED else 0.0), most)
        tl.store(spikes_ptr + row, spike.to(tl.int8), mask=inside)
        count += spike
        row += stride_l
    tl.store(total_ptr + at, total, mask=inside)
    tl.store(emitted_ptr + at, emitted, mask=inside)
    tl.store(charge_ptr + at, charge, mask=inside)
    tl.store(count_ptr + at, count, mask=inside)


def norm_scan(
    x: Tensor,
    norm: NormRule,
    norm_state: NormState | None,
    theta: Tensor,
    rule: IFRule,
    neuron_state: IFState,
    spike_steps: int,
) -> tuple[Tensor, NormState]:
    """See `norm.norm_scan`, which has checked that this can be done."""
    x = steps_outermost(_pixels_in_line(x))
    first = torch.empty_like(x[0], dtype=torch.float32)
    spikes = torch.empty_like(x, dtype=torch.int8)
    if norm_state is None:
        state = NormState(torch.zeros_like(first), torch.zeros_like(first))
    else:
        state = NormState(laid_out_as(norm_state.total, first), laid_out_as(norm_state.emitted, first))
    charge = neuron_state.total
    if charge is None:
        charge = torch.addcmul(neuron_state.membrane, theta, neuron_state.count)
    neuron_state.total = charge = laid_out_as(charge, first)
    neuron_state.count = count = laid_out_as(neuron_state.count, first)
    grid, places = _plan(x[0], norm)
    with device_of(x):
        _scan[grid](
            x, spikes, state.total, state.emitted, charge, count,
            norm.weight.contiguous(), norm.bias.contiguous(), theta.contiguous(), int(theta.dim() > 0),
            len(x), neuron_state.steps, spike_steps, norm.eps, stride_l=x[0].numel(),
            SIGNED=rule.signed, BURST=rule.burst, **places,
        )  # fmt: skip
    neuron_state.membrane = torch.addcmul(charge, theta, count, value=-1)
    neuron_state.steps += len(x)
    return spikes, state


def norm_count(x: Tensor, norm: NormRule, theta: Tensor, spike_steps: int, charge: Tensor) -> Tensor:
    """See `norm.norm_count`, which has checked that this can be done."""
    x = dense(_pixels_in_line(x))
    counts = torch.empty_like(x, dtype=torch.float32)
    scale = spike_steps / theta.contiguous()
    grid, places = _plan(x, norm)
    with device_of(x):
        _count[grid](
            x, counts, norm.weight.contiguous(), norm.bias.contiguous(), scale, charge.contiguous(),
            int(scale.dim() > 0), int(charge.dim() > 0), spike_steps, norm.eps, **places,
        )  # fmt: skip
    return counts


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
