"""The architectures a denoiser can have, by the name that `--arch` and checkpoints give them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from ..config import LEARNED, DiffusionConfig, UNetConfig
from ..errors import UserError
from .attention_unet import AttentionUNet, AttentionUNetConfig
from .diffusers_unet import DiffusersUNet, DiffusersUNetConfig
from .direct import DirectConfig, DirectDenoiser
from .fsddim import FSDDIM, FSDDIMConfig
from .sddpm import SDDPM, SDDPMConfig
from .unet import UNet

NetworkConfig = UNetConfig | AttentionUNetConfig | DirectConfig | DiffusersUNetConfig
Network = UNet | AttentionUNet | DirectDenoiser | DiffusersUNet
NETWORKS: dict[type[NetworkConfig], type[Network]] = {
    UNetConfig: UNet,
    AttentionUNetConfig: AttentionUNet,
    SDDPMConfig: SDDPM,
    FSDDIMConfig: FSDDIM,
    DiffusersUNetConfig: DiffusersUNet,
}
_Config = TypeVar("_Config", bound=NetworkConfig)
CONFIGS: dict[str, type[NetworkConfig]] = {config.arch: config for config in NETWORKS}


def stored_config(arch: object, stored: dict) -> NetworkConfig:
    """The network a checkpoint describes: `stored` is what `to_dict` wrote.

    Raises UserError for an unknown architecture; TypeError for unknown fields.
    """
    if not isinstance(arch, str) or arch not in CONFIGS:
        raise UserError(f"architecture {str(arch)[:40]!r}: use one of {', '.join(CONFIGS)}")
    return CONFIGS[arch](**stored)


def tells_variance(config: NetworkConfig) -> bool:
    """Whether the network's output has a second half, see `diffusion.learned_range`."""
    return config.denoised_channels == 2 * config.in_channels


def asked_for_variance(config: _Config, diffusion: DiffusionConfig) -> _Config:
    """The network, with a second half of its output if the process has it tell the variance.

    Raises UserError for an architecture that cannot.
    """
    if diffusion.var_type != LEARNED or tells_variance(config):
        return config
    if isinstance(config, DirectConfig):
        raise UserError(f"--var_type={LEARNED}: not with --arch={config.arch}, whose output is an image alone")
    doubled: dict[str, Any] = {"out_channels": 2 * config.in_channels}
    if isinstance(config, DiffusersUNetConfig):
        doubled = {"settings": json.dumps(json.loads(config.settings) | doubled)}
    return replace(config, **doubled)


def build_network(config: NetworkConfig, diffusion: DiffusionConfig | None = None) -> Network:
    """The network of a configuration, with fresh weights."""
    network: Callable[..., Network] = NETWORKS[type(config)]
    return network(config, diffusion=diffusion)
