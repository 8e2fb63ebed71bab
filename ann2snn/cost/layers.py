"""What one layer does in a network call."""

from __future__ import annotations

from dataclasses import dataclass

SPIKES, LEVELS, REAL, MIXED = "spikes", "levels", "real", "mixed"
SYNAPTIC = ("conv", "linear")


@dataclass(frozen=True)
class LayerCost:
    """Counts of one layer for one image and one network call, averaged over the images of a run.

    kind: "conv", "linear", "norm", "neuron" (an ANN's activation as well), "activation" (a directly trained network's
    other than neurons), "factor" (TSM's), "sum" (additions of a residual block) or "readout". inputs: what the values
    of a convolution's or linear layer's input were found to be: "spikes" (unit events times one factor per channel,
    which folds into the weights), "levels" (an ANN's quantized activations), "real", or "mixed" (spikes in some
    channels, real values in the others); "" for other kinds.

    neurons: neurons, or activations of an ANN. spikes: of either sign. updates: membrane updates, neurons × steps run,
    and activation functions evaluated. ac, mac: accumulates and multiply-accumulates in which neither the
    input nor the weight is zero. additions: of real values, outside synapses. dense: synaptic operations, zeros
    included. parameter_bits: of all parameters together. weight_bits: of one weight.

    weight_reads, values, activations, states: memory accesses, in words: weights; real values read and written;
    spikes or activations read and written; membranes and running sums read and written.
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
    parameters: int = 0
    parameter_bits: int = 0
    weight_bits: int = 32
    weight_reads: float = 0.0
    values: float = 0.0
    activations: float = 0.0
    states: float = 0.0


#: Fields that add up over layers.
ADDITIVE = (
    *("neurons", "spikes", "updates", "ac", "mac", "additions", "dense", "parameters", "parameter_bits"),
    *("weight_reads", "values", "activations", "states"),
)
