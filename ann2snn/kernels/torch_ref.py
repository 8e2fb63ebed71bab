"""Plain-torch kernels: the executable specification of the neuron's dynamics.

Legend: L time steps, N batch, S any neuron shape. T is the window, 2^b − 1 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .if_gradient import bounded_scan_with_gradient
from .surrogate import bursts, if_scan_with_gradient

#: Membrane at or below this value makes the reference's signed neuron send a negative spike (absolute, not θ-relative).
REFERENCE_INHIBITION = -1e-3


@dataclass(frozen=True)
class IFRule:
    """Which integrate-and-fire neuron.

    bounded: net count stays in 0..T and, when signed, ends at clip(floor(S/θ + 1/2), 0, T) for total input S.
    reference: the published neuron; no upper bound, and both signs may occur in one step (net 0).
    smooth: fire by a ramp instead of a step, to check gradients; see `surrogate`.
    burst: most spikes of a bounded neuron in one step, from the window's last step on; before it, one.
    """

    kind: str = "bounded"
    signed: bool = True
    smooth: bool = False
    burst: int = 1

    @property
    def inhibition(self) -> float:
        """Membrane at or below which the reference neuron sends a negative spike; in units of the current."""
        return REFERENCE_INHIBITION


@dataclass
class IFState:
    """membrane [N, *S] in units of the current; count [N, *S], net spikes so far; steps: time steps so far.

    total: membrane + θ·count, where a scan keeps it, so that the next one continues to the last bit.
    """

    membrane: Tensor
    count: Tensor
    steps: int = 0
    total: Tensor | None = None

    @classmethod
    def rest(cls, like: Tensor, theta: Tensor, charge: Tensor | float = 0.5) -> IFState:
        """Before the first step: initial charge charge·θ (1/2 turns floor into rounding), no spikes. like [N, *S]."""
        return cls(torch.zeros_like(like) + theta * charge, torch.zeros_like(like))


def if_scan(current: Tensor, state: IFState, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    """Run L steps of an integrate-and-fire neuron with subtract reset; `state` is advanced.

    current [L, N, *S]; theta broadcastable to [N, *S]. Returns events [L, N, *S] in {−1, 0, 1}, in bursts ±burst.

    Step l: V += x_l; fire if V ≥ θ; V −= θ·spike. Signed neurons take a spike back when V turns negative.
    Where a gradient is wanted, `surrogate` says which, and the state's tensors are replaced; `if_gradient` is the same
    for most bounded neurons, in fewer passes. Otherwise the state changes in place.
    """
    learns = any(v.requires_grad for v in (current, state.membrane, state.count, theta))
    if rule.smooth or (learns and torch.is_grad_enabled()):
        by_hand = rule.kind == "bounded" and not rule.smooth and not torch.compiler.is_compiling()
        scan = bounded_scan_with_gradient if by_hand else if_scan_with_gradient
        return scan(current, state, theta, rule, spike_steps)
    scan = _bounded_scan if rule.kind == "bounded" else _reference_scan
    return scan(current, state, theta, rule, spike_steps)


def _bounded_scan(current: Tensor, state: IFState, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    """The bounded neuron by its total charge S = V + θ·count, which resets do not change: half the passes over memory.

    V ≥ θ with room for a spike means that level = clip(floor(S/θ), 0, T) is above the count, V < 0 with a spike to take
    back that it is below. The neuron follows its level, by one a step or as many as it may send in a burst.
    """
    count = state.count
    total = state.total = torch.addcmul(state.membrane, theta, count) if state.total is None else state.total
    spikes, level = torch.empty_like(current), torch.empty_like(total)
    for now, spike in zip(current, spikes, strict=True):
        most = rule.burst if bursts(rule, state.steps, spike_steps) else 1
        total += now
        torch.div(total, theta, out=level).floor_().clamp_(0, spike_steps)
        torch.sub(level, count, out=spike).clamp_(-most if rule.signed else 0, most)
        count += spike
        state.steps += 1
    state.membrane = torch.addcmul(total, theta, count, value=-1)
    return spikes


def _reference_scan(current: Tensor, state: IFState, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    """The published neuron, in its own order of operations."""
    spikes = torch.empty_like(current)
    for index in range(current.shape[0]):
        state.membrane += current[index]
        spikes[index] = spike = _reference_step(state, theta, rule, spike_steps)
        state.steps += 1
        state.count += spike
        state.membrane -= spike * theta
    return spikes


def _reference_step(state: IFState, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    spike = (state.membrane >= theta).to(state.membrane.dtype)
    if rule.signed:
        # The inhibition test sees the membrane after the positive spike's reset and counts that spike.
        after = state.membrane - spike * theta
        spike -= ((after <= REFERENCE_INHIBITION) & (state.count + spike > 0)).to(spike.dtype)
    return spike


def spread_counts(count: Tensor, spike_steps: int) -> Tensor:
    """Unit events [T, N, *S] whose sum over T is `count` [N, *S] (integers 0..T), spaced as evenly as possible.

    It is the train an IF neuron fires under the constant current count·θ/T:
    s_l = floor(l·k/T + 1/2) − floor((l−1)·k/T + 1/2), evaluated in integers so that no rounding can lose a spike.
    """
    k = count.to(torch.int64)
    steps = torch.arange(spike_steps + 1, device=count.device).view(-1, *[1] * count.dim())
    fired = torch.div(2 * steps * k + spike_steps, 2 * spike_steps, rounding_mode="floor")  # [T+1, N, *S]
    return (fired[1:] - fired[:-1]).to(count.dtype)
