"""`if_gradient` for CUDA, a neuron's L steps in registers. Not run on a GPU yet: tested under Triton's interpreter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import device_of
from .layout import laid_out_as, steps_outermost
from .torch_ref import IFRule

BLOCK = 512


@triton.jit
def _single_step(v, n, theta, window, SIGNED: tl.constexpr):
    """One spike at most: s_l, and k_l as it is kept."""
    near = tl.div_rn(v, theta)
    room = n < window
    spike = tl.where(room & (v >= theta), 1.0, 0.0)
    slope = tl.where(room & (tl.abs(near - 1) <= 0.5), 1.0, 0.0)
    if SIGNED:
        spike -= tl.where((n > 0) & (v < 0), 1.0, 0.0)
        slope += tl.where((n > 0) & (tl.abs(near) <= 0.5), 1.0, 0.0)
    return spike, slope


@triton.jit
def _clip(x, low, high):
    """`where` hands NaN on, as torch's clamp does."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _burst_step(v, n, theta, window, burst, SIGNED: tl.constexpr):
    near = tl.div_rn(v, theta)
    high = burst + 0.0
    low = -high if SIGNED else 0.0
    top = window + 0.0
    spike = _clip(n + _clip(tl.floor(near), low, high), 0.0, top) - n
    ramp = near - 0.5
    reached = n + _clip(ramp, low, high)
    free = (reached > 0) & (reached < top)
    within = free & (ramp > low) & (ramp < high)
    return spike, tl.where(within, 1.0, tl.where(free, 0.0, -1.0))


