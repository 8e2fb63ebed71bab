"""Precision, recall, density, coverage and KID beside the other scores, from the features of those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import require
from ..data import ImageDataset
from ..distributed.world import World
from ..metrics.density_coverage import density_coverage
from ..metrics.features import Extracted, FeatureExtractor
from ..metrics.kid import SUBSETS, kid
from ..metrics.precision_recall import manifold, precision_recall
from ..metrics.score import score_numbered
from ..metrics.stats_file import ReferenceStatistics

Batches = Iterable[tuple[Sequence[int], Tensor]]


@dataclass(frozen=True)
class RealImages:
    """The first `count` images of `dataset`, all if it has fewer, with which `scored` generated ones are compared.

    kid, neighbours: which scores are asked for, the KID, and those of the nearest neighbours.
    k: the neighbour that sets the radius of every ball. Raises UserError where either set is too small for it.
    """

    dataset: ImageDataset
    count: int
    k: int
    scored: int
    kid: bool = False
    neighbours: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", min(self.count, len(self.dataset)))
        for what, count in (("--pr_images, real images", self.count), ("--num_images, generated images", self.scored)):
            require(
                not self.neighbours or count > self.k,
                f"--pr_k={self.k}: more than {self.k} of each needed, got {count} ({what})",
            )


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
    data = f"{real.dataset.name} ({real.dataset.split})"
    against = {"real_images": real.count, "real_data": data}
    notes = list(scores["notes"])
    figures: dict[str, object] = {}
    if real.kid:
        mean, deviation, size = kid(real_features, generated_features)
        figures |= {"KID": mean, "KID_std": deviation, "kid_subset_size": size, **against}
        notes.append(f"KID: {SUBSETS} subsets of {size}, against {real.count} images of {data}, by {extractor.name}")
    if not real.neighbours:
        return scores | figures | {"notes": notes}
    figures |= neighbour_figures(real_features.to(world.device), generated_features.to(world.device), real.k)
    note = (
        f"precision and recall: k = {real.k}, {real.count} real images of {data}, features of {extractor.name}; "
        "published figures are made with VGG16 features and not comparable"
    )
    figures |= {"pr_k": real.k, "pr_images": real.count, "pr_data": data}
    return scores | figures | {"notes": [*notes, note]}


def neighbour_figures(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage of features [N, D] and [M, D]. Raises UserError."""
    balls = manifold(real, k)
    names = ("precision", "recall", "density", "coverage")
    values = (*precision_recall(balls, generated, k), *density_coverage(balls, generated, k))
    return dict(zip(names, values, strict=True))
