"""How many synapses every value of an input meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: f(input [1, *S], weight) → the output of a linear map without bias.
LinearMap = Callable[[Tensor, Tensor], Tensor]


def fan_out(apply: LinearMap, weight: Tensor, shape: torch.Size) -> tuple[Tensor, float]:
    """How many operations each input value takes part in, for one input row of `shape`.

    Returns the number of nonzero weights that meet each value, float64 of that shape, and the sum over all values of
    the number of weights, zero or not. A convolution's padding is not an input, so values at the border meet fewer.
    """
    mask = (weight.detach() != 0).double()
    met = []
    for ones in (mask, torch.ones_like(mask)):
        with torch.enable_grad():
            x = ones.new_zeros(1, *shape, requires_grad=True)
            # The gradient of the summed output with respect to the input is exactly this number.
            met.append(torch.autograd.grad(apply(x, ones).sum(), x)[0][0].round())
    return met[0], float(met[1].sum())


def layer_fan_out(layer: nn.Module, shape: torch.Size) -> tuple[Tensor, float]:
    """`fan_out` of a convolution or linear layer."""
    weight = weight_in_use(layer)
    if not isinstance(layer, nn.Conv2d | nn.Conv3d):
        return fan_out(F.linear, weight, shape)
    if weight.dim() == 5:  # (k, k, 1): the time axis of a `StepConv`
        weight = weight[..., 0]
    geometry: Any = (layer.stride[:2], layer.padding[:2], layer.dilation[:2], layer.groups)
    return fan_out(lambda x, w: F.conv2d(x, w, None, *geometry), weight, shape)


def weight_in_use(layer: nn.Module) -> Tensor:
    """The weight a layer computes with: the quantized one, if it quantizes."""
    quantized = getattr(layer, "quantized_weight", None)
    weight: Any = layer.weight if quantized is None else quantized()
    return weight.detach()


def operations_by_channel(times: Tensor, reach: Tensor) -> Tensor:
    """Operations, float64 [C], in which neither the input nor the weight is zero; reach [C, …] as `fan_out` gives it.

    times [R, C, …]: how often each input value is applied: 0 or 1, and n for an event of n spikes.
    """
    return (times.sum(0).double() * reach).reshape(len(reach), -1).sum(1)


def effective_operations(times: Tensor, reach: Tensor) -> float:
    """`operations_by_channel`, all channels together."""
    return float(operations_by_channel(times, reach).sum())
