"""Quantized network → spiking network: a copy in which a neuron stands in the place of every quantizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import FULL_PRECISION, SpikingConfig, require
from ..errors import UserError
from ..neurons import Clock, IFNeuron
from ..ptq.calls import copied
from .network import SpikingNetwork, window
from .quantizers import Read, reader_of


def convert(net: nn.Module, spiking: SpikingConfig | None = None, **options: Any) -> SpikingNetwork:
    """Convert any network with quantizers into an integrate-and-fire network that shares none of its storage.

    Every quantizer that `register_quantizer` knows is replaced by neurons; everything else stays as it is. The window
    has T = max(hi − lo) time steps over all quantizers: 2^b − 1 for b bits.
    Give a `SpikingConfig`, or its fields as options (schedule, signed, settle_steps, burst, stream_norm, if_neuron);
    options given beside a configuration replace its fields.

    Raises UserError for a network without quantizers, for one whose levels are not uniform (powers of two), and,
    naming them, where neurons that take nothing back (signed=False) would have to reach levels below 0.
    """
    if spiking is None:
        spiking = SpikingConfig(**options)
    elif options:
        spiking = _checked(spiking).changed(**options)
    return attach(copied(checked(net)), _checked(spiking))


def _checked(spiking: object) -> SpikingConfig:
    if not isinstance(spiking, SpikingConfig):
        raise UserError(f"spiking is a {type(spiking).__name__}: give a SpikingConfig, or its fields by name")
    return spiking


def attach(net: nn.Module, spiking: SpikingConfig) -> SpikingNetwork:
    """`convert` without the copy: `net` itself becomes the inside of the spiking network."""
    clock = Clock(spiking, spike_steps=1)
    net, neurons = _with_neurons(net, clock)
    require(bool(neurons), _without_levels(net))
    clock.spike_steps = window(neurons.values())
    return SpikingNetwork(net, clock).eval()


def check_convertible(net: nn.Module) -> None:
    """Raise UserError unless `net` is a network with quantizers, all of which neurons can replace."""
    require(any(reader_of(module) is not None for module in checked(net).modules()), _without_levels(net))


def _without_levels(net: nn.Module) -> str:
    if getattr(getattr(net, "config", None), "bits", None) == FULL_PRECISION:
        return "a full-precision network (--bit=32) has no spike count: train it with --bit=2 to 8"
    return (
        f"a {type(net).__name__} without quantizers has no levels to count: quantize it first (ann2snn.quantize), or "
        "name your quantizers with ann2snn.register_quantizer"
    )


def checked(net: nn.Module) -> nn.Module:
    """`net`, if it is a network that can be converted. Raises UserError."""
    require(isinstance(net, nn.Module), f"cannot convert a {type(net).__name__}: give a torch module with quantizers")
    if any(isinstance(module, SpikingNetwork | IFNeuron) for module in net.modules()):
        raise UserError(f"cannot convert a {type(net).__name__}: it has been converted already")
    for name, module in net.named_modules():
        try:
            reader_of(module)
        except UserError as error:
            raise UserError(f"cannot convert {name or type(net).__name__}: {error}") from None
    return net


def _with_neurons(net: nn.Module, clock: Clock) -> tuple[nn.Module, dict[str, IFNeuron]]:
    """(net, with its quantizers replaced wherever they are registered; {name: neuron})."""
    replaced: dict[nn.Module, IFNeuron] = {}
    neurons: dict[str, IFNeuron] = {}

    def neuron_of(module: nn.Module, name: str, read: Read) -> IFNeuron:
        if module not in replaced:
            replaced[module] = neurons[name] = IFNeuron(module, read, clock)
        return replaced[module]

    read = reader_of(net)
    if read is not None:
        return neuron_of(net, "", read), neurons
    for prefix, module in list(net.named_modules()):
        if module in replaced or any(prefix.startswith(f"{name}.") for name in neurons if name):
            continue  # inside a quantizer
        for name, child in list(module._modules.items()):
            read = None if child is None else reader_of(child)
            if child is not None and read is not None:
                module._modules[name] = neuron_of(child, f"{prefix}.{name}" if prefix else name, read)
    return net, neurons
