"""The U-Net of DDPM with attention: a full-precision baseline, and the architecture of published DDPM checkpoints.

Ho et al., 2020 (2006.11239), appendix B, as trained by ddpm-torch, whose parameter names these are, so that its
checkpoints load strictly (`model`, or `ema` → `shadow`). Quantized, it has a quantizer in front of every layer that
another one's output reaches, and on q, k and v: where `ann2snn.quantize` puts them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import FULL_PRECISION, DiffusionConfig, check_bits, check_classes, check_int, require
from ..config.checks import (
    check_blocks,
    check_bool,
    check_even_width,
    check_multipliers,
    check_norm_groups,
    check_number,
    check_out_channels,
    make_whole,
)
from ..config.size import SQUARE_32, ImageSize, check_size
from ..quant import UniformQuantizer
from ..quant.place import quantize_input, quantize_output
from .classes import ClassConditional, ClassEmbedding, conditioned
from .group_norm import GroupNorm
from .parts import BatchDropout
from .shared import Shared

NORM_EPS = 1e-6
#: Whose sinusoids → ln of their frequencies, from the indices i [dim/2]. Programs differ by the divisor, and by the
#: order of their float32 operations, whose rounding shows at t = 1000 in the fourth digit of a feature.
FREQUENCIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "ddpm": lambda i, half: i * (-math.log(10000) / (half - 1)),
    "pytorch_ddpm": lambda i, half: -(2 * i / (2 * half) * math.log(10000)),
    "diffusers_0": lambda i, half: -math.log(10000) * i / half,
    "diffusers_1": lambda i, half: -math.log(10000) * i / (half - 1),
}
NEAR_ZERO_GAIN = 1e-5  # Xavier gain of a layer that starts as good as silent: scale 1e-10 of the variance


@dataclass(frozen=True)
class AttentionUNetConfig:
    """Shape of the denoiser. The defaults are the published CIFAR-10 network, with 35,746,307 parameters.

    attn: levels (0 is full resolution) whose every residual block is followed by attention; may be empty.
    out_channels: None for as many as `in_channels`; twice as many tell the variance of a step, too.
    bits: of the activations; 32 is full precision, and no quantizers. Fewer convert to a spiking network.
    block_size: squares of block_size² pixels become channels before the first convolution and pixels again after the
    last one; 1 leaves images as they are.
    norm_eps: of every GroupNorm. symmetric: convolutions that halve an image read a zero at each edge, not two at the
    right and the bottom one. frequencies: whose sinusoids of time it reads, see `FREQUENCIES`.
    num_classes, class_names: see `UNetConfig`.

    Raises UserError for values that make no network.
    """

    arch = "attention"  # no field: the name of `--arch`

    in_channels: int = 3
    image_size: ImageSize = SQUARE_32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn: tuple[int, ...] = (1,)
    dropout: float = 0.1
    out_channels: int | None = None
    norm_groups: int = 32
    block_size: int = 1
    bits: int = FULL_PRECISION
    norm_eps: float = NORM_EPS
    symmetric: bool = False
    frequencies: str = "ddpm"
    num_classes: int = 0
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; normalise types once, here
        make_whole(self)
        set_field(self, "image_size", check_size(self.image_size))
        count, names = check_classes(self.num_classes, self.class_names)
        set_field(self, "num_classes", count)
        set_field(self, "class_names", names)
        set_field(self, "bits", check_bits(self.bits, "--bit"))
        set_field(self, "out_channels", check_out_channels(self.out_channels))
        set_field(self, "attn", tuple(check_int(level, "--attn") for level in self.attn))
        self._check_values()
        self._check_levels()

    def _check_values(self) -> None:
        require(1 <= self.in_channels <= 64, f"{self.in_channels} image channels: use 1 to 64")
        check_even_width(self.ch)
        check_blocks(self.num_res_blocks, self.dropout)
        check_norm_groups(self.norm_groups, self.ch)
        require(0 < check_number(self.norm_eps, "norm_eps") <= 1, f"norm_eps={self.norm_eps}: use more than 0, up to 1")
        check_bool(self.symmetric, "symmetric")
        known = isinstance(self.frequencies, str) and self.frequencies in FREQUENCIES
        require(known, f"frequencies={str(self.frequencies)[:40]!r}: use one of {', '.join(FREQUENCIES)}")

    def _check_levels(self) -> None:
        levels = len(self.ch_mult)
        check_multipliers(self.ch_mult, levels=8, largest=math.inf)
        require(
            all(0 <= level < levels for level in self.attn) and len(set(self.attn)) == len(self.attn),
            f"--attn={','.join(map(str, self.attn))}: name each level with attention once, from 0 to {levels - 1}",
        )
        require(1 <= self.block_size <= 64, f"--block_size={self.block_size}: use 1 to 64")
        factor = self.block_size * 2 ** (levels - 1)
        require(
            min(self.image_size) > 0 and not any(side % factor for side in self.image_size),
            f"--img_size={self.image_size}: must be a multiple of {factor}, which {levels} resolution levels and "
            f"--block_size={self.block_size} divide it by",
        )

    @property
    def denoised_channels(self) -> int:
        """Channels of the network's output."""
        return self.in_channels if self.out_channels is None else self.out_channels

    def to_dict(self) -> dict:
        lists = {name: list(getattr(self, name)) for name in ("ch_mult", "attn", "class_names")}
        return dataclasses.asdict(self) | lists | {"image_size": self.image_size.stored}


