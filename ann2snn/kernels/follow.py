"""The neuron of a converted network: a level that follows its target, by at most m spikes a time step.

Legend: L time steps, N batch, S any neuron shape; T is the window. In a step in which the share r of it has passed,

    target = clip(floor(r·(x − β)/Δ + charge), lo, hi)
    e = clip(target − k, −m, m);  k ← k + e      m unlimited: e = target − k; a neuron that takes nothing back: 0 ≤ e
    answer = Δ·k/r + β

x is what has arrived on average so far. NaN is answered with NaN; the level stays as it is, and nothing is counted.

The gradient is that of the same scan without rounding, k ← clip(k + clip(u − k, −m, m), lo, hi) with
u = r·(x − β)/Δ + charge − 1/2: straight-through where m is unlimited (a quantizer's), and a surrogate where it is not
(Neftci et al., "Surrogate gradient learning in spiking neural networks", 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Receives the events [N, *S] of each step.
Report = Callable[[Tensor], None]
_Value = TypeVar("_Value", Tensor, Tensor | float, Tensor | None)


@dataclass(frozen=True)
class Levels:
    """What a quantizer does: x ↦ step·k + offset, k = clip(floor((x − offset)/step + 1/2), lo, hi).

    step: Δ > 0, [] or broadcastable to the input; offset: β, a number or a tensor like it; lo, hi: whole numbers.
    before: a function in front of the rounding (SiLU, pooling). level: the quantizer's own x ↦ k, as a float tensor of
    x's shape, where it rounds in another way; it is used once the whole window has passed. scale: what x is multiplied
    with to be counted in steps, where that is not 1/step to the last bit. axis: of the quantizer's input, where step,
    offset and scale have a value per channel, [C] or ready to be broadcast; None: they can be broadcast as they are.
    """

    step: Tensor
    lo: int
    hi: int
    offset: Tensor | float = 0.0
    before: Callable[[Tensor], Tensor] | None = None
    level: Callable[[Tensor], Tensor] | None = None
    scale: Tensor | None = None
    axis: int | None = None

    def fitted(self, dims: int) -> Levels:
        """The same for inputs of so many dimensions, with one value per channel where they can be broadcast."""
        if self.axis is None:
            return self
        step, scale = along(self.step, self.axis, dims), along(self.scale, self.axis, dims)
        return replace(self, step=step, offset=along(self.offset, self.axis, dims), scale=scale)

    @property
    def per_unit(self) -> Tensor:
        return self.step.reciprocal() if self.scale is None else self.scale

    @property
    def has_offset(self) -> bool:
        return isinstance(self.offset, Tensor) or self.offset != 0

    @property
    def start(self) -> int:
        """The level of a neuron at rest; if it is not 0, the difference is a bias and no spikes."""
        return min(max(0, self.lo), self.hi)


def along(value: _Value, axis: int | None, dims: int) -> _Value:
    """A value per channel [C], or with ones around, as it is broadcast to inputs of `dims` dimensions; others alike."""
    if axis is None or not isinstance(value, Tensor) or value.numel() == 1:
        return value
    return value.reshape(-1, *[1] * (-axis - 1 if axis < 0 else dims - 1 - axis))


@dataclass(frozen=True)
class Pace:
    """A time step. share: r, the part of the window that has passed, in (0, 1]; most: m, None for unlimited."""

    share: float
    most: int | None = None


@dataclass(frozen=True)
class Neurons:
    """The neurons of a layer.

    charge: initial membrane potential in units of the threshold, [] or as `levels.step`; None is 1/2. takes_back:
    whether a neuron may send negative events. size: what a level is worth where it leaves the layer; None: its step.
    """

    levels: Levels
    charge: Tensor | None = None
    takes_back: bool = True
    size: Tensor | None = None

    @property
    def worth(self) -> Tensor:
        return self.levels.step if self.size is None else self.size

    def limits(self, pace: Pace) -> tuple[float, float] | None:
        """Least and largest event of a step; None: any."""
        most = math.inf if pace.most is None else pace.most
        least = -most if self.takes_back else 0
        return None if math.isinf(least) else (least, most)

    def target(self, x: Tensor, share: float, out: Tensor | None = None) -> Tensor:
        """x [N, *S], in single precision or better → the level to move to, a new tensor or `out`, which may be x."""
        levels = self.levels
        if share == 1 and levels.level is not None and self.charge is None:
            level = levels.level(x).to(x.dtype)
            return level.clone() if level.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() else level
        scale = levels.per_unit if share == 1 else levels.per_unit * share
        counted = torch.mul(x - levels.offset if levels.has_offset else x, scale, out=out)
        return counted.add_(0.5 if self.charge is None else self.charge).floor_().clamp_(levels.lo, levels.hi)

    def rest(self, x: Tensor) -> Tensor:
        """Levels [N, *S] before the first step of an input like x [N, *S]."""
        return torch.full_like(working(x), self.levels.start)


def working(x: Tensor) -> Tensor:
    """x in a precision that tells all levels apart."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def follow(
    x: Tensor,
    level: Tensor | None,
    neurons: Neurons,
    paces: Sequence[Pace],
    report: Report | None = None,
    smooth: bool = False,
) -> tuple[Tensor, Tensor]:
    """x [L, N, *S], one step a pace; level [N, *S] → (answers [L, N, *S] of x's type, the level after the last step).

    level None: at rest. Where no gradient is wanted the level is overwritten. smooth: without rounding, the network
    that the gradient belongs to. Raises ValueError for a level of another shape.
    """
    if level is not None and level.shape != x.shape[1:]:
        shapes = f"{tuple(level.shape)} but the input has {tuple(x.shape[1:])}"
        raise ValueError(f"neuron state has shape {shapes}; reset the network")
    levels = neurons.levels
    learns = torch.is_grad_enabled() and any(
        isinstance(v, Tensor) and v.requires_grad for v in (x, level, levels.step, neurons.charge, levels.offset)
    )
    if level is None and (smooth or learns or len(x) > 1 or paces[0].most is not None):
        level = neurons.rest(x[0])
    if level is not None and (smooth or (learns and torch.compiler.is_compiling())):
        return soft_follow(x, level, neurons, paces, report, smooth)
    if learns:
        offset = levels.offset if isinstance(levels.offset, Tensor) else None
        return _Follow.apply(x, level, levels.step, neurons.charge, offset, neurons, tuple(paces), report)
    answers = torch.empty_like(x)
    for now, pace, answer in zip(x.unbind(), paces, answers.unbind(), strict=True):
        target = neurons.target(working(now), pace.share)
        level, hole = advance(level, target, neurons, pace, report)
        send(level, neurons, pace, answer, hole)
    assert level is not None  # there is a step at least
    return answers, level


