"""Flags of `evaluate.py --search_sigma_rel loss|score`."""

from __future__ import annotations

import contextlib
import json
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
from ..run.folder import CHECKPOINT, WIDTHS, WIDTHS_BEGUN
from ..run.lines import append_result, read_log, timestamp
from ..stages.evaluate import sampling_settings
from ..training.best import FRECHET
from . import build, networks
from .flags import FLAGS


def run(world: World) -> int:
    """Find the width of the training's power-function average with the lowest figure; a line of `power_ema.jsonl`."""
    logdir, by = Path(FLAGS.logdir), FLAGS.search_sigma_rel
    path = networks.given_path() or logdir / CHECKPOINT
    first = networks.load_checkpoint(path)
    measure, settings, more = _loss(first, world) if by == "loss" else _score(first, world)
    prepare_folder(logdir)
    begun = _Begun(logdir / WIDTHS_BEGUN.format(by), {"checkpoint": first.hash, **settings, **more}, world)

    def figure(width: float) -> float:
        built = networks.load_average(path, width)
        found = begun.figure(width, built.used)
        value = measure(place(built.loaded.unconverted, world.device).eval()) if found is None else found
        if found is None:
            begun.keep(width, built.used, value)
        if world.main:
            off = f"profile off by {built.distance:.2%}"
            print(f"--sigma_rel={width:g}: {settings['figure']} {value:.6g} ({built.used} snapshots, {off})")
        return value

    figures = search(figure)
    if world.main:
        best = best_of(figures)
        line = {"checkpoint": first.hash, "step": first.step, "best": best, **settings, "found": _listed(figures)}
        append_result(logdir / WIDTHS, line | {"date": timestamp()})
        begun.finish()
        print(f"best of {len(figures)} widths: --sigma_rel={best:g}, {settings['figure']} {figures[best]:.6g}")
    world.wait()
    return 0


def _listed(figures: dict[float, float]) -> list[tuple[float, float | None]]:
    """Pairs for JSON, which has no infinity."""
    return [(width, value if math.isfinite(value) else None) for width, value in figures.items()]


class _Begun:
    """The figures of a search that is not done, in a file of lines, so that one that was stopped goes on.

    settings: whatever a figure depends on besides the width and the snapshots that its average was built of.
    """

    def __init__(self, path: Path, settings: dict[str, Any], world: World) -> None:
        self.path, self.settings, self.world = path, json.loads(json.dumps(settings)), world
        entries = read_log(path) if world.main else []
        own = [entry.get("found") for entry in entries if entry.get("settings") == self.settings]
        rows = [row for row in own if isinstance(row, list) and len(row) == 3 and all(map(_is_number, row))]
        self.found = {(width, used): value for width, used, value in json.loads(world.from_main(json.dumps(rows)))}

    def figure(self, width: float, used: int) -> float | None:
        """That of the average of so many snapshots; None if it is not known."""
        return self.found.get((width, used))

    def keep(self, width: float, used: int, value: float) -> None:
        """Raises UserError if the disk refuses."""
        if self.world.main and math.isfinite(value):
            append_result(self.path, {"settings": self.settings, "found": [width, used, value]})

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]  # one of these


#: network → figure; what the line of the result tells of it; what else it depends on.
Measure = tuple[Callable[[Network], float], dict[str, Any], dict[str, Any]]


def _loss(first: networks.checkpoint.Loaded, world: World) -> Measure:
    data = build.inputs_for(first, world.device, train=False)
    count = min(FLAGS.num_images, len(data))
    classes, names = classes_of(first.net)
    data.check_classes(classes, names)
    inputs = to_model_range(torch.stack([data[i] for i in range(count)]))  # latents are in it already
    labels = data.labels[:count] if classes and data.labels is not None else None
    settings = {"figure": "loss", "data": f"{data.name} ({data.split})", "images": count, "seed": FLAGS.seed}
    return lambda net: mean_loss(net, inputs, labels, FLAGS.seed, world), settings, {"content": data.fingerprint()}


def _score(first: networks.checkpoint.Loaded, world: World) -> Measure:
    sample = resolved(first.net, build.sample_config())
    check_generation(first.net, sample)
    score, score_settings = build.scorer(sample, world)

    def distance(net: Network) -> float:
        return next(value for name, value in score(net).items() if name.startswith(FRECHET))

    sampled = sampling_settings(sample, first.unconverted.diffusion)
    return distance, {"figure": "distance", **sampled, **score_settings}, {}
