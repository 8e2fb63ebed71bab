"""Precision, recall, density and coverage together, which share the real images' balls."""

from __future__ import annotations

from ..distributed.world import World
from .density_coverage import density_coverage
from .feature_set import TwoFeatureSets
from .metric import Batch, Figures, Metric, Need, Setting
from .precision_recall import manifold, precision_recall


class NeighbourMetric(Metric):
    """All four, from the nearest neighbours of features; against the real images."""

    needs = frozenset({Need.FEATURES, Need.REAL})
    settings = ("pr_k", "pr_images", "pr_data")

    def __init__(self, setting: Setting) -> None:
        k = setting.neighbours
        setting.require_images(k + 1, f"--pr_k={k}: precision and recall need more than {k} images of each kind")
        self._setting, self._features = setting, TwoFeatureSets(setting.features.dim)

    def update(self, batch: Batch) -> None:
        self._features.add(batch)

    def reduce(self, world: World) -> None:
        self._features.gather(world)

    def compute(self) -> Figures:
        setting, k = self._setting, self._setting.neighbours
        balls, images = manifold(self._features.real.to(setting.device), k), self._features.images.to(setting.device)
        names = ("precision", "recall", "density", "coverage")
        values = (*precision_recall(balls, images, k), *density_coverage(balls, images, k))
        note = (
            f"precision and recall: k = {k}, {setting.real_count} real images of {setting.real_name}, features of "
            f"{setting.features.name}; published figures are made with VGG16 features and not comparable"
        )
        settings: dict[str, str | int] = {"pr_k": k, "pr_images": setting.real_count, "pr_data": setting.real_name}
        return Figures(dict(zip(names, values, strict=True)), settings, [note])
