"""Flags of `evaluate.py --score A --against B`."""

from __future__ import annotations

from pathlib import Path

from ..config import require
from ..distributed.world import World
from ..stages.compare import compare
from . import build
from .flags import FLAGS


def run(world: World) -> int:
    """Score one set of images against another. Raises UserError."""
    require(FLAGS.against is not None, f"--score={FLAGS.score}: name what to compare with, --against")
    require(world.size == 1, "--nproc, --parallel: one process compares images; drop the flag")
    scored, against = Path(FLAGS.score), Path(FLAGS.against)
    for path in (scored, against):  # before the extractor is loaded
        require(path.exists(), f"{path} does not exist: give a folder of images, or an npz with arr_0")
    return compare(scored, against, build.extractor(world.device), FLAGS.pr_k)
