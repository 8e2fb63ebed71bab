"""Counting the operations of a convolution or linear layer, and telling spikes from real values."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weight_in_use(layer: nn.Module) -> Tensor:
    """The weight a layer computes with: the quantized one, if it quantizes."""
    quantized = getattr(layer, "quantized_weight", None)
    return (layer.weight if quantized is None else quantized()).detach()


def fan_out(layer: nn.Module, shape: torch.Size) -> tuple[Tensor, float]:
    """How many operations each input value takes part in.

    shape: of one input row, [C, H, W] or [F]. Returns the number of nonzero weights that meet each value, float64 of
    that shape, and the sum over all values of the number of weights, zero or not. A convolution's padding is not an
    input, so values at the border meet fewer weights.
    """
    mask = (weight_in_use(layer) != 0).double()
    if isinstance(layer, nn.Linear):
        return mask.sum(0), float(mask.numel())
    if mask.dim() == 5:  # (k, k, 1): the time axis of a `StepConv`
        mask = mask[..., 0]
    geometry = (layer.stride[:2], layer.padding[:2], layer.dilation[:2], layer.groups)
    sizes = zip(shape[1:], layer.kernel_size[:2], *geometry[:3], strict=True)
    out = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes]
    ones = mask.new_ones(1, layer.out_channels, *out)
    # The gradient of a convolution's summed output with respect to its input is exactly this number.
    met = [nn.grad.conv2d_input((1, *shape), weight, ones, *geometry)[0] for weight in (mask, torch.ones_like(mask))]
    return met[0].round(), float(met[1].round().sum())


def operations_by_channel(times: Tensor, reach: Tensor) -> Tensor:
    """Operations, float64 [C], in which neither the input nor the weight is zero; reach [C, …] as `fan_out` gives it.

    times [R, C, …]: how often each input value is applied: 0 or 1, and n for a burst of n spikes.
    """
    return (times.sum(0).double() * reach).reshape(len(reach), -1).sum(1)


def effective_operations(times: Tensor, reach: Tensor) -> float:
    """`operations_by_channel`, all channels together."""
    return float(operations_by_channel(times, reach).sum())


def magnitudes(x: Tensor) -> tuple[float, ...]:
    """Largest magnitude in each channel of x [R, C, …]. A copy, a view and nearest-neighbour upsampling keep it."""
    dims = [0, *range(2, x.dim())]
    return tuple(torch.maximum(x.amax(dims), -x.amin(dims)).tolist())


def spike_counts(x: Tensor, unit: tuple[float, ...]) -> Tensor | None:
    """Spikes of either sign that each value of x [R, C, …] stands for, given one spike's value in each channel.

    None if a value is no whole number of spikes. A burst of n spikes is n accumulates.
    """
    size = torch.tensor(unit, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 2))
    counts = x.abs() / torch.where(size == 0, torch.ones_like(size), size)
    whole = counts.round()
    return whole if bool(((counts - whole).abs() <= 1e-9 * (1 + whole)).all()) else None


def is_constant(x: Tensor) -> bool:
    """Whether x [L, N, *S], L > 1, is the same in every step, but for the rounding of a batch's rows."""
    return len(x) > 1 and bool((x[1:] - x[0]).abs().max() <= 1e-5 * x[0].abs().max())