def advance(
    level: Tensor | None, target: Tensor, neurons: Neurons, pace: Pace, report: Report | None
) -> tuple[Tensor, Tensor | None]:
    """(`level`, moved towards `target` [N, *S] in place; where the target is not a number, if it is anywhere).

    The target is overwritten. level None: at rest, and free to go anywhere.
    """
    if level is None:
        hole = holes(target)
        level = target if hole is None else target.masked_fill_(hole, neurons.levels.start)
        if report is not None:
            report(level - neurons.levels.start)
        return level, hole
    limits = neurons.limits(pace)
    if limits is None:  # free to go there: two passes less
        hole = holes(target)
        if hole is not None:
            target = torch.where(hole, level, target)
        if report is not None:
            report(target - level)
        return level.copy_(target), hole
    event = target.sub_(level)
    hole = holes(event)
    if hole is not None:
        event = event.masked_fill_(hole, 0)
    event = event.clamp_(*limits)
    if report is not None:
        report(event)
    level += event
    return level, hole


def holes(values: Tensor) -> Tensor | None:
    """Where `values` are not a number, [*S] of bool; None where a CPU finds, in half a pass, that all are numbers."""
    if values.device.type == "cpu" and not torch.compiler.is_compiling() and not math.isnan(values.sum()):
        return None
    return values.isnan()


def send(level: Tensor, neurons: Neurons, pace: Pace, answer: Tensor, hole: Tensor | None) -> None:
    """Write what neurons at `level` [N, *S] answer in this step."""
    worth = neurons.worth if pace.share == 1 else neurons.worth / pace.share
    value = torch.mul(level, worth, out=answer if answer.dtype == level.dtype else None)
    if neurons.levels.has_offset:
        value += neurons.levels.offset
    if value is not answer:
        answer.copy_(value)  # half precision: rounded once
    if hole is not None:
        answer.masked_fill_(hole, math.nan)


# ---- gradients -------------------------------------------------------------------------------------------------------


