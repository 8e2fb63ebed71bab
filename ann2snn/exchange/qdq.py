"""Quantizers and weights as QuantizeLinear and DequantizeLinear of ONNX, which compilers for integer hardware read.

QuantizeLinear rounds half to even; quantizers of this program, and thresholds, half up. So Floor and Clip find the
level first, and QuantizeLinear is given what it is worth, which has that level however halves are rounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..config import require
from ..kernels import along
from ..neurons import IFNeuron
from .plain import Quantizer, plain

MOST = 127  # of a weight's levels


class QDQQuantizer(Quantizer):
    """The levels go through a pair of nodes with the quantizer's own scale.

    Raises UserError for levels that eight bits do not hold, and for inputs that are not in single precision.
    """

    zero: Tensor

    def __init__(self, neuron: IFNeuron) -> None:
        super().__init__(neuron)
        self.integers = torch.int8 if -128 <= self.lo < 0 and self.hi <= 127 else torch.uint8
        zero = -self.lo if self.lo < 0 and self.integers == torch.uint8 else 0
        require(self.hi + zero < 256, f"levels {self.lo} to {self.hi} are more than 8 bits hold, and so than ONNX's")
        self.register_buffer("zero", torch.full_like(self.worth, zero, dtype=self.integers))

    def answered(self, level: Tensor) -> Tensor:
        value, worth = super().answered(level), along(self.worth, self.axis, level.dim())
        dtype = str(value.dtype).removeprefix("torch.")
        require(dtype == "float32", f"a quantizer answers in {dtype}: ONNX's are of float32, so call .float() first")
        wide = [axis - worth.dim() for axis, length in enumerate(worth.shape) if length > 1]
        require(len(wide) < 2, f"steps of shape {list(worth.shape)}: ONNX has one for a tensor or a channel")
        axis = level.dim() + wide[0] if wide else None
        scale, zero = ((value.flatten() if wide else value.reshape(())) for value in (self.worth, self.zero))
        return _linear("DequantizeLinear", _linear("QuantizeLinear", value, scale, zero, axis), scale, zero, axis)


class Weight(nn.Module):
    """The numbers of a weight, int8 → the weight, float32."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros((), dtype=torch.int8))

    def forward(self, levels: Tensor) -> Tensor:
        return _linear("DequantizeLinear", levels, self.scale, self.zero, None)


def _linear(name: str, x: Tensor, scale: Tensor, zero: Tensor, axis: int | None) -> Tensor:
    """A node of ONNX. axis: of the scales, where there are several."""
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    dtype = zero.dtype if name == "QuantizeLinear" else scale.dtype
    return torch.onnx.ops.symbolic(name, (x, scale, zero), attributes, dtype=dtype, shape=x.shape)


@torch.no_grad()
def with_qdq(net: nn.Module) -> nn.Module:
    """`plain` with pairs of nodes for quantizers, and with one for each weight that few numbers are, exactly."""
    quantized = [module for module in net.modules() if hasattr(module, "quantized_weight")]
    net = plain(net, QDQQuantizer)
    for layer in quantized:
        integers = whole_numbers(layer.get_parameter("weight"))
        if integers is not None:
            levels, scale = integers
            parametrize.register_parametrization(layer, "weight", Weight(scale), unsafe=True)
            integer_weight = nn.Parameter(levels, requires_grad=False)
            layer.get_submodule("parametrizations.weight").register_parameter("original", integer_weight)
    return net


def whole_numbers(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """(int8, scale []) whose product is the weight, float32, to the last bit; None where there is none."""
    magnitudes = weight.abs().unique()
    positive = magnitudes[magnitudes > 0]
    if weight.dtype != torch.float32 or not 0 < len(positive) <= MOST:
        return None
    for most in range(len(positive), MOST + 1):  # the largest weight's number
        scale = positive[-1] / most
        levels = torch.round(positive / scale)
        if torch.equal(levels * scale, positive):
            return torch.round(weight / scale).to(torch.int8), scale
    return None
