"""Checkpoints of pytorch-ddpm: the layers of our attention U-Net under other names, with other edges and times.

Its files without attention have the names of the published conversion code's, and are read as those (`reference`).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ..config import SQUARE_32, DiffusionConfig, ImageSize
from ..errors import UserError
from ..nets.attention_unet import AttentionUNetConfig, sinusoidal_features
from .payload import FORMAT
from .reference import TABLE, blocks_per_level, image_size_of
from .states import attention_settings, divided, joined_factors, state_in

NAME = "pytorch-ddpm"
NORM_EPS = 1e-5  # torch's
#: What its files do not tell, but for the image size, which those with their sampling noise do.
ASSUMED = ("image_size", "norm_groups", "dropout", "beta_1", "beta_T", "schedule", "mean_type")
TABLE_ERROR = 1e-3  # of its sinusoids, which are computed anew: float32 differs by 1e-4 at t = 1000
#: Their name in a residual block → ours.
LAYERS = {
    "block1.0": "norm1",
    "block1.2": "conv1",
    "temb_proj.1": "fc",
    "block2.0": "norm2",
    "block2.3": "conv2",
    "shortcut": "skip",
}
OUTSIDE = {
    "head": "in_conv",
    "time_embedding.timembedding.1": "embed.0",
    "time_embedding.timembedding.3": "embed.2",
    "tail.0": "out_conv.0",
    "tail.2": "out_conv.2",
}


def recognises(payload: dict) -> bool:
    """Whether it is a training checkpoint, or has its weights under one of the names, with attention in it."""
    states = [payload.get(key) for key in ("ema_model", "net_model")]
    names = [name for state in states if isinstance(state, dict) for name in state if isinstance(name, str)]
    return "config" not in payload and any(name.endswith(".attn.proj_q.weight") for name in names)


def normalised(payload: dict, path: Path) -> dict:
    """Our payload. Raises UserError."""
    our_payload: dict[str, object] = {"kind": "ann", "format": FORMAT, "step": payload.get("step", 0)}
    config, steps, size = None, 0, image_size_of(payload)
    for key in ("ema_model", "net_model"):
        if key in payload:
            state = {name.removeprefix("module."): value for name, value in state_in(payload, key, path).items()}
            steps = _check_table(state, path)
            config = _config(state, size or SQUARE_32, path)
            our_payload[key] = _renamed(state, config, path)
    diffusion = DiffusionConfig(diffusion_steps=steps)
    our_payload["config"] = {"arch": AttentionUNetConfig.arch, "unet": config, "diffusion": diffusion.to_dict()}
    known_fields = set() if size is None else {"image_size"}
    return our_payload | {"assumed": [name for name in ASSUMED if name not in known_fields]}


def _check_table(state: dict[str, Tensor], path: Path) -> int:
    """Diffusion steps of the table of times. Raises UserError for one that is not the sinusoids'."""
    table = state.get(TABLE)
    if table is None or table.dim() != 2 or not 4 <= table.shape[1] <= 4096 or not 1 <= table.shape[0] <= 100_000:
        raise UserError(f"refusing {path}: its {TABLE} is not a table of time embeddings")
    features = sinusoidal_features(torch.arange(table.shape[0]), table.shape[1] // 2 * 2, "pytorch_ddpm")
    ours = torch.stack(features.chunk(2, dim=1), dim=-1).flatten(1)  # sine and cosine in turn
    if table.shape != ours.shape or not bool((table - ours).abs().max() < TABLE_ERROR):
        raise UserError(f"refusing {path}: its {TABLE} does not hold the sinusoids of time embeddings")
    return table.shape[0]


def _config(state: dict[str, Tensor], image_size: ImageSize, path: Path) -> dict:
    head = state.get("head.weight")
    if head is None or head.dim() != 4 or 0 in head.shape:
        raise UserError(f"refusing {path}: its head.weight is no convolution's weight")
    ch = head.shape[0]
    mults, blocks = blocks_per_level(state, ch, path, ends_with="main.weight", width="block1.2.weight")
    attn = {
        divided(int(match[1]) // (blocks + 1), 1, path)
        for name in state
        if (match := re.fullmatch(r"downblocks\.(\d{1,3})\.attn\.proj_q\.weight", name))
    }
    return attention_settings(
        in_channels=head.shape[1],
        image_size=image_size.stored,
        ch=ch,
        ch_mult=list(mults),
        num_res_blocks=blocks,
        attn=sorted(attn),
        norm_eps=NORM_EPS,
        symmetric=True,
        frequencies="pytorch_ddpm",
    )


def _renamed(state: dict[str, Tensor], config: dict, path: Path) -> dict[str, Tensor]:
    """The state by our names; a name that is not known stays, and is refused with the others that do not fit."""
    if "middleblocks.0.attn.proj_q.weight" not in state:
        raise UserError(f"refusing {path}: its middle has no attention, and no network here has it elsewhere alone")
    renamed = {}
    for name, value in state.items():
        if name != TABLE and ".attn.proj_" not in name:
            renamed[_our_name(name, config)] = value
    for place in {name.partition(".proj_q.")[0] for name in state if ".attn.proj_q." in name}:
        ours = _our_name(f"{place}.group_norm.weight", config).removesuffix("norm.weight")
        for kind in ("weight", "bias"):
            renamed[f"{ours}project_in.{kind}"] = joined_factors(state, f"{place}.proj_", kind, path)
    first = renamed.get("embed.0.weight")
    if first is not None and first.dim() == 2:  # the sines' columns, then the cosines'
        renamed["embed.0.weight"] = torch.cat([first[:, 0::2], first[:, 1::2]], dim=1)
    return renamed


def _our_name(name: str, config: dict) -> str:
    layer, _, kind = name.rpartition(".")
    if layer in OUTSIDE:
        return f"{OUTSIDE[layer]}.{kind}"
    match = re.fullmatch(r"(down|middle|up)blocks\.(\d{1,3})\.(.+)", layer)
    if not match:
        return name
    direction, index, inner = match[1], int(match[2]), match[3]
    place, has_attention = _place(direction, index, config)
    if inner == "main":
        return f"{place}.1.{kind}"
    if inner.startswith("attn."):
        attention = "middle.1" if direction == "middle" else f"{place}.1"
        return f"{attention}.{ {'attn.group_norm': 'norm', 'attn.proj': 'project_out'}.get(inner, inner) }.{kind}"
    return f"{place}{'.0' if has_attention else ''}.{LAYERS.get(inner, inner)}.{kind}"


def _place(direction: str, index: int, config: dict) -> tuple[str, bool]:
    """Our name of a block, and whether it is followed by attention in a chain."""
    if direction == "middle":
        return f"middle.{2 * index}", False
    blocks = config["num_res_blocks"] + (direction == "up")
    level, within = divmod(index, blocks + 1)
    if direction == "up":
        level = len(config["ch_mult"]) - 1 - level
    return f"{direction}samples.level_{level}.{within}", level in config["attn"] and within < blocks
