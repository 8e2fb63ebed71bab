"""The Frechet autoencoder distance beside the other scores, and statistics to compare with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..config import require
from ..data import ImageDataset
from ..distributed.world import World
from ..metrics.fad import FadExtractor, fad, gather
from ..metrics.stats_file import ReferenceStatistics
from .common import keep_stats


@dataclass(frozen=True)
class Fad:
    """What images are compared with. source: the name of the statistics' file."""

    extractor: FadExtractor
    stats: ReferenceStatistics
    source: str

    def score(self, batches: Iterable[tuple[object, Tensor]]) -> dict:
        """Fields of a line of scores for (indices, uint8 [B, C, H, W]) of all images, in order.

        Called by the main process alone, whatever their number: which images share a batch must not depend on it.

        Raises:
            UserError: too few images, or of another kind than the encoder's.
        """
        distance, count = fad((images for _, images in batches), self.extractor, self.stats)
        note = f"{self.extractor.distance_key}: {self.extractor.name}, against {self.source}"
        known = self.stats.count is not None
        note += f" of {self.stats.count} images" if known else ", which does not say how many images it is of"
        notes, dim = [note], self.extractor.dim
        if count <= dim:
            notes.append(f"{count} images for {dim} latent values: covariance rank-deficient, FAD biased")
        return {
            self.extractor.distance_key: distance,
            "fad_encoder": self.extractor.name,
            "fad_reference": self.source,
            "notes": notes,
        }


def make_stats(path: Path, dataset: ImageDataset, extractor: FadExtractor, num_images: int, world: World) -> int:
    """Write the statistics of the first `num_images` images of a data set, in the extractor's mode. Raises UserError.

    The main process does it, as in `Fad.score`.
    """
    extractor.check_images(dataset.channels, dataset.img_size)
    count = min(num_images, len(dataset))
    require(count >= 2, f"--num_images={num_images}: statistics need at least 2 images")
    if world.main:
        keep_stats(path, gather(in_order(dataset, count), extractor), dataset, count, extractor.name)
    world.wait()
    return 0


def in_order(dataset: ImageDataset, count: int) -> Iterable[Tensor]:
    """The first `count` images, each as uint8 [1, C, H, W]."""
    return (dataset[i][None] for i in range(count))
