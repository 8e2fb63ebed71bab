"""Trained networks that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from .folders import CONFIG

FOLDER = Path(__file__).parents[1] / "pretrained"


def names() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{CONFIG}"))


def path_of(given: str) -> Path:
    """The folder of the shipped network called `given`; a path that is none of these names stays what it is."""
    return FOLDER / given if given in names() and not Path(given).exists() else Path(given)