def sinusoidal_features(t: Tensor, dim: int, frequencies: str = "ddpm") -> Tensor:
    """t [N], integer or fractional → float32 [N, dim]: dim/2 sines, then dim/2 cosines.

    Frequencies 10000^(-i / (dim/2 - 1)), as in DDPM: not quite Vaswani et al., 2017, section 3.5, which is the others'.
    """
    half = dim // 2
    indices = torch.arange(half, device=t.device, dtype=torch.float32)
    frequency = torch.exp(FREQUENCIES[frequencies](indices, half))
    angle = t.to(torch.float32)[:, None] * frequency[None, :]
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


class AttentionUNet(ClassConditional, Shared, nn.Module):
    """Denoiser f(x [N, C, H, W], t [N], y [N]) → [N, C_out, H, W]; `t` may be fractional; `y` as in `UNet`.

    `diffusion` is the process it was trained for; it is carried along, not used.
    """

    folds_time = True  # rows of a batch do not meet

    def __init__(self, config: AttentionUNetConfig, diffusion: DiffusionConfig | None = None) -> None:
        super().__init__()
        self.config: AttentionUNetConfig = config
        self.diffusion = diffusion or DiffusionConfig()
        pixels, temb_dim = config.block_size**2, 4 * config.ch

        self.embed = nn.Sequential(nn.Linear(config.ch, temb_dim), nn.SiLU(), nn.Linear(temb_dim, temb_dim))
        self.class_embedding = ClassEmbedding(config.num_classes, temb_dim) if config.num_classes else None
        self.in_conv = nn.Conv2d(config.in_channels * pixels, config.ch, 3, padding=1)
        skips = [config.ch]  # channels of every output kept for the way up
        self.downsamples = nn.ModuleDict(
            {f"level_{level}": self._way_down(level, skips) for level in range(len(config.ch_mult))}
        )
        width = skips[-1]
        self.middle = Chain(self._res_block(width, width), AttentionBlock(width, config), self._res_block(width, width))
        ways_up = []
        for level in reversed(range(len(config.ch_mult))):
            ways_up.append((f"level_{level}", self._way_up(level, width, skips)))
            width = config.ch * config.ch_mult[level]
        self.upsamples = nn.ModuleDict(dict(reversed(ways_up)))  # in the published order of parameters
        self.out_conv = nn.Sequential(
            group_norm(width, config), nn.SiLU(), nn.Conv2d(width, config.denoised_channels * pixels, 3, padding=1)
        )
        self.initialize()
        if config.bits != FULL_PRECISION:
            self._quantize(config.bits)

    def _quantize(self, bits: int) -> None:
        """Quantizers, of levels below 0 as well, as SiLU and attention have such answers."""
        layers = [m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        blocks = [m for m in self.modules() if isinstance(m, AttentionBlock)]
        for layer in layers:
            if layer not in (self.in_conv, self.embed[0]):  # they read the image and the time, no other layer
                quantize_input(layer, UniformQuantizer(bits))
        for block in blocks:
            for factor in (block.query, block.key, block.value):
                quantize_output(factor, UniformQuantizer(bits))

    def example_call(self) -> tuple[tuple[Tensor, Tensor], dict]:
        """Arguments that it can be called with: one image of zeros at t = 0."""
        return (torch.zeros(1, self.in_channels, *self.image_size), torch.zeros(1)), {}

    def _res_block(self, c_in: int, c_out: int) -> AttentionResBlock:
        return AttentionResBlock(c_in, c_out, self.config)

    def _level_block(self, level: int, c_in: int) -> nn.Module:
        c_out = self.config.ch * self.config.ch_mult[level]
        block = self._res_block(c_in, c_out)
        return Chain(block, AttentionBlock(c_out, self.config)) if level in self.config.attn else block

    def _way_down(self, level: int, skips: list[int]) -> nn.ModuleList:
        """Blocks of one level; adds the channels of each output to `skips`."""
        blocks = nn.ModuleList()
        for _ in range(self.config.num_res_blocks):
            blocks.append(self._level_block(level, skips[-1]))
            skips.append(self.config.ch * self.config.ch_mult[level])
        if level != len(self.config.ch_mult) - 1:
            # Zeros at the right and bottom edge alone, so that 3x3 windows of stride 2 halve an even size.
            edges = (1, 1, 1, 1) if self.config.symmetric else (0, 1, 0, 1)
            blocks.append(Resampling(nn.ZeroPad2d(edges), nn.Conv2d(skips[-1], skips[-1], 3, stride=2)))
            skips.append(skips[-1])
        return blocks

    def _way_up(self, level: int, width: int, skips: list[int]) -> nn.ModuleList:
        """Blocks of one level, entered with `width` channels; takes what it concatenates from `skips`."""
        blocks = nn.ModuleList()
        for _ in range(self.config.num_res_blocks + 1):
            blocks.append(self._level_block(level, width + skips.pop()))
            width = self.config.ch * self.config.ch_mult[level]
        if level != 0:
            blocks.append(
                Resampling(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, width, 3, padding=1))
            )
        return blocks

    def initialize(self) -> None:
        """Xavier-uniform weights and zero biases; what ends a residual branch, and the output, start near zero."""
        near_zero = {self.out_conv[-1]}
        near_zero |= {module.conv2 for module in self.modules() if isinstance(module, AttentionResBlock)}
        near_zero |= {module.project_out for module in self.modules() if isinstance(module, AttentionBlock)}
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight, gain=NEAR_ZERO_GAIN if module in near_zero else 1.0)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def in_channels(self) -> int:
        return self.config.in_channels

    @property
    def image_size(self) -> ImageSize:
        return self.config.image_size

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        features = sinusoidal_features(t, self.config.ch, self.config.frequencies)
        temb = self.embed(features.to(self.in_conv.weight.dtype))  # [N, 4·ch]
        temb = conditioned(self.class_embedding, temb, y)
        h = self.in_conv(F.pixel_unshuffle(x, self.config.block_size))  # [N, ch, H/B, W/B], B = block_size
        skips = [h]
        for level in self.downsamples.values():
            for block in level.children():
                h = block(h, temb)
                skips.append(h)
        h = self.middle(h, temb)
        for level in reversed(list(self.upsamples.values())):
            for block in level.children():
                if not isinstance(block, Resampling):
                    h = torch.cat([h, skips.pop()], dim=1)
                h = block(h, temb)
        return F.pixel_shuffle(self.out_conv(h), self.config.block_size)  # [N, C_out, H, W]


