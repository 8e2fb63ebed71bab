"""Energy of counted operations in 45 nm CMOS, with and without memory.

Arithmetic: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9
(45 nm, 0.9 V): a 32-bit floating-point multiplication takes 3.7 pJ, an addition 0.9 pJ; of 8-bit integers 0.2 and
0.03 pJ. The sums 4.6 and 0.23 pJ are the usual figures of a multiply-accumulate. Memory: same figure, 100 pJ for 64
bits of a 1 MB on-chip memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .layers import LEVELS, SYNAPTIC, LayerCost


@dataclass(frozen=True)
class Prices:
    """Picojoules per operation and memory access.

    multiply: of a value of `value_bits` with a weight of `weight_bits`. add: an addition, an accumulate, a membrane
    update. sram: an access of 32 bits; narrower words cost in proportion. value_bits, weight_bits, state_bits: width
    of a real value, of a weight that is not quantized to less, and of a membrane or running sum.
    """

    name: str
    multiply: float
    add: float
    value_bits: int
    weight_bits: int
    state_bits: int = 32
    sram: float = 50.0

    def mac(self, input_bits: int | None = None, weight_bits: int | None = None) -> float:
        """A multiply-accumulate of narrower operands: a multiplier's energy goes with the product of its widths.

        That is the number of partial-product bits of an array multiplier: a model, not a measurement. The adder, as
        wide as its accumulator, does not shrink.
        """
        inputs = self.value_bits if input_bits is None else min(input_bits, self.value_bits)
        weights = self.weight_bits if weight_bits is None else min(weight_bits, self.weight_bits)
        return self.multiply * (inputs * weights) / (self.value_bits * self.weight_bits) + self.add


FP32 = Prices("fp32", multiply=3.7, add=0.9, value_bits=32, weight_bits=32)
INT8 = Prices("int8", multiply=0.2, add=0.03, value_bits=8, weight_bits=8)
INT8_STATE16 = replace(INT8, name="int8_state16", state_bits=16)


@dataclass(frozen=True)
class Energy:
    """Picojoules per image and network call. compute: arithmetic.

    memory: accesses, where a layer reads all its weights, once, whenever it has something to do. memory_by_event: where
    every event or nonzero value fetches its own weights, and reads and writes each accumulator that it changes.
    """

    compute: float
    memory: float
    memory_by_event: float = math.nan

    @property
    def total(self) -> float:
        return self.compute + self.memory

    @property
    def total_by_event(self) -> float:
        return self.compute + self.memory_by_event

    def to_dict(self) -> dict[str, float | None]:
        """For JSON; nan becomes None."""
        values = {"compute_pj": self.compute, "memory_pj": self.memory, "total_pj": self.total}
        values |= {"memory_by_event_pj": self.memory_by_event, "total_by_event_pj": self.total_by_event}
        return {name: value if value == value else None for name, value in values.items()}


def energy(
    layers: Iterable[LayerCost],
    prices: Prices,
    activation_bits: int,
    *,
    dense: bool = False,
    all_mac: bool = False,
    full_weights: bool = False,
) -> Energy:
    """What the counted operations take.

    activation_bits: width of a spike (1, signed 2), of a quantized activation or of a real one. dense: of an ANN
    that does not skip zeros. all_mac: every synaptic operation is a multiply-accumulate of a real value.
    full_weights: weights have the width of `prices` even where the network quantizes them.
    """
    compute = memory = by_event = 0.0
    for layer in layers:
        weight_bits = prices.weight_bits if full_weights else min(layer.weight_bits, prices.weight_bits)
        accumulates = 0.0 if all_mac else layer.ac
        macs = layer.mac + layer.ac - accumulates
        is_dense = dense and layer.kind in SYNAPTIC
        if is_dense:
            macs, accumulates = layer.dense, 0.0
        input_bits = activation_bits if layer.inputs == LEVELS else None
        compute += macs * prices.mac(input_bits, weight_bits)
        compute += (accumulates + layer.additions + layer.updates) * prices.add
        bits = layer.values * prices.value_bits + layer.activations * activation_bits
        states, fetches = layer.states, layer.dense if is_dense else layer.weight_fetches
        memory += bits + layer.weight_reads * weight_bits + states * prices.state_bits
        if layer.kind in SYNAPTIC and states:
            states = 2 * fetches
        by_event += bits + fetches * weight_bits + states * prices.state_bits
    return Energy(compute, memory / 32 * prices.sram, by_event / 32 * prices.sram)
