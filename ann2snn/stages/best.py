"""The averaged weights that scored best during a training, kept beside its newest checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..io import checkpoint
from ..io.atomic import cause
from ..io.warning import warn
from .trainer import Trainer

FRECHET = ("FD", "FID")  # beginnings of the names of Fréchet distances
AVERAGED = "_EMA"  # ending of the figures of the averaged weights


class BestKeeper:
    """Writes `path` whenever the averaged weights have a lower Fréchet distance than any before.

    The file is a checkpoint like any other, with `best_score` (float) and `best_metric` (the figure's name) added: a
    resumed run reads them. Distances under another name, as of another extractor, compare with none: the next score
    counts as the first. A run that begins anew leaves an earlier run's file as `checkpoint.previous_of(path)`.
    """

    def __init__(self, trainer: Trainer, path: Path, x_T: Tensor) -> None:
        self.trainer, self.path, self.x_T = trainer, path, x_T
        self.metric, self.score = "", math.inf
        if not trainer.world.main or not path.exists():
            return
        if trainer.step:
            self._read()
        else:
            self._set_aside()

    def _read(self) -> None:
        try:
            stored = checkpoint.read(self.path)
        except UserError as error:
            warn(f"{error}; the next score counts as the best")
            return
        metric, score = stored.get("best_metric"), stored.get("best_score")
        if isinstance(metric, str) and isinstance(score, float):
            self.metric, self.score = metric, score

    def _set_aside(self) -> None:
        aside = checkpoint.previous_of(self.path)
        try:
            os.replace(self.path, aside)
        except OSError as error:
            raise UserError(f"cannot move {self.path} of an earlier training aside: {cause(error)}") from None
        warn(f"{self.path} is of an earlier training; it is kept as {aside}")

    def consider(self, figures: Mapping[str, float]) -> None:
        """Keep the present state if the first Fréchet distance of the averaged weights in `figures` is the lowest.

        All processes call it with the same figures; the main one writes. Where the disk refuses, a warning says so
        and training goes on. Raises UserError where the loss has left the finite numbers.
        """
        self.trainer.check_finite(self.path.parent)
        metric = next((name for name in figures if name.startswith(FRECHET) and name.endswith(AVERAGED)), None)
        if metric is None or not self.trainer.world.main:
            return
        score, bound = float(figures[metric]), self.score if metric == self.metric else math.inf
        if not score < bound:  # nan is not
            return
        try:
            payload = self.trainer.payload(self.x_T)
            checkpoint.save(self.path, payload | {"best_score": score, "best_metric": metric})
        except UserError as error:
            warn(f"{error}; the best weights so far are not kept")
            return
        self.metric, self.score = metric, score
