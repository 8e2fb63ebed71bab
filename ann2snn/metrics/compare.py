"""Scores of any images against any others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ..config import require
from ..data.image_set import ImageSet
from .fad import FadExtractor
from .features import FeatureExtractor
from .inception_score import gives_logits
from .metric import Need, Reference, Setting
from .registry import METRICS, known, made, needs
from .score import Shared, measure, numbered


def chosen(
    names: tuple[str, ...] | None,
    besides: tuple[str, ...],
    features: Callable[[], FeatureExtractor | None],
    autoencoder: Callable[[], FadExtractor],
    setting: Setting,
) -> tuple[tuple[str, ...], Setting]:
    """The metrics `names`, by default all that can be computed, with those `besides`; and `setting` as they need it.

    features, autoencoder: give it, where a metric needs it. Raises UserError as these do.
    """
    if names is None or needs(names, Need.FEATURES):
        setting = replace(setting, extractor=features())
    names = known([*(_fitting(setting.extractor) if names is None else names), *besides], "metrics")
    require(bool(names), f"metrics: none are given; use any of {', '.join(METRICS)}")
    if needs(names, Need.AUTOENCODER):
        setting = replace(setting, autoencoder=Reference(autoencoder(), None, ""))
    return names, setting


def _fitting(extractor: FeatureExtractor | None) -> tuple[str, ...]:
    """The metrics that need no more than features of the images, by this extractor, and others to compare with."""
    missing = {Need.AUTOENCODER}
    if extractor is None:
        missing |= {Need.FEATURES}
    elif not gives_logits(extractor):
        missing |= {Need.LOGITS}
    return tuple(name for name, metric in METRICS.items() if not metric.needs & missing)


def compare(images: ImageSet, real: ImageSet, names: Iterable[str], setting: Setting) -> dict[str, Any]:
    """What the metrics `names` find of `images`, with `real` as the real ones; see `score.measure`.

    setting: how, without the images. Raises UserError where a metric cannot be computed of them.
    """
    setting = replace(setting, count=images.count, channels=images.channels, statistics=None)
    setting = replace(setting, real_count=real.count, real_name=real.name)
    metrics = made(names, setting)

    def shared(some: ImageSet) -> Shared:
        return lambda world: numbered(some.batches())

    scores = measure(metrics, setting.extractor, shared(images), shared(real))
    return scores | {"notes": [*scores["notes"], *_of_sizes(images, real)]}


def _of_sizes(images: ImageSet, real: ImageSet) -> list[str]:
    """A sentence where both kinds of images differ in size: nothing else tells, as extractors scale all to theirs."""
    size, other = (tuple(next(some.batches()).shape[2:]) for some in (images, real))
    if size == other:
        return []
    texts = ["x".join(map(str, pixels)) for pixels in (size, other)]
    return [f"images of {texts[0]} pixels (height, width) are compared with images of {texts[1]}, each scaled alike"]
