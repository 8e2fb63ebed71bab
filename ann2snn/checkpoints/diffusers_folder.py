"""Folders of diffusers' `UNet2DModel`, alone or in a pipeline with a scheduler.

They become our attention U-Net where that can compute the same (attention with one head, convolutions that resample),
and stay diffusers' network otherwise.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import LEARNED, DiffusionConfig
from ..errors import UserError
from ..nets.architecture import tells_variance
from ..nets.attention_unet import AttentionUNetConfig
from ..nets.diffusers_unet import PLAIN, DiffusersUNetConfig
from . import folders
from .payload import FORMAT
from .states import attention_settings, joined_factors

NAME = "diffusers"
CLASS, WEIGHTS, SCHEDULER = "UNet2DModel", "diffusion_pytorch_model.safetensors", "scheduler_config.json"
USUAL_SIZE = 32
INDEX = "model_index.json"  # of a pipeline
#: What a folder without a scheduler does not tell.
PROCESS = ("diffusion_steps", "beta_1", "beta_T", "schedule", "mean_type")
#: diffusers' defaults, which its own files may leave out.
DEFAULTS = PLAIN | {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2, "dropout": 0.0, "norm_num_groups": 32, "norm_eps": 1e-5, "attention_head_dim": 8,
    "freq_shift": 0, "flip_sin_to_cos": True, "downsample_padding": 1, "mid_block_scale_factor": 1,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
}  # fmt: skip
#: What the attention U-Net needs of settings besides, where they are given.
FITS = {
    "mid_block_type": ("UNetMidBlock2D",), "downsample_type": ("conv",), "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"), "resnet_time_scale_shift": ("default",), "add_attention": (True,),
    "attn_norm_num_groups": (None,), "time_embedding_dim": (None,),
}  # fmt: skip
SCHEDULES = {"linear": "linear", "scaled_linear": "quad", "squaredcos_cap_v2": "cosine"}
MEANS = {"epsilon": "epsilon", "sample": "xstart", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "fixedsmall",
    "fixed_small_log": "fixedsmall",
    "fixed_large": "fixedlarge",
    LEARNED: LEARNED,
}
RES_BLOCK = {"time_emb_proj": "fc", "conv_shortcut": "skip"}
OUTSIDE = {
    "conv_in": "in_conv",
    "time_embedding.linear_1": "embed.0",
    "time_embedding.linear_2": "embed.2",
    "conv_norm_out": "out_conv.0",
    "conv_out": "out_conv.2",
}
#: Names of attention's layers in files before diffusers 0.15 → today's.
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def recognises(path: Path) -> bool:
    """Whether a folder has a network or a pipeline of diffusers, of whatever class."""
    if (path / INDEX).is_file():
        return True
    return (path / folders.CONFIG).is_file() and "_class_name" in folders.settings(path)


def weights_of(path: Path) -> Path:
    return _inside(path) / WEIGHTS


def _inside(path: Path) -> Path:
    """The network's own folder."""
    return path / "unet" if (path / INDEX).is_file() else path


def normalised(path: Path) -> dict:
    """Our payload. Raises UserError."""
    inner = _inside(path)
    about = folders.settings(inner)
    if about.get("_class_name") != CLASS:
        raise UserError(f"refusing {inner}: a {str(about.get('_class_name'))[:60]} of diffusers; only {CLASS} is read")
    settings = DEFAULTS | {name: value for name, value in about.items() if not name.startswith("_")}
    assumed = []
    if settings["sample_size"] is None:
        settings["sample_size"] = USUAL_SIZE
        assumed.append("image_size")
    state = {todays_name(name): value for name, value in folders.tensors(inner / WEIGHTS).items()}
    scheduler = path / "scheduler" / SCHEDULER
    diffusion = _diffusion(scheduler)
    if diffusion is None:
        assumed += PROCESS
    try:
        full_config = DiffusersUNetConfig(json.dumps(settings))  # refuses what no denoiser of images is
    except (UserError, TypeError) as error:
        raise UserError(f"refusing {inner}: {error}") from None
    diffusion = diffusion or DiffusionConfig()
    if tells_variance(full_config) and not (scheduler.is_file() and "variance_type" in folders.table(scheduler)):
        diffusion = replace(diffusion, var_type=LEARNED)
        assumed.append("var_type")
    arch, unet = full_config.arch, full_config.to_dict()
    if fits(settings):
        arch, unet = AttentionUNetConfig.arch, (config := _config(settings))
        state = _renamed(state, config, bool(settings["flip_sin_to_cos"]), inner)
    else:
        state = {f"model.{name}": value for name, value in state.items()}
    about = {"arch": arch, "unet": unet, "diffusion": diffusion.to_dict()}
    return {"kind": "ann", "format": FORMAT, "ema_model": state, "config": about, "assumed": assumed}


