"""Flags of `evaluate.py --score A --against B`."""

from __future__ import annotations

from ..config import require
from ..distributed.world import World
from ..generate.images import image_set
from ..stages.compare import score_against
from . import scores
from .flags import FLAGS


def run(world: World) -> int:
    """Score one set of images against another. Raises UserError."""
    require(FLAGS.against is not None, f"--score={FLAGS.score}: name what to compare with, --against")
    require(world.size == 1, "--nproc, --parallel: one process compares images; drop the flag")
    scored, against = image_set(FLAGS.score), image_set(FLAGS.against)  # before the extractor is loaded
    names, setting = scores.comparison(world.device)
    return score_against(scored, against, names, setting)
