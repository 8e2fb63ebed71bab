"""All features of a set of images, for metrics that compare images with one another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.world import World
from .metric import Batch


class FeatureSet:
    """Features by the index of their image, whichever process has seen it."""

    def __init__(self) -> None:
        self._indices: list[int] = []
        self._features: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        assert batch.features is not None
        self._indices += batch.indices
        self._features.append(batch.features.float().cpu())

    def gathered(self, world: World, dim: int) -> Tensor:
        """Features of all processes' images in order of their indices, float32 [N, dim] on the CPU; collective."""
        features = torch.cat([torch.zeros(0, dim), *self._features])
        self._features.clear()
        indices = torch.cat(world.collect(torch.tensor(self._indices, dtype=torch.int64)))
        return torch.cat(world.collect(features))[indices.argsort()]


class TwoFeatureSets:
    """Features of the images and of the real ones: `images` and `real`, float32 [N, D], once they are gathered."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._sets = FeatureSet(), FeatureSet()
        self.images = self.real = torch.zeros(0, dim)

    def add(self, batch: Batch) -> None:
        self._sets[batch.real].add(batch)

    def gather(self, world: World) -> None:
        """Collective."""
        self.images, self.real = (features.gathered(world, self.dim) for features in self._sets)
