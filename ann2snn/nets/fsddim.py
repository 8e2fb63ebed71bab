"""The spiking U-Net of FSDDIM, fully spiking denoising diffusion implicit models (Watanabe et al., arXiv 2312.01742).

Every residual block sends spikes: neurons fire on its sum. Between blocks stand linear maps alone (the first and last
convolutions and the changes of resolution), so that the last layer of one diffusion step and the first of the next can
be one synapse, and what passes from step to step are synaptic currents. Names are those of the published program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import DiffusionConfig, require
from ..kernels import LIFRule, upsample_nearest
from ..neurons import LIFNeuron, StepBatchNorm
from .direct import DirectConfig, DirectDenoiser, StepConv, mean_over_time, over_time
from .parts import BatchDropout

NORMS = ("plain", "scaled")
BRANCH_GAIN = 0.5**0.5  # α of the two branches of a residual sum


@dataclass(frozen=True)
class FSDDIMConfig(DirectConfig):
    """FSDDIM: defaults are the published network, with 52,540,547 parameters for colour images.

    decay: of the membranes in a time step. soft_reset: subtract the threshold instead of resetting to zero.
    detach_reset: no gradient through the reset. norm: plain batch norms are what the published program trains with;
    scaled ones have the factor α·V_th that it defines, and loses when it synchronises them between processes.
    """

    arch: ClassVar[str] = "fsddim"
    currents: ClassVar[bool] = True  # `diffusion.samplers.currents` can sample the network

    ch_mult: tuple[int, ...] = (1, 2, 3, 4)
    spike_steps: int = 8
    surrogate: str = "triangle"
    decay: float = 0.8
    soft_reset: bool = False
    detach_reset: bool = True
    norm: str = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.decay, (int, float)) and not isinstance(self.decay, bool)
        require(number and 0 < self.decay <= 1, f"--decay={self.decay}: use a number above 0, at most 1")
        for name in ("soft_reset", "detach_reset"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"--{name}={value}: use True or False")
        known = isinstance(self.norm, str) and self.norm in NORMS
        require(known, f"--norm={str(self.norm)[:40]}: use one of {', '.join(NORMS)}")

    @property
    def rule(self) -> LIFRule:
        return LIFRule(
            decay=self.decay,
            threshold=self.threshold,
            strict=True,
            soft_reset=self.soft_reset,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate,
        )


class FSDDIMLayers:
    """Makes the layers of one network."""

    def __init__(self, config: FSDDIMConfig) -> None:
        self.config = config

    def norm(self, channels: int, alpha: float = 1.0) -> StepBatchNorm:
        return StepBatchNorm(channels, alpha * self.config.threshold if self.config.norm == "scaled" else 1.0)

    def neuron(self) -> LIFNeuron:
        return LIFNeuron(self.config.rule, self.config.spike_steps)


class NormConv(StepConv):
    """Convolution and batch norm."""

    def __init__(self, layers: FSDDIMLayers, c_in: int, c_out: int, kernel: int, alpha: float = 1.0) -> None:
        super().__init__(c_in, c_out, kernel)
        self.bn = layers.norm(c_out, alpha)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(super().forward(x))


class SpikingConv(NormConv):
    """Convolution, batch norm and neuron: where the outermost resolutions have no change of resolution."""

    def __init__(self, layers: FSDDIMLayers, c_in: int, c_out: int) -> None:
        super().__init__(layers, c_in, c_out, kernel=3)
        self.neuron = layers.neuron()

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(super().forward(x))


class DownSample(nn.Module):
    """Halve height and width by averaging, then a 1×1 convolution: real-valued."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.AvgPool2d(2), StepConv(c_in, c_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # [L·N, C', H/2, W/2]


class UpSample(nn.Module):
    """Double height and width (nearest neighbour), then a 3×3 convolution: real-valued."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = StepConv(c_in, c_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(upsample_nearest(x))  # [L·N, C', 2H, 2W]


class FSDDIMBlock(nn.Module):
    """Two convolutions with batch norm and neurons, the second pair after the sum with the shortcut: spikes."""

    def __init__(self, layers: FSDDIMLayers, c_in: int, c_out: int) -> None:
        super().__init__()
        config = layers.config
        self.conv1 = StepConv(c_in, c_out, 3)
        self.temb_neuron = layers.neuron()
        self.temb_proj = nn.Linear(4 * config.ch, c_out)
        self.bn1 = layers.norm(c_out)
        self.dropout = BatchDropout(config.dropout, config.spike_steps)
        self.neuron1 = layers.neuron()
        self.conv2 = NormConv(layers, c_out, c_out, 3, BRANCH_GAIN)
        same = c_in == c_out
        self.nin_shortcut = layers.norm(c_in, BRANCH_GAIN) if same else NormConv(layers, c_in, c_out, 1, BRANCH_GAIN)
        self.neuron2 = layers.neuron()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x [L·N, C, H, W], temb [L·N, 4·ch] → spikes [L·N, C', H, W]."""
        h = self.conv1(x) + self.temb_proj(self.temb_neuron(temb))[:, :, None, None]
        h = self.neuron1(self.dropout(self.bn1(h)))
        return self.neuron2(self.nin_shortcut(x) + self.conv2(h))


