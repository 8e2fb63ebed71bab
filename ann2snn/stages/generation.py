"""What a stage that makes images is given: the network with its sampling, and what the images are scored with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..checkpoints import checkpoint
from ..config import SampleConfig
from ..distributed.world import World
from ..metrics.features import FeatureExtractor
from ..metrics.stats_file import ReferenceStatistics
from .coverage import RealImages
from .fad import Fad


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
class Scoring:
    """What images are scored with; nothing where neither `extractor` nor `fad` is given.

    stats: made with the extractor; stats_name: of their file, for the record. real: images to give precision, recall
    and KID against, where they are asked for.
    """

    extractor: FeatureExtractor | None = None
    stats: ReferenceStatistics | None = None
    stats_name: str = ""
    real: RealImages | None = None
    fad: Fad | None = None

    def __bool__(self) -> bool:
        return self.extractor is not None or self.fad is not None


NO_SCORING = Scoring()
