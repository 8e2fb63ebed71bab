"""What a file holds of a network, whatever the form of the file."""

from __future__ import annotations

import math
import re

import numpy as np
from torch import nn

from ..config import FULL_PRECISION, LEARNED, MAX_IMAGE_SIZE, DiffusionConfig, require
from ..convert import SpikingNetwork
from ..diffusion.learned_range import NO_VARIANCE
from ..diffusion.process import network_channels
from ..errors import UserError
from ..nets.architecture import CONFIGS, Network, NetworkConfig, tells_variance
from ..nets.direct import DirectDenoiser
from ..quant import UniformQuantizer

#: Entries that mean something to the reader of a file, or of a folder.
RESERVED = {"kind", "format", "ema_model", "net_model", "config", "hash", "assumed", "ann2snn", "dtype"}
FORMAT = 1  # of files of ours; the reference's carry none


def payload_of(net: nn.Module, **extra: object) -> dict:
    """What a file of a network holds. extra: what else is known of it, such as its step.

    Raises UserError for a network that is not one of this program's.
    """
    inner = net.net if isinstance(net, SpikingNetwork) else net
    if not isinstance(inner, Network) or type(inner.config) not in CONFIGS.values():
        raise UserError(
            f"a {type(inner).__name__} cannot be saved with its settings: only networks of this program can; keep "
            "its state_dict() beside the code that builds it"
        )
    quantized = isinstance(net, SpikingNetwork) or any(isinstance(m, UniformQuantizer) for m in inner.modules())
    if quantized and inner.config.bits == FULL_PRECISION:
        raise UserError(
            f"a {type(inner).__name__} with quantizers elsewhere than its settings say (granularity, skip, or a "
            "--arch=unet, which has its own) cannot be saved with them: keep its state_dict() beside the code"
        )
    taken = RESERVED & set(extra)
    require(not taken, f"{', '.join(sorted(taken))}: what every file holds of its network; choose another name")
    extra = {name: value.item() if isinstance(value, np.generic) else value for name, value in extra.items()}
    for name, value in extra.items():
        require(_is_plain(value), f"{name}={str(value)[:40]}: only plain values can be kept with a network")
    check_description(extra, "cannot keep this with a network")
    check_pair(inner.config, inner.diffusion)
    state = inner.state_dict()
    for name, value in state.items():
        require(bool(value.isfinite().all()), f"{name} holds values that are not finite: no file of it could be read")
    kind = "direct" if isinstance(inner, DirectDenoiser) else "ann"
    config = {"arch": inner.config.arch, "unet": inner.config.to_dict(), "diffusion": inner.diffusion.to_dict()}
    if isinstance(net, SpikingNetwork):
        kind, config["spiking"] = "snn", net.spiking.to_dict()
    return {"kind": kind, "format": FORMAT, "ema_model": state, "config": config, **extra}


def check_description(payload: dict, otherwise: str) -> None:
    """Raise UserError unless what a file tells of its network has the form that the stages rely on.

    otherwise: how the message begins.
    """
    for name in ("stage", "source", "kind"):  # they become parts of file names and lines of result files
        value = payload.get(name, "")
        if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9_-]{0,64}", value):
            raise UserError(f"{otherwise}: its {name} is no plain word (a-z, 0-9, _ and -, 64 at most)")
    weights = payload.get("weights", "")
    if not isinstance(weights, str) or not re.fullmatch(r"[a-z0-9_.]{0,24}", weights):
        raise UserError(f"{otherwise}: its weights are no plain word (a-z, 0-9, _ and ., 24 at most)")
    if not isinstance(payload.get("identity", {}), dict):
        raise UserError(f"{otherwise}: its 'identity' is no table")
    step = payload.get("step", 0)
    if type(step) is not int or step < 0:
        raise UserError(f"{otherwise}: its step is {str(step)[:40]!r}, not a whole number from 0 on")


def _is_plain(value: object) -> bool:
    """Whether JSON says it and gives it back."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(held) for key, held in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def check_pair(config: NetworkConfig, diffusion: DiffusionConfig) -> None:
    """Raise UserError unless the network is one for the process, and makes latents or images of 1 or 3 channels."""
    steps, channels = diffusion.diffusion_steps, config.in_channels / network_channels(diffusion, 1)
    channels = diffusion.decoded_channels or channels
    network_steps = getattr(config, "diffusion_steps", steps)  # a network without a table of times takes any
    require(network_steps == steps, f"{network_steps} diffusion steps in the network, {steps} in the process")
    require(channels in (1, 3), f"{channels:g} image channels: images have 1 (grey) or 3 (colour)")
    size = config.image_size.times(diffusion.downscale)
    require(max(size) <= MAX_IMAGE_SIZE, f"images of {size} pixels: at most {MAX_IMAGE_SIZE}")
    check_variance(config, diffusion)


def check_variance(config: NetworkConfig, diffusion: DiffusionConfig) -> None:
    """Raise UserError unless the network's output is what the process asks for: as its input, or twice as much."""
    twice, counts = tells_variance(config), f"{config.denoised_channels} output channels for {config.in_channels} input"
    require(twice or config.denoised_channels == config.in_channels, f"{counts} channels: as many, or twice as many")
    require(twice or diffusion.var_type != LEARNED, NO_VARIANCE)