def group_norm(channels: int, config: AttentionUNetConfig) -> nn.GroupNorm:
    return GroupNorm(config.norm_groups, channels, eps=config.norm_eps)


class Chain(nn.Sequential):
    """Blocks f(x, temb) one after the other."""

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:  # type: ignore[override]  # for the order of its blocks alone
        for block in self:
            x = block(x, temb)
        return x


class Resampling(nn.Sequential):
    """Change of resolution; called like a block, deaf to the time embedding."""

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:  # type: ignore[override]  # as other blocks
        return super().forward(x)


class AttentionResBlock(nn.Module):
    """Residual block of DDPM: norm, SiLU, convolution, twice, the time embedding added in between."""

    def __init__(self, c_in: int, c_out: int, config: AttentionUNetConfig) -> None:
        super().__init__()
        self.norm1 = group_norm(c_in, config)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.fc = nn.Linear(4 * config.ch, c_out)
        self.norm2 = group_norm(c_out, config)
        self.dropout = BatchDropout(config.dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x [N, C_in, H, W], temb [N, 4·ch] → [N, C_out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x))) + self.fc(F.silu(temb))[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class AttentionBlock(nn.Module):
    """Residual self-attention over pixels with one head: softmax(qᵀk / √C) applied to v.

    `query`, `key` and `value` pass on the factors of the product, so that they can be quantized or looked at.
    """

    def __init__(self, channels: int, config: AttentionUNetConfig) -> None:
        super().__init__()
        self.norm = group_norm(channels, config)
        self.project_in = nn.Conv2d(channels, 3 * channels, 1)  # q, k and v, in this order
        self.query, self.key, self.value = nn.Identity(), nn.Identity(), nn.Identity()
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x [N, C, H, W] → the same shape; `temb` is not used."""
        n, c, height, width = x.shape
        qkv = self.project_in(self.norm(x)).flatten(2).transpose(1, 2)[:, None]  # [N, 1, H·W, 3·C]
        q, k, v = qkv.chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(self.query(q), self.key(k), self.value(v))  # [N, 1, H·W, C]
        return x + self.project_out(h[:, 0].transpose(1, 2).reshape(n, c, height, width))
