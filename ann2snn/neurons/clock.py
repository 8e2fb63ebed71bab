"""The clock that all spiking layers of one network share, and the monitor that listens to their spikes.

Spike time is folded into the batch, outermost: a tensor of L time steps of a batch of N is [L·N, C, H, W]. Only
layers with memory look at the clock to unfold it; everything else sees a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from ..config import SpikingConfig


class Monitor(Protocol):
    """Receives the events of every neuron layer, chunk by chunk."""

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        """events [L, N, *S]: unit events of L steps, or (`is_count`) one row of net counts for the whole window."""


@dataclass
class Clock:
    """Where in the spike window the network is; one per network, never saved.

    A network call is a sequence of chunks. Under `stream` a chunk is `chunk_steps` consecutive time steps, first with
    the input on (T steps in all), then settling with the input off. Under `layer_sync` there is one chunk: spike
    counts (one row) or, with `materialise`, the trains themselves (T rows).
    """

    config: SpikingConfig
    bits: int
    materialise: bool = False
    chunk_steps: int = 1
    input_on: bool = True
    elapsed: int = 0  # steps completed before this chunk, with the input on
    diffusion_steps: int = 1000
    times: Tensor | None = field(default=None, repr=False)  # [N], the diffusion times of the current call
    busy: Tensor | None = field(default=None, repr=False)  # see `notice`; None: nobody asks
    smooth: bool = False  # neurons fire by a ramp: the differentiable network that bptt's gradients belong to
    monitor: Monitor | None = field(default=None, repr=False)

    @property
    def spike_steps(self) -> int:
        """T = 2^b − 1."""
        return 2**self.bits - 1

    @property
    def is_stream(self) -> bool:
        return self.config.schedule == "stream"

    @property
    def on_counts(self) -> bool:
        """True where a row holds the mean over the window instead of one time step."""
        return not self.is_stream and not self.materialise

    @property
    def window(self) -> int:
        """What a sum over rows is divided by to give the time average."""
        return 1 if self.on_counts else self.spike_steps

    def notice(self, rows: Tensor) -> None:
        """Keep in `busy` [L] in which steps some synapse receives something; rows [L·N] says which of its rows do.

        In a step in which none does, no neuron has fired.
        """
        if self.busy is not None:
            self.busy |= self.unfold(rows).any(1)

    def unfold(self, x: Tensor) -> Tensor:
        """[L·N, *S] → [L, N, *S] (a view). Raises ValueError if the rows do not divide into the chunk's steps."""
        return unfold_time(x, self.chunk_steps)


def unfold_time(x: Tensor, steps: int) -> Tensor:
    """[L·N, *S] → [L, N, *S] (a view). Raises ValueError if the rows do not divide into the steps."""
    if x.shape[0] % steps:
        raise ValueError(f"{x.shape[0]} rows do not fold into {steps} time steps")
    return x.view(steps, x.shape[0] // steps, *x.shape[1:])


class Clocked(nn.Module):
    """Base of every layer with spike-time memory; `state` is per call and never in the state dict."""

    clock: Clock
    state: object | None = None

    def reset(self) -> None:
        """Forget the previous call."""
        self.state = None


def check_state_shape(state_shape: tuple[int, ...], input_shape: tuple[int, ...]) -> None:
    """Refuse to continue a scan on another batch or image size. Raises ValueError."""
    if tuple(state_shape) != tuple(input_shape):
        raise ValueError(
            f"neuron state has shape {tuple(state_shape)} but the input has {tuple(input_shape)}; reset the network"
        )
