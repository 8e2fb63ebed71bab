"""The architectures a denoiser can have, by the name that `--arch` and checkpoints give them."""

from __future__ import annotations

from collections.abc import Callable

from ..config import DiffusionConfig, UNetConfig, require
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
CONFIGS: dict[str, type[NetworkConfig]] = {config.arch: config for config in NETWORKS}


def stored_config(arch: object, stored: dict) -> NetworkConfig:
    """The network a checkpoint describes: `stored` is what `to_dict` wrote.

    Raises UserError for an unknown architecture, and for one whose output is not like its input; TypeError for
    unknown fields.
    """
    if not isinstance(arch, str) or arch not in CONFIGS:
        raise UserError(f"architecture {str(arch)[:40]!r}: use one of {', '.join(CONFIGS)}")
    config = CONFIGS[arch](**stored)
    if isinstance(config, AttentionUNetConfig):
        require(
            config.denoised_channels == config.in_channels,
            f"{config.denoised_channels} output channels for {config.in_channels} input channels: they must agree",
        )
    return config


def build_network(config: NetworkConfig, diffusion: DiffusionConfig | None = None) -> Network:
    """The network of a configuration, with fresh weights."""
    network: Callable[..., Network] = NETWORKS[type(config)]
    return network(config, diffusion=diffusion)
