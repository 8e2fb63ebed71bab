"""Scores of a set of images, by name: the images go through the metrics, and their figures come together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..distributed.world import ALONE, World
from .features import FeatureExtractor
from .frechet import FeatureStatistics
from .frechet_metric import FrechetMetric
from .inception_score import InceptionMetric, gives_logits
from .metric import Batch, Metric, Need, Setting
from .stats_file import ReferenceStatistics

#: Of a world, this process's share of the images: which of all they are, and uint8 [B, C, H, W], a batch at a time.
Numbered = Iterable[tuple[Sequence[int], Tensor]]
Shared = Callable[[World], Numbered]


def measure(
    metrics: Sequence[Metric],
    extractor: FeatureExtractor | None,
    images: Shared,
    real: Shared | None = None,
    world: World = ALONE,
    progress: bool = True,
) -> dict[str, Any]:
    """Give the images to the metrics, and answer with what they found; collective.

    Args:
        metrics: as `registry.made` makes them; each is used up.
        extractor: of the features that some of them need.
        images: to be scored.
        real: to compare them with, where a metric needs that.
        world: the processes that share the images.
        progress: show a bar on a terminal.

    Returns:
        The metrics' figures and settings by name, "count" of the images, "extractor", its name or "none", and "notes":
        a list of sentences to print beside the figures. The same in every process.

    Raises:
        UserError: images are malformed, or too few.
    """
    progress = progress and world.main
    ordered = [metric for metric in metrics if Need.ORDER in metric.needs]
    shared = [metric for metric in metrics if Need.ORDER not in metric.needs]
    count = 0
    if shared or not ordered:
        count = int(world.sum(torch.tensor(_pass(images(world), shared, extractor, False, progress))))
    if real is not None and _needing(shared, Need.REAL):
        _pass(real(world), _needing(shared, Need.REAL), extractor, True, progress)
    if ordered and world.main:
        count = _pass(images(ALONE), ordered, extractor, False, progress)
        if real is not None and _needing(ordered, Need.REAL):
            _pass(real(ALONE), _needing(ordered, Need.REAL), extractor, True, progress)
    values: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    notes = list(extractor.notes) if extractor is not None else []
    for metric in metrics:  # one after the other: some hold all features while they compute
        if metric in shared:
            metric.reduce(world)
        if world.main:
            figures = metric.compute()
            values |= {name: float(value) for name, value in figures.values.items()}
            settings |= figures.settings
            notes += figures.notes
    name = "none" if extractor is None else extractor.name
    scores = {**values, **settings, "count": count, "extractor": name, "notes": notes}
    return json.loads(world.from_main(json.dumps(scores) if world.main else ""))


def _needing(metrics: Sequence[Metric], need: Need) -> list[Metric]:
    return [metric for metric in metrics if need in metric.needs]


def _pass(
    batches: Numbered, metrics: Sequence[Metric], extractor: FeatureExtractor | None, real: bool, progress: bool
) -> int:
    """Give all batches to the metrics; the number of images."""
    count = 0
    extracting = bool(_needing(metrics, Need.FEATURES))
    for indices, images in _bar(batches, progress):
        count += len(images)
        batch = Batch(list(indices), images, real=real)
        if extracting:
            assert extractor is not None
            features = extractor(images)
            batch = Batch(batch.indices, images, features.features, features.logits, real)
        for metric in metrics:
            metric.update(batch)
    return count


def score_numbered(
    batches: Numbered,
    extractor: FeatureExtractor,
    stats: ReferenceStatistics,
    splits: int | None = None,
    total: int | None = None,
    progress: bool = True,
    world: World = ALONE,
) -> dict[str, Any]:
    """The Frechet distance of images, which the processes of `world` share, and their Inception Score.

    Args:
        batches: (indices [B], uint8 [B, C, H, W]): this process's images and which of all they are.
        extractor: whose features and logits count.
        stats: made with the same extractor.
        splits: splits of the Inception Score.
        total: number of images, if known: the Inception Score's splits are then consecutive blocks, as usual.
        progress: show a bar on a terminal.

    Returns:
        What `measure` does.

    Raises:
        UserError: the statistics are another extractor's, or the images are too few or malformed.
    """
    setting = Setting(count=total, extractor=extractor, statistics=stats)
    metrics: list[Metric] = [FrechetMetric(setting)]
    if gives_logits(extractor):
        metrics.append(InceptionMetric(setting, splits))
    return measure(metrics, extractor, lambda world: batches, world=world, progress=progress)


def numbered(batches: Iterable[Tensor]) -> Iterator[tuple[range, Tensor]]:
    """(indices, images) of images that come in order."""
    first = 0
    for images in batches:
        yield range(first, first + len(images)), images
        first += len(images)


def make_stats(
    batches: Iterable[Tensor], extractor: FeatureExtractor, progress: bool = True, world: World = ALONE
) -> FeatureStatistics:
    """Statistics of all images in `batches`, uint8 [B, C, H, W]: each process's own share."""
    features = FeatureStatistics(extractor.dim)
    for images in _bar(batches, progress):
        features.update(extractor(images).features)
    return features.reduced_over(world)


def _bar(batches, progress):
    # disable=None: tqdm stays silent where stderr is no terminal.
    return tqdm(batches, desc="scoring", unit="batch", leave=False, disable=None if progress else True)