def fits(settings: dict) -> bool:
    """Whether the attention U-Net computes what diffusers' network of these settings does."""
    widths, heads = settings["block_out_channels"], settings["attention_head_dim"]
    downs = [kind.startswith("Attn") for kind in settings["down_block_types"]]
    ups = [kind.startswith("Attn") for kind in settings["up_block_types"]]
    attended = {width for width, has in zip(widths, downs, strict=False) if has} | {widths[-1]}
    return (
        all(settings.get(name, allowed[0]) in allowed for name, allowed in FITS.items())
        and len(downs) == len(ups) == len(widths)
        and downs == ups[::-1]
        and (heads is None or (type(heads) is int and heads > 0 and all(width // heads == 1 for width in attended)))
        and all(width % widths[0] == 0 for width in widths)
        and settings["freq_shift"] in (0, 1)
        and settings["downsample_padding"] in (0, 1)
        and settings["mid_block_scale_factor"] == 1
    )


def _config(settings: dict) -> dict:
    widths = settings["block_out_channels"]
    return attention_settings(
        in_channels=settings["in_channels"],
        out_channels=settings["out_channels"] if settings["out_channels"] != settings["in_channels"] else None,
        image_size=settings["sample_size"],
        ch=widths[0],
        ch_mult=list(width // widths[0] for width in widths),
        num_res_blocks=settings["layers_per_block"],
        attn=list(level for level, kind in enumerate(settings["down_block_types"]) if kind.startswith("Attn")),
        dropout=settings["dropout"],
        norm_groups=settings["norm_num_groups"],
        norm_eps=settings["norm_eps"],
        symmetric=settings["downsample_padding"] == 1,
        frequencies=f"diffusers_{settings['freq_shift']}",
    )


def _diffusion(path: Path) -> DiffusionConfig | None:
    """The process of a scheduler's settings; None where there is none. Raises UserError."""
    if not path.is_file():
        return None
    about: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
    }
    about |= {"prediction_type": "epsilon", "variance_type": "fixed_large"}
    about |= folders.table(path)
    if about.get("trained_betas") is not None or about.get("rescale_betas_zero_snr"):
        raise UserError(f"refusing {path}: its betas are no schedule of this program")
    if about["variance_type"] == "learned":
        raise UserError(f"refusing {path}: variance_type=learned: of what networks tell, only learned_range is read")
    words = {}
    for name, known in (("beta_schedule", SCHEDULES), ("prediction_type", MEANS)):
        value = about[name]
        if not isinstance(value, str) or value not in known:
            raise UserError(f"refusing {path}: {name}={str(value)[:40]}: only {', '.join(known)} is read")
        words[name] = known[value]
    try:
        return DiffusionConfig(
            diffusion_steps=about["num_train_timesteps"],
            beta_1=about["beta_start"],
            beta_T=about["beta_end"],
            schedule=words["beta_schedule"],
            mean_type=words["prediction_type"],
            var_type=VARIANCES.get(str(about["variance_type"]), "fixedlarge"),
        )
    except (UserError, TypeError) as error:
        raise UserError(f"refusing {path}: {error}") from None


def todays_name(name: str) -> str:
    """The name of a parameter, which for attention's layers was another before diffusers 0.15."""
    match = re.fullmatch(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{match[1]}.{OLD[match[2]]}.{match[3]}" if match else name


def _renamed(state: dict[str, Tensor], config: dict, flipped: bool, path: Path) -> dict[str, Tensor]:
    """The state by our names, q, k and v joined; a name that is not known stays, and is refused with the others."""
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if not re.search(r"attentions\.\d+\.to_[qkv]$", layer):
            ours = f"{_our_name(layer, config)}.{kind}"
            renamed[ours] = value[..., None, None] if ours.endswith("project_out.weight") else value
    for place in {name.partition(".to_q.")[0] for name in state if ".to_q." in name}:
        ours = _our_name(f"{place}.to_q", config).removesuffix("to_q")
        for kind in ("weight", "bias"):
            joined = joined_factors(state, f"{place}.to_", kind, path)
            renamed[f"{ours}project_in.{kind}"] = joined[:, :, None, None] if kind == "weight" else joined
    first = renamed.get("embed.0.weight")
    if flipped and first is not None and first.dim() == 2:  # the cosines' columns come first
        renamed["embed.0.weight"] = torch.cat(first.chunk(2, dim=1)[::-1], dim=1)
    return renamed


def _our_name(layer: str, config: dict) -> str:
    if layer in OUTSIDE:
        return OUTSIDE[layer]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.([01])\.(.+)", layer):
        place = "middle.1" if match[1] == "attentions" else f"middle.{2 * int(match[2])}"
        return f"{place}.{_inner(match[1], match[3])}"
    match = re.fullmatch(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d{1,2})\.(.+)", layer
    )
    if not match:
        return layer
    direction, index, part, within, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
    level = index if direction == "down" else len(config["ch_mult"]) - 1 - index
    place = f"{direction}samples.level_{level}"
    if part.endswith("samplers"):
        last = config["num_res_blocks"] + (direction == "up")
        return f"{place}.{last}.{'1' if inner == 'conv' else inner}"
    chain = f".{int(part == 'attentions')}" if level in config["attn"] or part == "attentions" else ""
    return f"{place}.{within}{chain}.{_inner(part, inner)}"


def _inner(part: str, inner: str) -> str:
    if part == "resnets":
        return RES_BLOCK.get(inner, inner)
    return {"group_norm": "norm", "to_out.0": "project_out"}.get(inner, inner)
