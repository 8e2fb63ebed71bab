"""The integrate-and-fire scan with gradients: hard spikes forward, the derivative of a ramp backward.

The step function H(u), u = (V − θ)/θ, is given the derivative of r(u) = clip(u + 1/2, 0, 1): 1 where the membrane is
within half a threshold of firing. With subtract reset the gradient of a neuron's spike count with respect to charge
that arrives at the first step then is the quantizer's straight-through gradient, 1/θ wherever the count can still move
(surrogate gradients: Neftci et al., "Surrogate gradient learning in spiking neural networks", 2019). With
`IFRule.smooth` the forward pass uses r itself, and the gradient is exact: so it is checked against finite differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .torch_ref import IFRule, IFState


def if_scan_with_gradient(current: Tensor, state: IFState, theta: Tensor, rule: IFRule, spike_steps: int) -> Tensor:
    """As `torch_ref.if_scan`, differentiable in `current`, `theta` and the state's membrane. Keeps L steps in memory.

    current [L, N, *S]; theta broadcastable to [N, *S]; returns events [L, N, *S] (real-valued if `rule.smooth`).
    The state's tensors are replaced, not changed in place. Bounds on the count act as gates without a gradient.
    """
    step = _bounded_step if rule.kind == "bounded" else _reference_step
    spikes = []
    membrane, count = state.membrane, state.count
    for now in current:
        membrane = membrane + now
        spike = step(membrane, count, theta, rule, spike_steps)
        count = count + spike.detach()
        membrane = membrane - spike * theta
        spikes.append(spike)
    state.membrane, state.count = membrane, count
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
        spike = spike - inhibited * (count + spike.detach() > 0)
    return spike
