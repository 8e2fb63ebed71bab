"""The averaged weights that scored best during a training, kept beside its newest checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..checkpoints import checkpoint
from ..errors import UserError
from ..files.atomic import cause
from ..files.beside import free_name
from ..files.warning import warn
from .trainer import Trainer

FRECHET = ("FD", "FID")  # beginnings of the names of Fréchet distances
AVERAGED = "_EMA"  # ending of the figures of the averaged weights


class BestKeeper:
    """Writes `path` whenever the averaged weights have a lower Fréchet distance than any before.

    The file is a checkpoint like any other, with `best_score` (float), `best_metric` (the figure's name) and `best_how`
    (all that decides it besides the weights: images, extractor, statistics, sampler) added. A resumed run compares
    its scores with that of a file that was scored in the same way. One that was scored otherwise compares with none: a
    note says so, and the first new score replaces it. A file from before `best_how` was stored is taken to have been
    scored in the same way, which a note says too.

    No weights are lost: a file that is replaced without having been beaten stays as `checkpoint.previous_of(path)`,
    where one that already has this name becomes `best.prev.2.pt`, and so on. That is the fate of a file that was scored
    otherwise, at the moment when the new one is written, and of one that an earlier training left, when a new one
    begins.

    how: as `best_how`; None where nothing is scored.
    """

    def __init__(self, trainer: Trainer, path: Path, x_T: Tensor, score_settings: Mapping[str, object] | None) -> None:
        self.trainer, self.path, self.x_T, self.score_settings = trainer, path, x_T, dict(score_settings or {})
        self.metric, self.score = "", math.inf
        self.incomparable = False  # the file that is there, with the scores to come
        if not trainer.world.main or not path.exists():
            return
        if not trainer.step:
            self._set_aside()
        elif score_settings is not None:
            self._read()

    def _read(self) -> None:
        try:
            stored = checkpoint.read(self.path)
        except UserError as error:
            warn(f"{error}; the next score counts as the best")
            return
        metric, score, stored_settings = (stored.get(name) for name in ("best_metric", "best_score", "best_how"))
        if isinstance(stored_settings, dict) and (changes := changed(stored_settings, self.score_settings)):
            self.incomparable = True
            self._say_incomparable(f"was scored with {'; '.join(changes)}")
        elif isinstance(metric, str) and isinstance(score, float):
            self.metric, self.score = metric, score
            if not isinstance(stored_settings, dict):
                print(f"note: {self.path} does not say how it was scored: taken to be as this run scores")

    def _say_incomparable(self, reason: str) -> None:
        aside = checkpoint.previous_of(self.path)
        print(f"note: {self.path} {reason}: not compared; the next score counts as the best, and it is kept as {aside}")

    def _set_aside(self) -> None:
        aside = checkpoint.previous_of(self.path)
        try:
            self._make_room()
            os.replace(self.path, aside)
        except OSError as error:
            raise UserError(f"cannot move {self.path} of an earlier training aside: {cause(error)}") from None
        warn(f"{self.path} is of an earlier training; it is kept as {aside}")

    def _make_room(self) -> None:
        """Give a file with the name of the previous one the first number that is free. Raises OSError."""
        aside = checkpoint.previous_of(self.path)
        if os.path.lexists(aside):
            os.rename(aside, free_name(aside))

    def consider(self, figures: Mapping[str, float]) -> None:
        """Keep the present state if the first Fréchet distance of the averaged weights in `figures` is the lowest.

        All processes call it with the same figures; the main one writes. Where the disk refuses, a warning says so
        and training goes on. Raises UserError where the loss has left the finite numbers.
        """
        self.trainer.check_finite(self.path.parent)
        metric = next((name for name in figures if name.startswith(FRECHET) and name.endswith(AVERAGED)), None)
        if metric is None or not self.trainer.world.main:
            return
        if self.metric not in ("", metric):
            self._say_incomparable(f"was scored by {self.metric}, now by {metric}")
            self.metric, self.score, self.incomparable = "", math.inf, True
        score = float(figures[metric])
        if not score < self.score:  # nan is not
            return
        try:
            self._write(score, metric)
        except UserError as error:
            warn(f"{error}; the best weights so far are not kept")
            return
        self.metric, self.score, self.incomparable = metric, score, False

    def _write(self, score: float, metric: str) -> None:
        """Raises UserError."""
        entries = {"best_score": score, "best_metric": metric, "best_how": self.score_settings}
        payload = self.trainer.payload(self.x_T) | entries
        if self.incomparable:
            try:
                self._make_room()
            except OSError as error:
                raise UserError(f"cannot keep {self.path} of other scores: {cause(error)}") from None
        checkpoint.save(self.path, payload, keep_previous=self.incomparable)


def changed(stored: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The settings that differ, such as "images=16, now 32"; those within a setting count for themselves."""
    was, value = _flat(stored), _flat(now)
    pairs = {name: (was.get(name, "unset"), value.get(name, "unset")) for name in was | value}
    return [f"{name}={before}, now {after}" for name, (before, after) in pairs.items() if before != after]


def _flat(settings: Mapping[str, object]) -> dict[str, object]:
    entries = (value.items() if isinstance(value, dict) else [(name, value)] for name, value in settings.items())
    return {name: value for group in entries for name, value in group}
