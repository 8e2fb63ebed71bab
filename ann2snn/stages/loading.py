"""Where a training's batches come from, and the processes that load them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from ..data import ImageDataset, Share, batches, labels_at
from ..errors import UserError
from ..training.trainer import Trainer

RESIDENT_SHARE = 0.25  # of a GPU's free memory, at most, for training images without being asked


class Batches:
    """This process's share of every batch, by step. A loading process that dies is replaced, a few times."""

    REPLACEMENTS = 3

    def __init__(
        self, dataset: ImageDataset, trainer: Trainer, num_workers: int, home: torch.device | None = None
    ) -> None:
        self.dataset, self.trainer, self.num_workers, self.home = dataset, trainer, num_workers, home
        self.left = self.REPLACEMENTS
        self.stream = self._from(trainer.step)

    def next(self, step: int) -> Tensor:
        """The batch of step `step`, uint8 [n, C, H, W]; steps must follow one another. Raises UserError."""
        while True:
            try:
                return next(self.stream)
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                if not self.left:
                    raise UserError(
                        f"processes that load images died {self.REPLACEMENTS + 1} times (out of memory?): lower "
                        "--num_workers, then run the same command to continue"
                    ) from None
            self.left -= 1
            print(f"WARNING: a process that loads images died at step {step}; starting new ones", file=sys.stderr)
            self.stream = self._from(step)

    def labels(self, step: int) -> Tensor | None:
        """The classes, int64 [n], of the batch of step `step`; None for a network that is not told them."""
        config, world = self.trainer.train_config, self.trainer.world
        if not self.trainer.num_classes:
            return None
        share = Share(world.rank, world.size)
        return labels_at(self.dataset, self.trainer.share, step, seed=config.seed, share=share)

    def _from(self, step: int) -> Iterator[Tensor]:
        config, world = self.trainer.train_config, self.trainer.world
        return batches(
            self.dataset,
            self.trainer.share,
            seed=config.seed,
            start_step=step,
            share=Share(world.rank, world.size),
            num_workers=self.num_workers,
            flip=config.flip,
            resident=self.home,
        )


def home_of(dataset: ImageDataset, resident: str, device: torch.device) -> torch.device | None:
    """Where a training keeps its images to draw batches from; None: wherever the data set has them, or its files.

    resident: "on": on `device`; "auto": there if it is a GPU (not tested on one yet) and images that are in memory
    already take less than `RESIDENT_SHARE` of what is free there; "off". The batches are the same.
    """
    if resident == "on":
        return device
    if resident == "off" or device.type != "cuda" or dataset.images is None:
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return device if dataset.images.nbytes < RESIDENT_SHARE * free else None
