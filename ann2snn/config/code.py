"""Code that a registry names, so that the registry can be read without importing it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Code:
    """A function or class by its place below `ann2snn`, such as "diffusion.vp.VP"; imported when it is called."""

    place: str

    def loaded(self) -> Any:
        module, name = self.place.rsplit(".", 1)
        return getattr(importlib.import_module(f"ann2snn.{module}"), name)

    def __call__(self, *args: object, **options: object) -> Any:
        return self.loaded()(*args, **options)
