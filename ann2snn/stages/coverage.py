"""Precision and recall beside the other scores, from the features that those are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import require
from ..data import ImageDataset
from ..distributed.world import World
from ..metrics.features import Extracted, FeatureExtractor
from ..metrics.precision_recall import precision_recall
from ..metrics.score import score_numbered
from ..metrics.stats_file import ReferenceStatistics

Batches = Iterable[tuple[Sequence[int], Tensor]]


@dataclass(frozen=True)
class RealImages:
    """The first `count` images of `dataset`, all if it has fewer, with which `scored` generated ones are compared.

    k: the neighbour that sets the radius of every ball. Raises UserError where either set is too small for it.
    """

    dataset: ImageDataset
    count: int
    k: int
    scored: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", min(self.count, len(self.dataset)))
        for what, count in (("--pr_images, real images", self.count), ("--num_images, generated images", self.scored)):
            require(count > self.k, f"--pr_k={self.k}: more than {self.k} of each needed, got {count} ({what})")


class FeatureKeeper:
    """An extractor that remembers the features of the numbered images it is given."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self._extractor = extractor
        self.name, self.dim, self.notes = extractor.name, extractor.dim, extractor.notes
        self.distance_key = extractor.distance_key
        self._indices, self._features = torch.zeros(0, dtype=torch.int64), [torch.zeros(0, extractor.dim)]

    def watched(self, batches: Batches) -> Iterator[tuple[Sequence[int], Tensor]]:
        """The same (indices, images), each batch to be given to the extractor before the next is asked for."""
        for indices, images in batches:
            self._indices = torch.cat([self._indices, torch.tensor(list(indices), dtype=torch.int64)])
            yield indices, images

    def __call__(self, images: Tensor) -> Extracted:
        extracted = self._extractor(images)
        self._features.append(extracted.features.float().cpu())
        return extracted

    def gathered(self, world: World) -> Tensor:
        """Features of all processes' images in order of their indices, float32 [N, D] on the CPU; collective."""
        features = torch.cat(world.collect(torch.cat(self._features)))
        return features[torch.cat(world.collect(self._indices)).argsort()]


def score_with_coverage(
    real: RealImages,
    real_batches: Batches,
    batches: Batches,
    extractor: FeatureExtractor,
    stats: ReferenceStatistics,
    *,
    splits: int,
    total: int,
    world: World,
) -> dict:
    """`metrics.score.score_numbered`, and on the main process "precision", "recall", and what they were compared with.

    real_batches: this process's share of the real images, as `batches` is of the generated ones.
    Raises UserError.
    """
    generated, reference = FeatureKeeper(extractor), FeatureKeeper(extractor)
    scores = score_numbered(generated.watched(batches), generated, stats, splits=splits, total=total, world=world)
    for _, images in reference.watched(real_batches):
        reference(images)
    generated_features, real_features = generated.gathered(world), reference.gathered(world)
    if not world.main:
        return scores
    pair = precision_recall(real_features.to(world.device), generated_features.to(world.device), real.k)
    data = f"{real.dataset.name} ({real.dataset.split})"
    note = (
        f"precision and recall: k = {real.k}, {real.count} real images of {data}, features of {extractor.name}; "
        "published figures are made with VGG16 features and not comparable"
    )
    notes = [*scores["notes"], note]
    figures = {"precision": pair[0], "recall": pair[1], "pr_k": real.k, "pr_images": real.count, "pr_data": data}
    return scores | figures | {"notes": notes}
