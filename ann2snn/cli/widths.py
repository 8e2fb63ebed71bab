"""Flags of `evaluate.py --search_sigma_rel loss|score`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..data import to_model_range
from ..diffusion.power_ema import best_of, search
from ..distributed.runtime import place, prepare_folder
from ..distributed.world import World
from ..generate.classes import classes_of, resolved
from ..generate.loss import mean_loss
from ..generate.sampling import check_generation
from ..nets.architecture import Network
from ..run.folder import CHECKPOINT, WIDTHS
from ..run.lines import append_result, timestamp
from ..stages.evaluate import sampling_settings
from ..training.best import FRECHET
from . import build, networks
from .flags import FLAGS


def run(world: World) -> int:
    """Find the width of the training's power-function average with the lowest figure; a line of `power_ema.jsonl`."""
    logdir, by = Path(FLAGS.logdir), FLAGS.search_sigma_rel
    path = networks.given_path() or logdir / CHECKPOINT
    first = networks.load_checkpoint(path)
    measure, settings = _loss(first, world) if by == "loss" else _score(first, world)
    prepare_folder(logdir)

    def figure(width: float) -> float:
        built = networks.load_average(path, width)
        value = measure(place(built.loaded.unconverted, world.device).eval())
        if world.main:
            off = f"profile off by {built.distance:.2%}"
            print(f"--sigma_rel={width:g}: {settings['figure']} {value:.6g} ({built.used} snapshots, {off})")
        return value

    figures = search(figure)
    if world.main:
        best = best_of(figures)
        line = {"checkpoint": first.hash, "step": first.step, "best": best, **settings, "found": _listed(figures)}
        append_result(logdir / WIDTHS, line | {"date": timestamp()})
        print(f"best of {len(figures)} widths: --sigma_rel={best:g}, {settings['figure']} {figures[best]:.6g}")
    world.wait()
    return 0


def _listed(figures: dict[float, float]) -> list[tuple[float, float | None]]:
    """Pairs for JSON, which has no infinity."""
    return [(width, value if math.isfinite(value) else None) for width, value in figures.items()]


Measure = tuple[Callable[[Network], float], dict[str, Any]]


def _loss(first: networks.checkpoint.Loaded, world: World) -> Measure:
    data = build.inputs_for(first, world.device, train=False)
    count = min(FLAGS.num_images, len(data))
    classes, names = classes_of(first.net)
    data.check_classes(classes, names)
    inputs = to_model_range(torch.stack([data[i] for i in range(count)]))  # latents are in it already
    labels = data.labels[:count] if classes and data.labels is not None else None
    settings = {"figure": "loss", "data": f"{data.name} ({data.split})", "images": count, "seed": FLAGS.seed}
    return lambda net: mean_loss(net, inputs, labels, FLAGS.seed, world), settings


def _score(first: networks.checkpoint.Loaded, world: World) -> Measure:
    sample = resolved(first.net, build.sample_config())
    check_generation(first.net, sample)
    score, score_settings = build.scorer(sample, world)

    def distance(net: Network) -> float:
        return next(value for name, value in score(net).items() if name.startswith(FRECHET))

    sampled = sampling_settings(sample, first.unconverted.diffusion)
    return distance, {"figure": "distance", **sampled, **score_settings}
