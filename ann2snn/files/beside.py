"""Names that files are kept under beside the one that takes their place."""

from __future__ import annotations

import os
from pathlib import Path

from .warning import warn


def previous_of(path: str | os.PathLike) -> Path:
    """`ckpt.prev.pt` beside `ckpt.pt`."""
    return beside(Path(path), "prev")


def beside(path: Path, word: str) -> Path:
    """`ckpt.{word}.pt` beside `ckpt.pt`."""
    return path.with_name(f"{path.stem}.{word}{path.suffix}")


def free_name(path: Path) -> Path:
    """`path`, or if that is taken the first of `path` with .2, .3, … that is not."""
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = beside(path, str(number))
    return free


def set_aside(path: Path) -> None:
    """Give what an earlier training left at `path`, if anything, the name of the previous file. Raises OSError."""
    if os.path.lexists(path):
        aside = free_name(previous_of(path))
        os.rename(path, aside)
        warn(f"{path} is of an earlier training; it is kept as {aside}")
