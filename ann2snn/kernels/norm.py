"""GroupNorm together with the neuron behind it.

Legend: L time steps, N batch, C channels. The function with `reference` in its name is the specification; the public
one answers alike, up to the rounding of the norm's sums, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .choice import runs_triton
from .follow import Neurons, Pace, Report, advance, send

#: Values of a sample that the Triton kernel finds with 32 bits.
MAX_SAMPLE_SIZE = 2**31


@dataclass(frozen=True)
class NormRule:
    """GroupNorm over `groups` groups of channels; weight, bias [C]."""

    groups: int
    weight: Tensor
    bias: Tensor
    eps: float = 1e-5

    @classmethod
    def of(cls, norm: nn.GroupNorm) -> NormRule:
        return cls(norm.num_groups, norm.weight, norm.bias, norm.eps)

    def normalize(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] → the same shape."""
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)

    def target(self, x: Tensor, neurons: Neurons, share: float) -> Tensor:
        """The levels that neurons behind the norm of x [N, C, H, W] move to, a new tensor."""
        levels = neurons.levels
        if share == 1 or levels.has_offset:
            current = self.normalize(x)
            return neurons.target(current, share, out=current)
        # The norm counts in steps and adds the charge: two passes less. Only once the whole window has passed must
        # the arithmetic be the quantizer's to the last bit.
        scale, charge = (levels.per_unit * share).flatten(), neurons.charge
        bias = self.bias * scale + (0.5 if charge is None else charge.flatten())
        counted = F.group_norm(x, self.groups, self.weight * scale, bias, self.eps)
        return counted.floor_().clamp_(levels.lo, levels.hi)


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


def norm_follow_reference(
    x: Tensor,
    norm: NormRule,
    level: Tensor | None,
    neurons: Neurons,
    paces: Sequence[Pace],
    dtype: torch.dtype | None = None,
    report: Report | None = None,
) -> Tensor:
    """See `norm_follow`. Step by step, so that what a step needs stays in the cache."""
    x, zero = x.to(norm.weight.dtype), -neurons.levels.lo
    answers = torch.empty_like(x, dtype=dtype)
    for now, pace, answer in zip(x, paces, answers, strict=True):
        level, hole = advance(level, norm.target(now, neurons, pace.share), neurons, pace, report)
        if dtype == torch.uint8:
            answer.copy_(level + zero if zero else level)
        else:
            send(level, neurons, pace, answer, hole)
    return answers


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
