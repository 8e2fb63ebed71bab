"""Operation counts by hooks on a real run; definitions of effective operations follow NeuroBench.

NeuroBench (Yik et al., arXiv:2304.04640): an operation is effective if neither its input nor its weight is zero;
biases do not count; a layer accumulates (AC) if all its inputs are in {−1, 0, 1}, and multiplies (MAC) otherwise.
Here a layer accumulates as well if its inputs are unit events times one factor per channel, the threshold of the
neuron that sent them, since that factor folds into the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quant import QuantReLU

from ..config import SpikingConfig
from ..convert import SpikingDenoiser
from ..errors import UserError
from ..nets import UNet
from ..nets.parts import ResBlock
from ..neurons import IFNeuron
from .account import CostReport
from .layers import ADDITIVE, LEVELS, REAL, SPIKES, SYNAPTIC, LayerCost
from .synapses import effective_operations, fan_out, is_constant, magnitudes, spike_counts

#: Multiply-accumulates of a norm per value: into the sum, into the sum of squares, and the affine map; of a frozen one
#: the affine map alone. What a norm computes once per group is left out.
NORM_MACS, FROZEN_MACS = 3, 1
KINDS = {
    **{nn.Conv2d: "conv", nn.Linear: "linear", nn.GroupNorm: "norm", IFNeuron: "neuron", QuantReLU: "neuron"},
    **{ResBlock: "sum", UNet: "readout"},
}


def count_operations(
    net: SpikingDenoiser | UNet, x: Tensor, t: Tensor, spiking: SpikingConfig | None = None, batch_size: int = 16
) -> CostReport:
    """Count what `net`, in eval mode, does for x [N, C, H, W], t [N]: averages per image and network call.

    net: a spiking network, run as `spiking` says (default: as it is set), settling included; or a U-Net, whose `mac`
    skips zero activations and whose `dense` does not. `layer_sync` runs with its spike trains materialised, and each
    norm and each layer with real inputs once per window, on the window's sum.

    A layer that sees the same real input in all steps of the window (head, first linear layer of the time embedding,
    first norm) is a constant current: computed, and counted, once per call. Other real inputs count in every step.

    Raises ValueError for an empty batch, UserError for another network: attention's products would go uncounted.
    """
    if not isinstance(net, SpikingDenoiser | UNet):
        raise UserError(f"cannot count the operations of a {type(net).__name__}: give a U-Net or a spiking network")
    if not len(x):
        raise ValueError("no images to count operations on")
    counter = _Counter(net)
    snn = net if isinstance(net, SpikingDenoiser) else None
    settle_steps = 0
    with torch.no_grad(), counter.attached(), contextlib.ExitStack() as stack:
        if snn is not None:
            mode = spiking or snn.spiking
            stack.enter_context(snn.running_as(mode, materialise=mode.schedule == "layer_sync"))
            stack.enter_context(snn.monitored(counter))
        for start in range(0, len(x), batch_size):
            net(x[start : start + batch_size], t[start : start + batch_size])
            settle_steps = max(settle_steps, snn.last_settle_steps if snn else 0)
    layers = tuple(tally.cost(len(x)) for tally in counter.tallies.values())
    used, depth = (None, None) if snn is None else (mode, snn.depth)
    return CostReport(used, net.config.bits, len(x), depth, settle_steps, counter.image_steps / len(x), layers)


@dataclass
class _Tally:
    """Sums of one layer over all images; `kinds` holds what its inputs were, chunk by chunk."""

    name: str
    kind: str
    module: nn.Module
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ADDITIVE, 0.0))
    operations: float = 0.0
    inputs: set[str] = field(default_factory=set)
    constant: bool = False  # the same real input in every step of this call's window
    reach: dict[torch.Size, tuple[Tensor, float]] = field(default_factory=dict)

    def add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.sums[name] += amount

    def fan_out(self, shape: torch.Size) -> tuple[Tensor, float]:
        if shape not in self.reach:
            self.reach[shape] = fan_out(self.module, shape)
        return self.reach[shape]

    def cost(self, images: int) -> LayerCost:
        """Averages over the images. A layer accumulates only if its input was spikes in every chunk."""
        values = {name: value / images for name, value in self.sums.items()}
        kinds = ""
        if self.kind in SYNAPTIC:
            kinds = next(iter(self.inputs)) if len(self.inputs) == 1 else REAL
            values["ac" if kinds == SPIKES else "mac"] = self.operations / images
        own = [] if self.kind in ("sum", "readout") else list(self.module.parameters(recurse=False))
        weight_bits = getattr(self.module, "bits", 32) if self.kind in SYNAPTIC else 32
        values["parameters"] = sum(p.numel() for p in own)
        values["parameter_bits"] = 32 * values["parameters"]
        if self.kind in SYNAPTIC:
            values["parameter_bits"] -= (32 - weight_bits) * self.module.weight.numel()
        return LayerCost(self.name, self.kind, kinds, weight_bits=weight_bits, **values)


class _Counter:
    """Hooks on every layer of one network; also the monitor of its spikes. Every hook reduces to numbers at once."""

    def __init__(self, net: SpikingDenoiser | UNet) -> None:
        self.snn = net if isinstance(net, SpikingDenoiser) else None
        self.unet: UNet = net.unet if self.snn else net
        self.tallies = {module: _Tally(name, kind, module) for name, module, kind in _layers(self.unet)}
        if self.snn is None:
            self.tallies.pop(self.unet)  # an ANN's output is there at once
        # Largest magnitudes in each channel of what the neurons sent in this chunk → those of a single spike.
        self.sent: dict[tuple[float, ...], tuple[float, ...]] = {}
        self.events: Tensor | None = None  # of the neuron that just ran
        self.image_steps = 0  # images × time steps run

    @property
    def steps(self) -> int:
        """Time steps in a chunk's rows."""
        return self.snn.clock.chunk_steps if self.snn else 1

    @property
    def input_on(self) -> bool:
        return self.snn is None or self.snn.clock.input_on

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are on inside the context."""
        count = {
            **{"conv": self._synapse, "linear": self._synapse, "norm": self._norm, "neuron": self._neuron},
            **{"sum": self._addition, "readout": self._readout},
        }
        handles = [self.unet.register_forward_pre_hook(self._begin)]
        for module, tally in self.tallies.items():
            function = count[tally.kind]
            handles.append(module.register_forward_hook(lambda m, a, out, f=function, c=tally: f(c, a[0], out)))
            if tally.kind == "sum":  # the time embedding is added to what the first convolution gives
                conv = module.block1[-1]
                handles.append(conv.register_forward_hook(lambda m, a, out, f=function, c=tally: f(c, a[0], out)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        """Monitor of the spiking network."""
        self.tallies[neuron].add(spikes=float(events.abs().sum(dtype=torch.float64)))
        self.events = events.flatten(0, 1)

    def _begin(self, module: nn.Module, args: tuple) -> None:
        self.sent.clear()
        self.image_steps += len(args[0])
        if self.input_on:
            for tally in self.tallies.values():
                tally.constant = False

    def _rows(self, tally: _Tally, x: Tensor) -> Tensor:
        """The rows of real input x [L·N, *S] that are computed: the first step's alone for a constant current."""
        if self.snn is None or not self.input_on:
            return x
        steps = self.snn.clock.unfold(x)
        tally.constant = is_constant(steps)
        return steps[0] if tally.constant else x

    def _has_ended(self, tally: _Tally, x: Tensor) -> bool:
        """Whether this was a constant current and the window is over."""
        return tally.constant and not self.input_on and not x.any()

    def _synapse(self, tally: _Tally, x: Tensor, out: Tensor) -> None:
        if self._has_ended(tally, x):
            return
        unit = self.sent.get(magnitudes(x))
        spikes = None if unit is None or self.snn is None else spike_counts(x, unit)
        if spikes is not None or (unit is not None and self.snn is None):
            tally.inputs.add(LEVELS if self.snn is None else SPIKES)
            rows, read = x, "activations"
        else:
            tally.inputs.add(REAL)
            rows, read = self._rows(tally, x), "values"
            if self.snn is not None and not self.snn.clock.is_stream and not tally.constant:
                # The layer waits for its whole window, and a convolution of the window's sum is the sum of the steps'.
                tally.add(additions=rows.numel(), states=2 * rows.numel())
                rows = self.snn.clock.unfold(rows).sum(0)
        reach, dense = tally.fan_out(x.shape[1:])
        tally.operations += effective_operations(rows != 0 if spikes is None else spikes, reach)
        tally.add(dense=dense * len(rows), weight_reads=tally.module.weight.numel() * len(rows))
        tally.add(values=out[0].numel() * len(rows))
        tally.add(**{read: rows.numel()})

    def _norm(self, tally: _Tally, x: Tensor, out: Tensor) -> None:
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

    def _neuron(self, tally: _Tally, x: Tensor, out: Tensor) -> None:
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

    def _addition(self, tally: _Tally, x: Tensor, out: Tensor) -> None:
        tally.add(additions=out.numel(), values=3 * out.numel())

    def _readout(self, tally: _Tally, x: Tensor, out: Tensor) -> None:
        """The sum over time steps and, once per call, its division by T."""
        tally.add(additions=out.numel(), states=2 * out.numel(), values=out.numel())
        if self.input_on:
            tally.add(mac=out.numel() // self.steps)


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, kind) of everything that costs operations; a block comes after what it is made of."""
    for child_name, child in module.named_children():
        yield from _layers(child, f"{name}.{child_name}" if name else child_name)
    kind = next((kind for base, kind in KINDS.items() if isinstance(module, base)), None)
    if kind is not None:
        yield {"sum": f"{name}.sum", "readout": "readout"}.get(kind, name), module, kind
