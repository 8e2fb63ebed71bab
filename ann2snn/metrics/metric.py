"""What a metric is: it is given images and their features batch by batch, in every process, and answers with figures.

`registry.METRICS` is the table of those that `--metrics` and `ann2snn.score` know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..config import ImageSize, require
from ..distributed.world import World
from ..run.tables import counted
from .features import FeatureExtractor
from .stats_file import ReferenceStatistics


class Need(Enum):
    """What a metric cannot do without, besides images.

    FEATURES: vectors of the images. LOGITS: class logits as well. STATISTICS: mean and covariance of real images'
    features. REAL: the real images themselves. AUTOENCODER: an encoder of its own, with statistics. ORDER: all images
    in their order in one process, because the batches in which they come must not depend on the number of processes.
    """

    FEATURES = "features"
    LOGITS = "logits"
    STATISTICS = "statistics"
    REAL = "real"
    AUTOENCODER = "autoencoder"
    ORDER = "order"


@dataclass(frozen=True)
class Reference:
    """An extractor with the statistics of real images that it is used with, and the name of their file.

    statistics None: of the real images that are given; source is then empty.
    """

    extractor: FeatureExtractor
    statistics: ReferenceStatistics | None
    source: str


@dataclass(frozen=True)
class Setting:
    """What images are scored with; a metric is made with it, before there are any.

    Attributes:
        count: how many images will be scored; None if unknown.
        channels, size: of the images; None if unknown.
        extractor: whose features the metrics share; None for none.
        statistics: of real images' features; None: the real images are given.
        real_count, real_name: the real images that are given, 0 for none, and what they are called.
        neighbours: k, the neighbour whose distance makes an image's ball.
        autoencoder: of the Frechet autoencoder distance.
        device: for what takes long.
        count_names: what a user sets the number of images to score with, and that of the real ones.
    """

    count: int | None = None
    channels: int | None = None
    size: ImageSize | None = None
    extractor: FeatureExtractor | None = None
    statistics: ReferenceStatistics | None = None
    real_count: int = 0
    real_name: str = ""
    neighbours: int = 3
    autoencoder: Reference | None = None
    device: torch.device = torch.device("cpu")
    count_names: tuple[str, str] = ("--num_images", "--pr_images")

    @property
    def features(self) -> FeatureExtractor:
        """The extractor. Raises UserError where there is none."""
        require(self.extractor is not None, "features are needed, and there is no extractor: drop --extractor=none")
        assert self.extractor is not None
        return self.extractor

    def require_images(self, least: int, why: str) -> None:
        """Raise UserError, with `why`, unless at least so many images are scored and so many real ones there."""
        for count, name, kind in (
            (self.count, self.count_names[0], "to score"),
            (self.real_count, self.count_names[1], "to compare with"),
        ):
            require(count is None or count >= least, f"{why}, got {counted(count, 'image')} {kind} ({name})")


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, C, H, W], which of all they are [B], and what the extractor says of them, if one is needed.

    features: float [B, D]. logits: [B, K]. real: these are real images, given to metrics that need them alone.
    """

    indices: Sequence[int]
    images: Tensor
    features: Tensor | None = None
    logits: Tensor | None = None
    real: bool = False


@dataclass(frozen=True)
class Figures:
    """What a metric found: figures by name, the settings that make them comparable, sentences to print beside them.

    A figure with its deviation is called NAME and NAME_std.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str | int] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Metric(Protocol):
    """One kind of score, made anew for every set of images. Subclass it for the defaults.

    Attributes:
        needs: what it cannot do without.
        lower: how the names of those figures begin of which less is better.
        settings: names of the settings in its `Figures`.
    """

    needs: frozenset[Need] = frozenset()
    lower: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, setting: Setting) -> None:
        """Raises UserError, in a line, for a setting in which it cannot be computed."""

    def update(self, batch: Batch) -> None:
        """Take in this process's share of the images, in any number of calls; with Need.REAL of the real ones too."""

    def reduce(self, world: World) -> None:
        """Join what all processes have taken in; all call it together. With Need.ORDER it is not called."""

    def compute(self) -> Figures:
        """The figures; called once, after `reduce`, in the main process alone. Raises UserError."""
        ...
