"""What a network is told of an image's class: a vector added to its time embedding (Dhariwal and Nichol, 2021).

For a spiking network it is a constant current, as the time embedding is: one of many things between quantizers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import require


class ClassEmbedding(nn.Embedding):
    """Class [N], int64 → [N, width]. The last of num_classes + 1 rows is "no class" (Ho and Salimans, 2022)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__(num_classes + 1, width)

    def of(self, y: Tensor | None, count: int) -> Tensor:
        """y: None for `count` times no class. Raises UserError for labels that are none of the network's."""
        if y is None:
            y = torch.full((count,), self.num_embeddings - 1, device=self.weight.device)
        require(y.dtype == torch.int64 and y.shape == (count,), f"y: {_form(y)}, expected int64 [{count}]")
        if y.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to be waited for
            least, most = (int(end) for end in y.aminmax()) if count else (0, 0)
            known = 0 <= least and most < self.num_embeddings
            require(known, f"y: classes {least} to {most}, expected 0 to {self.num_embeddings - 1} (no class)")
        return self(y)


class ClassConditional:
    """Of networks whose configuration says which classes they are told; 0 and no names of one that is told none."""

    config: Any

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names


def conditioned(embedding: ClassEmbedding | None, temb: Tensor, y: Tensor | None) -> Tensor:
    """The time embedding [N, width] of images of the classes y. Raises UserError where the network knows none."""
    if embedding is None:
        require(y is None, "y: the network knows no classes; call it without them")
        return temb
    return temb + embedding.of(y, temb.shape[0])  # which a program keeps open, and `len` does not


def _form(y: Tensor) -> str:
    return f"{str(y.dtype).removeprefix('torch.')} {list(y.shape)}"
