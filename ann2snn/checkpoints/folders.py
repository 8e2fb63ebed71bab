"""Networks as folders: weights as safetensors, settings as JSON, and a page for people."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files.atomic import cause, new_folder
from ..files.plain import machine_memory, open_plain, read_text
from .payload import FORMAT
from .seal import DamageError, content_hash

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
#: In `config.json`, the program whose folder it is.
OURS = "ann2snn"
#: In the file of weights, hashes of the settings that it was written with and of the weights. It is one entry, because
#: safetensors writes several in any order, and equal networks are equal files.
SEALS = "ann2snn"
MOST_BYTES = 2**20  # of a config.json
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}


def write(folder: str | os.PathLike, payload: dict, dtype: str = "float32", card: str = "") -> None:
    """Write `payload` as a folder, whole or not at all. dtype: of the weights in the file; they are read as float32.

    Raises UserError if there is something in the folder already, or the disk refuses.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: use one of {', '.join(DTYPES)}")
    check_free(folder)
    about = {OURS: FORMAT, "dtype": dtype} | {name: value for name, value in payload.items() if name != "ema_model"}
    text = json.dumps(about, indent=1)
    if len(text) >= MOST_BYTES:
        raise UserError(f"cannot write {folder}: its {CONFIG} would have {len(text):,} bytes; {MOST_BYTES:,} are read")
    state = _stored(payload["ema_model"], DTYPES[dtype])
    seals = {SEALS: f"{content_hash(json.loads(text))} {content_hash(state)}"}
    with new_folder(folder) as temporary:
        _safetensors().torch.save_file(state, temporary / WEIGHTS, seals)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        shutil.copymode(temporary / CONFIG, temporary / WEIGHTS)  # safetensors' own are readable by their owner alone
        if card:
            (temporary / CARD).write_text(card, encoding="utf-8")


def check_free(folder: Path) -> None:
    """Raise UserError if something is in the folder already, or it is none, or a link, whose place no folder takes."""
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: name a folder itself")
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: nothing is overwritten; choose another folder")


def read(folder: str | os.PathLike) -> dict:
    """The payload that `write` wrote.

    Raises UserError for a folder that is none, is damaged, has settings other than those that its weights were written
    with, or was made elsewhere. Folders of before there were seals are read without.
    """
    folder = Path(folder)
    about = settings(folder)
    if about.get(OURS) != FORMAT:
        raise UserError(f"refusing {folder}: its {CONFIG} is not of a network of this program")
    state = tensors(folder / WEIGHTS, about)
    return {name: value for name, value in about.items() if name not in (OURS, "dtype")} | {"ema_model": state}


def settings(folder: Path) -> dict:
    """A folder's `config.json`. Raises UserError."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"refusing {folder}: there is no {CONFIG} in it, so it is no folder of a network")
    return table(path)


def table(path: Path) -> dict:
    """A JSON file that holds a table. Raises UserError."""
    try:
        about = json.loads(read_text(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"refusing {path}: it is unreadable ({type(error).__name__})") from None
    if not isinstance(about, dict):
        raise UserError(f"refusing {path}: it is no table of settings")
    return about


def tensors(path: Path, about: dict | None = None) -> dict[str, Tensor]:
    """A safetensors file; floating-point numbers as float32, or float64 if they are. Raises UserError.

    about: the settings that it must have been written with, if it says which those are.
    """
    if not path.is_file():
        raise UserError(f"refusing {path.parent}: there is no {path.name} in it")
    try:
        with open_plain(path, machine_memory()):
            pass  # no pipe, no device
        safetensors = _safetensors()
        state = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {cause(error)}") from None
    except UserError:
        raise
    except Exception as error:  # safetensors' own, of which some versions have another name
        raise UserError(f"refusing {path}: it is damaged or no safetensors file ({type(error).__name__})") from None
    if about is not None:
        _check_seals(path, metadata, about, state)
    return {
        name: value.float() if value.is_floating_point() and value.dtype != torch.float64 else value
        for name, value in state.items()
    }


def _check_seals(path: Path, metadata: dict[str, str], about: dict, state: dict[str, Tensor]) -> None:
    """Raise UserError where a file of weights tells of other settings or weights than there are."""
    if SEALS not in metadata:  # written before there were any
        return
    settings, _, weights = metadata[SEALS].partition(" ")
    if settings != content_hash(about):
        raise UserError(
            f"refusing {path.parent}: its {CONFIG} is not the one that {path.name} was written with (edited, or "
            "another network's): restore it; to change settings, load the network, change it and save it anew"
        )
    if weights != content_hash(state):
        raise DamageError(f"refusing {path}: its content does not match its hash: the file is damaged")


def _stored(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights as they lie in the file: of one type, each with memory of its own. Raises UserError for overflow."""
    stored = {}
    for name, value in state.items():
        kept = value.detach().to("cpu")
        if kept.is_floating_point():
            kept = kept.to(dtype)
            if not bool(kept.isfinite().all()) and bool(value.isfinite().all()):
                raise UserError(f"{name} has values that half precision cannot hold: use dtype=float32")
        stored[name] = kept.contiguous().clone()
    return stored


def _safetensors():
    try:
        import safetensors.torch
    except ImportError:
        raise UserError("package safetensors is missing: pip install safetensors") from None
    return safetensors
