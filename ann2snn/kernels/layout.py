"""Memory layouts that the Triton kernels can walk through; each function returns its argument where that has one."""

from __future__ import annotations

import torch
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """x without gaps or overlaps in memory, dimensions in any order; a contiguous copy where it has some."""
    is_dense = x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()
    return x if is_dense else x.contiguous()


def steps_outermost(x: Tensor) -> Tensor:
    """x [L, *S], dense, one time step after the other in memory."""
    x = dense(x)
    return x if len(x) == 1 or x.stride(0) == x[0].numel() else x.contiguous()


def laid_out_as(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory layout of `like`, a dense tensor of the same shape; its type stays."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)
