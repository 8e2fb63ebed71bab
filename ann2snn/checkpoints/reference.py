"""Checkpoints of the published conversion code: their keys, and the settings they do not store but imply."""

from __future__ import annotations

import re

from torch import Tensor

from ..config import FULL_PRECISION, DiffusionConfig, ImageSize, UNetConfig
from ..errors import UserError
from .payload import check_pair

TABLE = "time_embedding.timembedding.0.weight"


def rename_snn_keys(state: dict[str, Tensor], path: object = "the state") -> dict[str, Tensor]:
    """Published SNN files wrap every layer in `.block`; DataParallel adds `module.`. Ours carry the ANN's names.

    Raises UserError, naming `path`, where two entries would get one name.
    """
    renamed = {name.removeprefix("module.").replace(".block.", "."): value for name, value in state.items()}
    if len(renamed) != len(state):
        raise UserError(f"refusing {path}: two of its entries are the same one under names of both layouts")
    return renamed


def kind_of(state: dict[str, Tensor]) -> str:
    """ "snn" or "ann", by the names; our own files say it themselves."""
    return "snn" if any(".block." in name for name in state) else "ann"


def image_size_of(payload: dict) -> ImageSize | None:
    """The published training checkpoint keeps its sampling noise x_T [N, C, H, W]; of others None, as they do not."""
    x_T = payload.get("x_T")
    return ImageSize(*x_T.shape[2:]) if isinstance(x_T, Tensor) and x_T.dim() == 4 else None


def infer_config(
    state: dict[str, Tensor], path, bit: int | None, image_size: ImageSize, norm_groups: int | None = None
) -> UNetConfig:
    """Read the architecture off the shapes, which do not show the bits and the norms' groups (None: 32).

    Raises UserError.
    """
    head, table = state.get("head.weight"), state.get(TABLE)
    if head is None or table is None or head.dim() != 4 or table.dim() != 2 or 0 in head.shape:
        raise UserError(f"refusing {path}: its entries are not those of this U-Net")
    quantized = any(name.endswith("act_alpha") for name in state)
    if not quantized:
        bit = FULL_PRECISION if bit is None else bit
    if bit is None:
        raise UserError(f"{path} does not store its activation bits: give --bit (bit= in Python)")
    if quantized == (int(bit) == FULL_PRECISION):
        kind = "quantized" if quantized else "full-precision"
        raise UserError(f"--bit={bit} contradicts {path}, which is a {kind} network")
    ch = head.shape[0]
    mults, blocks = blocks_per_level(state, ch, path, ends_with="main.weight", width="block1.2.weight")
    try:
        config = UNetConfig(
            in_channels=head.shape[1],
            image_size=image_size,
            ch=ch,
            ch_mult=mults,
            num_res_blocks=blocks,
            bits=bit,
            diffusion_steps=table.shape[0],
            norm_groups=UNetConfig.norm_groups if norm_groups is None else norm_groups,
        )
        check_pair(config, DiffusionConfig(diffusion_steps=config.diffusion_steps))
        return config
    except UserError as error:
        raise UserError(f"refusing {path}: its shapes fit no network of this program: {error}") from None


def blocks_per_level(
    state: dict[str, Tensor], ch: int, path, *, ends_with: str, width: str
) -> tuple[tuple[int, ...], int]:
    """(ch_mult, residual blocks per level): walk the way down, where a sampling convolution ends a level.

    ends_with: an entry that this convolution alone has. width: the one of a residual block that tells its channels.
    """
    indices = sorted({int(m[1]) for name in state if (m := re.match(r"downblocks\.([0-9]{1,4})\.", name))})
    levels: list[list[int]] = [[]]
    for index in indices:
        if f"downblocks.{index}.{ends_with}" in state:
            levels.append([])
        elif (conv := state.get(f"downblocks.{index}.{width}")) is not None and conv.dim() == 4:
            levels[-1].append(conv.shape[0])
    widths = {len(level) for level in levels}
    if len(widths) != 1 or 0 in widths or ch == 0 or any(size % ch for level in levels for size in level):
        raise UserError(f"refusing {path}: its blocks are not those of this U-Net")
    return tuple(level[0] // ch for level in levels), widths.pop()
