"""GroupNorm together with the neuron behind it: over the steps of a stream, or as counts of a whole window.

Legend: L time steps, N batch, C channels; T is the window, 2^b − 1 steps. The functions with `reference` in their name
are the specification; the public ones answer alike, up to the rounding of the norm's sums, wherever they run.
No layer calls `norm_scan` and `norm_count` yet: norm and neuron are modules of their own, which others listen to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .choice import runs_triton
from .torch_ref import IFRule, IFState, if_scan

#: Values of a group (channels × pixels) that a program of the Triton kernels can hold at a time.
MAX_GROUP_SIZE = 2**14


@dataclass(frozen=True)
class NormRule:
    """GroupNorm over `groups` groups of channels; weight, bias [C]."""

    groups: int
    weight: Tensor
    bias: Tensor
    eps: float = 1e-5

    def normalize(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] → the same shape."""
        return self.of_total(x, 1)

    def of_total(self, total: Tensor, steps: int) -> Tensor:
        """steps·GN(total / steps) [N, C, H, W]: a norm does not see a scale that its eps shares."""
        return F.group_norm(total, self.groups, self.weight * steps, self.bias * steps, self.eps * steps**2)


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


def norm_scan(
    x: Tensor,
    norm: NormRule,
    norm_state: NormState | None,
    theta: Tensor,
    rule: IFRule,
    neuron_state: IFState,
    spike_steps: int,
) -> tuple[Tensor, NormState]:
    """`cumulative_norm`, then `if_scan`: x [L, N, C, H, W] → (events int8 [L, N, C, H, W], the norm's state).

    theta: broadcastable to [N, C, H, W]. neuron_state is advanced, its `steps` are the clock of both; norm_state must
    not be used again. Events keep the currents' type where a gradient is wanted, and where a burst exceeds int8. They
    are computed in the type of the norm's parameters.

    Triton (bounded neurons; no gradient; θ one number or [C, 1, 1]) sums a group in another order: its currents differ
    in the last bits, and so does an event whose membrane is that close to a threshold. A pass over x in all.
    """
    if _scans_by_triton(x, norm, norm_state, theta, rule, neuron_state):
        from . import triton_norm

        return triton_norm.norm_scan(x, norm, norm_state, theta, rule, neuron_state, spike_steps)
    return norm_scan_reference(x, norm, norm_state, theta, rule, neuron_state, spike_steps)


def norm_scan_reference(
    x: Tensor,
    norm: NormRule,
    norm_state: NormState | None,
    theta: Tensor,
    rule: IFRule,
    neuron_state: IFState,
    spike_steps: int,
) -> tuple[Tensor, NormState]:
    """See `norm_scan`."""
    x = x.to(norm.weight.dtype)
    current, after = cumulative_norm(x, norm_state, norm, neuron_state.steps, spike_steps)
    events = if_scan(current, neuron_state, theta, rule, spike_steps)
    keeps_type = events.requires_grad or rule.smooth or not _fits_int8(rule)
    return events if keeps_type else events.to(torch.int8), after


def _fits_int8(rule: IFRule) -> bool:
    return rule.burst <= torch.iinfo(torch.int8).max


def _scans_by_triton(
    x: Tensor, norm: NormRule, norm_state: NormState | None, theta: Tensor, rule: IFRule, neuron_state: IFState
) -> bool:
    states = [neuron_state.membrane, neuron_state.count]
    states += [] if neuron_state.total is None else [neuron_state.total]
    states += [] if norm_state is None else [norm_state.total, norm_state.emitted]
    tensors = [norm.weight, norm.bias, theta, *states]
    return (
        rule.kind == "bounded"
        and not rule.smooth
        and _fits_int8(rule)
        and not (torch.is_grad_enabled() and any(v.requires_grad for v in (x, *tensors)))
        and x.dim() == 5
        and all(v.shape == x.shape[1:] for v in states)
        and _fits_triton(x, norm, *tensors)
        and _per_channel(theta, x.shape[2])
    )


def _fits_triton(x: Tensor, norm: NormRule, *parameters: Tensor) -> bool:
    """x [..., C, H, W]; parameters and states are in single precision."""
    channels, height, width = x.shape[-3:]
    return (
        runs_triton(x, *parameters)
        and all(v.dtype == torch.float32 for v in parameters)
        and norm.weight.shape == norm.bias.shape == (channels,)
        and channels % norm.groups == 0
        and channels // norm.groups * height * width <= MAX_GROUP_SIZE
    )


def _per_channel(value: Tensor, channels: int) -> bool:
    """Whether `value` is one number, or one per channel."""
    return value.dim() == 0 or value.shape == (channels, 1, 1)


# ---- layer_sync ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def norm_count(x: Tensor, norm: NormRule, theta: Tensor, spike_steps: int, charge: Tensor | float = 0.5) -> Tensor:
    """Mean current x [N, C, H, W] → spikes of the window, k = clip(floor(T·GN(x)/θ + charge), 0, T) [N, C, H, W].

    theta, and charge in units of θ: broadcastable to [N, C, H, W]. Counts are whole numbers in the type of the norm's
    parameters and carry no gradient, like `quant.uniform_levels`, which they equal for charge 1/2.

    Triton (θ and charge one number or [C, 1, 1]) may count one less or more where GN(x) is within its rounding of a
    boundary between two levels.
    """
    if x.dim() == 4 and _per_channel(theta, x.shape[1]):
        charges = charge if isinstance(charge, Tensor) else torch.full_like(theta, charge)
        if _per_channel(charges, x.shape[1]) and _fits_triton(x, norm, norm.weight, norm.bias, theta, charges):
            from . import triton_norm

            return triton_norm.norm_count(x, norm, theta, spike_steps, charges)
    return norm_count_reference(x, norm, theta, spike_steps, charge)


@torch.no_grad()
def norm_count_reference(
    x: Tensor, norm: NormRule, theta: Tensor, spike_steps: int, charge: Tensor | float = 0.5
) -> Tensor:
    """See `norm_count`."""
    current = norm.normalize(x.to(norm.weight.dtype))
    return (current * (spike_steps / theta)).add_(charge).floor_().clamp_(0, spike_steps)
