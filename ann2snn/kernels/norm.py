"""GroupNorm together with the neuron behind it, by Triton where it serves and by torch elsewhere; rule: `norm_rule`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .choice import runs_triton
from .follow import Neurons, Pace, Report
from .norm_rule import NormRule, norm_follow_reference

#: Values of a sample that the Triton kernel finds with 32 bits.
MAX_SAMPLE_SIZE = 2**31


@torch.no_grad()
def norm_follow(
    x: Tensor,
    norm: NormRule,
    level: Tensor | None,
    neurons: Neurons,
    paces: Sequence[Pace],
    dtype: torch.dtype | None = None,
    report: Report | None = None,
) -> Tensor:
    """GroupNorm, then `follow`: x [L, N, C, H, W], one step a pace → answers of one shape with x; no gradient.

    level [N, C, H, W], of the type of the norm's parameters, is overwritten; None: at rest, for a single step with
    nothing to keep. dtype: of the answers, None: as the level's; torch.uint8: level − lo, whatever a level is worth,
    and x must then be finite.

    Triton sums a group in another order: a level may differ where it is that close to a boundary between two.
    Raises ValueError for a state or a neuron's parameter of another shape.
    """
    if x.dim() != 5 or (len(x) != 1 if level is None else level.shape != x.shape[1:]):
        shapes = f"{None if level is None else tuple(level.shape)} but the input has {tuple(x.shape)}"
        raise ValueError(f"neuron state has shape {shapes}; reset the network")
    for value in (neurons.levels.step, neurons.charge, neurons.worth):
        if value is not None and value.dim() and value.shape != (x.shape[2], 1, 1):
            raise ValueError(f"a neuron's parameters are {list(value.shape)}: use [] or [{x.shape[2]}, 1, 1]")
    if report is None and _fits_triton(x, norm, level, neurons):
        from . import triton_norm

        return triton_norm.norm_follow(x, norm, level, neurons, paces, dtype or norm.weight.dtype)
    return norm_follow_reference(x, norm, level, neurons, paces, dtype, report)


def _fits_triton(x: Tensor, norm: NormRule, level: Tensor | None, neurons: Neurons) -> bool:
    """x [L, N, C, H, W]; parameters and states are in single precision."""
    levels = neurons.levels
    values = norm.weight, norm.bias, levels.step, neurons.worth, level, neurons.charge
    parameters = [value for value in values if value is not None]
    channels, height, width = x.shape[-3:]
    return (
        all(v.dtype == torch.float32 for v in parameters)
        and levels.level is None
        and not levels.has_offset
        and norm.weight.shape == norm.bias.shape == (channels,)
        and channels % norm.groups == 0
        and channels * height * width < MAX_SAMPLE_SIZE
        and runs_triton("triton_norm", x, *parameters)
    )
