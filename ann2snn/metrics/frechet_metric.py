"""The Frechet distance of features to those of real images: FID on the Inception's."""

from __future__ import annotations

from ..config import require
from ..distributed.world import World
from ..errors import UserError
from ..run.tables import counted
from .features import FeatureExtractor
from .frechet import FeatureStatistics, frechet_distance
from .metric import Batch, Figures, Metric, Need, Setting
from .stats_file import ReferenceStatistics


class FrechetMetric(Metric):
    """Under the extractor's name for it. Against the setting's statistics, or else the real images that are given."""

    needs = frozenset({Need.FEATURES, Need.STATISTICS})
    lower = ("FD", "FID")

    def __init__(self, setting: Setting) -> None:
        self._extractor, self._reference = setting.features, setting.statistics
        sets = 1
        if self._reference is None:
            require(setting.real_count >= 2, "a Frechet distance needs statistics, or real images to compare with")
            self.needs = frozenset({Need.FEATURES, Need.REAL})
            sets = 2
        else:
            check_match(self._extractor, self._reference)  # before the long work
        self._statistics = [FeatureStatistics(self._extractor.dim) for _ in range(sets)]

    def update(self, batch: Batch) -> None:
        self._statistics[batch.real].update(batch.features)

    def reduce(self, world: World) -> None:
        self._statistics = [gathered.reduced_over(world) for gathered in self._statistics]

    def compute(self) -> Figures:
        mu, sigma, count = self._statistics[0].compute()
        stats = self._reference
        if stats is None:
            stats = ReferenceStatistics(*self._statistics[1].compute(), self._extractor.name)
        key, dim, notes = self._extractor.distance_key, self._extractor.dim, []
        for noun, images in (("image", count), ("reference image", stats.count)):
            # The covariance of n vectors has at most the rank n - 1.
            if images is not None and images <= dim:
                notes.append(f"{counted(images, noun)} for {dim} features: covariance rank-deficient, {key} biased")
        return Figures({key: frechet_distance(mu, sigma, stats.mu, stats.sigma)}, notes=notes)


def check_match(extractor: FeatureExtractor, stats: ReferenceStatistics) -> None:
    """Raise UserError for statistics of another extractor."""
    if (stats.extractor, stats.dim) != (extractor.name, extractor.dim):
        raise UserError(
            f"reference statistics are of '{stats.extractor}' ({stats.dim} features), the images are scored with "
            f"'{extractor.name}' ({extractor.dim}): use statistics or an extractor that match"
        )
