"""Flags of `evaluate.py --make_stats` and `--score_data`: statistics and scores of real images."""

from __future__ import annotations

from pathlib import Path

from ..config import require
from ..distributed.world import World
from ..stages import evaluate, fad
from . import build, scores
from .flags import FLAGS


def make_stats(world: World) -> int:
    """Write the statistics of a data set's images, for Fréchet distances to them. Raises UserError."""
    evaluate.require_spread(FLAGS.num_images)
    if FLAGS.fad_encoder is not None:
        scores.require_fad_stats()
        target = _new_file("fad_stats", FLAGS.fad_stats)
        encoder = scores.fad_extractor(world.device)
        return fad.make_stats(target, build.of_class(build.dataset()), encoder, FLAGS.num_images, world)
    target = _new_file("fid_cache", FLAGS.fid_cache)
    images, extractor = build.of_class(build.dataset()), scores.extractor(world.device)
    return evaluate.make_stats(target, images, extractor, FLAGS.num_images, world=world)


def _new_file(flag: str, name: str) -> Path:
    """Raises UserError for one that is there already."""
    require(not Path(name).exists(), f"{name} exists: name another file with --{flag}")
    return Path(name)


def score_data(world: World) -> int:
    """Score a data set's test images: the best score to expect. Raises UserError."""
    scoring = scores.scoring(world.device, lambda: build.of_class(build.dataset()))
    data = build.of_class(build.dataset(train=False))
    return evaluate.score_data(build.run_folder("evaluate"), data, FLAGS.num_images, scoring, world)
