"""The account of one network under one way of running it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..config import FULL_PRECISION, DirectSpiking, SpikingConfig
from .energy import FP32, INT8, Energy, Prices, energy
from .layers import ADDITIVE, SYNAPTIC, LayerCost


@dataclass(frozen=True)
class CostReport:
    """Counts per image and network call; see `LayerCost`.

    spiking: None for an ANN. bits: of its activations, T = 2^bits − 1; of a directly trained network's currents and
    weights. images: averaged over. depth: neuron layers in sequence of a spiking network. settle_steps: the most that
    any batch took. steps_run: time steps simulated, the silent last one of automatic settling included; 1 for an ANN.
    """

    spiking: SpikingConfig | DirectSpiking | None
    bits: int
    images: int
    depth: int | None
    settle_steps: int
    steps_run: float
    layers: tuple[LayerCost, ...]
    name: str = ""

    @property
    def label(self) -> str:
        """Short name for tables, such as "converted stream +2"."""
        if self.spiking is None:
            return f"{self.name} ANN".strip()
        return f"{self.name} {self.spiking.label}".strip()

    @property
    def spike_steps(self) -> int | None:
        """T (or S), the steps of the window; None for an ANN."""
        if isinstance(self.spiking, DirectSpiking):
            return self.spiking.spike_steps
        return None if self.spiking is None else 2**self.bits - 1

    @property
    def passes_on(self) -> bool:
        """Whether every layer fires while it integrates, so that a spike crosses the network within a step."""
        return isinstance(self.spiking, DirectSpiking) or (bool(self.spiking) and self.spiking.schedule == "stream")

    def total(self, field: str) -> float:
        """A field of `LayerCost` summed over layers. Raises ValueError for one that does not add up."""
        if field not in ADDITIVE:
            raise ValueError(f"{field} does not add up over layers")
        return sum(getattr(layer, field) for layer in self.layers)

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
        if self.spiking is None:
            return None
        window = self.spike_steps
        return window + self.settle_steps if self.passes_on else self.depth * window

    @property
    def latency_steps_delayed(self) -> int | None:
        """The same where every layer passes its spikes on one step later; layer_sync waits for whole windows anyway."""
        steps = self.latency_steps
        return steps + self.depth if self.passes_on else steps

    @property
    def activation_bits(self) -> int:
        """Width of what neurons send: a spike (1 bit, 2 where it may be negative), an ANN's activation."""
        if self.spiking is None:
            return self.bits
        return 2 if self.passes_on and getattr(self.spiking, "signed", False) else 1

    def energy(self, prices: Prices, **options: bool) -> Energy:
        """Per image and call; options as in `energy`."""
        return energy(self.layers, prices, self.activation_bits, **options)

    def energies(self) -> dict[str, dict[str, Energy]]:
        """Energy by way of counting and price list.

        Of a spiking network: as counted, and with every synaptic operation taken for a multiply-accumulate. Of an
        ANN: the fp32 ANN of this architecture, and (if it is quantized) the ANN as it is, without and with zero
        inputs skipped.
        """
        both = (FP32, INT8)
        if self.spiking is not None:
            return {
                "counted": {p.name: self.energy(p) for p in both},
                "all_mac": {p.name: self.energy(p, all_mac=True) for p in both},
            }
        plain = energy(self.layers, FP32, FP32.value_bits, dense=True, full_weights=True)
        found = {"fp32": {FP32.name: plain}}
        if self.bits != FULL_PRECISION:
            found["quantized"] = {p.name: self.energy(p, dense=True) for p in both}
            found["quantized_skipping_zeros"] = {p.name: self.energy(p) for p in both}
        return found

    def to_dict(self) -> dict:
        """Plain values for JSON; nan becomes None. Counts and picojoules are per image and network call."""
        rate = self.firing_rate
        totals = {field: self.total(field) for field in ADDITIVE}
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
            "totals": totals | {"dense_mac": self.dense_mac, "firing_rate": rate if rate == rate else None},
            "energy": {
                way: {prices: found.to_dict() for prices, found in by_prices.items()}
                for way, by_prices in self.energies().items()
            },
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
        }
