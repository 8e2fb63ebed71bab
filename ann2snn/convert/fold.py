"""Threshold folding: neurons send unit events, and the layers they feed carry θ in their weights.

The function stays the same: conv(s·θ; W) = conv(s; W·θ), with one θ per layer or input channel. The right-hand side is
what an accumulating synapse computes: it adds or subtracts a weight and multiplies nothing. (Moving the scale of
activations into the weights is the parameter normalization of Rueckauer et al., Front. Neurosci. 11:682, 2017.)
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FULL_PRECISION, require
from ..errors import UserError
from .network import SpikingNetwork
from .trace import REAL, Description


@torch.no_grad()
def fold_thresholds(snn: SpikingNetwork, *args: object, **kwargs: object) -> SpikingNetwork:
    """A copy of `snn` whose neurons send −1, 0 or 1 (levels k as k/T) and whose weights have absorbed θ = T·Δ.

    args, kwargs: an example of a call, where `snn.describe` needs one. Outputs agree to rounding under every schedule.
    A quantized layer that reads spikes becomes one of plain weights, quantized_weight()·θ. Each layer keeps what it
    absorbed in the buffer `folded_theta`, so that a folded network's state dict cannot be loaded as an ordinary one:
    save the original, and fold after loading. Folding twice changes nothing. The original shares nothing with the copy.

    Raises UserError where anything but convolutions and linear layers, each of one neuron layer, receives spikes.
    """
    require(
        isinstance(snn, SpikingNetwork),
        f"cannot fold the thresholds of a {type(snn).__name__}: convert it first (ann2snn.convert)",
    )
    folded = copy.deepcopy(snn)
    neurons = dict(folded.neurons())
    for name, sender in senders(snn.describe(*args, **kwargs)).items():
        neuron = neurons[sender]
        require(not neuron.levels.has_offset, f"cannot fold thresholds: the levels of {sender} have an offset")
        if not neuron.unit_events:
            _absorb(folded.net.get_submodule(name), name, neuron.theta)
    for neuron in neurons.values():
        neuron.unit_events = True
    return folded


def senders(description: Description) -> dict[str, str]:
    """Layer → the neuron layer it reads, for all that read spikes. Raises UserError, see `fold_thresholds`."""
    for function, names in description.others:
        spikes = " and ".join(sorted(names))
        raise UserError(f"cannot fold thresholds: the spikes of {spikes} go into {function}, which has no weights")
    sources_by_layer: dict[str, set[str]] = {}
    for synapses in description.synapses:
        sources_by_layer.setdefault(synapses.name, set()).update(*synapses.reads)
        if len(synapses.reads) > 1 and sources_by_layer[synapses.name] != {REAL}:
            raise UserError(f"cannot fold thresholds: {synapses.name} multiplies spikes, which has no weights")
    for name, sources in sources_by_layer.items():
        if len(sources) > 1:
            readable = " and ".join(sorted(sender or "real values" for sender in sources))
            raise UserError(f"cannot fold thresholds: {name} reads {readable}, and its weights carry one θ")
    return {name: sender for name, (sender,) in sources_by_layer.items() if sender != REAL}


def _absorb(layer: Any, name: str, theta: Tensor) -> None:
    """theta: [], or per channel ([C, 1, 1] before a convolution, [F] before a linear layer): broadcasts over inputs."""
    plain = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and getattr(layer, "groups", 1) == 1
    require(plain or theta.dim() == 0 and hasattr(layer, "weight"), f"cannot fold thresholds into {name}: its weights")
    quantized = getattr(layer, "quantized_weight", None)
    weight = (layer.weight if quantized is None else quantized()) * theta  # [O, C, k, k] or [O, F]
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    layer.register_buffer("folded_theta", theta.detach().clone())
    if quantized is not None:
        layer.bits = FULL_PRECISION
    if hasattr(layer, "wgt_alpha"):
        del layer.wgt_alpha
