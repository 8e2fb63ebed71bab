"""A run's log: `log.jsonl` for programs; TensorBoard, and Weights & Biases if asked for, for people."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from ..errors import UserError, one_line
from ..files.atomic import cause
from ..files.warning import warn
from . import board, wandb
from .folder import LINES
from .lines import Lines
from .tracker import Kind, Opening, Tracker

#: By the name that a warning calls it.
TRACKERS: dict[str, Kind] = {
    LINES: Kind(Lines),
    "TensorBoard's file": Kind(board.begin),
    "Weights & Biases' log": Kind(wandb.begin, foreign=True),
}


class RunLog:
    """Gives what is logged to all `TRACKERS`.

    A log is not worth a run: where one of them fails (a disk that is full, read-only or vanished; a server that does
    not answer), one warning says so, it is left alone from then on, and nothing raises.
    """

    def __init__(
        self, logdir: Path, stage: str, start_step: int = 0, *, wandb: str | None = None, config: dict | None = None
    ) -> None:
        """Arguments as those of `Opening`."""
        self.path, self.stage = logdir / LINES, stage
        opening = Opening(logdir, stage, start_step, wandb, config or {})
        self.trackers: dict[str, Tracker] = {}
        for name, kind in TRACKERS.items():
            self._try(name, partial(self._begin, name, kind, opening))

    def _begin(self, name: str, kind: Kind, opening: Opening) -> None:
        if (tracker := kind.begin(opening)) is not None:
            self.trackers[name] = tracker

    def _try(self, name: str, write: Callable[[], None]) -> None:
        foreign = TRACKERS[name].foreign
        try:
            write()
        except Exception as error:
            if not foreign and not isinstance(error, OSError | UserError):
                raise
            self.trackers.pop(name, None)
            if isinstance(error, OSError) and not foreign:
                reason = cause(error)
            else:
                reason = one_line(str(error) or type(error).__name__)
            warn(f"{name} in {self.path.parent} is not continued ({reason}); the run goes on without it")

    def scalars(self, step: int, **values: float) -> None:
        for name, tracker in list(self.trackers.items()):
            self._try(name, partial(tracker.scalars, step, **values))

    def image(self, step: int, name: str, picture: Tensor) -> None:
        """picture uint8 [C, H, W]."""
        for kind, tracker in list(self.trackers.items()):
            self._try(kind, partial(tracker.image, step, name, picture))

    def close(self) -> None:
        """Write out what is still in memory; nothing is logged any more."""
        for name, tracker in list(self.trackers.items()):
            self._try(name, tracker.close)
        self.trackers.clear()
