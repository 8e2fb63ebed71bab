"""What is summed for a layer of a directly trained network during a run, and the hooks that it is counted by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .layers import ADDITIVE, LEVELS, MIXED, REAL, SPIKES, SYNAPTIC, LayerCost
from .synapses import layer_fan_out, operations_by_channel

#: What an input channel carries; `Tally.carried` holds indices.
INPUTS = (REAL, LEVELS, SPIKES)
#: Sums of other layers' outputs, which have no parameters of their own.
SUMS = ("sum", "readout")


@dataclass
class Tally:
    """Sums of one layer over all images."""

    name: str
    kind: str
    module: nn.Module
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ADDITIVE, 0.0))
    operations: Tensor | None = None  # effective ones, by input channel
    carried: Tensor | None = None  # by input channel, what it was found to carry in every chunk so far
    reach: dict[torch.Size, tuple[Tensor, float]] = field(default_factory=dict)

    def add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.sums[name] += amount

    def run(self, times: Tensor, carries: str | Tensor, runs: float) -> None:
        """A synaptic layer has been run.

        times [R, C, …]: how often each input value is applied, see `operations_by_channel`. carries: what the input
        is, as one of INPUTS or, by channel [C], as their indices. runs: how often the whole layer was computed.
        """
        reach, dense = self._fan_out(times.shape[1:])
        operations = operations_by_channel(times, reach)
        self.operations = operations if self.operations is None else self.operations + operations
        kinds = torch.full(times.shape[1:2], INPUTS.index(carries)) if isinstance(carries, str) else carries.cpu()
        self.carried = kinds if self.carried is None else torch.where(self.carried == kinds, kinds, INPUTS.index(REAL))
        self.add(dense=dense * runs, weight_reads=self._weights() * runs)

    def _weights(self) -> int:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.numel()

    def _fan_out(self, shape: torch.Size) -> tuple[Tensor, float]:
        if shape not in self.reach:
            self.reach[shape] = layer_fan_out(self.module, shape)
        return self.reach[shape]

    def cost(self, images: int) -> LayerCost:
        """Averages over the images. An input channel is accumulated only if it carried spikes in every chunk."""
        values: dict[str, Any] = {name: value / images for name, value in self.sums.items()}
        inputs = ""
        if self.kind in SYNAPTIC and self.carried is not None and self.operations is not None:
            kinds = self.carried.unique().tolist()
            inputs = INPUTS[kinds[0]] if len(kinds) == 1 else MIXED
            spikes = (self.carried == INPUTS.index(SPIKES)).to(self.operations.device)
            values["ac"] = float(self.operations[spikes].sum()) / images
            values["weight_fetches"] = float(self.operations.sum()) / images
            values["mac"] += float(self.operations[~spikes].sum()) / images
        tensors = [] if self.kind in SUMS else list(self.module.parameters(recurse=False))
        weight_bits = getattr(self.module, "bits", 32) if self.kind in SYNAPTIC else 32
        values["parameters"] = sum(p.numel() for p in tensors)
        values["parameter_bits"] = 32 * values["parameters"]
        if self.kind in SYNAPTIC:
            values["parameter_bits"] -= (32 - weight_bits) * self._weights()
        return LayerCost(self.name, self.kind, inputs, weight_bits=weight_bits, **values)


class Counter:
    """Hooks on every layer of one network. Every hook reduces to numbers at once.

    kinds: class of a layer → its kind. Subclasses say in `functions` what to do for each kind, as f(tally, input,
    output).
    """

    def __init__(self, root: nn.Module, kinds: Mapping[type, str]) -> None:
        self.root = root
        self.tallies = {module: Tally(name, kind, module) for name, module, kind in _layers(root, kinds)}
        self.image_steps = 0  # images × time steps run

    @property
    def functions(self) -> dict[str, Callable[[Tally, Tensor, Tensor], None]]:
        raise NotImplementedError

    def begin(self, x: Tensor, t: Tensor) -> None:
        """Before every pass through the network."""
        raise NotImplementedError

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are on inside the context."""
        handles = [self.root.register_forward_pre_hook(lambda module, args: self.begin(*args))]
        for module, tally in self.tallies.items():
            function = self.functions[tally.kind]
            handles.append(module.register_forward_hook(lambda m, a, out, f=function, c=tally: f(c, a[0], out)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def layers(self, images: int) -> tuple[LayerCost, ...]:
        return tuple(tally.cost(images) for tally in self.tallies.values())


def add_block_sums(tally: Tally, x: Tensor, out: Tensor) -> None:
    """Two additions per value of a residual block: the time embedding after its first convolution, the residual."""
    tally.add(additions=2 * out.numel(), values=2 * 3 * out.numel())


def _layers(module: nn.Module, kinds: Mapping[type, str], name: str = "") -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, kind) of everything that costs operations; a block comes after what it is made of."""
    for child_name, child in module.named_children():
        yield from _layers(child, kinds, f"{name}.{child_name}" if name else child_name)
    kind = next((kind for base, kind in kinds.items() if isinstance(module, base)), None)
    if kind is not None:
        yield {"sum": f"{name}.sum", "readout": "readout"}.get(kind, name), module, kind
