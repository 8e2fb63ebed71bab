"""A run's log: TensorBoard for people, `log.jsonl` for programs."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ..io.atomic import write_text

RESULTS = "snn_eval.txt"


class RunLog:
    """Writes scalars and images of one run to `logdir`. `log.jsonl`: one JSON object a line with `step` and `stage`."""

    def __init__(self, logdir: Path, stage: str, start_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only stages that log need it

        self.path = logdir / "log.jsonl"
        self.stage = stage
        self._forget_after(start_step)
        self.file = open(self.path, "a", encoding="utf-8", buffering=1)
        self.board = SummaryWriter(str(logdir), purge_step=start_step or None)

    def _forget_after(self, start_step: int) -> None:
        """A resumed run repeats the steps since its checkpoint: drop their old entries."""
        if not self.path.exists():
            return
        entries = read_log(self.path)
        kept = [e for e in entries if e.get("stage") != self.stage or e.get("step", 0) < start_step]
        if len(kept) != len(entries):
            write_text(self.path, "".join(json.dumps(e) + "\n" for e in kept))

    def scalars(self, step: int, **values: float) -> None:
        self.file.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: Tensor) -> None:
        """picture uint8 [C, H, W]."""
        self.board.add_image(name, picture, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_log(path: Path) -> list[dict]:
    """All entries; a last line cut short by a crash is skipped."""
    entries = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return entries


def append_result(path: Path, line: dict) -> None:
    """Add one JSON line; what was there stays."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
