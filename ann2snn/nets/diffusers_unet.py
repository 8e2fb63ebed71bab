"""A `UNet2DModel` of diffusers as a denoiser of this program: for such networks that the attention U-Net is not.

Quantized, it has quantizers where `ann2snn.quantize` puts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FULL_PRECISION, DiffusionConfig, ImageSize, check_bits, check_int, check_size, require
from ..errors import UserError
from ..quant import UniformQuantizer
from ..quant.place import quantize_input, quantize_output
from .shared import Shared

MOST_SETTINGS = 2**16  # characters
#: Settings of networks that read more than an image and a time, or have weights that no convolution has.
PLAIN = {
    "time_embedding_type": "positional",
    "class_embed_type": None,
    "num_class_embeds": None,
    "center_input_sample": False,
}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")


@dataclass(frozen=True)
class DiffusersUNetConfig:
    """settings: diffusers' own, as JSON. bits: of the activations; 32 is full precision, and no quantizers.

    Raises UserError for settings of a network that is no function of an image [C, H, W] and a time, or of no size that
    one has.
    """

    arch = "diffusers"  # no field: the name in checkpoints

    settings: str
    bits: int = FULL_PRECISION

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_bits(self.bits, "--bit"))
        require(isinstance(self.settings, str) and len(self.settings) < MOST_SETTINGS, "diffusers' settings: no text")
        try:
            settings = json.loads(self.settings)
        except (ValueError, RecursionError):
            raise UserError("diffusers' settings are no JSON") from None
        require(isinstance(settings, dict), "diffusers' settings are no table")
        _check_values(settings)
        object.__setattr__(self, "settings", json.dumps(settings, sort_keys=True))

    def value(self, name: str) -> Any:
        return json.loads(self.settings).get(name)

    @property
    def in_channels(self) -> int:
        return self.value("in_channels")

    @property
    def denoised_channels(self) -> int:
        """Channels of the network's output."""
        return self.value("out_channels")

    @property
    def image_size(self) -> ImageSize:
        return check_size(self.value("sample_size"))

    @property
    def ch(self) -> int:
        return self.value("block_out_channels")[0]

    @property
    def dropout(self) -> float:
        return self.value("dropout") or 0.0

    def to_dict(self) -> dict:
        return {"settings": self.settings, "bits": self.bits}


def _check_values(settings: dict) -> None:
    for name, plain in PLAIN.items():
        given = settings.get(name, plain)
        require(given == plain, f"{name}={str(given)[:40]}: only networks of an image and a time, {name}={plain}")
    size, channels = settings.get("sample_size"), settings.get("in_channels")
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    given = all(isinstance(side, int) and side > 0 for side in sides)
    require(given, f"sample_size={str(size)[:40]}: give images' side, or height and width (--img_size)")
    if not isinstance(channels, int) or not 1 <= channels <= 64:
        raise UserError(f"in_channels={str(channels)[:40]}: use 1 to 64")
    out_channels = settings.get("out_channels")
    counts = f"{str(out_channels)[:40]} output channels for {channels} input channels: as many, or twice as many"
    require(type(out_channels) is int and out_channels in (channels, 2 * channels), counts)
    widths, layers = settings.get("block_out_channels"), settings.get("layers_per_block")
    if not isinstance(widths, list) or not 1 <= len(widths) <= 8:
        raise UserError("block_out_channels: give 1 to 8 levels")
    for width in widths:
        require(1 <= check_int(width, "block_out_channels") <= 4096, f"block_out_channels={width}: use 1 to 4096")
    require(1 <= check_int(layers, "layers_per_block") <= 16, f"layers_per_block={layers}: use 1 to 16")
    for name, known in (("down_block_types", DOWN), ("up_block_types", UP)):
        blocks = settings.get(name)
        known_blocks = isinstance(blocks, list) and all(isinstance(block, str) and block in known for block in blocks)
        require(known_blocks, f"{name}={str(blocks)[:80]}: only {' and '.join(known)}")
    factor = 2 ** (len(widths) - 1)
    divided = not any(side % factor for side in sides)
    require(
        divided, f"--img_size={','.join(map(str, sides))}: must be a multiple of {factor}, to be halved level by level"
    )


class DiffusersUNet(Shared, nn.Module):
    """Denoiser f(x [N, C, H, W], t [N]) → [N, C_out, H, W]; `model` is diffusers' network.

    Raises UserError where diffusers is missing, or makes no network of the settings.
    """

    folds_time = True  # rows of a batch do not meet

    def __init__(self, config: DiffusersUNetConfig, diffusion: DiffusionConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.diffusion = diffusion or DiffusionConfig()
        self.model = _model(json.loads(config.settings))
        if config.bits != FULL_PRECISION:
            self._quantize(config.bits)

    def _quantize(self, bits: int) -> None:
        """Quantizers, of levels below 0 as well, as SiLU and attention have such answers."""
        model: Any = self.model
        first = (model.conv_in, model.time_embedding.linear_1)  # they read the image and the time, no other layer
        for module in list(model.modules()):
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in first:
                quantize_input(module, UniformQuantizer(bits))
            if hasattr(module, "to_q"):
                for factor in (module.to_q, module.to_k, module.to_v):
                    quantize_output(factor, UniformQuantizer(bits))

    @property
    def in_channels(self) -> int:
        return self.config.in_channels

    @property
    def image_size(self) -> ImageSize:
        return self.config.image_size

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """(name, module) in data-flow order."""
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out"):
            part = getattr(self.model, name)
            if isinstance(part, nn.ModuleList):
                yield from ((f"model.{name}.{index}", block) for index, block in enumerate(part))
            elif part is not None:
                yield f"model.{name}", part

    def example_call(self) -> tuple[tuple[Tensor, Tensor], dict]:
        """Arguments that it can be called with: one image of zeros at t = 0."""
        return (torch.zeros(1, self.in_channels, *self.image_size), torch.zeros(1)), {}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t, return_dict=False)[0]


def _model(settings: dict) -> nn.Module:
    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise UserError("package diffusers is missing: pip install diffusers") from None
    try:
        return UNet2DModel(**settings)
    except Exception as error:  # of any class: diffusers checks few of its settings
        raise UserError(f"diffusers makes no network of these settings: {error}") from None
