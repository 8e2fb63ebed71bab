"""The bounded integrate-and-fire scan with its reverse written by hand: what `surrogate` says, in fewer passes.

Legend: L time steps, N batch, S any neuron shape; T is the window. Step l, from a membrane V and a net count n:

    V_l = V + x_l      s_l net spikes      V ← V_l − s_l·θ      n ← n + s_l

Autograd of `surrogate.if_scan_with_gradient` takes ds_l = k_l·d(V_l/θ) − b_l·dn with

    one spike at most   k_l = [n < T]·[|V_l/θ − 1| ≤ 1/2] + [n > 0]·[|V_l/θ| ≤ 1/2] (the second if signed)
                        b_l = 0
    in bursts           k_l = [−B < r_l < B]·[0 < n + clip(r_l, −B, B) < T], r_l = V_l/θ − 1/2 (unsigned: 0 for −B)
                        b_l = 1 − the second bracket

In reverse, with g_l the gradient of the events, v that of the membrane and c that of the count after the step:

    G_l = g_l + c − v·θ      v ← dx_l = v + G_l·k_l/θ = (1 − k_l)·v + k_l·(g_l + c)/θ      c ← c − G_l·b_l

which ends at the gradients of the membrane and count before the scan. θ enters through s_l·θ and V_l/θ:

    dθ = −Σ_l (v·s_l + G_l·k_l·V_l/θ²) = (V_after·v_after − V_before·v_before − Σ_l x_l·dx_l)/θ

with v as it was before step l's rule, and V and v before and after the whole scan. The two agree step by step, as
G_l·k_l/θ = dx_l − v. (Euler's theorem: multiply currents, membrane and threshold by one number, and the membrane grows
with them while spikes stay.) So the reverse needs k_l and b_l, but neither membranes nor spikes of single steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import runs_triton
from .surrogate import burst, bursts

if TYPE_CHECKING:
    from .torch_ref import IFRule, IFState


def bounded_scan_with_gradient(
    current: Tensor, state: IFState, theta: Tensor, rule: IFRule, spike_steps: int
) -> Tensor:
    """As `surrogate.if_scan_with_gradient`, for a rule of kind "bounded" that is not smooth.

    current [L, N, *S] with L > 0; theta broadcastable to [N, *S]; returns events [L, N, *S]. Memory for the reverse:
    one byte an event, and where θ wants a gradient `current` and the membrane before and after. Differentiable once.
    """
    if _suits_triton(current, state, theta):
        from .triton_if import BoundedScan

        scan = BoundedScan.apply
    else:
        scan = _Scan.apply
    single = sum(not bursts(rule, state.steps + index, spike_steps) for index in range(len(current)))
    events, state.membrane, state.count = scan(current, state.membrane, state.count, theta, rule, spike_steps, single)
    state.total = None
    state.steps += len(current)
    return events


def _suits_triton(current: Tensor, state: IFState, theta: Tensor) -> bool:
    """Triton computes in float32, and trusts its pointers."""
    wide = state.membrane.dtype == theta.dtype == torch.float32
    fits = current.shape[1:] == state.membrane.shape == state.count.shape
    return wide and fits and runs_triton(current, state.membrane, state.count, theta)


class _Scan(torch.autograd.Function):
    """current [L, N, *S], membrane and count [N, *S], theta → events [L, N, *S], membrane, count.

    single: so many steps, the first ones, send one spike at most; the others send bursts. What is kept of a step is
    k_l, or −1 where b_l = 1 (k_l then is 0). The types are those that the operations above, one by one, have in torch.
    """

    @staticmethod
    def forward(
        ctx, current: Tensor, membrane: Tensor, count: Tensor, theta: Tensor, rule: IFRule, window: int, single: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        kind = torch.result_type(membrane[:0] + current[0, :0], theta)
        events = torch.empty_like(current, dtype=kind)
        slopes = torch.empty_like(current, dtype=torch.int8)
        v, n = membrane, count.to(kind, copy=True)
        for index, now in enumerate(current):
            v = v.add_(now) if index else (v + now).to(kind)
            step = _single_step if index < single else _burst_step
            step(v, n, theta, rule, window, events[index], slopes[index])
            n += events[index]
            v -= events[index] * theta
        ctx.save_for_backward(slopes, theta, *((current, membrane, v) if ctx.needs_input_grad[3] else ()))
        ctx.kind, ctx.single = kind, single
        ctx.set_materialize_grads(False)
        return events, v, n

    @staticmethod
    @once_differentiable
    def backward(ctx, by_events: Tensor | None, v: Tensor | None, c: Tensor | None) -> tuple[Tensor | None, ...]:
        slopes, theta, *kept = ctx.saved_tensors
        kind = torch.promote_types(ctx.kind, torch.float32)
        zero, theta = torch.zeros((), dtype=kind, device=slopes.device), theta.to(kind)
        v = zero if v is None else v.to(kind)
        by_theta = kept[2] * v if kept else None
        out = torch.empty_like(slopes, dtype=kind)
        for index in reversed(range(len(slopes))):
            k = slopes[index].to(kind)
            g = zero.expand_as(k) if by_events is None else by_events[index].to(kind)
            g = g if c is None else g + c
            if index >= ctx.single:
                c = (zero if c is None else c) + (g - v * theta) * k.clamp(max=0)
                k.clamp_(min=0)
            v = torch.lerp(v, g / theta, k, out=out[index])
            if by_theta is not None:
                by_theta.addcmul_(kept[0][index], v, value=-1)
        if by_theta is not None:
            by_theta = (by_theta.addcmul_(kept[1], v, value=-1) / theta).sum_to_size(theta.shape)
        by_membrane = v.clone() if ctx.needs_input_grad[1] else None  # v is a part of `out`
        return out, by_membrane, c, by_theta, None, None, None  # autograd casts each to its input's type


def _single_step(v: Tensor, n: Tensor, theta: Tensor, rule: IFRule, window: int, spike: Tensor, slope: Tensor) -> None:
    """One spike at most: s_l into `spike`, k_l into `slope`.

    Comparisons answer in floats, 0 or 1: on a CPU that is several times faster than in bools.
    """
    near = v / theta
    low = near.abs().le_(0.5) if rule.signed else None
    high = near.sub_(1).abs_().le_(0.5)
    room = torch.lt(n, window, out=torch.empty_like(v))
    torch.ge(v, theta, out=spike).mul_(room)
    high *= room
    if low is not None:
        taken = torch.gt(n, 0, out=room)
        high.addcmul_(low, taken)
        spike.addcmul_(torch.lt(v, 0, out=low), taken, value=-1)
    slope.copy_(high)


def _burst_step(v: Tensor, n: Tensor, theta: Tensor, rule: IFRule, window: int, spike: Tensor, slope: Tensor) -> None:
    """As `_single_step`, in bursts: k_l, or −1 where b_l = 1, into `slope`."""
    spike.copy_(burst(v, n, theta, rule, window))
    ramp = v / theta - 0.5
    low, high = -rule.burst if rule.signed else 0, rule.burst
    within = _between(low, ramp, high)
    free = _between(0, ramp.clamp_(low, high).add_(n), window)
    slope.copy_(within.mul_(free).add_(free).sub_(1))


def _between(low: int, x: Tensor, high: int) -> Tensor:
    """1 where low < x < high, else 0, in x's type."""
    above, below = torch.empty_like(x), torch.empty_like(x)
    return torch.gt(x, low, out=above).mul_(torch.lt(x, high, out=below))