class FSDDIM(DirectDenoiser):
    """Spiking denoiser of images, f(x [N, C, H, W], t [N]) → [N, C, H, W], or of currents [L·N, C, H, W] → the same.

    An image is a current that stays the same over the time steps; the image of currents is their mean. t may be
    fractional. The table `pe` [diffusion_steps, ch] is kept for the checkpoints' sake and never read.
    """

    config: FSDDIMConfig
    pe: Tensor
    currents: ClassVar[bool] = FSDDIMConfig.currents

    def __init__(self, config: FSDDIMConfig, diffusion: DiffusionConfig | None = None) -> None:
        super().__init__(config, diffusion)
        layers, ch, c = FSDDIMLayers(config), config.ch, config.in_channels
        self.register_buffer("pe", time_features(torch.arange(config.diffusion_steps), ch))
        self.temb = nn.Sequential(nn.Linear(ch, 4 * ch), nn.Linear(4 * ch, 4 * ch))
        self.temb_neuron = layers.neuron()
        self.conv_in = StepConv(c, ch, 3)
        widths = [ch, *(ch * mult for mult in config.ch_mult)]
        levels = list(zip(widths, widths[1:], strict=False))  # (upper, lower) end of each
        self.downs = nn.ModuleList(_down(layers, *level, last=level is levels[-1]) for level in levels)
        self.mid_block1 = FSDDIMBlock(layers, widths[-1], widths[-1])
        self.mid_block2 = FSDDIMBlock(layers, widths[-1], widths[-1])
        self.ups = nn.ModuleList(_up(layers, *level, last=level is levels[0]) for level in reversed(levels))
        self.final_res_block = FSDDIMBlock(layers, 2 * ch, ch)
        self.conv_out = StepConv(2 * ch + config.num_res_blocks * (widths[0] + widths[1]), c, 1)

    @property
    def depth(self) -> int:
        """Neuron layers in sequence: time embedding, the first block's own, and from there on those of the images."""
        blocks = sum(isinstance(module, FSDDIMBlock) for module in self.modules())
        return super().depth - (blocks - 1)  # each block's neurons of the time embedding stand beside the others'

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Raises ValueError for rows that are neither N images nor L·N currents."""
        steps, image = self.spike_steps, len(x) == len(t)
        if not image and len(x) != steps * len(t):
            raise ValueError(f"{len(x)} rows for {len(t)} times: give an image each, or its currents in {steps} steps")
        first = self.conv_in(x)
        out = self._u_net(over_time(first, steps) if image else first, self.embed(t))
        return mean_over_time(out, steps) if image else out

    def embed(self, t: Tensor) -> Tensor:
        """t [N] → time embedding [L·N, 4·ch], real-valued."""
        features = time_features(t, self.config.ch).to(self.pe.dtype)
        return self.temb[1](self.temb_neuron(over_time(self.temb[0](features), self.spike_steps)))

    def _u_net(self, first: Tensor, temb: Tensor) -> Tensor:
        """Currents of the first convolution [L·N, ch, H, W] → currents [L·N, C, H, W]."""
        h, skips = first, [first]
        for level in self.downs:
            *blocks, resample = level.children()
            for block in blocks:
                h = self.run_block(block, h, temb)
                skips.append(h)
            h = self.run_block(resample, h)
        uppermost = skips[: 1 + self.config.num_res_blocks]
        h = self.run_block(self.mid_block2, self.run_block(self.mid_block1, h, temb), temb)
        for level in self.ups:
            *blocks, resample = level.children()
            sent = []
            for block in blocks:
                h = self.run_block(block, torch.cat([h, skips.pop()], dim=1), temb)
                sent.append(h)
            h = self.run_block(resample, h)
        h = self.run_block(self.final_res_block, torch.cat([h, skips.pop()], dim=1), temb)
        return self.conv_out(torch.cat([h, *uppermost, *sent], dim=1))


def time_features(t: Tensor, dim: int) -> Tensor:
    """t [N] → float32 [N, dim]: sin and cos of t·10000^(−i/(dim/2 − 1)) in turns, i = 0..dim/2 − 1."""
    last = dim // 2 - 1
    frequency = torch.exp(torch.arange(last + 1, dtype=torch.float32, device=t.device) * (-math.log(10000) / last))
    angle = t.to(torch.float32)[:, None] * frequency
    return torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(1)


def _down(layers: FSDDIMLayers, c_in: int, c_out: int, last: bool) -> nn.ModuleList:
    """Blocks of one resolution, then the way to the next; the last has none, but grows its channels all the same."""
    blocks = [FSDDIMBlock(layers, c_in, c_in) for _ in range(layers.config.num_res_blocks)]
    return nn.ModuleList([*blocks, SpikingConv(layers, c_in, c_out) if last else DownSample(c_in, c_out)])


def _up(layers: FSDDIMLayers, c_out: int, c_in: int, last: bool) -> nn.ModuleList:
    """The mirror image of `_down`; each block reads one of its outputs besides."""
    blocks = [FSDDIMBlock(layers, c_in + c_out, c_in) for _ in range(layers.config.num_res_blocks)]
    return nn.ModuleList([*blocks, SpikingConv(layers, c_in, c_out) if last else UpSample(c_in, c_out)])
