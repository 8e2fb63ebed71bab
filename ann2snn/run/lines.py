"""A run's figures for programs: one JSON object a line, in `log.jsonl` and `snn_eval.txt`."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..files.atomic import cause, write_text
from ..files.lines import append_line
from ..files.plain import read_text
from .folder import LINES
from .tracker import Opening

LONGEST = 2**30  # bytes of a log that is read
#: Names of the training loss in each quarter of the diffusion times, the one with the least noise first.
LOSS_QUARTERS = ("loss_q1", "loss_q2", "loss_q3", "loss_q4")


class Lines:
    """`log.jsonl`: each line has `step` and `stage`. Pictures have no place there."""

    def __init__(self, opening: Opening) -> None:
        """A resumed run repeats the steps since its checkpoint: drop their old entries."""
        self.path, self.stage = opening.logdir / LINES, opening.stage
        if not self.path.exists():
            return
        entries = read_log(self.path)
        kept = [e for e in entries if e.get("stage") != self.stage or not _is_after(e.get("step"), opening.start_step)]
        if len(kept) != len(entries):
            write_text(self.path, "".join(json.dumps(e) + "\n" for e in kept))

    def scalars(self, step: int, **values: float) -> None:
        append_line(self.path, json.dumps({"stage": self.stage, "step": step, **values}))

    def image(self, step: int, name: str, picture: Tensor) -> None: ...

    def close(self) -> None: ...


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


def timestamp() -> str:
    """The date and the minute, as result lines have them."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def append_result(path: Path, line: dict) -> None:
    """Add one JSON line; what was there stays. Raises UserError, which repeats the line, if the disk refuses."""
    text = json.dumps(line)
    try:
        append_line(path, text, sync=True)
    except OSError as error:
        raise UserError(f"cannot add to {path}: {cause(error)}; the line was {text}") from None
