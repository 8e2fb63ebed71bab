"""Weights & Biases, where it is installed: the same scalars and pictures that TensorBoard gets."""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path
from types import ModuleType

from PIL import Image
from torch import Tensor

from .tracker import Opening


def module() -> ModuleType | None:
    """The package; None where it is not installed."""
    try:
        package = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        return None
    return package if hasattr(package, "init") else None  # a folder of that name, as its runs leave one, imports too


def run_id(folder: Path) -> str:
    """The same for every run of one folder, so that a resumed training continues its curves."""
    path = folder.resolve()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', path.name)[:40]}-{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


class Wandb:
    """One run of project `project`. Every method raises whatever the package raises.

    config: the run's settings, plain values. The package forgets what comes with a smaller step than something before
    it. So that nothing is lost, such an entry is logged at the largest step so far; but what a resumed training
    repeats is there already and is left out.
    """

    def __init__(self, package: ModuleType, project: str, folder: Path, config: dict) -> None:
        name = folder.resolve().name
        self.package = package
        self.run = package.init(
            project=project, name=name, dir=str(folder), config=config, resume="allow", id=run_id(folder)
        )
        step = getattr(self.run, "step", 0)
        self.first = self.last = step if isinstance(step, int) else 0

    def scalars(self, step: int, **values: object) -> None:
        if step >= self.first:
            self.last = max(self.last, step)
            self.run.log(values, step=self.last)

    def image(self, step: int, name: str, picture: Tensor) -> None:
        """picture uint8 [C, H, W], grey or colour."""
        pixels = picture.cpu().permute(1, 2, 0).numpy()
        self.scalars(
            step, **{name: self.package.Image(Image.fromarray(pixels[..., 0] if len(picture) == 1 else pixels))}
        )

    def close(self) -> None:
        self.run.finish()


def begin(opening: Opening) -> Wandb | None:
    """The run's project, where one is asked for and the package is installed."""
    if opening.wandb is None or (package := module()) is None:
        return None
    return Wandb(package, opening.wandb, opening.logdir, opening.config)
