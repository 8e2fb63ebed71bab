"""A run's log: TensorBoard, and Weights & Biases if asked for, for people; `log.jsonl` for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from ..errors import UserError, one_line
from ..files.atomic import cause, write_text
from ..files.lines import append_line
from ..files.plain import read_text
from ..files.warning import warn
from . import wandb as weights_and_biases
from .board import Board
from .folder import LINES

LONGEST = 2**30  # bytes of a log that is read
BOARD, WANDB = "TensorBoard's file", "Weights & Biases' log"
#: What a log may fail with: one that a foreign package sends to a server, with anything.
FAILURES: dict[str, tuple[type[Exception], ...]] = {
    LINES: (OSError, UserError),
    BOARD: (OSError, UserError),
    WANDB: (Exception,),
}


class RunLog:
    """Writes scalars and images of one run to `logdir`. `log.jsonl`: one JSON object a line with `step` and `stage`.

    A log is not worth a run: where the disk refuses (full, read-only, vanished), one warning says so, that file is
    left alone from then on, and nothing raises.

    wandb: project at Weights & Biases that gets the same, with `config`, the run's settings; nothing happens where
    the package is not installed. What it raises ends in a warning, too.
    """

    def __init__(
        self, logdir: Path, stage: str, start_step: int = 0, *, wandb: str | None = None, config: dict | None = None
    ) -> None:
        self.path = logdir / LINES
        self.stage = stage
        self.board: Board | None = None
        self.wandb: weights_and_biases.Wandb | None = None
        self.lost: set[str] = set()
        self._try(LINES, lambda: self._forget_after(start_step))
        self._try(BOARD, lambda: setattr(self, "board", Board(logdir, start_step or None)))
        if wandb is not None:
            self._try(WANDB, lambda: self._join(wandb, config or {}))

    def _join(self, project: str, config: dict) -> None:
        package = weights_and_biases.module()
        if package is not None:
            self.wandb = weights_and_biases.Wandb(package, project, self.path.parent, config)

    def _try(self, name: str, write: Callable[[], None]) -> None:
        if name in self.lost:
            return
        try:
            write()
        except FAILURES[name] as error:
            self.lost.add(name)
            if isinstance(error, OSError) and name != WANDB:
                reason = cause(error)
            else:
                reason = one_line(str(error) or type(error).__name__)
            warn(f"{name} in {self.path.parent} is not continued ({reason}); the run goes on without it")

    def _forget_after(self, start_step: int) -> None:
        """A resumed run repeats the steps since its checkpoint: drop their old entries."""
        if not self.path.exists():
            return
        entries = read_log(self.path)
        kept = [e for e in entries if e.get("stage") != self.stage or not _is_after(e.get("step"), start_step)]
        if len(kept) != len(entries):
            write_text(self.path, "".join(json.dumps(e) + "\n" for e in kept))

    def scalars(self, step: int, **values: float) -> None:
        line = json.dumps({"stage": self.stage, "step": step, **values})
        self._try(LINES, lambda: append_line(self.path, line))
        if self.board is not None:
            for name, value in values.items():
                self._try(BOARD, partial(self.board.scalar, step, name, value))
        if self.wandb is not None:
            self._try(WANDB, partial(self.wandb.log, step, **values))

    def image(self, step: int, name: str, picture: Tensor) -> None:
        """picture uint8 [C, H, W]."""
        if self.board is not None:
            self._try(BOARD, partial(self.board.image, step, name, picture))
        if self.wandb is not None:
            self._try(WANDB, partial(self.wandb.image, step, name, picture))

    def close(self) -> None:
        """Write out what is still in memory."""
        if self.board is not None:
            self._try(BOARD, self.board.flush)
        if self.wandb is not None:
            self._try(WANDB, self.wandb.finish)
        self.wandb = None


def _is_after(step: object, start_step: int) -> bool:
    return isinstance(step, int | float) and step >= start_step


def read_log(path: Path) -> list[dict]:
    """All entries; a line cut short by a crash is skipped."""
    entries = []
    if path.exists():
        for line in read_text(path, LONGEST, "replace").splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                entries.append(entry)
    return entries


def append_result(path: Path, line: dict) -> None:
    """Add one JSON line; what was there stays. Raises UserError, which repeats the line, if the disk refuses."""
    text = json.dumps(line)
    try:
        append_line(path, text, sync=True)
    except OSError as error:
        raise UserError(f"cannot add to {path}: {cause(error)}; the line was {text}") from None
