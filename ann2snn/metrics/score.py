"""Scores of a set of images under one extractor, by name."""

import json

from tqdm import tqdm

from ..distributed.world import ALONE
from ..errors import UserError
from .frechet import FeatureStatistics, frechet_distance
from .inception_score import InceptionScore


def score_numbered(batches, extractor, stats, splits=10, total=None, progress=True, world=ALONE):
    """Scores images, which the processes of `world` share, against reference statistics.

    Args:
        batches: iterable of (indices [B], uint8 [B,C,H,W]): this process's images and which of all they are.
        extractor: a features.FeatureExtractor.
        stats: stats_file.ReferenceStatistics made with the same extractor.
        splits: splits of the Inception Score.
        total: number of images, if known: the Inception Score's splits are then consecutive blocks, as usual.
        progress: show a bar on a terminal.

    Returns:
        The dict of `figures`, the same on every process.

    Raises:
        UserError: the statistics are another extractor's, or the images are too few or malformed.
    """
    _check_match(extractor, stats)  # before the long work
    features, inception = accumulate(batches, extractor, splits, total, progress and world.main)
    features, inception = reduce_over(world, features, inception, splits, total)
    # The decompositions take seconds on all cores: once is enough.
    found = json.dumps(figures(features, inception, extractor, stats)) if world.main else ""
    return json.loads(world.from_main(found))


def usual_splits(total):
    """Splits of the Inception Score of `total` images: ten as everywhere, fewer where there are not as many images."""
    return min(10, total)


def numbered(batches):
    """(indices, images) of images that come in order."""
    first = 0
    for images in batches:
        yield range(first, first + len(images)), images
        first += len(images)


def make_stats(batches, extractor, progress=True, world=ALONE):
    """FeatureStatistics of all images in `batches`, an iterable of uint8 [B,C,H,W]: each process's own share."""
    features = FeatureStatistics(extractor.dim)
    for images in _bar(batches, progress):
        features.update(extractor(images).features)
    return features.reduced_over(world)


def accumulate(batches, extractor, splits=10, total=None, progress=True):
    """Runs the extractor over (indices, images) once.

    Returns:
        (FeatureStatistics, InceptionScore or None if the extractor gives no logits).
    """
    features, inception = FeatureStatistics(extractor.dim), None
    for indices, images in _bar(batches, progress):
        extracted = extractor(images)
        features.update(extracted.features)
        if extracted.logits is not None:
            inception = inception or InceptionScore(splits, total)
            inception.update(extracted.logits, list(indices))
    return features, inception


def reduce_over(world, features, inception, splits=10, total=None):
    """What the processes of `world` have accumulated, together, on each of them."""
    with_logits = world.largest(int(inception is not None))
    if with_logits:  # a process without images has no InceptionScore of its own
        inception = (inception or InceptionScore(splits, total)).reduced_over(world)
    return features.reduced_over(world), inception


def figures(features, inception, extractor, stats):
    """The named figures of what `accumulate` has gathered.

    Returns:
        dict with the Frechet distance under the extractor's key ("FID" for the Inception alone), "IS" and "IS_std"
        where there are logits, "count", "extractor", and "notes": a list of sentences to print beside the figures.

    Raises:
        UserError: the statistics are another extractor's, or the images are too few.
    """
    _check_match(extractor, stats)
    mu, sigma, count = features.compute()
    result = {extractor.distance_key: frechet_distance(mu, sigma, stats.mu, stats.sigma)}
    if inception is not None:
        result["IS"], result["IS_std"] = inception.compute()
    notes = list(extractor.notes)
    for what, images in (("images", count), ("reference images", stats.count)):
        # The covariance of n vectors has at most the rank n - 1.
        if images is not None and images <= extractor.dim:
            key = extractor.distance_key
            notes.append(f"{images} {what} for {extractor.dim} features: covariance rank-deficient, {key} biased")
    return {**result, "count": count, "extractor": extractor.name, "notes": notes}


def _check_match(extractor, stats):
    if (stats.extractor, stats.dim) != (extractor.name, extractor.dim):
        raise UserError(
            f"reference statistics are of '{stats.extractor}' ({stats.dim} features), the images are scored with "
            f"'{extractor.name}' ({extractor.dim}): use statistics or an extractor that match"
        )


def _bar(batches, progress):
    # disable=None: tqdm stays silent where stderr is no terminal.
    return tqdm(batches, desc="scoring", unit="batch", leave=False, disable=None if progress else True)
