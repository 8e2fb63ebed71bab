"""Convolutions and linear layers with quantized weights.

At 32 bits they are the plain layers, parameter for parameter. Below, a learned clip `wgt_alpha` is added, and the
weights are normalized before they are quantized (weight normalization of Li et al. 2020, arXiv:1909.13144):

    w~ = (w - mean(w)) / std(w)            weight in use = quantize(w~; wgt_alpha)

with the mean and the unbiased standard deviation of the whole tensor. The output has the scale of w~, not of w: a
norm layer behind it, or retraining, is expected to absorb that. Where nothing behind the layer can (a residual
branch, a network's output), `keep_scale` multiplies the standard deviation back in, one factor per tensor.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .functional import (
    absmax_quantize,
    apot_quantize,
    positive_scale,
    ternary_quantize,
    uniform_quantize,
)
from .levels import FULL_PRECISION, check_bits, whole_levels

WGT_ALPHA_INIT = 3.0
# Keeps an all-equal tensor (zero-initialized layers) at 0 instead of 0 / 0; far below any deviation met in use.
MIN_STD = 1e-12


class _Standardize(torch.autograd.Function):
    """w → n = (w - mean(w)) / std and std, 0-dim and unbiased, at least `MIN_STD`.

    With N values, d std / dw = n / (N - 1), for upstream gradients g and h of n and std:

        dL/dw = (g - mean(g)) / std + n * (h - sum(g * n) / std) / (N - 1)

    A third of the passes that autograd makes of the same; where the minimum holds, std is a constant.
    """

    @staticmethod
    def forward(ctx, weight: Tensor) -> tuple[Tensor, Tensor]:
        measured_std = weight.std()
        std = measured_std.clamp_min(MIN_STD)
        normalized = (weight - weight.mean()).div_(std)
        ctx.save_for_backward(normalized, std, (measured_std >= MIN_STD).to(std))
        return normalized, std

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor, h: Tensor) -> Tensor:
        normalized, std, varies = ctx.saved_tensors
        slope = varies * (h - (g * normalized).sum() / std) / (g.numel() - 1)
        return (g - g.mean()).div_(std).addcmul_(normalized, slope)


@dataclass(frozen=True)
class Held:
    """A quantized weight that is kept; derived: what a layer makes of it, to be kept as long (None: not worth it)."""

    weight: Tensor
    derived: dict[str, Any] | None

    def __deepcopy__(self, memo: dict) -> None:
        """A copy of a layer is on its own: nobody keeps anything for it."""


# What the mixin is mixed into; in a running program it is a plain class.
if TYPE_CHECKING:
    _Layer = nn.Module
else:
    _Layer = object


class _QuantizedWeight(_Layer):
    """Mixin: `quantized_weight()` for a layer with a `weight`. Both layers share its options and rule."""

    weight: Tensor
    held: Held | None = None  # what `quantized_once` keeps

    def _init_quantizer(
        self, bits: int, power: bool, additive: bool, grad_scale: float | None, keep_scale: bool
    ) -> None:
        self.bits = check_bits(bits)
        self.power, self.additive, self.grad_scale, self.keep_scale = power, additive, grad_scale, keep_scale
        if bits == FULL_PRECISION:
            return
        if self.weight.numel() < 2:
            raise ValueError(f"a weight of {self.weight.numel()} value(s) has no standard deviation: use bits=32")
        self.wgt_alpha = nn.Parameter(self.weight.new_tensor(WGT_ALPHA_INIT))

    def quantized_weight(self) -> Tensor:
        """The weight the layer computes with, of `weight`'s shape; `weight` itself at 32 bits.

        2 bits: {-1, 0, 1} * alpha, whatever `power` says. Else uniform, or (additive) powers of two with `power`.
        Gradients reach `weight` and `wgt_alpha`.
        """
        if self.bits == FULL_PRECISION:
            return self.weight
        if self.held is not None:
            return self.held.weight
        normalized, std = _Standardize.apply(self.weight)
        weight = self._quantize(normalized)
        return weight * std if self.keep_scale else weight

    def _quantize(self, weight: Tensor) -> Tensor:
        alpha = positive_scale(self.wgt_alpha)
        if self.bits == 2:
            return ternary_quantize(weight, alpha, grad_scale=self.grad_scale)
        if self.power:
            magnitude_bits = self.bits - 1
            return apot_quantize(
                weight, alpha, magnitude_bits, signed=True, additive=self.additive, grad_scale=self.grad_scale
            )
        return uniform_quantize(weight, alpha, self.bits, signed=True, grad_scale=self.grad_scale)

    @torch.no_grad()
    def whole_weight(self) -> tuple[Tensor, Tensor] | None:
        """`quantized_weight()` as (whole numbers, a float of `weight`'s shape; step []), whose product it is.

        None where its levels are no multiples of one step.
        """
        levels = None if self.bits == FULL_PRECISION else whole_levels(self.bits, self.power, self.additive)
        if levels is None:
            return None
        step = positive_scale(self.wgt_alpha) / float(levels)  # plain powers need integers beyond 64 bits
        if self.keep_scale:
            step = step * _Standardize.apply(self.weight)[1]
        return torch.round(self.quantized_weight() / step), step

    def extra_repr(self) -> str:
        """The plain layer's description and the bits."""
        kind = "" if self.bits <= 2 or self.bits == FULL_PRECISION else f", power={self.power}"
        return f"{super().extra_repr()}, bits={self.bits}{kind}"


@contextlib.contextmanager
def quantized_once(net: nn.Module, many: bool = True) -> Iterator[None]:
    """Inside the context the layers of `net` quantize their weights once, not at every call.

    For calls of a network that does not change: weights that are changed inside are not noticed, and no gradient
    reaches them. many: enough calls for layers to prepare more than the weights, at the price of about one.
    """
    layers = [module for module in net.modules() if isinstance(module, _QuantizedWeight)]
    layers = [layer for layer in layers if layer.bits != FULL_PRECISION and layer.held is None]
    try:
        for layer in layers:
            with torch.no_grad():
                layer.held = Held(layer.quantized_weight(), {} if many else None)
        yield
    finally:
        for layer in layers:
            layer.held = None


class QuantConv2d(_QuantizedWeight, nn.Conv2d):
    """`torch.nn.Conv2d` whose weights are quantized, see the module docstring. The bias is not.

    Shape: [N, C_in, H, W] → [N, C_out, H', W'].

    Args:
        *args, **kwargs: of `torch.nn.Conv2d`.
        bits: 2..8, the sign included, or 32.
        power: (additive) powers of two instead of uniform levels; no effect at 2 bits.
        additive: sums of powers of two instead of plain powers.
        grad_scale: factor on the gradient of `wgt_alpha`, see `ann2snn.quant.functional.lsq_gradient_scale`.
        keep_scale: give the quantized weight the standard deviation of `weight` instead of 1.
    Raises:
        ValueError: bits not in 2..8 or 32; fewer than 2 weights to quantize.
    """

    def __init__(
        self,
        *args,
        bits: int = 32,
        power: bool = False,
        additive: bool = True,
        grad_scale: float | None = None,
        keep_scale: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._init_quantizer(bits, power, additive, grad_scale, keep_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.quantized_weight(), self.bias)


class QuantLinear(_QuantizedWeight, nn.Linear):
    """`torch.nn.Linear` whose weights are quantized, see the module docstring. The bias is not.

    Shape: [..., in_features] → [..., out_features]. Arguments and errors: as `QuantConv2d`.
    """

    def __init__(
        self,
        *args,
        bits: int = 32,
        power: bool = False,
        additive: bool = True,
        grad_scale: float | None = None,
        keep_scale: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._init_quantizer(bits, power, additive, grad_scale, keep_scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantized_weight(), self.bias)


class FirstConv2d(nn.Conv2d):
    """First convolution of a quantized network: 8-bit weights, scale max |w| / 127, nothing learned but the weights.

    Shape and arguments: as `torch.nn.Conv2d`.
    """

    def quantized_weight(self) -> Tensor:
        """The weight on the 8-bit grid; its gradient passes unchanged to `weight`."""
        return absmax_quantize(self.weight, bits=8)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.quantized_weight(), self.bias)


class LastLinear(nn.Linear):
    """Last layer of a quantized network: 8-bit weights, scale max |w| / 127.

    Shape and arguments: as `torch.nn.Linear`.
    """

    def quantized_weight(self) -> Tensor:
        """The weight on the 8-bit grid; its gradient passes unchanged to `weight`."""
        return absmax_quantize(self.weight, bits=8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantized_weight(), self.bias)
