"""The weights that a training begins with: those of another network, quantized."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..config import FULL_PRECISION, LEARNED, DiffusionConfig, UNetConfig, require
from ..convert import SpikingNetwork
from ..errors import UserError
from ..generate.classes import classes_of
from ..generate.probe import sampler_states
from ..nets.architecture import Network, NetworkConfig, asked_for_variance, build_network
from ..nets.attention_unet import AttentionUNetConfig
from ..nets.direct import DirectDenoiser
from ..quant.calibrate import calibrate_activations

IMAGES, TIMES = 8, 8  # whose sampling path activations are calibrated on, and times on it
BATCH = 16
#: The layers of the networks' outputs.
LAST = {f"{layer}.{kind}" for layer in ("tail.2", "out_conv.2", "model.conv_out") for kind in ("weight", "bias")}


def check_source(net: Network | SpikingNetwork, path: object) -> None:
    """Raise UserError for a network that no other one begins with."""
    if isinstance(net, SpikingNetwork):
        raise UserError(f"--init_from: {path} is a spiking network; give the network it was converted from")
    if isinstance(net, DirectDenoiser):
        raise UserError(f"--init_from: {path} has --arch={net.config.arch}, whose neurons need no quantizers")


def begun_from(
    config: NetworkConfig, diffusion: DiffusionConfig, bits: int | None, dropout: float | None, path: object
) -> NetworkConfig:
    """The network that is trained for `diffusion`, of the settings of the one it begins from.

    bits, dropout: None for as they were. Raises UserError where quantizers would have to go, and where a network cannot
    be made to tell its variance.
    """
    bits = config.bits if bits is None else bits
    widened = asked_for_variance(config, diffusion)
    require(
        widened == config or getattr(config, "weight_bits", FULL_PRECISION) == FULL_PRECISION,
        f"--var_type={LEARNED}: {path} quantizes each layer's weights together, which new ones would change; "
        "begin with a network of --weight_bit=32",
    )
    require(
        bits != FULL_PRECISION or config.bits == FULL_PRECISION,
        f"--bit={bits:g} contradicts {path}, which is a quantized network of {config.bits} bits",
    )
    changed: dict[str, Any] = {"bits": bits} | ({} if dropout is None else {"dropout": dropout})
    return replace(widened, **{name: changed[name] for name in changed if name in {f.name for f in fields(config)}})


def quantized_state(source: Network, config: NetworkConfig, seed: int) -> dict[str, Tensor]:
    """The weights of `source`, with activations as `config` has them, calibrated on states that its sampler visits.

    source: in eval mode. config: its settings, but for the bits, for classes where it knows none, and for the variance
    where it tells none: classes add nothing to the time embedding at first, and the variance is in the middle of its
    range, so that the network begins as the function it was. Raises UserError.
    """
    if config.bits == source.config.bits:
        return _widened(source, config) | _new_classes(source, config)
    net = build_network(config, source.diffusion).to(next(source.parameters()).device)
    weights = {name: value for name, value in _widened(source, config).items() if not _is_quantizers(name)}
    net.load_state_dict(net.state_dict() | weights | _new_classes(source, config))
    with torch.no_grad():
        states = sampler_states(source, IMAGES, TIMES, seed)
    try:
        calibrate_activations(net, zip(*(values.split(BATCH) for values in states), strict=True))
    except ValueError as error:
        raise UserError(f"--init_from: {error}") from None
    return net.state_dict()


def _new_classes(source: Network, config: NetworkConfig) -> dict[str, Tensor]:
    """What `config` has where `source` knows no classes: zeros [classes + 1, width], the last for "no class"."""
    count = classes_of(config)[0]
    if not count or classes_of(source)[0]:
        return {}
    assert isinstance(config, UNetConfig | AttentionUNetConfig)  # others know none
    return {"class_embedding.weight": next(source.parameters()).new_zeros(count + 1, 4 * config.ch)}


def _widened(source: Network, config: NetworkConfig) -> dict[str, Tensor]:
    """The state of `source`; zeros for what `config` answers besides: v = 0, the middle of the variance's range."""
    state = source.state_dict()
    if config.denoised_channels == source.config.denoised_channels:
        return state
    for name in LAST.intersection(state):
        state[name] = torch.cat([state[name], torch.zeros_like(state[name])])
    return state


def _is_quantizers(name: str) -> bool:
    """Whether a quantizer holds this entry, and not a layer."""
    return name.endswith("act_alpha") or ".input_quantizer." in name or ".output_quantizer." in name
