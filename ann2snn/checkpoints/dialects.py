"""Files of other programs, read as if they were ours: recognised once, and brought to our payload once.

A payload of this kind says under `ASSUMED` which fields of its configuration the file did not tell: what the caller
knows of them contradicts nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..config import ImageSize
from ..errors import one_line
from ..nets.diffusers_unet import DiffusersUNetConfig
from . import ddpm_torch, diffusers_folder, folders, pytorch_ddpm

#: The key of a payload that lists fields of network and process, which the file does not tell.
ASSUMED = "assumed"
SUPPORTED = (
    "what can be read: checkpoints of this program, of the published conversion code, SDDPM, SDM, FSDDIM, "
    "pytorch-ddpm and ddpm-torch, and folders of this program and of diffusers"
)
_noted: set[str] = set()


class _Assumptions(NamedTuple):
    """Of a type that no file can hold: one of ours must not say that its settings are only assumed."""

    program: str
    fields: tuple[str, ...]


def from_file(payload: dict, path: Path) -> dict:
    """`payload` as ours, if it is one of ddpm-torch's or pytorch-ddpm's; others stay as they are. Raises UserError."""
    for dialect in (ddpm_torch, pytorch_ddpm):
        if dialect.recognises(payload):
            return _with_assumptions(dialect.normalised(payload, path), dialect.NAME)
    return payload


def from_folder(path: Path) -> dict:
    """The payload of a folder, ours or one of diffusers. Raises UserError."""
    if diffusers_folder.recognises(path):
        return _with_assumptions(diffusers_folder.normalised(path), diffusers_folder.NAME)
    return folders.read(path)


def weights_of(path: Path) -> Path:
    """The file of weights in a folder."""
    return diffusers_folder.weights_of(path) if diffusers_folder.recognises(path) else path / folders.WEIGHTS


def _with_assumptions(payload: dict, program: str) -> dict:
    return payload | {ASSUMED: _Assumptions(program, tuple(payload[ASSUMED]))}


def has_assumptions(payload: dict) -> bool:
    """Whether this module made it."""
    return isinstance(payload.get(ASSUMED), _Assumptions)


def completed(payload: dict, expected: dict[str, tuple[str, object]]) -> tuple[dict, dict]:
    """The stored configuration with what the caller knows in place of assumptions, and what is left to compare.

    expected: {field: (flag, value)}.
    """
    stored, to_compare = payload["config"], dict(expected)
    unet, diffusion = dict(stored["unet"]), dict(stored["diffusion"])
    for name in set(payload[ASSUMED].fields) & expected.keys():
        _, value = to_compare.pop(name)
        value = value.stored if isinstance(value, ImageSize) else value
        if name == "image_size" and stored["arch"] == DiffusersUNetConfig.arch:
            unet["settings"] = json.dumps(json.loads(unet["settings"]) | {"sample_size": value})
        else:
            (diffusion if name in diffusion else unet)[name] = value
    return stored | {"unet": unet, "diffusion": diffusion}, to_compare


def note(payload: dict, known_fields: Iterable[str], settings: tuple[object, object], path: str | os.PathLike) -> None:
    """Say once what is still assumed. known_fields: that the caller knew; settings: of the network and the process."""
    names = [name for name in payload[ASSUMED].fields if name not in known_fields]
    if not names or str(path) in _noted:
        return
    _noted.add(str(path))
    values = (next(getattr(group, name) for group in settings if hasattr(group, name)) for name in names)
    assumed = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    file = f"{one_line(str(path))}, of {payload[ASSUMED].program},"
    print(f"note: {file} does not say, so assumed: {assumed}", file=sys.stderr)
