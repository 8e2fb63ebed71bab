"""Statistics for the Frechet autoencoder distance."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from ..config import require
from ..data import ImageDataset
from ..distributed.world import World
from ..metrics.fad import FadExtractor, gather
from .common import keep_stats


def make_stats(path: Path, dataset: ImageDataset, extractor: FadExtractor, num_images: int, world: World) -> int:
    """Write the statistics of the first `num_images` images of a data set, in the extractor's mode. Raises UserError.

    The main process does it, as in `FadMetric`.
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
