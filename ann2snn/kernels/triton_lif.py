"""`lif_scan` for CUDA, a program walks some neurons through their L steps.

Not run on a GPU yet: tested under Triton's interpreter, and compiled for sm_80 and sm_90.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import device_of
from .layout import laid_out_as, steps_outermost
from .lif_rule import LIFRule, lif_scan_reference

BLOCK = 512


@triton.jit
def _forward(
    current_ptr, spikes_ptr, u_ptr, size, steps, decay, threshold,
    STRICT: tl.constexpr, SOFT: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    decayed = tl.zeros([BLOCK], tl.float32)  # decay·v of the step before
    for _ in range(steps):
        u = decayed + tl.load(current_ptr + at, mask=inside, other=0.0).to(tl.float32)
        fired = (u > threshold) if STRICT else (u >= threshold)
        spike = tl.where(u == u, tl.where(fired, 1.0, 0.0), u)  # NaN is handed on
        tl.store(spikes_ptr + at, spike.to(spikes_ptr.dtype.element_ty), mask=inside)
        if KEEP:
            tl.store(u_ptr + at, u, mask=inside)
        after = (u - threshold) if SOFT else tl.zeros_like(u)
        decayed = tl.where(fired, after, u) * decay
        at += size


@triton.jit
def _slope(x, SURROGATE: tl.constexpr):
    """Derivative given to the step function at x = u − threshold."""
    if SURROGATE == "atan":
        steep = 1 / (1 + (3.141592653589793 * x) * (3.141592653589793 * x))
    elif SURROGATE == "arctan":
        steep = 1 / (1 + x * x)
    elif SURROGATE == "triangle":
        steep = tl.maximum(1 - 2 * tl.abs(x), 0.0)
    else:
        tl.static_assert(SURROGATE == "rectangle")
        steep = tl.where(tl.abs(x) < 0.5, 1.0, 0.0)
    return steep


@triton.jit
def _backward(
    u_ptr, gradient_ptr, out_ptr, size, last, steps, decay, threshold,
    STRICT: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr, SURROGATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """last: where the last step begins, a number of 64 bits where it does not fit into 32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    at += last
    later = tl.zeros([BLOCK], tl.float32)  # gradient of v_l
    for _ in range(steps):
        u = tl.load(u_ptr + at, mask=inside, other=0.0)
        g = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if not DETACH:
            g -= later * (threshold if SOFT else u)
        now = g * _slope(u - threshold, SURROGATE)
        if SOFT:
            now += later
        else:
            fired = (u > threshold) if STRICT else (u >= threshold)
            now += tl.where(fired, 0.0, later)
        tl.store(out_ptr + at, now.to(out_ptr.dtype.element_ty), mask=inside)
        later = decay * now
        at -= size


class LIFScan(torch.autograd.Function):
    """current [L, N, *S] → spikes of its type; keeps the potentials [L, N, *S], in float32, for the reverse."""

    @staticmethod
    def forward(ctx, current: Tensor, rule: LIFRule) -> Tensor:
        keep = current.requires_grad
        current = steps_outermost(current)
        spikes = torch.empty_like(current)
        u = torch.empty_like(current, dtype=torch.float32) if keep else None
        with device_of(current):
            _forward[_programs(current)](
                current, spikes, u, current[0].numel(), len(current), float(rule.decay), float(rule.threshold),
                STRICT=rule.strict, SOFT=rule.soft_reset, KEEP=keep, BLOCK=BLOCK, enable_fp_fusion=False,
            )  # fmt: skip
        if u is not None:
            ctx.save_for_backward(u)
        ctx.rule = rule
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (u,), rule = ctx.saved_tensors, ctx.rule
        gradient = laid_out_as(gradient, u)
        out, size = torch.empty_like(u, dtype=gradient.dtype), u[0].numel()
        with device_of(u):
            _backward[_programs(u)](
                u, gradient, out, size, size * (len(u) - 1), len(u), float(rule.decay), float(rule.threshold),
                STRICT=rule.strict, SOFT=rule.soft_reset, DETACH=rule.detach_reset, SURROGATE=rule.surrogate,
                BLOCK=BLOCK, enable_fp_fusion=False,
            )  # fmt: skip
        return out, None


def _programs(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x[0].numel(), BLOCK),)


def probe(device: torch.device) -> bool:
    """Whether spikes and gradients of a few neurons come out as torch's."""
    results = []
    for scan in (LIFScan.apply, lif_scan_reference):
        current = (torch.arange(24.0, device=device).view(4, 6) % 5 / 4).requires_grad_()
        spikes = scan(current, LIFRule(decay=0.8))
        (slope,) = torch.autograd.grad(spikes.cumsum(0).sum(), current)
        results.append((spikes.detach(), slope))
    (spikes, slope), (reference_spikes, reference_slope) = results
    return torch.equal(spikes, reference_spikes) and torch.allclose(slope, reference_slope, atol=1e-4)
