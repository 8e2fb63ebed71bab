"""What one layer does in a network call."""

from __future__ import annotations

from dataclasses import dataclass

SPIKES, LEVELS, REAL, MIXED = "spikes", "levels", "real", "mixed"
SYNAPTIC = ("conv", "linear", "product")


@dataclass(frozen=True)
class LayerCost:
    """Counts of one layer for one image and one network call, averaged over the images of a run.

    kind: "conv", "linear", "product" (of two tensors that depend on the call, as attention's), "neuron" (an ANN's
    quantizer as well), "norm", "affine" (batch norm), "softmax", "sum", "scale" (multiplications value by value),
    "activation" (any other function of real values); of directly trained networks "factor" (TSM's) and "readout".
    inputs: of what is in SYNAPTIC, what it reads: "spikes" (events), "levels" (an ANN's), "real", or "mixed" (levels in
    some channels, real values in others). Of a neuron, what stands in front of it and so makes it evaluate again
    whenever anything in its image changes: "norm", "softmax", "product", or "".

    neurons: neurons, or quantized activations of an ANN. spikes: Σ|events|. updates: evaluations of neurons whose
    input changed, and of functions of real values. ac: accumulates, |event| for every synapse that is not zero. mac:
    multiply-accumulates in which neither operand is zero. additions: of real values, outside synapses. dense: synaptic
    operations of the runs that took place, zeros included; synapses: those of one run. parameter_bits: of all
    parameters together. weight_bits: of one weight.

    weight_reads, values, activations, states: memory accesses, in words: weights, if a layer reads all of them whenever
    it has something to do; real values; events or activations; accumulators, levels and sums that are kept, read and
    written. weight_fetches: weights, if every event or nonzero value fetches its own. state_words: what is kept.
    touched: neurons that sent their first event of the trajectory.
    """

    name: str
    kind: str
    inputs: str = ""
    neurons: float = 0.0
    spikes: float = 0.0
    updates: float = 0.0
    ac: float = 0.0
    mac: float = 0.0
    additions: float = 0.0
    dense: float = 0.0
    synapses: float = 0.0
    parameters: int = 0
    parameter_bits: int = 0
    weight_bits: int = 32
    weight_reads: float = 0.0
    weight_fetches: float = 0.0
    values: float = 0.0
    activations: float = 0.0
    states: float = 0.0
    state_words: float = 0.0
    touched: float = 0.0


#: Fields that add up over layers.
ADDITIVE = (
    "neurons", "spikes", "updates", "ac", "mac", "additions", "dense", "synapses", "parameters", "parameter_bits",
    "weight_reads", "weight_fetches", "values", "activations", "states", "state_words", "touched",
)  # fmt: skip
