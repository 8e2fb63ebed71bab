"""The clock that all neurons of one network share, and the monitor that listens to their events.

Networks that allow it have spike time folded into the batch, outermost: a tensor of L time steps of a batch of N is
[L·N, C, H, W]. Only neurons look at the clock to unfold it; everything else sees a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from ..config import SpikingConfig
from ..kernels import Pace

AT_ONCE = (Pace(1.0),)  # the only step of `layer_sync`


class Stateful(Protocol):
    """A layer of neurons that has a state."""

    def reset(self) -> None:
        """Forget all input."""

    def keep(self) -> None:
        """Part the state from how it came about."""


class Monitor(Protocol):
    """Receives the events of every neuron layer, chunk by chunk."""

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        """events [L, N, *S]: those of L time steps, or (`is_count`) one row of net counts for the whole window."""


@dataclass
class Clock:
    """Where in the spike window the network is; one per network, never saved.

    A network call is a sequence of chunks. Under `stream` a chunk is `chunk_steps` consecutive time steps; under
    `layer_sync` there is one, in which every neuron goes to its level at once.
    """

    config: SpikingConfig
    spike_steps: int  # T, the steps of the window
    chunk_steps: int = 1
    elapsed: int = 0  # steps completed before this chunk
    ramp: bool = True  # the input arrives over the window; False: it is there at once, levels are carried
    chunk: int = 0  # counts the passes through the network, so that a neuron knows when a new one begins
    busy: Tensor | None = field(default=None, repr=False)  # whether any neuron sent an event in this chunk, if `asks`
    asks: bool = False
    keeps: bool = False  # levels outlive the call
    smooth: bool = False  # levels are not rounded: the differentiable network that bptt's gradients belong to
    monitor: Monitor | None = field(default=None, repr=False)
    awake: list[Stateful] = field(default_factory=list, repr=False)  # neurons that have a state
    _known: tuple = field(default=(None, ()), repr=False)  # the paces of a chunk, and what they depend on

    @property
    def is_stream(self) -> bool:
        return self.config.schedule == "stream"

    @property
    def on_currents(self) -> bool:
        """True where neurons read and send the currents of a time step, as published, instead of means."""
        return self.is_stream and self.config.stream_norm == "per_step"

    def paces(self) -> tuple[Pace, ...]:
        """The steps of this chunk."""
        if not self.is_stream:
            return AT_ONCE
        of = (self.chunk_steps, self.elapsed, self.ramp, self.spike_steps, self.config.burst)
        if self._known[0] != of:
            self._known = of, tuple(self._pace(self.elapsed + index + 1) for index in range(self.chunk_steps))
        return self._known[1]

    def _pace(self, step: int) -> Pace:
        share = step / self.spike_steps if self.ramp and step < self.spike_steps else 1.0
        return Pace(share, self.config.burst if share == 1 else 1)

    def begin(self, steps: int) -> None:
        """A chunk of `steps` time steps."""
        self.chunk_steps, self.chunk = steps, self.chunk + 1

    def notice(self, events: Tensor) -> None:
        """Keep in `busy` whether there were any."""
        fired = events.any()
        self.busy = fired if self.busy is None else self.busy | fired

    def average(self, rows: Tensor, before: Tensor | None = None) -> Tensor:
        """What the rows [L·N, *S] of a chunk, after those of earlier chunks (`before`), say of the average [N, *S].

        The last row is the average itself; of currents, rows add up to the window's average.
        """
        steps = self.unfold(rows)
        if not self.on_currents:
            return steps[-1]
        share = steps.sum(0) / self.spike_steps
        return share if before is None else before + share

    def fold(self, steps: Tensor) -> Tensor:
        """[L, N, *S] → [L·N, *S]."""
        return steps[0] if len(steps) == 1 else steps.flatten(0, 1)

    def unfold(self, x: Tensor) -> Tensor:
        """[L·N, *S] → [L, N, *S] (a view). Raises ValueError if the rows do not divide into the chunk's steps."""
        return unfold_time(x, self.chunk_steps)


def unfold_time(x: Tensor, steps: int) -> Tensor:
    """[L·N, *S] → [L, N, *S] (a view). Raises ValueError if the rows do not divide into the steps."""
    if steps == 1:
        return x[None]
    if x.shape[0] % steps:
        raise ValueError(f"{x.shape[0]} rows do not fold into {steps} time steps")
    return x.view(steps, x.shape[0] // steps, *x.shape[1:])
