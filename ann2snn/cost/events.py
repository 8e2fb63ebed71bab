"""Following the events of levels, and changes of real values, through the passes of any network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from ..convert.trace import Follower, copies
from ..neurons import Clock, IFNeuron


@dataclass(frozen=True)
class Read:
    """What a layer is given, R = time steps × images.

    events, real: |events| and real values of the step, each of the input's shape and 0 where the other is; None where
    there are none. again: images in which a real value changed; changed: or a level, bool [R]. share: of real values.
    """

    events: Tensor | None
    real: Tensor | None
    again: Tensor
    changed: Tensor
    share: float


class EventFollower(Follower):
    """Follower in which every tensor of levels has a companion of its shape, |events| of the step; also a monitor.

    Functions that copy values copy the companion; NaN stands for real values beside levels. Real values are compared
    with those of the step before, where the same function ran, the n-th time in the pass.
    """

    def __init__(self, net: nn.Module, clock: Clock) -> None:
        super().__init__(net)
        self.clock = clock
        self.companions: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.grouped: WeakIdKeyDictionary = WeakIdKeyDictionary()  # what makes all of an image change at once
        self.turns: Counter = Counter()  # how often something ran in this pass
        self.before: dict[tuple, Tensor] = {}  # what was read in the step before
        self.sent: list[Tensor] = []  # |events| of each step, by the neuron that runs
        self.images = self.image_steps = 0

    def count(self, func: Callable, args: tuple, kwargs: dict, operands: list[Tensor], out: Tensor, group: str) -> str:
        """A function has computed `out` of `operands`, which depend on the call.

        group: what makes all values of an operand's image change at once. Returns what makes those of `out`.
        """
        raise NotImplementedError

    def count_neuron(self, x: Tensor, events: Tensor) -> None:
        """Neurons have read x and sent |events|, of its shape."""
        raise NotImplementedError

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        """Monitor of the network."""
        self.sent.extend(events.abs())

    def _enter(self, module: nn.Module, args: tuple) -> None:
        if module is self.net:
            self.turns.clear()
            self.image_steps += self.clock.chunk_steps * self.images
        if isinstance(module, IFNeuron):
            self.sent = []
        super()._enter(module, args)

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        if isinstance(module, IFNeuron) and not module.is_constant and isinstance(output, Tensor):
            self.companions[output] = (torch.cat(self.sent) if self.sent else torch.zeros_like(output)).view_as(output)
            self.count_neuron(args[0], self.companions[output])
        super()._leave(module, args, output)

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        if self.in_neuron or not self.inside:  # the average over time is no part of the network
            return func(*args, **kwargs)
        operands = [v for v in pytree.tree_leaves((args, kwargs)) if self.of(v) is not None and v.is_floating_point()]
        out = super().__torch_function__(func, types, args, kwargs)
        answers = [v for v in pytree.tree_leaves(out) if isinstance(v, Tensor) and v.is_floating_point()]
        if not operands or not answers:
            return out
        group = next(filter(None, (self.grouped.get(value) for value in operands)), "")
        companions: list[object] = [None] * len(answers)
        if not copies(func, kwargs):
            self.reach.paused = True  # nothing that is counted goes back into the network
            try:
                group = self.count(func, args, kwargs, operands, answers[0], group)
            finally:
                self.reach.paused = False
        elif any(value in self.companions for value in operands):
            inputs = args[:3] if func is nn.functional.pad else args  # whatever it pads with, it sends no events
            inputs, options = pytree.tree_map(
                self._companion, (inputs, {k: v for k, v in kwargs.items() if k != "value"})
            )
            companions = pytree.tree_leaves(func(*inputs, **options))
        for value, companion in zip(answers, companions, strict=True):
            self.grouped[value] = group
            self.companions.pop(value, None)
            if companion is not None:
                self.companions[value] = companion
        return out

    def _keep(self, suffix: str, operands: tuple | list, macs: int, real_first: bool = False) -> None:
        """Nothing: what runs is counted instead."""

    def _companion(self, value: object) -> object:
        """What stands for a tensor where companions are copied: NaN for real values, 0 for constants."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        nothing = 0.0 if self.of(value) is None else math.nan
        return self.companions[value] if value in self.companions else torch.full_like(value, nothing)

    def moved(self, value: Tensor, move: Callable, *arguments: object) -> Tensor:
        """move(value, *arguments), with its companion."""
        moved = move(value, *arguments)
        self.origins[moved] = self.of(value)
        if value in self.companions:
            self.companions[moved] = move(self.companions[value], *arguments)
        return moved

    # ---- rows and steps ----------------------------------------------------------------------------------------------

    def lines(self, x: Tensor) -> int:
        """R, steps × images that x has rows for; just the steps for what an entire batch shares."""
        steps = self.clock.chunk_steps
        return steps * self.images if x.dim() and x.shape[0] % (steps * self.images) == 0 else steps

    def by_image(self, x: Tensor) -> Tensor:
        """x as [R, values]."""
        return x.reshape(self.lines(x), -1)

    def step_before(self, x: Tensor, key: tuple, rest: float) -> Tensor:
        """What x was in the step before each of this chunk's, as `by_image`; `rest` where there was none."""
        flat = self.by_image(x)
        each = len(flat) // self.clock.chunk_steps
        last = self.before.get(key)
        self.before[key] = flat[len(flat) - each :].clone()
        if last is None or last.shape != self.before[key].shape:
            last = torch.full_like(self.before[key], rest)
        return torch.cat([last, flat[: len(flat) - each]])

    def changes(self, x: Tensor, key: tuple) -> Tensor:
        """Where x differs from the step before by more than rounding, as `by_image`; everywhere from rest."""
        flat, before = self.by_image(x), self.step_before(x, key, math.inf)
        rounding = torch.finfo(x.dtype).eps ** 0.7  # more than a layer's sums leave, and far below a level
        return (flat - before).abs() > rounding * flat.abs().amax(1, keepdim=True)

    def read(self, x: Tensor, key: tuple) -> Read:
        """What a layer that is given x has to do with it."""
        events, share = self.companions.get(x), 1.0
        real: Tensor | None = x
        none = torch.zeros(self.lines(x), dtype=torch.bool, device=x.device)
        if events is not None:
            holes = events.isnan()
            share = float(holes.double().mean())
            real = torch.where(holes, x, torch.zeros_like(x)) if share else None
            events = events.nan_to_num(0.0) if share < 1 else None
        again = none if real is None else self.changes(real, key).any(1)
        return Read(events, real, again, again if events is None else again | self.by_image(events).any(1), share)
