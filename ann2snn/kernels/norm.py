"""GroupNorm together with the neuron behind it: over the steps of a stream, or as counts of a whole window.

Legend: L time steps, N batch, C channels; T is the window, 2^b − 1 steps. The functions with `reference` in their name
are the specification; the public ones answer alike, up to the rounding of the norm's sums, wherever they run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .choice import runs_triton
from .surrogate import bursts
from .torch_ref import IFRule

#: Values of a group (channels × pixels) that a program of the Triton kernels can hold at a time.
MAX_GROUP_SIZE = 2**14


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
        return self.of_total(x, 1)

    def of_total(self, total: Tensor, steps: int) -> Tensor:
        """steps·GN(total / steps) [N, C, H, W]: a norm does not see a scale that its eps shares."""
        return F.group_norm(total, self.groups, self.weight * steps, self.bias * steps, self.eps * steps**2)

    def in_units(self, total: Tensor, steps: int, firing: Firing) -> Tensor:
        """`of_total` / θ + charge [N, C, H, W], in one pass."""
        scale = (steps / firing.theta).flatten()
        weight, bias = self.weight * scale, self.bias * scale + firing.charge.flatten()
        return F.group_norm(total, self.groups, weight, bias, self.eps * steps**2)


@dataclass(frozen=True)
class Firing:
    """θ, the initial charge in units of θ, and what an event is worth, of C channels: each [] or [C, 1, 1].

    zero: None; or the byte that stands for no spike: spikes are then answered as bytes, k spikes as k + zero, whatever
    they are worth.
    """

    theta: Tensor
    charge: Tensor
    size: Tensor
    zero: int | None = None

    @classmethod
    def of(
        cls, theta: Tensor, charge: Tensor | float = 0.5, size: Tensor | None = None, zero: int | None = None
    ) -> Firing:
        """size None: 1, for unit events and counts."""
        charge = charge if isinstance(charge, Tensor) else torch.full_like(theta, charge)
        return cls(theta, charge, torch.ones_like(theta) if size is None else size, zero)

    def send(self, spikes: Tensor, out: Tensor | None = None) -> Tensor:
        """What leaves neurons that send so many spikes [N, C, H, W]; these are overwritten. out: where to write it."""
        if self.zero is None:
            return torch.mul(spikes, self.size, out=spikes if out is None else out)
        out = torch.empty_like(spikes, dtype=torch.uint8) if out is None else out
        return out.copy_(spikes.add_(self.zero))

    def check(self, channels: int) -> None:
        """Raise ValueError for values of another shape."""
        for value in (self.theta, self.charge, self.size):
            if value.dim() and value.shape != (channels, 1, 1):
                raise ValueError(f"a neuron's parameters are {list(value.shape)}: use [] or [{channels}, 1, 1]")


@dataclass
class NormState:
    """total [N, C, H, W]: summed input so far; emitted [N, C, H, W]: summed output so far."""

    total: Tensor
    emitted: Tensor


def cumulative_norm(
    x: Tensor, state: NormState | None, norm: NormRule, elapsed: int, spike_steps: int
) -> tuple[Tensor, NormState]:
    """x [L, N, C, H, W] → increments of t·GN(mean x_1..t) [L, N, C, H, W], and the state after them.

    state: None before the first step; elapsed: steps before this chunk. Beyond step T means keep dividing by T, so that
    what arrives while the network settles corrects the window's mean. Step by step, so that what a step needs stays in
    the cache: up to three times faster than all steps at once. Raises ValueError for a state of another shape.
    """
    if state is not None and state.total.shape != x.shape[1:]:
        raise ValueError(f"the norm's state is {list(state.total.shape)}, a step {list(x.shape[1:])}")
    learns = torch.is_grad_enabled() and any(v.requires_grad for v in (x, norm.weight, norm.bias))
    total, emitted = (torch.zeros_like(x[0]), 0) if state is None else (state.total.clone(), state.emitted)
    currents = [] if learns else torch.empty_like(x)
    for index, now in enumerate(x):
        before, total = emitted, total + now if learns else total.add_(now)
        emitted = norm.of_total(total, min(elapsed + index + 1, spike_steps))
        if learns:
            currents.append(emitted - before)
        else:
            torch.sub(emitted, before, out=currents[index])
    return torch.stack(currents) if learns else currents, NormState(total, emitted)


# ---- stream ----------------------------------------------------------------------------------------------------------


@dataclass
class NormIFState:
    """total [N, C, H, W]: summed input so far; count [N, C, H, W]: net spikes so far; steps: time steps so far."""

    total: Tensor
    count: Tensor
    steps: int = 0

    @classmethod
    def rest(cls, like: Tensor, norm: NormRule) -> NormIFState:
        """Before the first step of an input like `like` [N, C, H, W]."""
        zeros = torch.zeros_like(like, dtype=norm.weight.dtype)
        return cls(zeros, zeros.clone())


@torch.no_grad()
def norm_scan(x: Tensor, norm: NormRule, firing: Firing, rule: IFRule, state: NormIFState, spike_steps: int) -> Tensor:
    """`cumulative_norm`, then `if_scan` of a bounded neuron: x [L, N, C, H, W] → events · size of one shape with x.

    `state` is advanced. Events are of the type of the norm's parameters, or bytes where `firing` says so, and carry no
    gradient.

    The norm's increments sum up to t·GN(mean x_1..t), so the neuron's total charge needs none of them: its count
    follows clip(floor(charge + t·GN(mean x_1..t)/θ), 0, T), by one a step or as many as it may send in a burst.

    Triton sums a group in another order: an event may differ where the charge is that close to a threshold.
    Raises ValueError for another kind of neuron, for a state or a θ of another shape.
    """
    if rule.kind != "bounded" or rule.smooth:
        raise ValueError(f"norm_scan runs bounded neurons that spike, not {rule}")
    if x.dim() != 5 or not state.total.shape == state.count.shape == x.shape[1:]:
        raise ValueError(f"the state of a norm and its neuron is {list(state.total.shape)}, a step {list(x.shape[1:])}")
    firing.check(x.shape[2])
    if _fits_triton(x, norm, firing, state.total, state.count):
        from . import triton_norm

        return triton_norm.norm_scan(x, norm, firing, rule, state, spike_steps)
    return norm_scan_reference(x, norm, firing, rule, state, spike_steps)


def norm_scan_reference(
    x: Tensor, norm: NormRule, firing: Firing, rule: IFRule, state: NormIFState, spike_steps: int
) -> Tensor:
    """See `norm_scan`. Step by step, so that what a step needs stays in the cache."""
    x = x.to(norm.weight.dtype)
    events = torch.empty_like(x, dtype=None if firing.zero is None else torch.uint8)
    for now, sent in zip(x, events, strict=True):
        most = rule.burst if bursts(rule, state.steps, spike_steps) else 1
        state.steps += 1
        state.total += now
        time = min(state.steps, spike_steps)
        level = norm.in_units(state.total, time, firing).floor_().clamp_(0, spike_steps)
        event = level.sub_(state.count).clamp_(-most if rule.signed else 0, most)
        state.count += event
        firing.send(event, out=sent)
    return events


def _fits_triton(x: Tensor, norm: NormRule, firing: Firing, *states: Tensor) -> bool:
    """x [..., C, H, W]; parameters and states are in single precision."""
    parameters = (norm.weight, norm.bias, firing.theta, firing.charge, firing.size, *states)
    channels, height, width = x.shape[-3:]
    return (
        runs_triton(x, *parameters)
        and all(v.dtype == torch.float32 for v in parameters)
        and norm.weight.shape == norm.bias.shape == (channels,)
        and channels % norm.groups == 0
        and channels // norm.groups * height * width <= MAX_GROUP_SIZE
    )


# ---- layer_sync ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def norm_count(x: Tensor, norm: NormRule, firing: Firing, spike_steps: int) -> Tensor:
    """Mean current x [N, C, H, W] → k · size, k = clip(floor(T·GN(x)/θ + charge), 0, T) spikes of the window.

    Of the type of the norm's parameters, or bytes where `firing` says so; carries no gradient. With charge 1/2 the
    counts are `quant.uniform_levels` and, for size θ/T, the answer is `quant.uniform_quantize`.

    Triton may count one less or more where GN(x) is within its rounding of a boundary between two levels.
    Raises ValueError for a θ of another shape.
    """
    firing.check(x.shape[1])
    if x.dim() == 4 and _fits_triton(x, norm, firing):
        from . import triton_norm

        return triton_norm.norm_count(x, norm, firing, spike_steps)
    return norm_count_reference(x, norm, firing, spike_steps)


def norm_count_reference(x: Tensor, norm: NormRule, firing: Firing, spike_steps: int) -> Tensor:
    """See `norm_count`."""
    current = norm.normalize(x.to(norm.weight.dtype))
    count = current.mul_(spike_steps / firing.theta).add_(firing.charge).floor_().clamp_(0, spike_steps)
    return firing.send(count)
