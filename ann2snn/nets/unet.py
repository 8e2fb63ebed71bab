"""The U-Net: a plain ReLU network or a quantized one, which converts.

Architecture of DDPM (Ho et al., 2020) without attention. Parameter names are those of the published conversion
code, so its `ckpt.pt` loads strictly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..config import DiffusionConfig, ImageSize, UNetConfig
from ..neurons import bins_of
from .classes import ClassConditional, ClassEmbedding, conditioned
from .parts import DownSample, Parts, PreActivation, Resampling, ResBlock, SpikeDrivenResBlock, TimeEmbedding, UpSample
from .shared import Shared


class UNet(ClassConditional, Shared, nn.Module):
    """Denoiser f(x [N, C, H, W], t [N], y [N]) → [N, C_out, H, W]; `t` may be fractional.

    y: the classes of the images, int64, `num_classes` for none, as None is for all; of a network that knows classes.
    `diffusion` is the process it was trained for; it is carried along, not used.
    """

    folds_time = True  # rows of a batch do not meet, so time steps may stand beside each other in it

    def __init__(self, config: UNetConfig, *, diffusion: DiffusionConfig | None = None) -> None:
        super().__init__()
        self.config: UNetConfig = config
        self.diffusion = diffusion or DiffusionConfig(diffusion_steps=config.diffusion_steps)
        parts = Parts(config)
        ch, temb_dim = config.ch, 4 * config.ch
        res_block = SpikeDrivenResBlock if config.spike_driven else ResBlock

        self.time_embedding = TimeEmbedding(ch, parts)
        self.class_embedding = ClassEmbedding(config.num_classes, temb_dim) if config.num_classes else None
        self.head = parts.conv(config.in_channels, ch, 3, edge=True)

        width, skips = ch, [ch]  # channels of the stream, and of every output kept for the way up
        self.downblocks = nn.ModuleList()
        for level, mult in enumerate(config.ch_mult):
            for _ in range(config.num_res_blocks):
                self.downblocks.append(res_block(width, ch * mult, temb_dim, config.dropout, parts))
                width = ch * mult
                skips.append(width)
            if level != len(config.ch_mult) - 1:
                self.downblocks.append(DownSample(width, parts, config.spike_driven))
                skips.append(width)

        self.middleblocks = nn.ModuleList(res_block(width, width, temb_dim, config.dropout, parts) for _ in range(2))

        self.upblocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.ch_mult))):
            for _ in range(config.num_res_blocks + 1):
                self.upblocks.append(res_block(width + skips.pop(), ch * mult, temb_dim, config.dropout, parts))
                width = ch * mult
            if level != 0:
                self.upblocks.append(UpSample(width, parts, config.spike_driven))

        self.tail = PreActivation(
            parts.norm(width), parts.activation(), parts.conv(width, config.denoised_channels, 3, edge=True)
        )
        self.initialize()

    def initialize(self) -> None:
        """Xavier-uniform weights and zero biases; the last convolution of every residual branch starts near zero."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        near_zero = [m.block2[-1] for m in self.modules() if isinstance(m, ResBlock)] + [self.tail[-1]]
        for conv in near_zero:
            nn.init.xavier_uniform_(conv.get_parameter("weight"), gain=1e-5)

    @property
    def in_channels(self) -> int:
        return self.config.in_channels

    @property
    def image_size(self) -> ImageSize:
        return self.config.image_size

    @property
    def neuron_depth(self) -> int:
        """Activations in sequence on the longest path, which are the neuron layers of the converted network.

        Two per residual block, the tail, and the time embedding; a spike-driven network's resampling adds its own.
        """
        modules = list(self.modules())
        resampling = sum(isinstance(m, Resampling) for m in modules) if self.config.spike_driven else 0
        return 2 * sum(isinstance(m, ResBlock) for m in modules) + resampling + 2

    def example_call(self) -> tuple[tuple[Tensor, Tensor], dict]:
        """Arguments that it can be called with: one image of zeros at t = 0."""
        return (torch.zeros(1, self.in_channels, *self.image_size), torch.zeros(1)), {}

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """(name, module) in data-flow order; each is called as f(x, temb) but head, time embedding and tail: f(x).

        With statistics per diffusion time all but head and time embedding take the rows' bins at last.
        """
        yield "head", self.head
        yield "time_embedding", self.time_embedding
        for segment in ("downblocks", "middleblocks", "upblocks"):
            for index, block in enumerate(getattr(self, segment)):
                yield f"{segment}.{index}", block
        yield "tail", self.tail

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        temb = conditioned(self.class_embedding, self.time_embedding(t), y)  # [N, 4·ch]
        parts = self.config.norm_bins
        timed = () if parts == 1 else (bins_of(t, parts, self.config.diffusion_steps),)
        h = self.head(x)  # [N, ch, H, W]
        skips = [h]
        for block in self.downblocks:
            h = block(h, temb, *timed)
            skips.append(h)
        for block in self.middleblocks:
            h = block(h, temb, *timed)
        for block in self.upblocks:
            if isinstance(block, ResBlock):
                h = torch.cat([h, skips.pop()], dim=1)
            h = block(h, temb, *timed)
        return self.tail(h, *timed)  # [N, C, H, W]
