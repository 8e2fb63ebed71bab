"""The account of one network under one way of running it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ..config import FULL_PRECISION, DirectSpiking, SpikingConfig
from .energy import FP32, INT8, INT8_STATE16, Energy, Prices, energy
from .layers import ADDITIVE, LEVELS, SPIKES, SYNAPTIC, LayerCost


@dataclass(frozen=True)
class CostReport:
    """Counts per image and network call; see `LayerCost`.

    spiking: None for an ANN. bits: of its activations; of a directly trained network's currents and weights. images:
    averaged over. depth: neuron layers in sequence of a spiking network. settle_steps: the most that any call took.
    steps_run: time steps simulated, the silent last one of automatic settling included; 1 for an ANN. window: T, where
    it is not 2^bits − 1. calls: averaged over. carried: whether levels were kept from one to the next.
    first_layers, later_layers: of carried calls, the first, which runs from rest, and the others. difference_layers:
    of the ANN that multiplies differences of its levels from call to call, the first call among them.
    spikes_by_call: of an image, call by call.
    """

    spiking: SpikingConfig | DirectSpiking | None
    bits: int
    images: int
    depth: int | None
    settle_steps: int
    steps_run: float
    layers: tuple[LayerCost, ...]
    name: str = ""
    window: int | None = None
    calls: int = 1
    carried: bool = False
    first_layers: tuple[LayerCost, ...] | None = None
    later_layers: tuple[LayerCost, ...] | None = None
    difference_layers: tuple[LayerCost, ...] | None = None
    spikes_by_call: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """Short name for tables, such as "converted stream +2"."""
        if self.spiking is None:
            return f"{self.name} ANN".strip()
        return f"{self.name} {self.spiking.label}{' carried' if self.carried else ''}".strip()

    @property
    def first(self) -> CostReport | None:
        """The account of the first call, from rest, where later ones carry on."""
        return self._of(self.first_layers, 1)

    @property
    def later(self) -> CostReport | None:
        """The account of the calls that carry on, without the first."""
        return self._of(self.later_layers, self.calls - 1)

    def _of(self, layers: tuple[LayerCost, ...] | None, calls: int) -> CostReport | None:
        if layers is None:
            return None
        return dataclasses.replace(self, layers=layers, calls=calls, first_layers=None, later_layers=None)

    @property
    def spike_steps(self) -> int | None:
        """T (or S), the steps of the window; None for an ANN."""
        if isinstance(self.spiking, DirectSpiking):
            return self.spiking.spike_steps
        return None if self.spiking is None else self.window or 2**self.bits - 1

    @property
    def passes_on(self) -> bool:
        """Whether every layer fires while it integrates, so that a spike crosses the network within a step."""
        if self.spiking is None or isinstance(self.spiking, DirectSpiking):
            return self.spiking is not None
        return self.spiking.schedule == "stream"

    def total(self, field: str) -> float:
        """A field of `LayerCost` summed over layers. Raises ValueError for one that does not add up."""
        if field not in ADDITIVE:
            raise ValueError(f"{field} does not add up over layers")
        return sum(getattr(layer, field) for layer in self.layers)

    def per_image(self, field: str) -> float:
        """`total`, of all calls of the trajectory together."""
        return self.calls * self.total(field)

    def by_kind(self, field: str) -> dict[str, float]:
        """A field of `LayerCost` by kind of layer; of neurons also by what makes them look again, as "neuron, norm"."""
        totals: dict[str, float] = {}
        for layer in self.layers:
            behind = layer.kind == "neuron" and layer.inputs
            kind = f"{layer.kind}, {layer.inputs}" if behind else layer.kind
            totals[kind] = totals.get(kind, 0.0) + getattr(layer, field)
        return totals

    @property
    def touched_neurons(self) -> float:
        """Share of the neurons that sent an event in any of the calls; of carried ones, after the first."""
        report = self.later or self
        return _ratio(report.calls * report.total("touched"), report.total("neurons"))

    @property
    def touched_synapses(self) -> float:
        """Weights fetched by events, as a share of one dense pass of the synapses that read them; else likewise."""
        layers = [layer for layer in (self.later or self).layers if layer.inputs in (SPIKES, LEVELS)]
        return _ratio(sum(layer.weight_fetches for layer in layers), sum(layer.synapses for layer in layers))

    @property
    def dense_mac(self) -> float:
        """Multiply-accumulates if no zero is skipped: all synaptic operations, and those outside synapses."""
        return self.total("dense") + sum(layer.mac for layer in self.layers if layer.kind not in SYNAPTIC)

    @property
    def firing_rate(self) -> float:
        """Spikes of either sign per neuron and window step; nan for an ANN."""
        sites = self.total("neurons") * (self.spike_steps or 0)
        return self.total("spikes") / sites if sites else float("nan")

    @property
    def latency_steps(self) -> int | None:
        """Time steps from input to prediction: layer_sync depth × T, others T + settling; None for an ANN."""
        window = self.spike_steps
        if window is None:
            return None
        if self.passes_on:
            return window + self.settle_steps
        return None if self.depth is None else self.depth * window

    @property
    def latency_steps_delayed(self) -> int | None:
        """The same where every layer passes its spikes on one step later; layer_sync waits for whole windows anyway."""
        steps = self.latency_steps
        if steps is None or self.depth is None or not self.passes_on:
            return steps
        return steps + self.depth

    @property
    def activation_bits(self) -> int:
        """Width of what neurons send: an ANN's activation, or an event, as many bits as tell its values apart."""
        if self.spiking is None:
            return self.bits
        if isinstance(self.spiking, DirectSpiking):
            return 1
        most = self.spiking.burst if self.passes_on else self.window or 2**self.bits - 1
        takes_back = self.spiking.signed and (self.passes_on or self.carried)
        return math.ceil(math.log2(most * (1 + takes_back) + 1))

    def energy(self, prices: Prices, **options: bool) -> Energy:
        """Per image and call; options as in `energy`."""
        return energy(self.layers, prices, self.activation_bits, **options)

    def energies(self) -> dict[str, dict[str, Energy]]:
        """Energy by way of counting and price list.

        Of a spiking network: as counted, and with every synaptic operation taken for a multiply-accumulate. Of an
        ANN: the fp32 ANN of this architecture, and (if it is quantized) the ANN as it is, without and with zero
        inputs skipped, and (of several calls) the one that computes differences of levels, which take a bit more.
        """
        price_lists = (FP32, INT8, INT8_STATE16)
        if self.spiking is not None:
            return {
                "counted": {p.name: self.energy(p) for p in price_lists},
                "all_mac": {p.name: self.energy(p, all_mac=True) for p in price_lists},
            }
        plain = energy(self.layers, FP32, FP32.value_bits, dense=True, full_weights=True)
        by_way = {"fp32": {FP32.name: plain}}
        if self.bits != FULL_PRECISION:
            by_way["quantized"] = {p.name: self.energy(p, dense=True) for p in price_lists}
            by_way["quantized_skipping_zeros"] = {p.name: self.energy(p) for p in price_lists}
        if self.difference_layers is not None:
            by_way["quantized_differences"] = {
                p.name: energy(self.difference_layers, p, self.bits + 1) for p in price_lists
            }
        return by_way

    def to_dict(self) -> dict:
        """Plain values for JSON; nan becomes None. Counts and picojoules are per image and network call."""
        rate = self.firing_rate
        parts = {"first": self.first, "later": self.later}
        differences = self.difference_layers or ()
        return {
            "label": self.label,
            "spiking": None if self.spiking is None else self.spiking.to_dict(),
            "bits": self.bits,
            "images": self.images,
            "depth": self.depth,
            "spike_steps": self.spike_steps,
            "settle_steps": self.settle_steps,
            "steps_run": self.steps_run,
            "latency_steps": self.latency_steps,
            "latency_steps_delayed": self.latency_steps_delayed,
            "calls": self.calls,
            "carried": self.carried,
            "spikes_by_call": list(self.spikes_by_call),
            "totals": self._totals() | {"dense_mac": self.dense_mac, "firing_rate": rate if rate == rate else None},
            "differences": {field: sum(getattr(layer, field) for layer in differences) for field in ADDITIVE},
            "kinds": {field: self.by_kind(field) for field in ("ac", "mac", "additions", "updates", "states")},
            "touched": {"neurons": self.touched_neurons, "synapses": self.touched_synapses},
            **{name: None if part is None else part._totals() for name, part in parts.items()},
            "energy": {
                way: {prices: energy.to_dict() for prices, energy in by_prices.items()}
                for way, by_prices in self.energies().items()
            },
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
        }

    def _totals(self) -> dict[str, float]:
        return {field: self.total(field) for field in ADDITIVE}


def _ratio(part: float, total: float) -> float:
    return part / total if total else 0.0
