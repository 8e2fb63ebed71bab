"""Images to be scored or compared with, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """`count` images, at least one, which `batches` gives in order: uint8 [B, channels, H, W] of one size each.

    name: as messages and results call them.
    """

    name: str
    count: int
    channels: int
    batches: Callable[[], Iterator[Tensor]]
