"""Score any images against any others: folders, or npz files as other programs write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..config import require
from ..distributed.world import ALONE
from ..errors import UserError
from ..files.npz import read_npz
from ..generate.images import MOST_NPZ_BYTES, NPZ_KEY, iter_folder
from ..metrics.features import FeatureExtractor
from ..metrics.frechet import FeatureStatistics
from ..metrics.kid import SUBSETS, kid
from ..metrics.score import numbered, score_numbered, usual_splits
from ..metrics.stats_file import ReferenceStatistics
from ..run.tables import show
from .coverage import FeatureKeeper, neighbour_figures

BATCH = 64


def compare(scored: Path, against: Path, extractor: FeatureExtractor, k: int) -> int:
    """Print all scores of the images at `scored` with those at `against` as the real ones, and the settings.

    k: see `RealImages`. Raises UserError: no images there, of several sizes, or too few.
    """
    real, generated = FeatureKeeper(extractor), FeatureKeeper(extractor)
    statistics = FeatureStatistics(extractor.dim)
    for _, images in real.watched(numbered(batches(against))):
        statistics.update(real(images).features)
    real_features = real.gathered(ALONE)
    require(len(real_features) > k, f"--against={against}: {len(real_features)} images; --pr_k={k} needs more")
    reference = ReferenceStatistics(*statistics.compute(), extractor.name)
    total = sum(len(images) for images in batches(scored))
    require(total > k, f"--score={scored}: {total} images; --pr_k={k} needs more")
    kept = generated.watched(numbered(batches(scored)))
    scores = score_numbered(kept, generated, reference, splits=usual_splits(total), total=total)
    features = generated.gathered(ALONE)
    mean, deviation, size = kid(real_features, features)
    scores |= {"KID": mean, "KID_std": deviation} | neighbour_figures(real_features, features, k)
    print(", ".join(f"{name} {show(value)}" for name, value in scores.items() if isinstance(value, float)))
    print(f"{scored}: {total} images, against {against}: {reference.count} images, features of {extractor.name}")
    print(f"KID: {SUBSETS} subsets of {size}; precision, recall, density, coverage: k = {k}")
    for note in scores["notes"]:
        print(f"note: {note}")
    return 0


def batches(path: Path) -> Iterator[Tensor]:
    """The images at `path`, uint8 [B, C, H, W], a batch at a time. Raises UserError."""
    if path.is_dir():
        yield from iter_folder(path, BATCH)
        return
    try:
        array = read_npz(path, {NPZ_KEY: "u"}, MOST_NPZ_BYTES).get(NPZ_KEY)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is neither a folder nor an npz of images ({why})") from None
    fits = array is not None and array.dtype == "uint8" and array.ndim == 4 and array.shape[3] in (1, 3) and array.size
    require(bool(fits), f"{path} has no images, uint8 [N, H, W, 1 or 3], under {NPZ_KEY}")
    yield from torch.from_numpy(array).permute(0, 3, 1, 2).split(BATCH)
