"""Kernel Inception Distance (Binkowski et al., 2018): the squared maximum mean discrepancy of features, unbiased."""

import numpy as np

from ..config import check_int
from ..errors import UserError
from ..run.tables import counted
from .feature_set import TwoFeatureSets
from .metric import Figures, Metric, Need

SUBSETS, SUBSET_SIZE = 100, 1000


class KidMetric(Metric):
    """KID against the real images, with its deviation over subsets."""

    needs = frozenset({Need.FEATURES, Need.REAL})
    lower = ("KID",)
    settings = ("kid_subset_size", "real_images", "real_data")

    def __init__(self, setting):
        setting.require_images(4, "KID needs 4 images in each set")
        self._setting, self._features = setting, TwoFeatureSets(setting.features.dim)

    def update(self, batch):
        self._features.add(batch)

    def reduce(self, world):
        self._features.gather(world)

    def compute(self):
        mean, deviation, size = kid(self._features.real, self._features.images)
        count, name, extractor = self._setting.real_count, self._setting.real_name, self._setting.features
        return Figures(
            {"KID": mean, "KID_std": deviation},
            {"kid_subset_size": size, "real_images": count, "real_data": name},
            [f"KID: {SUBSETS} subsets of {size}, against {counted(count, 'image')} of {name}, by {extractor.name}"],
        )


def kid(real, generated, subsets=SUBSETS, subset_size=SUBSET_SIZE, seed=0):
    """Mean over random subsets of the unbiased MMD^2 under k(x, y) = (x.y/D + 1)^3, and its standard deviation.

    Unlike a Frechet distance it is not biased by few images; it may be negative.

    Args:
        real, generated: features [N,D] and [M,D], arrays or tensors of any float type.
        subsets: how many pairs of subsets, each drawn without replacement.
        subset_size: images of either set in a subset; at most half of the smaller set, or the subsets would be alike
            and their deviation say nothing.
        seed: of the drawing.

    Returns:
        (mean, deviation over the subsets, size of a subset).

    Raises:
        UserError: fewer than two images or subsets below 1; other dimensions; values that are not finite.
    """
    real, generated = (np.asarray(features, dtype=np.float64) for features in (real, generated))
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        shapes = f"{list(real.shape)} and {list(generated.shape)}"
        raise UserError(f"KID of features {shapes}: take both sets from one extractor")
    if not (np.isfinite(real).all() and np.isfinite(generated).all()):
        raise UserError("KID: features hold NaN or infinity; check the images and the extractor")
    size = min(check_int(subset_size, "subset_size"), len(real) // 2, len(generated) // 2)
    if size < 2 or check_int(subsets, "subsets") < 1:
        raise UserError(f"KID of {subsets} subsets of {size} images: needs at least 1 of 2, and 4 images in each set")
    draw = np.random.default_rng(seed)
    values = [
        squared_mmd(*(part[draw.choice(len(part), size, replace=False)] for part in (real, generated)))
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values)), size


def squared_mmd(x, y):
    """Unbiased estimate (Gretton et al., 2012, lemma 6) from features float64 [N,D] and [N,D]."""
    count, dim = x.shape
    within = [(z @ z.T / dim + 1) ** 3 for z in (x, y)]
    between = (x @ y.T / dim + 1) ** 3
    pairs = sum(kernel.sum() - np.trace(kernel) for kernel in within) / (count * (count - 1))
    return pairs - 2 * between.mean()
