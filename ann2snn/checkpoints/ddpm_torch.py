"""Checkpoints of ddpm-torch, whose names are those of our attention U-Net: `model`, and averaged `ema` → `shadow`."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from ..config import DiffusionConfig
from ..errors import UserError
from ..nets.attention_unet import AttentionUNetConfig
from .payload import FORMAT
from .states import attention_settings, divided, state_in

NAME = "ddpm-torch"
#: What its files do not tell; the published settings of CIFAR-10, without dropout.
ASSUMED = ("image_size", "norm_groups", "dropout", "diffusion_steps", "beta_1", "beta_T", "schedule", "mean_type")


def recognises(payload: dict) -> bool:
    """Whether it is a training checkpoint, or bare weights."""
    return any(_first(state) for state in (payload, payload.get("model")))


def _first(state: object) -> bool:
    named = state if isinstance(state, dict) else {}
    return any(name in named for name in ("in_conv.weight", "module.in_conv.weight"))


def normalised(payload: dict, path: Path) -> dict:
    """Our payload. Raises UserError."""
    raw = payload if _first(payload) else payload["model"]
    net = _plain_names(state_in({"model": raw}, "model", path), path)
    ema = payload.get("ema")
    averaged = net
    if isinstance(ema, dict) and "shadow" in ema:
        averaged = net | _plain_names(state_in(ema, "shadow", path), path)
    config = _config(net, path)
    settings = {"arch": AttentionUNetConfig.arch, "unet": config, "diffusion": DiffusionConfig().to_dict()}
    head = {"kind": "ann", "format": FORMAT, "config": settings, "assumed": list(ASSUMED)}
    return head | {"net_model": net, "ema_model": averaged}


def _plain_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    if len(plain) != len(state):
        raise UserError(f"refusing {path}: two of its entries are the same one, with and without 'module.'")
    return plain


def _config(state: dict[str, Tensor], path: Path) -> dict:
    """The network that names and shapes tell. Raises UserError."""
    ch, channels = _shape(state, "in_conv.weight", path)[:2]
    levels: dict[int, list[int]] = {}
    attn = set()
    for name in state:
        if match := re.fullmatch(r"downsamples\.level_(\d)\.\d{1,2}\.(?:0\.)?conv1\.weight", name):
            levels.setdefault(int(match[1]), []).append(_shape(state, name, path)[0])
        if match := re.fullmatch(r"downsamples\.level_(\d)\.\d{1,2}\.1\.project_in\.weight", name):
            attn.add(int(match[1]))
    counts = {len(widths) for widths in levels.values()}
    if sorted(levels) != list(range(len(levels))) or len(counts) != 1:
        raise UserError(f"refusing {path}: its levels are not those of the attention U-Net")
    return attention_settings(
        in_channels=channels,
        ch=ch,
        ch_mult=list(divided(levels[level][0], ch, path) for level in range(len(levels))),
        num_res_blocks=counts.pop(),
        attn=sorted(attn),
        dropout=0.0,
    )


def _shape(state: dict[str, Tensor], name: str, path: Path) -> tuple[int, ...]:
    value = state.get(name)
    if value is None or value.dim() != 4 or 0 in value.shape:
        raise UserError(f"refusing {path}: its {name} is no convolution's weight")
    return tuple(value.shape)
