"""Checkpoints: written atomically, read without executing anything, and carrying the configuration they belong to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config import DiffusionConfig, SpikingConfig, UNetConfig, require
from ..convert import SpikingDenoiser, prepare_for
from ..errors import UserError
from ..nets import UNet
from . import reference
from .atomic import file_hash, replacing

FORMAT = 1  # of our own files; the reference's carry none


@dataclass
class Loaded:
    """A network read from a file, with everything the file says about it."""

    net: UNet | SpikingDenoiser
    path: Path
    step: int = 0
    weights: str = "ema"
    raw: dict = field(default_factory=dict, repr=False)

    @property
    def hash(self) -> str:
        return file_hash(self.path)


def save(path: str | os.PathLike, payload: dict) -> None:
    """Write a checkpoint (tensors and plain values) atomically. Raises UserError if the disk refuses."""
    try:
        with replacing(path) as temporary:
            torch.save(payload, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise UserError(f"cannot write {path}: {error}; free some space or choose another --logdir") from None


def read(path: str | os.PathLike) -> dict:
    """Read a checkpoint with `weights_only=True` onto the CPU.

    Raises UserError for a missing, truncated or foreign file, and for a pickle that asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: run the earlier stage with the same --logdir, or correct the path")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:
        # The unpickler's own messages span pages and advise to switch the protection off.
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            reason = "it holds objects other than tensors and plain values, which could execute code"
        else:
            reason = "it is truncated or not a torch checkpoint"
        raise UserError(f"refusing {path}: {reason}") from None
    if not isinstance(payload, dict) or not any(key in payload for key in ("ema_model", "net_model")):
        raise UserError(f"refusing {path}: no 'ema_model' in it, so it is not a checkpoint of this program")
    return payload


def snn_payload(snn: SpikingDenoiser, **extra: object) -> dict:
    """What a spiking network's file holds."""
    config = {"unet": snn.config.to_dict(), "diffusion": snn.diffusion.to_dict(), "spiking": snn.spiking.to_dict()}
    return {"kind": "snn", "format": FORMAT, "ema_model": snn.unet.state_dict(), "config": config, **extra}


def load(
    path: str | os.PathLike,
    *,
    weights: str = "ema",
    bit: int | None = None,
    image_size: int | None = None,
    spiking: SpikingConfig | None = None,
    expected: dict[str, tuple[str, object]] | None = None,
) -> Loaded:
    """Load a network, ours or the reference's, in eval mode on the CPU.

    weights: "ema" or "net" (the raw weights of a training checkpoint).
    bit: needed for the reference's files, which do not store it; must agree with a file that does.
    spiking: how a spiking network runs; default: as stored, else `SpikingConfig()`.
    expected: {config field: (flag, value)} that must agree with the file.

    Raises UserError; the message names both values where a flag contradicts the file.
    """
    payload = read(path)
    state = _state(payload, f"{weights}_model", path)
    kind, step = _kind_and_step(payload, state, path)
    state = reference.rename_snn_keys(state)
    config, diffusion, stored_spiking = _configs(payload, state, path, bit, image_size, expected or {})
    if kind == "snn":
        net: UNet | SpikingDenoiser = SpikingDenoiser(config, spiking or stored_spiking, diffusion)
        target: UNet = net.unet
    else:
        net = target = UNet(config, diffusion=diffusion)
    load_state(target, state, path)
    return Loaded(net.eval(), Path(path), step, weights, payload)


def check_agreement(config: object, expected: dict[str, tuple[str, object]], where: str | os.PathLike) -> None:
    """Raise UserError, naming both values, where a flag given by hand contradicts what a file says."""
    for name, (flag, value) in expected.items():
        if not hasattr(config, name):
            continue
        stored = getattr(config, name)
        given = tuple(value) if isinstance(value, (list, tuple)) else value
        if given != stored:
            raise UserError(
                f"--{flag}={_text(given)} contradicts {where}, which was made with {_text(stored)}: "
                "drop or correct the flag"
            )


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _state(payload: dict, key: str, path: str | os.PathLike) -> dict[str, Tensor]:
    state = payload.get(key)
    if not isinstance(state, dict) or not state:
        raise UserError(f"refusing {path}: no weights under {key!r}")
    for name, value in state.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(name, str) or not plain or not value.is_floating_point():
            raise UserError(
                f"refusing {path}: entry {str(name)[:80]!r} of {key!r} is not a named floating-point tensor"
            )
    return state


def _kind_and_step(payload: dict, state: dict, path: str | os.PathLike) -> tuple[str, int]:
    kind, step = payload.get("kind", reference.kind_of(state)), payload.get("step", 0)
    if kind not in ("ann", "snn") or payload.get("format", FORMAT) != FORMAT:
        raise UserError(f"refusing {path}: it was written by a version of this program that is not this one")
    if type(step) is not int or step < 0:
        raise UserError(f"refusing {path}: its step is {str(step)[:40]!r}")
    return kind, step


def _configs(
    payload: dict, state: dict, path, bit: int | None, image_size: int | None, expected: dict
) -> tuple[UNetConfig, DiffusionConfig, SpikingConfig]:
    stored = payload.get("config")
    if isinstance(stored, dict):
        try:
            config = UNetConfig(**stored["unet"])
            diffusion = DiffusionConfig(**stored["diffusion"])
            spiking = SpikingConfig(**stored.get("spiking", {}))
            require(
                diffusion.diffusion_steps == config.diffusion_steps,
                f"{config.diffusion_steps} diffusion steps in the network, {diffusion.diffusion_steps} in the process",
            )
        except UserError as error:  # before ValueError, which it is one of
            raise UserError(f"refusing {path}: its configuration is invalid: {error}") from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"refusing {path}: its configuration is unreadable ({error})") from None
        if bit is not None and bit != config.bits:
            expected = {**expected, "bits": ("bit", bit)}
    else:
        config = reference.infer_config(state, path, bit, image_size or reference.image_size_of(payload))
        diffusion, spiking = DiffusionConfig(diffusion_steps=config.diffusion_steps), SpikingConfig()
        expected = {k: v for k, v in expected.items() if k != "norm_groups"}
    check_agreement(config, expected, path)
    check_agreement(diffusion, expected, path)
    return config, diffusion, spiking


def load_state(net: UNet, state: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Copy `state` into `net`, in place but for optional entries. Raises UserError, naming what does not fit."""
    try:
        prepare_for(net, state)
    except UserError as error:
        raise UserError(f"refusing {path}: {error}") from None
    wanted = net.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has the unknown entry {unknown[0]}"
        raise UserError(f"refusing {path}: it {what} ({len(missing)} missing, {len(unknown)} unknown entries)")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise UserError(f"refusing {path}: {name} is {list(value.shape)}, expected {list(wanted[name].shape)}")
        if not bool(torch.isfinite(value.to(wanted[name].dtype)).all()):
            raise UserError(f"refusing {path}: {name} holds values that are not finite")
    net.load_state_dict(state, strict=True)