@triton.jit
def _forward(
    current_ptr, membrane_ptr, count_ptr, theta_ptr, events_ptr, slopes_ptr, after_ptr, counted_ptr,
    size, steps, single, window, burst, inner, thetas, SIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    theta = tl.load(theta_ptr + at // inner % thetas, mask=inside, other=1.0)
    v = tl.load(membrane_ptr + at, mask=inside, other=0.0)
    n = tl.load(count_ptr + at, mask=inside, other=0.0).to(tl.float32)
    row = at
    for step in range(steps):
        v += tl.load(current_ptr + row, mask=inside, other=0.0).to(tl.float32)
        if step < single:
            spike, slope = _single_step(v, n, theta, window, SIGNED)
        else:
            spike, slope = _burst_step(v, n, theta, window, burst, SIGNED)
        tl.store(events_ptr + row, spike, mask=inside)
        tl.store(slopes_ptr + row, slope.to(tl.int8), mask=inside)
        n += spike
        v -= spike * theta
        row += size
    tl.store(after_ptr + at, v, mask=inside)
    tl.store(counted_ptr + at, n, mask=inside)


@triton.jit
def _backward(
    slopes_ptr, theta_ptr, current_ptr, membrane_ptr, after_ptr, by_events_ptr, by_after_ptr, by_counted_ptr,
    by_current_ptr, by_membrane_ptr, by_count_ptr, by_theta_ptr, size, steps, last, inner, thetas,
    EVENTS: tl.constexpr, AFTER: tl.constexpr, COUNTED: tl.constexpr,
    MEMBRANE: tl.constexpr, COUNT: tl.constexpr, THETA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """EVENTS, AFTER, COUNTED: whether there is such a gradient, else it is 0. MEMBRANE, COUNT, THETA: which are wanted.

    last: from the first step to the last in memory.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    theta = tl.load(theta_ptr + at // inner % thetas, mask=inside, other=1.0)
    v, c = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if AFTER:
        v = tl.load(by_after_ptr + at, mask=inside, other=0.0)
    if COUNTED:
        c = tl.load(by_counted_ptr + at, mask=inside, other=0.0)
    by_theta = tl.zeros([BLOCK], tl.float32)
    if THETA:
        by_theta = v * tl.load(after_ptr + at, mask=inside, other=0.0)
    row = at + last
    for _ in range(steps):
        k = tl.load(slopes_ptr + row, mask=inside, other=0).to(tl.float32)
        g = c
        if EVENTS:
            g = c + tl.load(by_events_ptr + row, mask=inside, other=0.0)
        c = tl.where(k < 0, c - (g - v * theta), c)
        k = tl.maximum(k, 0.0)
        v = (1 - k) * v + k * tl.div_rn(g, theta)
        tl.store(by_current_ptr + row, v.to(by_current_ptr.dtype.element_ty), mask=inside)
        if THETA:
            by_theta -= v * tl.load(current_ptr + row, mask=inside, other=0.0).to(tl.float32)
        row -= size
    if MEMBRANE:
        tl.store(by_membrane_ptr + at, v, mask=inside)
    if COUNT:
        tl.store(by_count_ptr + at, c, mask=inside)
    if THETA:
        by_theta -= v * tl.load(membrane_ptr + at, mask=inside, other=0.0)
        tl.store(by_theta_ptr + at, tl.div_rn(by_theta, theta), mask=inside)


class BoundedScan(torch.autograd.Function):
    """`if_gradient._Scan`, which says what is kept; membrane and theta in float32, and with them all that comes out."""

    @staticmethod
    def forward(
        ctx, current: Tensor, membrane: Tensor, count: Tensor, theta: Tensor, rule: IFRule, window: int, single: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        current = steps_outermost(current)
        events = torch.empty_like(current, dtype=torch.float32)
        slopes = torch.empty_like(current, dtype=torch.int8)
        after, counted = torch.empty_like(events[0]), torch.empty_like(events[0])
        membrane, count = laid_out_as(membrane, after), laid_out_as(count, after)
        values, places = _places(theta, after)
        with device_of(current):
            _forward[_programs(after)](
                current, membrane, count, values, events, slopes, after, counted,
                after.numel(), len(current), single, window, rule.burst, *places,
                SIGNED=rule.signed, BLOCK=BLOCK, enable_fp_fusion=False,
            )  # fmt: skip
        kept = (current, membrane, after) if ctx.needs_input_grad[3] else ()
        ctx.save_for_backward(slopes, theta, *kept)
        ctx.kind = current.dtype
        ctx.set_materialize_grads(False)
        return events, after, counted

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        slopes, theta, *kept = ctx.saved_tensors
        current, membrane, after = kept or (None, None, None)
        like = torch.empty_like(slopes[0], dtype=torch.float32)
        given = [g if g is None else laid_out_as(g, x) for g, x in zip(gradients, (slopes, like, like), strict=True)]
        by_current = torch.empty_like(slopes, dtype=ctx.kind)
        wanted = [torch.empty_like(like) if wants else None for wants in ctx.needs_input_grad[1:4]]
        values, places = _places(theta, like)
        with device_of(slopes):
            _backward[_programs(like)](
                slopes, values, current, membrane, after, *given, by_current, *wanted,
                like.numel(), len(slopes), like.numel() * (len(slopes) - 1), *places,
                **{name: g is not None for name, g in zip(("EVENTS", "AFTER", "COUNTED"), given, strict=True)},
                **{name: g is not None for name, g in zip(("MEMBRANE", "COUNT", "THETA"), wanted, strict=True)},
                BLOCK=BLOCK, enable_fp_fusion=False,
            )  # fmt: skip
        by_membrane, by_count, by_theta = wanted
        by_theta = None if by_theta is None else by_theta.sum_to_size(theta.shape)
        return by_current, by_membrane, by_count, by_theta, None, None, None


def _places(theta: Tensor, like: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(values, (inner, thetas)): the i-th of `like` [N, *S], as dense memory has it, has values[i // inner % thetas].

    Raises RuntimeError where θ is not broadcastable to `like`.
    """
    everywhere = theta.expand(like.shape)
    varying = [dim for dim, stride in enumerate(everywhere.stride()) if stride and like.shape[dim] > 1]
    if len(varying) > 1:
        return laid_out_as(everywhere, like), (1, like.numel())
    inner = like.stride(varying[0]) if varying else 1
    return theta.contiguous(), (inner, theta.numel())


def _programs(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)
