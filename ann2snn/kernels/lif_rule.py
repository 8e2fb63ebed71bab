"""The leaky integrate-and-fire scan of directly trained networks: surrogate gradients, no memory between calls.

Legend: L time steps, N batch, S any neuron shape. Step l, from v_0 = 0:

    u_l = decay·v_{l−1} + x_l        o_l = 1 where u_l reaches the threshold, else 0
    v_l = u_l·(1 − o_l)              hard reset;   soft: v_l = u_l − threshold·o_l

SDDPM (arXiv 2306.17046) has decay 1 and fires at the threshold; FSDDIM (arXiv 2312.01742) has decay 0.8, fires above
it and keeps the gradient out of the reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .follow import holes

#: Derivative given to the step function, as a function of u − threshold.
SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "atan": lambda x: 1 / (1 + (math.pi * x) ** 2),  # of arctan(π·x)/π + 1/2
    "arctan": lambda x: 1 / (1 + x**2),
    "triangle": lambda x: (1 - 2 * x.abs()).clamp_(min=0),
    "rectangle": lambda x: (x.abs() < 0.5).to(x.dtype),
}


@dataclass(frozen=True)
class LIFRule:
    """Which neuron. strict: fire above the threshold, not at it. detach_reset: no gradient through the reset's o_l."""

    decay: float = 1.0
    threshold: float = 1.0
    strict: bool = False
    soft_reset: bool = False
    detach_reset: bool = False
    surrogate: str = "atan"

    def fires(self, u: Tensor) -> Tensor:
        """Boolean, like u."""
        return u > self.threshold if self.strict else u >= self.threshold


def lif_scan_reference(current: Tensor, rule: LIFRule) -> Tensor:
    """See `lif_scan`."""
    return _Scan.apply(current, rule)


class _Scan(torch.autograd.Function):
    """The scan and its reverse, a loop over time steps each; elementwise work alone, so that a step is a few passes."""

    @staticmethod
    def forward(ctx, current: Tensor, rule: LIFRule) -> Tensor:
        keep = current.requires_grad
        u = torch.empty_like(current, dtype=_wide(current)) if keep else None
        spikes = torch.empty_like(current)
        decayed: Tensor | None = None  # decay·v of the step before
        for index, now in enumerate(current):
            potential = now.to(_wide(current), copy=True) if decayed is None else decayed + now
            fired = rule.fires(potential)
            spikes[index] = fired
            hole = holes(potential)
            if hole is not None:
                spikes[index].masked_fill_(hole, math.nan)
            if u is not None:
                u[index] = potential
            if rule.soft_reset:
                decayed = potential.sub_(fired.to(potential), alpha=rule.threshold)  # bool times float is float32
            else:
                decayed = potential.masked_fill_(fired, 0)
            if rule.decay != 1:
                decayed.mul_(rule.decay)
        if u is not None:
            ctx.save_for_backward(u)
        ctx.rule = rule
        return spikes

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (u,), rule = ctx.saved_tensors, ctx.rule
        slope = SURROGATES[rule.surrogate]
        out = torch.empty_like(u)
        later: Tensor | None = None  # gradient of v_l
        for index in reversed(range(len(u))):
            potential = u[index]
            steep = slope(potential - rule.threshold)
            through_spike = gradient[index].to(u.dtype)
            now = out[index]
            if later is None:
                torch.mul(through_spike, steep, out=now)
            else:
                if not rule.detach_reset:
                    through_spike = through_spike - later * (rule.threshold if rule.soft_reset else potential)
                torch.mul(through_spike, steep, out=now)
                now += later if rule.soft_reset else later.masked_fill(rule.fires(potential), 0)
            later = rule.decay * now
        return out.to(gradient.dtype), None


def _wide(current: Tensor) -> torch.dtype:
    return torch.promote_types(current.dtype, torch.float32)
