"""`norm_follow` for CUDA, a program for each group of a sample.

A group that fits into `TILE` values is kept in registers, with its levels, over all time steps; a larger one is read
tile by tile, twice a step, and its levels stay in memory. Not run on a GPU yet: tested under Triton's interpreter, and
compiled for sm_80 and sm_90.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .choice import device_of
from .follow import Levels, Neurons, Pace
from .layout import laid_out_as, steps_outermost
from .norm_rule import NormRule, norm_follow_reference

#: Values of a group that a program holds at a time: more would not fit into its registers.
TILE = 2048


@triton.jit
def _group(groups, width, stride_n, stride_c):
    """Where this program's group begins, which may be far into a tensor, and its first channel."""
    channel = tl.program_id(0) % groups * width
    return (tl.program_id(0) // groups).to(tl.int64) * stride_n + channel * stride_c, channel


@triton.jit
def _places(
    start, first_channel, width, pixels, stride_c, stride_p, CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Values `start` … of a group, in memory order: offset in it, channel, whether there is such a value, [BLOCK]."""
    value = start + tl.arange(0, BLOCK)
    if CHANNELS_INNER:
        channel, pixel = value % width, value // width
    else:
        channel, pixel = value // pixels, value % pixels
    return channel * stride_c + pixel * stride_p, first_channel + channel, value < width * pixels


@triton.jit
def _spread(x, inside, count):
    """(mean, sum of squared deviations from it) of the `count` values `inside`, [BLOCK]."""
    mean = tl.div_rn(tl.sum(tl.where(inside, x, 0.0), axis=0), count)
    deviation = tl.where(inside, x - mean, 0.0)
    return mean, tl.sum(deviation * deviation, axis=0)


@triton.jit
def _per_channel(ptr, channel, inside, STRIDE: tl.constexpr):
    """The value of each channel, [BLOCK], 1 where there is none; STRIDE 0: one number for all."""
    if STRIDE == 0:
        value = tl.load(ptr)
    else:
        value = tl.load(ptr + channel, mask=inside, other=1.0)
    return value


@triton.jit
def _clip(x, low, high):
    """`where` hands NaN on, as torch's clamp does; plain minima and maxima drop it."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _move(
    x, level, mean, variance, answers, channel, inside, weight_ptr, bias_ptr, scale_ptr, charge_ptr, worth_ptr,
    share, most, low, high, eps,
    SCALE: tl.constexpr, CHARGE: tl.constexpr, WORTH: tl.constexpr, TAKES_BACK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """The levels after a step [BLOCK], as in `norm_follow_reference`; writes what they answer."""
    weight, bias = _per_channel(weight_ptr, channel, inside, 1), _per_channel(bias_ptr, channel, inside, 1)
    current = (x - mean) * tl.div_rn(1.0, tl.sqrt_rn(variance + eps)) * weight + bias
    charge = 0.5 if charge_ptr is None else _per_channel(charge_ptr, channel, inside, CHARGE)
    target = tl.floor(current * (_per_channel(scale_ptr, channel, inside, SCALE) * share) + charge)
    event = _clip(_clip(target, low, high) - level, -most if TAKES_BACK else 0.0, most)
    is_number = event == event
    level += tl.where(is_number, event, 0.0)
    if BYTES:
        answer = level - low
    else:
        answer = tl.where(is_number, level * tl.div_rn(_per_channel(worth_ptr, channel, inside, WORTH), share), event)
    tl.store(answers, answer.to(answers.dtype.element_ty), mask=inside)
    return level


@triton.jit
def _in_registers(
    x_ptr, answers_ptr, level_ptr, weight_ptr, bias_ptr, scale_ptr, charge_ptr, worth_ptr, paces_ptr,
    steps, low, high, first, eps, groups, width, pixels, stride_l, stride_n, stride_c, stride_p,
    SCALE: tl.constexpr, CHARGE: tl.constexpr, WORTH: tl.constexpr, TAKES_BACK: tl.constexpr, BYTES: tl.constexpr,
    CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step by step the levels of a group follow their targets. first: the level at rest. paces: (share, most)."""
    base, start = _group(groups, width, stride_n, stride_c)
    at, channel, inside = _places(0, start, width, pixels, stride_c, stride_p, CHANNELS_INNER, BLOCK)
    level = tl.zeros([BLOCK], tl.float32) + first
    if level_ptr is not None:
        level = tl.load(level_ptr + base + at, mask=inside, other=0.0)
    size, row = width * pixels + 0.0, base
    for step in range(steps):
        share, most = tl.load(paces_ptr + 2 * step), tl.load(paces_ptr + 2 * step + 1)
        x = tl.load(x_ptr + row + at, mask=inside, other=0.0).to(tl.float32)
        mean, squares = _spread(x, inside, size)
        level = _move(
            x, level, mean, tl.div_rn(squares, size), answers_ptr + row + at, channel, inside,
            weight_ptr, bias_ptr, scale_ptr, charge_ptr, worth_ptr, share, most, low, high, eps,
            SCALE, CHARGE, WORTH, TAKES_BACK, BYTES,
        )  # fmt: skip
        row += stride_l
    if level_ptr is not None:
        tl.store(level_ptr + base + at, level, mask=inside)


@triton.jit
def _spread_of_tiles(
    x_ptr, channel, width, pixels, stride_c, stride_p, CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """(mean, variance) of the group at `x_ptr`.

    Means and squares of tiles join by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979.
    """
    mean, squares, size = 0.0, 0.0, width * pixels
    for start in range(0, size, BLOCK):
        at, _, inside = _places(start, channel, width, pixels, stride_c, stride_p, CHANNELS_INNER, BLOCK)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        count = tl.minimum(size - start, BLOCK).to(tl.float32)
        tile_mean, tile_squares = _spread(x, inside, count)
        part, apart = tl.div_rn(count, start + count), tile_mean - mean
        mean += apart * part
        squares += tile_squares + apart * apart * (start * part)
    return mean, tl.div_rn(squares, size + 0.0)


@triton.jit
def _in_tiles(
    x_ptr, answers_ptr, level_ptr, weight_ptr, bias_ptr, scale_ptr, charge_ptr, worth_ptr, paces_ptr,
    steps, low, high, first, eps, groups, width, pixels, stride_l, stride_n, stride_c, stride_p,
    SCALE: tl.constexpr, CHARGE: tl.constexpr, WORTH: tl.constexpr, TAKES_BACK: tl.constexpr, BYTES: tl.constexpr,
    CHANNELS_INNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As `_in_registers`, of a group that is larger."""
    row, first_channel = _group(groups, width, stride_n, stride_c)
    if level_ptr is not None:
        level_ptr += row
    for step in range(steps):
        share, most = tl.load(paces_ptr + 2 * step), tl.load(paces_ptr + 2 * step + 1)
        mean, variance = _spread_of_tiles(
            x_ptr + row, first_channel, width, pixels, stride_c, stride_p, CHANNELS_INNER, BLOCK
        )
        for start in range(0, width * pixels, BLOCK):
            at, channel, inside = _places(
                start, first_channel, width, pixels, stride_c, stride_p, CHANNELS_INNER, BLOCK
            )
            x = tl.load(x_ptr + row + at, mask=inside, other=0.0).to(tl.float32)
            level = tl.zeros([BLOCK], tl.float32) + first
            if level_ptr is not None:
                level = tl.load(level_ptr + at, mask=inside, other=0.0)
            level = _move(
                x, level, mean, variance, answers_ptr + row + at, channel, inside, weight_ptr, bias_ptr,
                scale_ptr, charge_ptr, worth_ptr, share, most, low, high, eps,
                SCALE, CHARGE, WORTH, TAKES_BACK, BYTES,
            )  # fmt: skip
            if level_ptr is not None:
                tl.store(level_ptr + at, level, mask=inside)
        tl.debug_barrier()  # the next step may read a level in another thread
        row += stride_l


def norm_follow(
    x: Tensor, norm: NormRule, level: Tensor | None, neurons: Neurons, paces: Sequence[Pace], dtype: torch.dtype
) -> Tensor:
    """See `norm.norm_follow`, which has checked that this can be done."""
    x, levels = steps_outermost(_pixels_in_line(x)), neurons.levels
    answers = torch.empty_like(x, dtype=dtype)
    state = None if level is None else laid_out_as(level, torch.empty_like(x[0], dtype=torch.float32))
    scale, worth = levels.per_unit.contiguous(), neurons.worth.contiguous()
    charge = None if neurons.charge is None else neurons.charge.contiguous()
    programs, places = _plan(x[0], norm)
    kernel = _in_tiles if places["width"] * places["pixels"] > places["BLOCK"] else _in_registers
    with device_of(x):
        kernel[programs](
            x, answers, state, norm.weight.contiguous(), norm.bias.contiguous(), scale, charge, worth,
            _on_device(tuple(paces), x.device), len(x), float(levels.lo), float(levels.hi), float(levels.start),
            float(norm.eps), stride_l=x[0].numel(), SCALE=_stride(scale), CHARGE=_stride(charge), WORTH=_stride(worth),
            TAKES_BACK=neurons.takes_back, BYTES=dtype == torch.uint8, **places,
        )  # fmt: skip
    if level is not None and state is not None and state is not level:
        level.copy_(state)
    return answers


@functools.lru_cache(maxsize=256)
def _on_device(paces: tuple[Pace, ...], device: torch.device) -> Tensor:
    """(share, most) of each step [L, 2]; kept, because to copy them makes the host wait for the device."""
    with torch.inference_mode(False):
        rows = [(pace.share, float("inf") if pace.most is None else pace.most) for pace in paces]
        return torch.tensor(rows, dtype=torch.float32, device=device)


def _stride(value: Tensor | None) -> int:
    """From one channel's value to the next."""
    return int(value is not None and value.dim() > 0)


def _pixels_in_line(x: Tensor) -> Tensor:
    """x [..., H, W] whose pixels, rows after rows, are equally far apart in memory; a copy where they are not."""
    height, width = x.shape[-2:]
    return x if min(height, width) == 1 or x.stride(-2) == width * x.stride(-1) else x.contiguous()


def _plan(x: Tensor, norm: NormRule) -> tuple[tuple[int], dict[str, int]]:
    """x [N, C, H, W], dense, pixels in line → one program per sample and group, and where each finds its values."""
    samples, channels, height, width = x.shape
    stride_n, stride_c, stride_h, stride_w = x.stride()
    stride_p = stride_w if width > 1 else stride_h
    per_group = channels // norm.groups
    block = min(triton.next_power_of_2(per_group * height * width), TILE)
    return (samples * norm.groups,), {
        "groups": norm.groups,
        "width": per_group,
        "pixels": height * width,
        "stride_n": stride_n,
        "stride_c": stride_c,
        "stride_p": stride_p,
        "CHANNELS_INNER": stride_c < stride_p,
        "BLOCK": block,
        "num_warps": warps_of(block),
        "enable_fp_fusion": False,
    }


def warps_of(block: int) -> int:
    return min(max(block // 256, 4), 16)


def probe(device: torch.device) -> bool:
    """Whether a group in registers and one in tiles come out as torch's."""
    norm = NormRule(2, torch.tensor([1.0, 2.0], device=device), torch.tensor([0.5, 1.0], device=device))
    neurons, paces = Neurons(Levels(torch.tensor(0.7, device=device), -1, 3)), (Pace(0.5, 1), Pace(1.0, 2))
    for pixels in (8, 2 * TILE):
        x = torch.arange(4 * pixels, device=device).float().view(2, 1, 2, pixels, 1) % 7
        levels = [torch.zeros_like(x[0]) for _ in range(2)]
        answers = norm_follow(x, norm, levels[0], neurons, paces, torch.float32)
        reference = norm_follow_reference(x, norm, levels[1], neurons, paces)
        if not torch.equal(levels[0], levels[1]) or not torch.allclose(answers, reference):
            return False
    return True
