"""Autoencoders in files: our checkpoints, and folders of diffusers' `AutoencoderKL`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints import checkpoint, diffusers_folder, folders
from ..checkpoints.payload import FORMAT
from ..checkpoints.states import check_fit, load_state, state_in
from ..config import check_int, check_number, require
from ..errors import UserError
from .autoencoder import Autoencoder, Decoder, Encoder
from .network import AutoencoderConfig, ConvAutoencoder

KIND, CLASS = "autoencoder", "AutoencoderKL"
#: diffusers' settings that make a network, with their defaults, which its own files may leave out.
SETTINGS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [64], "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "norm_num_groups": 32,
    "act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip
#: Those of its latents: (z - shift)·scaling.
SCALING: dict[str, Any] = {"scaling_factor": 0.18215, "shift_factor": None}


def save_autoencoder(path: str | os.PathLike, net: ConvAutoencoder, **about: object) -> None:
    """Write a new checkpoint of an autoencoder, with the hash of its content. about: plain values to keep with it.

    Raises UserError if there is something at `path`, or the disk refuses.
    """
    require(not os.path.lexists(path), f"{path} exists: nothing is overwritten; choose another name")
    config = {KIND: net.config.to_dict()}
    checkpoint.save(path, {"kind": KIND, "format": FORMAT, "ema_model": net.state_dict(), "config": config, **about})


def load_autoencoder(path: str | os.PathLike) -> Autoencoder:
    """Read what `ann2snn autoencoder` trained, or a folder of diffusers: an `AutoencoderKL`, or a pipeline with one.

    Raises UserError for a missing, damaged or foreign file, and where diffusers is needed and missing.
    """
    require(isinstance(path, str | os.PathLike), f"an autoencoder is a file or a folder, not a {type(path).__name__}")
    source = Path(path)
    if source.is_dir():
        inner = source / "vae" if (source / diffusers_folder.INDEX).is_file() else source
        return _of_diffusers(inner)
    payload = checkpoint.read(source)
    if payload.get("kind") != KIND or payload.get("format") != FORMAT:
        raise UserError(f"refusing {path}: it is no autoencoder of this program (ann2snn autoencoder makes one)")
    try:
        config = AutoencoderConfig(**payload["config"][KIND])
    except UserError as error:
        raise UserError(f"refusing {path}: its configuration is invalid: {error}") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"refusing {path}: its configuration is unreadable ({error})") from None
    state = state_in(payload, "ema_model", source)
    with torch.device("meta"):  # shapes without memory: a small file may describe a network of any size
        check_fit(ConvAutoencoder(config), state, source)
    net = ConvAutoencoder(config)
    load_state(net, state, source)
    require(bool((net.scale > 0).all()), f"refusing {path}: a scale of its latents is not positive")
    return autoencoder_of(net)


def autoencoder_of(net: ConvAutoencoder) -> Autoencoder:
    """The autoencoder that a trained network is."""
    config, plain = net.config, nn.Identity()
    parts = Encoder(net.encoder, plain, net.shift, net.scale), Decoder(plain, net.decoder, net.shift, net.scale)
    return Autoencoder(*parts, (config.channels, config.latent_channels, config.downscale), config.to_dict())


def _of_diffusers(folder: Path) -> Autoencoder:
    """Raises UserError."""
    about = folders.settings(folder)
    if about.get("_class_name") != CLASS:
        class_name = str(about.get("_class_name"))[:60]
        raise UserError(
            f"refusing {folder}: it holds no {CLASS} of diffusers, the only autoencoder read ({class_name})"
        )
    settings, scaling = ({k: about.get(k, plain) for k, plain in defaults.items()} for defaults in (SETTINGS, SCALING))
    try:
        _check_settings(settings)
        for name in ("latents_mean", "latents_std"):
            require(about.get(name) is None, f"{name}: latents scaled by channel are not read")
        scale = check_number(scaling["scaling_factor"], "scaling_factor")
        shift = 0.0 if scaling["shift_factor"] is None else check_number(scaling["shift_factor"], "shift_factor")
        require(scale > 0, f"scaling_factor={scale}: must be positive")
    except UserError as error:
        raise UserError(f"refusing {folder}: {error}") from None
    path = folder / diffusers_folder.WEIGHTS
    state = {diffusers_folder.todays_name(name): value for name, value in folders.tensors(path).items()}
    with torch.device("meta"):
        check_fit(_model(settings, folder), state, path)
    model = _model(settings, folder)
    load_state(model, state, path)
    last, first = (getattr(model, name, None) or nn.Identity() for name in ("quant_conv", "post_quant_conv"))
    moved = torch.tensor(shift), torch.tensor(scale)
    shape = settings["in_channels"], settings["latent_channels"], 2 ** (len(settings["block_out_channels"]) - 1)
    return Autoencoder(
        Encoder(model.encoder, last, *moved), Decoder(first, model.decoder, *moved), shape, settings | scaling
    )


def _check_settings(settings: dict) -> None:
    """Raise UserError for an autoencoder that is none of images, or of a size that no machine has."""
    channels, widths = settings["in_channels"], settings["block_out_channels"]
    require(channels in (1, 3) and type(channels) is int, f"in_channels={str(channels)[:40]}: use 1 or 3")
    require(settings["out_channels"] == channels, f"out_channels must be in_channels={channels}")
    require(isinstance(widths, list) and 1 <= len(widths) <= 7, "block_out_channels: give 1 to 7 levels")
    numbers = [("block_out_channels", width, 4096) for width in widths] + [
        (name, settings[name], most)
        for name, most in (("layers_per_block", 16), ("latent_channels", 64), ("norm_num_groups", 4096))
    ]
    for name, value, most in numbers:
        require(1 <= check_int(value, name) <= most, f"{name}={value}: use 1 to {most}")
    for name, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        require(settings[name] == [block] * len(widths), f"{name}: only {block}, one a level")
    require(settings["act_fn"] in ("silu", "swish", "relu", "gelu", "mish"), f"act_fn={str(settings['act_fn'])[:40]}")
    for name in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        require(isinstance(settings[name], bool), f"{name}={str(settings[name])[:40]}: use true or false")


def _model(settings: dict, folder: Path) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UserError(
            f"{folder} needs the package diffusers, which is missing: pip install diffusers, which "
            "ann2snn[diffusers] brings"
        ) from None
    try:
        return AutoencoderKL(**settings)
    except Exception as error:  # of any class: diffusers checks few of its settings
        raise UserError(f"refusing {folder}: diffusers makes no autoencoder of its settings: {error}") from None
