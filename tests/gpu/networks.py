"""One small network of each architecture, as checks of devices and layouts want them."""

from __future__ import annotations

import torch
from torch import nn

from ann2snn.config import DiffusionConfig, UNetConfig
from ann2snn.nets.architecture import build_network
from ann2snn.nets.attention_unet import AttentionUNetConfig
from ann2snn.nets.fsddim import FSDDIMConfig
from ann2snn.nets.mlp import MLP
from ann2snn.nets.sddpm import SDDPMConfig

STEPS = 20  # of the diffusion
SMALL = {"in_channels": 1, "image_size": 8, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "diffusion_steps": STEPS}
UNET = SMALL | {"norm_groups": 4, "dropout": 0.1}
CONFIGS = {
    "unet": UNetConfig(bits=32, **UNET),
    "unet 2 bits": UNetConfig(bits=2, **UNET),
    "unet 4 bits, spike-driven": UNetConfig(bits=4, weight_bits=4, spike_driven=True, **UNET),
    "attention": AttentionUNetConfig(**{k: v for k, v in UNET.items() if k != "diffusion_steps"}),
    "attention 3 bits": AttentionUNetConfig(bits=3, **{k: v for k, v in UNET.items() if k != "diffusion_steps"}),
    "sddpm": SDDPMConfig(spike_steps=2, **SMALL),
    "sdm": SDDPMConfig(spike_steps=2, tsm=True, **SMALL),
    "fsddim": FSDDIMConfig(spike_steps=2, **SMALL),
}


def small(name: str, **diffusion: object) -> nn.Module:
    """A network of `CONFIGS` with random weights, in eval mode; "mlp" is one for points."""
    torch.manual_seed(0)
    if name == "mlp":
        return MLP(64, width=16, layers=1).eval()
    return build_network(CONFIGS[name], DiffusionConfig(diffusion_steps=STEPS, **diffusion)).eval()
