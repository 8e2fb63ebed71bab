"""The quantizer of activations and its straight-through gradients, in one pass each way where Triton runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .choice import runs_triton

Quantizer = Callable[[Tensor, Tensor, int], Tensor]


def fake_quant(x: Tensor, alpha: Tensor, bits: int, reference: Quantizer) -> Tensor:
    """reference(x, alpha, bits), where `reference` is `uniform_quantize`: specification, and what else runs.

    x: any shape, memory format and type, all kept; alpha: positive clip, 0-dim. Triton's values and its gradient in x
    are the same to the last bit; alpha's gradient is a sum in another order.
    """
    if _is_scale(alpha) and 2 <= bits <= 8 and runs_triton("triton_quant", x, alpha):
        from .triton_quant import FakeQuant

        return FakeQuant.apply(x, alpha, 2**bits - 1)
    return reference(x, alpha, bits)


def _is_scale(alpha: Tensor | float) -> bool:
    return isinstance(alpha, Tensor) and alpha.dim() == 0 and alpha.dtype == torch.float32
