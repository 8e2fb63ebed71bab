"""The integrate-and-fire scan with gradients: hard spikes forward, the derivative of a ramp backward.

The step function H(u), u = (V − θ)/θ, is given the derivative of r(u) = clip(u + 1/2, 0, 1): 1 where the membrane is
within half a threshold of firing. With subtract reset the gradient of a neuron's spike count with respect to charge
that arrives at the first step then is the quantizer's straight-through gradient, 1/θ wherever the count can still move
(surrogate gradients: Neftci et al., "Surrogate gradient learning in spiking neural networks", 2019). With
`IFRule.smooth` the forward pass uses r itself, and the gradient is exact: so it is checked against finite differences.

This is the executable specification, which autograd differentiates; `if_gradient` does the same for most neurons of the
bounded kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

if TYPE_CHECKING:
    from .torch_ref import IFRule, IFState


def if_scan_with_gradient(current: Tensor, state: IFState, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    """As `torch_ref.if_scan`, differentiable in `current`, `theta` and the state's membrane. Keeps L steps in memory.

    current [L, N, *S]; theta broadcastable to [N, *S]; returns events [L, N, *S] (real-valued if `rule.smooth`).
    The state's tensors are replaced, not changed in place. Whether the count leaves room is a gate without a gradient.
    """
    step = _bounded_step if rule.kind == "bounded" else _reference_step
    spikes = []
    membrane, count = state.membrane, state.count
    for now in current:
        membrane = membrane + now
        if bursts(rule, state.steps, spike_steps):
            spike = _burst_step(membrane, count, theta, rule, spike_steps)
        else:
            spike = step(membrane, count, theta, rule, spike_steps)
        state.steps += 1
        count = count + spike
        membrane = membrane - spike * theta
        spikes.append(spike)
    state.membrane, state.count, state.total = membrane, count, None
    return torch.stack(spikes)


def bursts(rule: IFRule, steps: int, spike_steps: int) -> bool:
    """Whether the step after `steps` steps may carry more than one spike."""
    return rule.kind == "bounded" and rule.burst > 1 and steps >= spike_steps - 1


def burst(membrane: Tensor, count: Tensor, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    """Net spikes [N, *S] that take the membrane back to [0, θ), as far as `burst` and the bounds 0..T of the count go.

    As many single steps without input would send, one after another.
    """
    wanted = torch.floor(membrane / theta).clamp(-rule.burst if rule.signed else 0, rule.burst)
    return (count + wanted).clamp(0, spike_steps) - count


def _burst_step(membrane: Tensor, count: Tensor, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    """`burst` with the gradient of its ramp, floor(u) replaced by u − 1/2."""
    # hardtanh is flat at its limits in every version of torch; clamp is in some.
    ramp = hardtanh(membrane / theta - 0.5, -rule.burst if rule.signed else 0, rule.burst)
    ramp = hardtanh(count + ramp, 0, spike_steps) - count
    if rule.smooth:
        return ramp
    return burst(membrane, count, theta, rule, spike_steps).detach() + (ramp - ramp.detach())


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


def _bounded_step(membrane: Tensor, count: Tensor, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    spike = _Step.apply(membrane / theta - 1, membrane >= theta, rule.smooth) * (count < spike_steps)
    if rule.signed:
        spike = spike - _Step.apply(-membrane / theta, membrane < 0, rule.smooth) * (count > 0)
    return spike


def _reference_step(membrane: Tensor, count: Tensor, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    spike = _Step.apply(membrane / theta - 1, membrane >= theta, rule.smooth)
    if rule.signed:
        after = membrane - spike * theta
        inhibited = _Step.apply(-after / theta, after <= rule.inhibition, rule.smooth)
        spike = spike - inhibited * (count + spike > 0)
    return spike
