"""A network as other runtimes can hold it: quantizers written out in common operations, quantized weights as numbers.

A converted network under `layer_sync` takes one pass from rest, in which each neuron answers
clip(⌊x/Δ + charge⌋, lo, hi) · Δ. That is a quantizer (charge is 1/2 unless fine-tuning has learned another), so it has
the graph of the quantized network that it was converted from; and a quantized network comes here converted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import along
from ..neurons import IFNeuron


class Quantizer(nn.Module):
    """What the neurons of a layer answer in one pass from rest, without a state: the same operations, bit for bit.

    Shape: any → the same. Its values are constants; `before` and `level` (see `kernels.Levels`) are as they were.
    """

    worth: Tensor
    per_unit: Tensor
    charge: Tensor
    offset: Tensor | None

    def __init__(self, neuron: IFNeuron) -> None:
        super().__init__()
        levels, step = neuron.levels, neuron.levels.step.detach()
        self.lo, self.hi, self.axis, self.before = levels.lo, levels.hi, levels.axis, levels.before
        self.level = levels.level if neuron.charge is None else None
        if self.before is not None or self.level is not None:
            self.quantizer = neuron.quantizer  # whose parameters they may read
        half = torch.full((), 0.5).to(step)
        self.register_buffer("worth", torch.ones_like(step) / neuron.clock.spike_steps if neuron.unit_events else step)
        self.register_buffer("per_unit", levels.per_unit.detach())
        self.register_buffer("charge", half if neuron.charge is None else neuron.charge.detach())
        self.register_buffer("offset", torch.as_tensor(levels.offset).to(step) if levels.has_offset else None)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        if self.before is not None:
            x = self.before(x)
        if x.dtype in (torch.bfloat16, torch.float16):  # which do not tell 200 from 200.5
            x = x.float()
        answer = self.answered(self.counted(x))
        offset = along(self.offset, self.axis, x.dim())
        return (answer if offset is None else answer + offset).to(dtype)

    def counted(self, x: Tensor) -> Tensor:
        """x → its levels, whole numbers as floats."""
        if self.level is not None:
            return self.level(x).to(x.dtype)
        offset = along(self.offset, self.axis, x.dim())
        counts = (x if offset is None else x - offset) * along(self.per_unit, self.axis, x.dim())
        return torch.clamp(torch.floor(counts + self.charge), self.lo, self.hi)

    def answered(self, level: Tensor) -> Tensor:
        """Levels → what they are worth."""
        return level * along(self.worth, self.axis, level.dim())


@torch.no_grad()
def plain(net: nn.Module, kind: type[Quantizer] = Quantizer) -> nn.Module:
    """`net`, the inside of a spiking network, with quantizers of `kind` for its neurons, and plain layers."""
    replacements: dict[nn.Module, nn.Module] = {}
    if isinstance(net, IFNeuron):
        return kind(net)
    for module in list(net.modules()):
        for name, child in module._modules.items():
            if isinstance(child, IFNeuron):
                module._modules[name] = replacements.setdefault(child, kind(child))
    for layer in net.modules():
        quantized: Any = getattr(layer, "quantized_weight", None)
        if quantized is not None:
            weight = quantized()
            layer.__class__ = next(cls for cls in (nn.Conv2d, nn.Linear) if isinstance(layer, cls))
            layer.weight = nn.Parameter(weight)  # type: ignore[assignment]
            layer._parameters.pop("wgt_alpha", None)
    return net.requires_grad_(False)
