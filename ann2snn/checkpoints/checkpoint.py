"""Checkpoints: written atomically, read without executing anything, and carrying the configuration they belong to."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import FULL_PRECISION, SQUARE_32, DiffusionConfig, ImageSize, SpikingConfig, UNetConfig, check_size
from ..convert import SpikingNetwork, attach
from ..errors import UserError, is_out_of_memory
from ..files.atomic import file_hash, replacing
from ..files.beside import beside, free_name, previous_of
from ..files.plain import open_plain
from ..files.warning import warn
from ..nets.architecture import Network, NetworkConfig, build_network, stored_config
from ..nets.direct import DirectConfig
from . import bounds, dialects, published, reference, seal
from .payload import FORMAT, check_description, check_pair, payload_of
from .states import check_fit, load_state, state_in

__all__ = [
    "FORMAT", "Loaded", "check_agreement", "load", "load_state", "payload_from", "payload_of", "read", "read_newest",
    "save",
]  # fmt: skip


@dataclass
class Loaded:
    """A network read from a file, with everything the file says about it."""

    net: Network | SpikingNetwork
    path: Path
    step: int = 0
    weights: str = "ema"
    raw: dict = field(default_factory=dict, repr=False)

    @property
    def unet(self) -> Network:
        """`net`, or the network inside of a converted one."""
        return _unet(self.net)

    @property
    def unconverted(self) -> Network:
        """`net`. Raises UserError for a converted one."""
        if isinstance(self.net, SpikingNetwork):
            raise UserError(
                f"{self.path} is a spiking network already: give the quantized network it was converted from"
            )
        return self.net

    @property
    def trained_on(self) -> str | None:
        """The `dataset_type` of its training; None where the file does not say."""
        return self.training.get("dataset_type")

    @property
    def training(self) -> dict:
        """The settings of its training; empty where the file does not say."""
        return self.raw.get("config", {}).get("train", {})

    @property
    def hash(self) -> str:
        """Of the file, or of the weights in a folder."""
        return file_hash(dialects.weights_of(self.path) if self.path.is_dir() else self.path)


def payload_from(net: nn.Module, source: Loaded, /, **extra: object) -> dict:
    """`payload_of` a network that was made of `source`, with what that was trained on, and which of its weights."""
    kept = {} if source.weights == "ema" else {"weights": source.weights}
    payload = payload_of(net, **kept, **extra)
    payload["config"]["train"] = dict(source.training)
    return payload


def save(path: str | os.PathLike, payload: dict, keep_previous: bool = False) -> None:
    """Write a checkpoint (tensors and plain values) atomically, with the hash of its content.

    keep_previous: the file that had the name stays, as `previous_of(path)`.

    Raises UserError if the disk refuses, TypeError if the payload holds what `read` would not take.
    """
    sealed = payload | {seal.HASH: seal.content_hash(payload)}
    with replacing(path, previous_of(path) if keep_previous else None) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(sealed, file)
        except RuntimeError as error:  # torch's writer stumbles over a failed write and hides it
            if is_out_of_memory(error):
                raise
            raise _disk_error(error) from None


def _disk_error(error: BaseException) -> OSError:
    """The OSError that led to `error`."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__context__
    return inner or OSError(str(error))


def rescue(payload: dict, name: str) -> Path | None:
    """Write a checkpoint that its folder refused to the system's temporary folder, under a name not yet taken.

    Returns its path, `ann2snn-rescue-{name}-{step}.pt`, or None if that fails as well.
    """
    stem = f"ann2snn-rescue-{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:80]}-{payload.get('step', 0)}"
    with contextlib.suppress(UserError, OSError):
        path = free_name(Path(tempfile.gettempdir(), f"{stem}.pt"))
        save(path, payload)
        return path
    return None


def rescued(path: Path, payload: dict, error: UserError) -> UserError:
    """The error to raise where `path` could not be written: it names the file that `rescue` wrote, if it could."""
    kept = rescue(payload, path.parent.name)
    step = payload.get("step", 0)
    return UserError(f"{error}; step {step} is kept in {kept}: copy it to {path} to continue") if kept else error


def read_newest(path: str | os.PathLike) -> tuple[Path, dict]:
    """`read(path)`; if that file is damaged, or missing while a previous one exists, the previous one, with a warning.

    Returns the path read and its content. A damaged file is kept as `ckpt.damaged.pt`, numbered if need be.
    Foreign files and those of other versions are refused as `read` does. Raises UserError, naming both files if both
    are of no use.
    """
    path, previous = Path(path), previous_of(path)
    refusal = ""
    if path.exists() or not previous.exists():
        try:
            return path, read(path)
        except UserError as error:
            if not previous.exists() or not (isinstance(error, seal.DamageError) or seal.is_damaged(path)):
                raise
            refusal = str(error)
    try:
        payload = read(previous)
    except UserError as error:
        raise UserError(f"{refusal or f'{path} is missing'}; the previous checkpoint is no help: {error}") from None
    substitution = f"using the previous checkpoint {previous}, of step {payload.get('step', 0)}"
    if refusal:
        aside = free_name(beside(path, "damaged"))
        try:
            os.rename(path, aside)
        except OSError as error:
            raise UserError(f"{refusal}, and it cannot be moved aside ({error.strerror})") from None
        warn(f"{refusal}; {substitution}; the damaged file is kept as {aside}")
    else:
        warn(f"{path} is missing; {substitution}")
    return previous, payload


