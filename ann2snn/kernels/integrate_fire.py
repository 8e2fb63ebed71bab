"""The published neuron: it reads and sends the currents of a step, integrates them, and resets by subtraction.

Legend: L time steps, N batch, S any neuron shape.

Step l: V += x_l; fire if V ≥ θ; V −= θ·spike. A signed neuron also takes a spike back where the membrane is at or below
`INHIBITION` after that. There is no upper bound, and both signs may occur in one step (net 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Membrane at or below this value makes a signed neuron send a negative spike (absolute, not θ-relative).
INHIBITION = -1e-3


@dataclass
class IFState:
    """membrane [N, *S] in units of the current; count [N, *S], net spikes so far."""

    membrane: Tensor
    count: Tensor

    @classmethod
    def rest(cls, like: Tensor, theta: Tensor, charge: Tensor | float = 0.5) -> IFState:
        """Before the first step: initial charge charge·θ (1/2 turns floor into rounding), no spikes. like [N, *S]."""
        return cls(torch.zeros_like(like) + theta * charge, torch.zeros_like(like))


def if_scan(current: Tensor, state: IFState, theta: Tensor, signed: bool = True, smooth: bool = False) -> Tensor:
    """current [L, N, *S]; theta broadcastable to [N, *S] → events [L, N, *S] in {−1, 0, 1}; `state` is advanced.

    Differentiable in `current`, `theta` and the state's membrane: hard spikes forward; backward the step function H(u),
    u = (V − θ)/θ, has the derivative of r(u) = clip(u + 1/2, 0, 1). smooth: r forward as well, to check gradients.
    Whether there is a spike to take back is a gate without a gradient.
    """
    spikes = []
    for now in current:
        state.membrane = state.membrane + now
        spike = _Step.apply(state.membrane / theta - 1, state.membrane >= theta, smooth)
        if signed:
            # The inhibition test sees the membrane after the positive spike's reset and counts that spike.
            after = state.membrane - spike * theta
            inhibited = _Step.apply(-after / theta, after <= INHIBITION, smooth)
            spike = spike - inhibited * (state.count + spike > 0)
        state.count = state.count + spike
        state.membrane = state.membrane - spike * theta
        spikes.append(spike)
    return torch.stack(spikes)


class _Step(torch.autograd.Function):
    """fires [*S] of {0, 1} forward (or the ramp, if smooth); the ramp's derivative in u [*S] backward."""

    @staticmethod
    def forward(ctx, u: Tensor, fires: Tensor, smooth: bool) -> Tensor:
        ctx.save_for_backward(u.abs() <= 0.5)
        return (u + 0.5).clamp(0, 1) if smooth else fires.to(u.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (steep,) = ctx.saved_tensors
        return gradient * steep, None, None


def spread_counts(count: Tensor, spike_steps: int) -> Tensor:
    """Unit events [T, N, *S] whose sum over T is `count` [N, *S] (whole, −T..T), spaced as evenly as possible.

    The train that a neuron fires under the constant current count·θ/T:
    s_l = floor(l·k/T + 1/2) − floor((l−1)·k/T + 1/2), evaluated in integers so that no rounding can lose a spike.
    """
    k = count.to(torch.int64)
    steps = torch.arange(spike_steps + 1, device=count.device).view(-1, *[1] * count.dim())
    fired = torch.div(2 * steps * k + spike_steps, 2 * spike_steps, rounding_mode="floor")  # [T+1, N, *S]
    return (fired[1:] - fired[:-1]).to(count.dtype)
