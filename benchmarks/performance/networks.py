"""The networks that are measured: seeded random weights under which every layer is at work, and their inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ann2snn.config import FULL_PRECISION, SpikingConfig, UNetConfig
from ann2snn.convert import SpikingNetwork, convert
from ann2snn.distributed.runtime import place
from ann2snn.nets import UNet
from ann2snn.nets.parts import ResBlock
from ann2snn.quant.calibrate import calibrate_activations

from .results import Bench

PUBLISHED = SpikingConfig("stream", signed=True, stream_norm="per_step", if_neuron="reference")
SEED = 0


def config_of(bench: Bench, ch: int, bits: int = FULL_PRECISION, **options: object) -> UNetConfig:
    return UNetConfig(**bench.plan.unet | {"ch": ch, "bits": bits} | options)


def make_ann(bench: Bench, ch: int, bits: int = FULL_PRECISION, **options: object) -> UNet:
    """An ANN in eval mode on the device; the same weights at every width of activations.

    Residual branches get weights of ordinary size, where training starts them near zero; clips are set from data.
    options: other fields of `UNetConfig`.
    """
    torch.manual_seed(SEED)
    net = UNet(config_of(bench, ch, bits, **options))
    for module in net.modules():
        if isinstance(module, ResBlock):
            nn.init.xavier_uniform_(module.block2[-1].weight)
    nn.init.xavier_uniform_(net.tail[-1].weight)
    net = place(net.eval(), bench.device)
    if bits != FULL_PRECISION:
        calibrate_activations(net, [inputs(bench, net, 1)])
    return net


def make_snn(bench: Bench, ch: int, bits: int, spiking: SpikingConfig) -> SpikingNetwork:
    return place(convert(make_ann(bench, ch, bits), spiking), bench.device)


def inputs(bench: Bench, net: UNet | SpikingNetwork, count: int) -> tuple[Tensor, Tensor]:
    """Noise [count, C, H, W] and diffusion times [count] on the device."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(count, net.in_channels, *net.image_size, generator=generator)
    t = torch.randint(net.config.diffusion_steps, (count,), generator=generator)
    return x.to(bench.device), t.to(bench.device)


def window(bits: int) -> int:
    """T = 2^b − 1 time steps."""
    return 2**bits - 1
