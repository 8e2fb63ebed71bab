"""What the stages share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ..checkpoints import checkpoint
from ..data import ImageDataset
from ..distributed.world import World
from ..files.atomic import cause, sweep
from ..files.lines import append_line
from ..files.lock import run_lock
from ..files.warning import warn
from ..metrics.frechet import FeatureStatistics
from ..metrics.stats_file import write_stats
from ..run.log import RunLog
from ..run.tables import counted


@contextlib.contextmanager
def owning(folder: Path, name: str, world: World) -> Iterator[None]:
    """Hold the lock `name` of `folder` for all processes of `world`. Raises UserError if another run has it."""
    with run_lock(folder, name) if world.main else contextlib.nullcontext():
        world.wait()
        yield


def newest(path: Path, world: World) -> Path | None:
    """The checkpoint to resume `path` from: itself, or the one before it if it is damaged. Raises UserError."""
    found = ""
    if world.main and (path.exists() or checkpoint.previous_of(path).exists()):
        found = str(checkpoint.read_newest(path)[0])
    found = world.from_main(found)
    return Path(found) if found else None


def keep_stats(path: Path, gathered: FeatureStatistics, dataset: ImageDataset, count: int, extractor: str) -> None:
    """Write the statistics of the first `count` images of a data set, and say so. Raises UserError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, depth=0)
    write_stats(path, *gathered.compute(), extractor)
    print(f"{path}: {counted(count, 'image')} of {dataset.name} ({dataset.split}), {extractor}")


def due(step: int, every: int) -> bool:
    """Whether something done every `every` steps (0: never) is done after `step` steps."""
    return every > 0 and step % every == 0


def changes_text(changes: Mapping[str, tuple[object, object]]) -> str:
    """` with lr=0.1 (was 0.2)`; nothing where nothing was changed."""
    told = ", ".join(f"{name}={now} (was {before})" for name, (before, now) in changes.items())
    return f" with {told}" if told else ""


def record_changes(log: RunLog, step: int, changes: Mapping[str, tuple[object, object]]) -> None:
    """Keep in `log.jsonl` that a run goes on from `step` with other settings: {flag: [before, now]}."""
    if changes:
        line = {"stage": log.stage, "step": step, "resumed_with": {name: list(pair) for name, pair in changes.items()}}
        try:
            append_line(log.path, json.dumps(line))
        except OSError as error:
            warn(f"{log.path} is not continued ({cause(error)})")


class SilentLog:
    """The `Tracker` of processes other than the main one, which keeps nothing."""

    def scalars(self, step: int, **values: float) -> None: ...

    def image(self, step: int, name: str, picture: Tensor) -> None: ...

    def close(self) -> None: ...
