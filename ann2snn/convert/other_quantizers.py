"""Quantizers of torchao and brevitas, for those who use them: nothing is imported that is not there already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..config import require
from ..kernels import Levels


def read_brevitas(module: Any) -> Levels | None:
    """brevitas' activation proxy: y = (clip(round(f(x)/s + z), lo, hi) − z)·s with an activation f in front.

    Raises UserError for zero points that are no whole numbers, and for layers that hand out quantized tensors.
    """
    proxy = module.fused_activation_quant_proxy
    if proxy is None or not module.is_quant_enabled:
        return None
    for layer in module.tracked_module_list:
        packed = getattr(layer, "return_quant_tensor", False)
        require(not packed, "its layer answers with a QuantTensor: use return_quant_tensor=False")
    scale, zero, bits = module.scale().detach(), module.zero_point().detach(), int(module.bit_width())
    require(zero.numel() == 1 and bool(zero == zero.round()), f"its zero points are not one whole number: {zero}")
    narrow = int(bool(module.is_narrow_range))
    low, high = (narrow - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if module.is_signed else (0, 2**bits - 1 - narrow)

    def level(x: Tensor) -> Tensor:
        value, step, *_ = proxy.tensor_quant(x)
        return torch.round(value / step)

    per_channel = scale.numel() > 1
    step, axis = (scale.flatten(), 1) if per_channel else (scale.reshape(()), None)
    return Levels(step, low - int(zero), high - int(zero), before=proxy.activation_impl, level=level, axis=axis)


def late_readers(read_fake_quantize: Callable) -> Iterator[tuple[type[nn.Module], Callable]]:
    """(class, how to read it) of packages that have been imported by now. torchao's FakeQuantize is as torch's."""
    named = [
        ("brevitas.proxy.runtime_quant", "ActQuantProxyFromInjector", read_brevitas),
        ("torchao.quantization.pt2e.fake_quantize", "FakeQuantize", read_fake_quantize),
    ]
    for package, name, read in named:
        cls = getattr(sys.modules.get(package), name, None)
        if cls is not None:
            yield cls, read


def finds_its_range(module: nn.Module) -> bool:
    """Whether it is a quantizer that chooses its range anew from every input, which no neuron can have: torchao's."""
    cls = getattr(sys.modules.get("torchao.quantization.qat.fake_quantizer"), "FakeQuantizerBase", None)
    return cls is not None and isinstance(module, cls) and bool(getattr(module, "enabled", True))
