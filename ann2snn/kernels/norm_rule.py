"""GroupNorm together with the neuron behind it.

Legend: L time steps, N batch, C channels. `norm_follow_reference` is the specification; `norm_follow` answers alike, up
to the rounding of the norm's sums, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .follow import Neurons, Pace, Report, advance, send


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
    if level is None and report is None and dtype in (None, x.dtype) and not neurons.levels.has_offset:
        return norm.target(x[0], neurons, 1.0).mul_(neurons.worth)[None]  # nothing to keep: NaN takes care of itself
    answers = torch.empty_like(x, dtype=dtype)
    for now, pace, answer in zip(x, paces, answers, strict=True):
        level, hole = advance(level, norm.target(now, neurons, pace.share), neurons, pace, report)
        if dtype == torch.uint8:
            answer.copy_(level + zero if zero else level)
        else:
            send(level, neurons, pace, answer, hole)
    return answers
