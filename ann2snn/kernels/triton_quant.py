"""`fake_quant` for CUDA.

Not run on a GPU yet: tested under Triton's interpreter, and compiled for sm_80 and sm_90.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import device_of
from .layout import dense, laid_out_as

BLOCK = 1024


@triton.jit
def _quantized(x, scale, step, levels):
    """y = k·step, k = clip(floor(x·scale + 1/2), 0, L); `where` hands NaN on, as torch's clamp does."""
    k = tl.floor(x * scale + 0.5)
    k = tl.where(k < 0, 0.0, tl.where(k > levels, levels + 0.0, k))
    return k * step


@triton.jit
def _forward(x_ptr, scale_ptr, step_ptr, y_ptr, size, levels, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = _quantized(x, tl.load(scale_ptr), tl.load(step_ptr), levels)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    x_ptr, alpha_ptr, scale_ptr, step_ptr, g_ptr, dx_ptr, part_ptr, size, levels, BLOCK: tl.constexpr
):  # fmt: skip
    """dx, and this program's part of alpha·dL/dalpha = Σ g_inside·(y − x) + Σ g_outside·y. y is computed once more."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = _quantized(x, tl.load(scale_ptr), tl.load(step_ptr), levels)
    y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
    # A NaN is neither below nor above, and lets the gradient through, as the gates of the reference do.
    g_inside = tl.where((x <= 0) | (tl.load(alpha_ptr) - x <= 0), 0.0, g)
    tl.store(dx_ptr + at, g_inside.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(part_ptr + tl.program_id(0), tl.sum((y - x) * g_inside + (g - g_inside) * y, axis=0))


class FakeQuant(torch.autograd.Function):
    """x any shape, alpha 0-dim, levels L → y like x. Keeps x, and three numbers."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor, levels: int) -> Tensor:
        x = dense(x)
        y = torch.empty_like(x)
        # By torch, whose rounding of a quotient differs between devices: levels must be those of a torch spike count.
        scale, step = levels / alpha, alpha / levels
        with device_of(x):
            _forward[_programs(x)](x, scale, step, y, x.numel(), levels, BLOCK=BLOCK, enable_fp_fusion=False)
        ctx.save_for_backward(x, alpha, scale, step)
        ctx.levels = levels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, alpha, scale, step = ctx.saved_tensors
        g, dx = laid_out_as(g, x), torch.empty_like(x)
        parts = x.new_empty(_programs(x), dtype=torch.float32)
        with device_of(x):
            _backward[_programs(x)](
                x, alpha, scale, step, g, dx, parts, x.numel(), ctx.levels, BLOCK=BLOCK, enable_fp_fusion=False
            )
        dalpha = parts.sum() / alpha if ctx.needs_input_grad[1] else None
        return dx if ctx.needs_input_grad[0] else None, dalpha, None


def _programs(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)


def probe(device: torch.device) -> bool:
    """Whether a few values, and their gradients, come out right."""
    x = torch.tensor([-1.0, 0.7, 2.0], device=device).requires_grad_()
    alpha = torch.ones((), device=device).requires_grad_()
    y = FakeQuant.apply(x, alpha, 2)
    by_x, by_alpha = torch.autograd.grad(y.sum(), (x, alpha))
    return y.tolist() == [0, 0.5, 1] and by_x.tolist() == [0, 1, 0] and abs(float(by_alpha) - 0.8) < 1e-6
