"""Threshold folding: neurons send unit events, and the layers they feed carry θ in their weights.

The function stays the same: conv(s·θ; W) = conv(s; W·θ), with one θ per layer or input channel. The right-hand side is
what an accumulating synapse computes: it adds or subtracts a weight and multiplies nothing. (Moving the scale of
activations into the weights is the parameter normalization of Rueckauer et al., Front. Neurosci. 11:682, 2017.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import FULL_PRECISION, SpikingConfig
from ..errors import UserError
from ..kernels import upsample_nearest
from .parts import SpikingConv2d, SpikingLinear
from .spiking import SpikingDenoiser

#: What may happen to spikes on their way to a layer: spikes stay spikes, channel by channel.
COPIES = (F.dropout, upsample_nearest)


@torch.no_grad()
def fold_thresholds(snn: SpikingDenoiser) -> SpikingDenoiser:
    """A copy of `snn` whose neurons send −1, 0 or 1 (on counts: count/T) and whose weights have absorbed θ.

    Outputs agree to rounding under every schedule. A quantized layer that reads spikes becomes one of plain weights,
    quantized_weight()·θ. Each layer keeps what it absorbed in the buffer `folded_theta`, so that a folded network's
    state dict cannot be loaded as an ordinary one: save the original, and fold after loading. Folding twice changes
    nothing. The original shares nothing with the copy.

    Raises UserError where anything but convolutions and linear layers, each of one neuron layer, receives spikes.
    """
    if not isinstance(snn, SpikingDenoiser):
        raise UserError(f"cannot fold the thresholds of a {type(snn).__name__}: convert it first (ann2snn.convert)")
    folded = copy.deepcopy(snn)
    neurons = dict(folded.neurons())
    for layer, sender in trace_spikes(folded).items():
        if not neurons[sender].unit_events:
            _absorb(layer, neurons[sender].theta)
    for neuron in neurons.values():
        neuron.unit_events = True
    return folded


def _absorb(layer: SpikingConv2d | SpikingLinear, theta: Tensor) -> None:
    """theta: [], or per channel ([C, 1, 1] before a convolution, [F] before a linear layer): broadcasts over inputs."""
    weight = layer.quantized_weight() * theta  # [O, C, k, k] or [O, F]
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    layer.register_buffer("folded_theta", theta.detach().clone())
    layer.bits = FULL_PRECISION
    if hasattr(layer, "wgt_alpha"):
        del layer.wgt_alpha


def trace_spikes(snn: SpikingDenoiser) -> dict[nn.Module, str]:
    """Layer → name of the neuron layer it reads, for every convolution and linear layer that reads spikes.

    Found by following the spikes of one call, not from the architecture. Raises UserError, see `fold_thresholds`.
    """
    inputs: dict[nn.Module, set[str | None]] = {}  # None: real values
    names = {module: name for name, module in snn.unet.named_modules()}
    handles = [neuron.register_forward_hook(_mark(name)) for name, neuron in snn.neurons()]
    layers = [module for module in snn.unet.modules() if isinstance(module, (SpikingConv2d, SpikingLinear))]
    handles += [layer.register_forward_pre_hook(_unmark(inputs)) for layer in layers]
    like = snn.unet.head.weight
    x = torch.zeros(1, snn.in_channels, snn.image_size, snn.image_size, device=like.device, dtype=like.dtype)
    try:
        with snn.running_as(SpikingConfig()):
            snn(x, torch.zeros(1, device=like.device))
    finally:
        for handle in handles:
            handle.remove()
    for layer, senders in inputs.items():
        if len(senders) > 1:
            readable = " and ".join(sorted(sender or "real values" for sender in senders))
            raise UserError(f"cannot fold thresholds: {names[layer]} reads {readable}, and its weights carry one θ")
    return {layer: sender for layer, (sender,) in inputs.items() if sender is not None}


class _Spikes(Tensor):
    """The output of neuron layer `sender`, which only `COPIES` may touch before a layer takes `plain`."""

    sender: str
    plain: Tensor

    @classmethod
    def of(cls, plain: Tensor, sender: str) -> _Spikes:
        spikes = plain.as_subclass(cls)
        spikes.sender, spikes.plain = sender, plain
        return spikes

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Tensor:
        kwargs = kwargs or {}
        spikes = next(value for value in _flat((*args, *kwargs.values())) if isinstance(value, cls))
        if func not in COPIES:
            what = getattr(func, "__name__", str(func))
            raise UserError(
                f"cannot fold thresholds: the spikes of {spikes.sender} go into {what}, which has no weights"
            )
        return cls.of(func(spikes.plain, *args[1:], **kwargs), spikes.sender)


def _flat(args: tuple) -> list:
    """Arguments, those inside lists (as of torch.cat) included."""
    return [value for arg in args for value in (arg if isinstance(arg, (list, tuple)) else [arg])]


def _mark(name: str) -> Callable:
    return lambda neuron, args, output: _Spikes.of(output, name)


def _unmark(inputs: dict[nn.Module, set[str | None]]) -> Callable:
    def hook(layer: nn.Module, args: tuple) -> Tensor:
        spikes = isinstance(args[0], _Spikes)
        inputs.setdefault(layer, set()).add(args[0].sender if spikes else None)
        return args[0].plain if spikes else args[0]

    return hook