def soft_follow(
    x: Tensor, level: Tensor, neurons: Neurons, paces: Sequence[Pace], report: Report | None, smooth: bool
) -> tuple[Tensor, Tensor]:
    """`follow` as autograd differentiates it: what the hand-written reverse below must agree with."""
    levels, answers = neurons.levels, []
    shift = 0.0 if neurons.charge is None else neurons.charge - 0.5
    for now, pace in zip(x, paces, strict=True):
        now = working(now)
        wanted = (now - levels.offset) / levels.step * pace.share + shift
        least, most = neurons.limits(pace) or (-math.inf, math.inf)
        # hardtanh is flat at its limits in every version of torch; clamp is in some.
        move = wanted - level if math.isinf(least) else torch.nn.functional.hardtanh(wanted - level, least, most)
        after = torch.nn.functional.hardtanh(level + move, levels.lo, levels.hi)
        if not smooth:
            event = (neurons.target(now.detach(), pace.share) - level.detach()).clamp(least, most)
            event = torch.where(event.isnan(), 0, event)
            if report is not None:
                report(event)
            reached = level.detach() + event
            after = torch.where(now.isnan(), reached, after + (reached - after).detach())
        elif report is not None:
            report((after - level).detach())
        level = after
        answer = level * (neurons.worth / pace.share) + levels.offset
        answers.append(torch.where(now.isnan(), now, answer).to(x.dtype))
    return torch.stack(answers), level


class _Follow(torch.autograd.Function):
    """x [L, N, *S], level [N, *S], step, charge, offset → (answers, level).

    What is kept of a step, in a byte: 1 where the level takes the input's gradient (it is within reach and bounds),
    0 where it takes the previous level's, −1 where it is at a bound. In reverse, with g the gradient of the level:

        g_l = g + answer's·Δ/r      u's gradient = g_l where 1      g ← g_l where 0

    and dx = u's·r/Δ, dΔ = Σ answer's·k/r − Σ dx·(x − β)/Δ, d charge = Σ u's, dβ = Σ answer's − Σ dx.
    """

    @staticmethod
    def forward(ctx, x, level, step, charge, offset, neurons: Neurons, paces, report):
        answers, slopes = torch.empty_like(x), torch.empty_like(x, dtype=torch.int8)
        level, levels = level.to(working(x).dtype, copy=True), neurons.levels
        for now, pace, answer, slope in zip(x, paces, answers, slopes, strict=True):
            now = working(now)
            distance = (now - levels.offset if levels.has_offset else now) * (levels.per_unit * pace.share)
            distance = distance.sub_(level) if charge is None else distance.add_(charge - 0.5).sub_(level)
            least, most = neurons.limits(pace) or (-math.inf, math.inf)
            near = (distance > least) & (distance < most)  # flat at its limits, as at its bounds
            reached = distance.clamp_(least, most).add_(level)
            free = (reached > levels.lo) & (reached < levels.hi)
            slope.copy_((near & free).to(torch.int8) - (~free).to(torch.int8))
            level, hole = advance(level, neurons.target(now, pace.share), neurons, pace, report)
            send(level, neurons, pace, answer, hole)
        ctx.save_for_backward(slopes, step, charge, offset, *((x, answers) if ctx.needs_input_grad[2] else ()))
        ctx.neurons, ctx.paces = neurons, paces
        ctx.set_materialize_grads(False)
        return answers, level

    @staticmethod
    @once_differentiable
    def backward(ctx, by_answers, by_level):
        slopes, step, charge, offset, *kept = ctx.saved_tensors
        kind = torch.promote_types(step.dtype, torch.float32)
        g = torch.zeros_like(slopes[0], dtype=kind) if by_level is None else by_level.to(kind)
        by_x, worth = torch.empty_like(slopes, dtype=kind), ctx.neurons.worth
        shift = ctx.neurons.levels.offset
        sums = [torch.zeros_like(g) if wanted else None for wanted in ctx.needs_input_grad[2:5]]
        by_step, by_charge, by_offset = sums
        for index in reversed(range(len(slopes))):
            share, slope = ctx.paces[index].share, slopes[index]
            if by_answers is not None:
                answered = by_answers[index].to(kind)
                g = g + answered * (worth / share)
                if by_step is not None and ctx.neurons.size is None:
                    by_step += answered * (kept[1][index] - shift) / step
                if by_offset is not None:
                    by_offset += answered
            wanted = g * (slope > 0)
            g = g * (slope == 0)
            torch.mul(wanted, share / step, out=by_x[index])
            if by_step is not None:
                by_step -= by_x[index] * (kept[0][index] - shift) / step
            if by_charge is not None:
                by_charge += wanted
            if by_offset is not None:
                by_offset -= by_x[index]
        pairs = zip(sums, (step, charge, offset), strict=True)
        gradients = [None if total is None else total.sum_to_size(like.shape) for total, like in pairs]
        return by_x, g if ctx.needs_input_grad[1] else None, *gradients, None, None, None
