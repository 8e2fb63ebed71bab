"""Counting a U-Net and the spiking network converted from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quant import QuantReLU

from ..convert import SpikingNetwork
from ..nets import UNet
from ..nets.parts import ResBlock
from ..neurons import IFNeuron
from .layers import LEVELS, REAL, SPIKES
from .synapses import is_constant, magnitudes, spike_counts
from .tally import Counter, Tally, add_block_sums

#: Multiply-accumulates of a norm per value: into the sum, into the sum of squares, and the affine map; of a frozen one
#: the affine map alone. What a norm computes once per group is left out.
NORM_MACS, FROZEN_MACS = 3, 1
KINDS = {
    **{nn.Conv2d: "conv", nn.Linear: "linear", nn.GroupNorm: "norm", IFNeuron: "neuron", QuantReLU: "neuron"},
    **{ResBlock: "sum", UNet: "readout"},
}


class UNetCounter(Counter):
    """Of an ANN or a converted network; also the monitor of the latter's spikes."""

    def __init__(self, net: SpikingNetwork | UNet) -> None:
        self.snn = net if isinstance(net, SpikingNetwork) else None
        super().__init__(self.snn.unet if self.snn else net, KINDS)
        if self.snn is None:
            self.tallies.pop(self.root)  # an ANN's output is there at once
        # Largest magnitudes in each channel of what the neurons sent in this chunk → those of a single spike.
        self.sent: dict[tuple[float, ...], tuple[float, ...]] = {}
        self.events: Tensor | None = None  # of the neuron that just ran

    @property
    def functions(self) -> dict[str, Callable[[Tally, Tensor, Tensor], None]]:
        return {
            **{"conv": self._synapse, "linear": self._synapse, "norm": self._norm, "neuron": self._neuron},
            **{"sum": add_block_sums, "readout": self._readout},
        }

    @property
    def steps(self) -> int:
        """Time steps in a chunk's rows."""
        return self.snn.clock.chunk_steps if self.snn else 1

    @property
    def input_on(self) -> bool:
        return self.snn is None or self.snn.clock.input_on

    def begin(self, x: Tensor, t: Tensor) -> None:
        self.sent.clear()
        self.image_steps += len(x)
        if self.input_on:
            for tally in self.tallies.values():
                tally.constant = False

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        """Monitor of the spiking network."""
        self.tallies[neuron].add(spikes=float(events.abs().sum(dtype=torch.float64)))
        self.events = events.flatten(0, 1)

    def _rows(self, tally: Tally, x: Tensor) -> Tensor:
        """The rows of real input x [L·N, *S] that are computed: the first step's alone for a constant current."""
        if self.snn is None or not self.input_on:
            return x
        steps = self.snn.clock.unfold(x)
        tally.constant = is_constant(steps)
        return steps[0] if tally.constant else x

    def _has_ended(self, tally: Tally, x: Tensor) -> bool:
        """Whether this was a constant current and the window is over."""
        return tally.constant and not self.input_on and not x.any()

    def _synapse(self, tally: Tally, x: Tensor, out: Tensor) -> None:
        if self._has_ended(tally, x):
            return
        unit = self.sent.get(magnitudes(x))
        spikes = None if unit is None or self.snn is None else spike_counts(x, unit)
        if spikes is not None or (unit is not None and self.snn is None):
            carries, rows, read = LEVELS if self.snn is None else SPIKES, x, "activations"
        else:
            carries, rows, read = REAL, self._rows(tally, x), "values"
            if self.snn is not None and not self.snn.clock.is_stream and not tally.constant:
                # The layer waits for its whole window, and a convolution of the window's sum is the sum of the steps'.
                tally.add(additions=rows.numel(), states=2 * rows.numel())
                rows = self.snn.clock.unfold(rows).sum(0)
        tally.run(rows != 0 if spikes is None else spikes, carries, len(rows))
        tally.add(values=out[0].numel() * len(rows))
        tally.add(**{read: rows.numel()})

    def _norm(self, tally: Tally, x: Tensor, out: Tensor) -> None:
        if self._has_ended(tally, x):
            return
        values = runs = self._rows(tally, x).numel()
        stream_norm = None
        if self.snn is not None and not tally.constant:
            clock = self.snn.clock
            stream_norm = clock.config.stream_norm if clock.is_stream else "window"
        if stream_norm in ("window", "cumulative"):  # both sum their input over time
            tally.add(additions=values, states=2 * values)
        if stream_norm == "window":
            runs //= self.steps
        macs = FROZEN_MACS if stream_norm == "frozen" else NORM_MACS
        tally.add(mac=macs * runs, values=values + runs)

    def _neuron(self, tally: Tally, x: Tensor, out: Tensor) -> None:
        updates = out.numel()
        tally.add(updates=updates, values=updates, activations=updates)
        if self.input_on:
            tally.add(neurons=updates // self.steps)
        if self.snn is None:
            if tally.module.quantizes:
                self.sent[magnitudes(out)] = ()
            return
        tally.add(states=2 * updates)
        events, self.events = self.events, None
        if events is not None and torch.equal(events != 0, out != 0):
            sizes, most = magnitudes(out), magnitudes(events)
            self.sent[sizes] = tuple(size / max(1.0, n) for size, n in zip(sizes, most, strict=True))

    def _readout(self, tally: Tally, x: Tensor, out: Tensor) -> None:
        """The sum over time steps and, once per call, its division by T."""
        tally.add(additions=out.numel(), states=2 * out.numel(), values=out.numel())
        if self.input_on:
            tally.add(mac=out.numel() // self.steps)
