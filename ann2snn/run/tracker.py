"""What the figures and pictures of a run go to, whatever writes them down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor


class Tracker(Protocol):
    """Figures by name and pictures, each of a step. What a method raises ends the tracker, never the run."""

    def scalars(self, step: int, **values: float) -> None: ...

    def image(self, step: int, name: str, picture: Tensor) -> None:
        """picture: uint8 [C, H, W]."""

    def close(self) -> None:
        """Write out what is still in memory."""


@dataclass(frozen=True)
class Opening:
    """What a tracker begins with.

    start_step: the first step that comes; a resumed run repeats what stands there already. config: the run's settings,
    plain values. wandb: project at Weights & Biases, None where it is not asked for.
    """

    logdir: Path
    stage: str
    start_step: int = 0
    wandb: str | None = None
    config: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """begin: None where there is nothing to write to. foreign: a package of others writes it, and may raise anything;
    other trackers raise OSError and UserError.
    """

    begin: Callable[[Opening], Tracker | None]
    foreign: bool = False
