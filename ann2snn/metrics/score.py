"""Scores of a set of images under one extractor, by name."""

from tqdm import tqdm

from ann2snn.errors import UserError
from ann2snn.metrics.frechet import FeatureStatistics, frechet_distance
from ann2snn.metrics.inception_score import InceptionScore


def score_images(batches, extractor, stats, splits=10, total=None, progress=True):
    """Scores images against reference statistics.

    Args:
        batches: iterable of uint8 [B,C,H,W].
        extractor: a features.FeatureExtractor.
        stats: stats_file.ReferenceStatistics made with the same extractor.
        splits: splits of the Inception Score.
        total: number of images, if known: the Inception Score's splits are then consecutive blocks, as usual.
        progress: show a bar on a terminal.

    Returns:
        The dict of `figures`.

    Raises:
        UserError: the statistics are another extractor's, or the images are too few or malformed.
    """
    _check_match(extractor, stats)  # before the long work
    features, inception = accumulate(batches, extractor, splits, total, progress)
    return figures(features, inception, extractor, stats)


def make_stats(batches, extractor, progress=True):
    """FeatureStatistics of all images in `batches`, an iterable of uint8 [B,C,H,W]."""
    features = FeatureStatistics(extractor.dim)
    for images in _bar(batches, progress):
        features.update(extractor(images).features)
    return features


def accumulate(batches, extractor, splits=10, total=None, progress=True):
    """Runs the extractor over the images once.

    Ranks call this each on their share (without `total`), merge the results, and pass them to `figures`.

    Returns:
        (FeatureStatistics, InceptionScore or None if the extractor gives no logits).
    """
    features, inception = FeatureStatistics(extractor.dim), None
    for images in _bar(batches, progress):
        extracted = extractor(images)
        features.update(extracted.features)
        if extracted.logits is not None:
            inception = inception or InceptionScore(splits, total)
            inception.update(extracted.logits)
    return features, inception


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