def read(path: str | os.PathLike) -> dict:
    """Read a checkpoint with `weights_only=True` onto the CPU; or a folder of safetensors that `folders.write` made.

    What comes back is of plain types and dense tensors alone (`bounds.plain`), its settings of their known form.

    Raises UserError for a missing, truncated or foreign file, for a pickle that asks for code to be run, for one that
    would take more memory than the file has bytes, and `seal.DamageError` where the content does not match its hash.
    """
    path = Path(path)
    if path.is_dir():
        content = dialects.from_folder(path)
        try:
            bounds.plain(content)
        except ValueError as error:
            raise UserError(f"refusing {path}: {error}") from None
        _check_settings(content, path)
        return content
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: run the earlier stage with the same --logdir, or correct the path")
    try:
        payload = _unpacked(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # The unpickler's own messages span pages and advise to switch the protection off.
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            reason = "it holds objects other than tensors and plain values, which could execute code"
        else:
            reason = "it is truncated or not a torch checkpoint"
        raise UserError(f"refusing {path}: {reason}") from None
    if isinstance(payload, dict):
        payload = dialects.from_file(published.with_weights_by_our_name(payload), path)
    if not isinstance(payload, dict) or not any(key in payload for key in ("ema_model", "net_model")):
        raise UserError(f"refusing {path}: no 'ema_model' in it, so it is none of {dialects.SUPPORTED}")
    seal.verify(payload, path)
    _check_settings(payload, path)
    return payload


def _unpacked(path: Path) -> object:
    """The content of a file, checked before and after torch reads it. Raises UserError, or what torch raises."""
    with open_plain(path) as file:
        try:
            bounds.check_archive(file)
        except ValueError as error:
            raise UserError(f"refusing {path}: {error}") from None
        payload = torch.load(file, map_location="cpu", weights_only=True)
    try:
        return bounds.plain(payload)
    except ValueError as error:
        raise UserError(f"refusing {path}: {error}") from None


def _check_settings(payload: dict, path: Path) -> None:
    """Raise UserError unless what a file says about itself is of the form that the stages rely on."""
    config = payload.get("config", {})
    named = {name: value for name, value in config.items() if name != "arch"} if isinstance(config, dict) else config
    groups = named.values() if isinstance(named, dict) else [named]
    for group in groups:
        values = group.values() if isinstance(group, dict) else [torch.Tensor]
        flat = (entry for value in values for entry in (value if isinstance(value, (list, tuple)) else [value]))
        if not all(entry is None or isinstance(entry, (bool, int, float, str)) for entry in flat):
            raise UserError(f"refusing {path}: its configuration is unreadable (it is no table of plain values)")
    check_description(payload, f"refusing {path}")


def load(
    path: str | os.PathLike,
    *,
    payload: dict | None = None,
    weights: str = "ema",
    bit: int | None = None,
    image_size: ImageSize | int | tuple[int, int] | None = None,
    spike_steps: int | None = None,
    spiking: SpikingConfig | None = None,
    expected: dict[str, tuple[str, object]] | None = None,
) -> Loaded:
    """Load a network, ours, the reference's or a published spiking one, in eval mode on the CPU.

    payload: what `read(path)` gave, where the file has been read already.
    weights: "ema" or "net" (the raw weights of a training checkpoint, and all that a published spiking one has).
    bit: needed for the reference's files, which do not store it; must agree with a file that does.
    spike_steps: of a directly trained spiking network, where the file does not store it; must agree with one that does.
    spiking: how a spiking network runs; default: as stored, else `SpikingConfig()`.
    expected: {config field: (flag, value)} that must agree with the file.

    Raises UserError; the message names both values where a flag contradicts the file.
    """
    payload = read(path) if payload is None else payload
    weights = published.weights_in(payload, weights)
    state = state_in(payload, f"{weights}_model", path)
    kind, step = _kind_and_step(payload, state, path)
    state = reference.rename_snn_keys(state, path)
    size = None if image_size is None else check_size(image_size)
    caller = _CallerSettings(bit, size, spike_steps, expected or {})
    config, diffusion, stored_spiking = _configs(payload, state, path, caller)

    if (kind == "direct") != isinstance(config, DirectConfig) or (kind == "snn" and config.bits == FULL_PRECISION):
        raise UserError(f"refusing {path}: no network of kind {kind!r} has the architecture {config.arch!r}")

    def build() -> Network | SpikingNetwork:
        if kind == "snn":
            return attach(build_network(config, diffusion), spiking or stored_spiking)
        return build_network(config, diffusion)

    try:
        with torch.device("meta"):  # shapes without memory: a small file may describe a network of any size
            unplaced = _unet(_built(build, path))
            check_fit(unplaced, state, path)
    except (RuntimeError, OverflowError):
        raise UserError(f"refusing {path}: its configuration describes a network that cannot be built") from None
    net = build()
    load_state(_unet(net), state, path)
    if dialects.has_assumptions(payload):
        dialects.note(payload, caller.all_expected, (config, diffusion), path)
    return Loaded(net.eval(), Path(path), step, payload.get("weights", weights), payload)


def _built(build: Callable[[], Network | SpikingNetwork], path: str | os.PathLike) -> Network | SpikingNetwork:
    try:
        return build()
    except UserError as error:
        raise UserError(f"refusing {path}: {error}") from None


def _unet(net: Network | SpikingNetwork) -> Network:
    inner = net.net if isinstance(net, SpikingNetwork) else net
    assert isinstance(inner, Network)  # `load` builds no others
    return inner


def check_agreement(
    config: object, expected: dict[str, tuple[str, object]], path: str | os.PathLike, downscale: int = 1
) -> None:
    """Raise UserError, naming both values, where a flag given by hand contradicts what a file says.

    downscale: of an autoencoder's latents; sizes are given as those of images.
    """
    for name, (flag, value) in expected.items():
        if not hasattr(config, name):
            continue
        stored = getattr(config, name)
        stored = stored.times(downscale) if name == "image_size" else stored
        given = tuple(value) if isinstance(value, list) else value
        if given != stored:
            raise UserError(
                f"--{flag}={_text(given)} contradicts {path}, which was made with {_text(stored)}: "
                "drop or correct the flag"
            )


def _text(value: object) -> str:
    return (",".join(map(str, value)) or "none") if type(value) is tuple else str(value)


def _kind_and_step(payload: dict, state: dict, path: str | os.PathLike) -> tuple[str, int]:
    by_names = "direct" if published.arch_of(state) else reference.kind_of(state)
    kind, step = payload.get("kind", by_names), payload.get("step", 0)
    if kind == "autoencoder":
        raise UserError(f"refusing {path}: it is an autoencoder and no denoiser: name it with --autoencoder")
    if kind not in ("ann", "snn", "direct") or payload.get("format", FORMAT) != FORMAT:
        raise UserError(f"refusing {path}: it was written by another version of this program")
    return kind, step


@dataclass(frozen=True)
class _CallerSettings:
    """What the caller of `load` knows about the file."""

    bit: int | None
    image_size: ImageSize | None
    spike_steps: int | None
    expected: dict[str, tuple[str, Any]]

    @property
    def all_expected(self) -> dict[str, tuple[str, Any]]:
        numbers: dict[str, tuple[str, Any]] = {"bits": ("bit", self.bit), "image_size": ("img_size", self.image_size)}
        numbers |= {"spike_steps": ("timestep", self.spike_steps)}
        return self.expected | {field: given for field, given in numbers.items() if given[1] is not None}


def _configs(
    payload: dict, state: dict, path: str | os.PathLike, caller: _CallerSettings
) -> tuple[NetworkConfig, DiffusionConfig, SpikingConfig]:
    config: NetworkConfig
    stored = payload.get("config")
    size = reference.image_size_of(payload) or caller.image_size or SQUARE_32
    if isinstance(stored, dict):
        expected = dict(caller.all_expected)
        if dialects.has_assumptions(payload):
            stored, expected = dialects.completed(payload, expected)
        try:
            config = stored_config(stored.get("arch", UNetConfig.arch), stored["unet"])
            diffusion = DiffusionConfig(**stored["diffusion"])
            spiking = SpikingConfig(**stored.get("spiking", {}))
            check_pair(config, diffusion)
        except UserError as error:  # before ValueError, which it is one of
            raise UserError(f"refusing {path}: its configuration is invalid: {error}") from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"refusing {path}: its configuration is unreadable ({error})") from None
    elif published.arch_of(state):
        config = published.infer_direct_config(state, path, caller.spike_steps, size)
        config, expected = published.completed(config, caller.all_expected, path)
        diffusion, spiking = published.diffusion_of(config), SpikingConfig()
    else:
        expected = {name: given for name, given in caller.all_expected.items() if name != "bits"}
        _, groups = caller.expected.get("norm_groups", ("", None))
        config = reference.infer_config(state, path, caller.bit, size, groups)
        diffusion, spiking = DiffusionConfig(diffusion_steps=config.diffusion_steps), SpikingConfig()
    check_agreement(config, expected, path, diffusion.downscale)
    check_agreement(diffusion, expected, path)
    return config, diffusion, spiking
