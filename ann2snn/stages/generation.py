"""What a stage that makes images is given: the network with its sampling, and what the images are scored with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoints import checkpoint
from ..config import ImageSize, SampleConfig
from ..data import ImageDataset
from ..distributed.world import World
from ..metrics.features import FeatureExtractor
from ..metrics.metric import Metric, Reference, Setting
from ..metrics.registry import made
from ..metrics.stats_file import ReferenceStatistics


@dataclass(frozen=True)
class Generation:
    """The network of `source`, how it is sampled, and the processes that do it.

    statistics: of Analytic-DPM, see `generate.analytic`.
    """

    source: checkpoint.Loaded
    sample: SampleConfig
    world: World
    statistics: Tensor | None = None


@dataclass(frozen=True)
class RealImages:
    """The first `most` images of `dataset`, all if it has fewer, with which generated ones are compared."""

    dataset: ImageDataset
    most: int

    @property
    def count(self) -> int:
        return min(self.most, len(self.dataset))

    @property
    def name(self) -> str:
        return f"{self.dataset.name} ({self.dataset.split})"


@dataclass(frozen=True)
class Scoring:
    """The metrics that images are scored with, by name; nothing where there are none. And what these need.

    stats: made with the extractor; stats_name: of their file, for the record. real: images to compare with. fad: the
    autoencoder of the Frechet autoencoder distance. neighbours: see `Setting`.
    """

    metrics: tuple[str, ...] = ()
    extractor: FeatureExtractor | None = None
    stats: ReferenceStatistics | None = None
    stats_name: str = ""
    real: RealImages | None = None
    fad: Reference | None = None
    neighbours: int = 3

    def __bool__(self) -> bool:
        return bool(self.metrics)

    def made(self, count: int, channels: int, size: ImageSize, device: torch.device) -> list[Metric]:
        """The metrics, for so many images of so many channels and this size. Raises UserError if one cannot be made."""
        setting = Setting(
            count=count,
            channels=channels,
            size=size,
            extractor=self.extractor,
            statistics=self.stats,
            real_count=0 if self.real is None else self.real.count,
            real_name="" if self.real is None else self.real.name,
            neighbours=self.neighbours,
            autoencoder=self.fad,
            device=device,
        )
        return made(self.metrics, setting)


NO_SCORING = Scoring()
