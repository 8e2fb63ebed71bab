"""Which class each image is of, and guidance by it: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import NO_CLASS, SampleConfig, check_int, class_index, require

MOST_COLUMNS = 32


def classes_of(net: object) -> tuple[int, Sequence[str]]:
    """How many classes a network, or its configuration, knows, and their names; 0 and none of most."""
    count = getattr(net, "num_classes", 0)
    return (count, tuple(getattr(net, "class_names", ()))) if isinstance(count, int) else (0, ())


def resolved(net: object, config: SampleConfig) -> SampleConfig:
    """`config` with its class as a number, or "none". net: the network or its configuration.

    Raises UserError for an unknown class, for one or for guidance where the network knows none, and for guidance away
    from no class towards no class.
    """
    count, names = classes_of(net)
    for flag, value in (("guidance", config.guidance or None), ("class_label", config.class_label)):
        require(
            value is None or count > 0, f"--{flag}={value}: the network knows no classes; train one with --class_cond"
        )
    require(
        not count or config.sampler != "analytic_dpm",
        "--sampler=analytic_dpm: its noise statistics are of a network that is told no class; use ddim or a solver",
    )
    if config.class_label is None:
        return config
    index = class_index(config.class_label, count, names)
    require(
        not (config.guidance and index == count),
        f"--guidance={config.guidance:g}: guides towards a class; name one with --class_label",
    )
    return replace(config, class_label=NO_CLASS if index == count else index)


def without_class(net: object, config: SampleConfig) -> SampleConfig:
    """`config`, of no class where it names none: for images that are given, and not one of each class."""
    asks = config.class_label is None and classes_of(net)[0] > 0
    return replace(config, class_label=NO_CLASS) if asks else config


def given_labels(net: object, labels: Sequence[int | str] | Tensor, n: int) -> Tensor:
    """The classes of n images, int64 [n], from numbers and names; the number of classes, or "none", is no class.

    Raises UserError for other lengths, unknown classes, and a network that knows none.
    """
    count, names = classes_of(net)
    require(count > 0, "labels: the network knows no classes; train one with --class_cond")
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    values = list(values) if isinstance(values, range) else values
    require(isinstance(values, (list, tuple)) and len(values) == n, f"labels: expected {n}, one an image")
    indices = []
    for value in values:
        label = value if isinstance(value, str) else check_int(value, "labels")
        indices.append(count if label == count else class_index(label, count, names))
    return torch.tensor(indices, dtype=torch.int64)


def columns(net: object, config: SampleConfig, images: int) -> int:
    """Images to a line of a grid: one of each class where they come in turn, else as many as there are lines."""
    count, _ = classes_of(net)
    in_turn = config.class_label is None and 0 < count <= MOST_COLUMNS
    return count if in_turn else max(1, math.isqrt(images))


class Branches(NamedTuple):
    """What a network is called with beside x and t for R images.

    labels: int64 [R]; None for a network that is not told them. null: the number that says "no class".
    """

    labels: Tensor | None = None
    null: int = 0
    guidance: float = 0.0

    @property
    def parts(self) -> int:
        return 2 if self.guidance else 1

    def call(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The network's arguments, with guidance the rows without their class after those with it, in one batch."""
        if self.labels is None:
            return x, t
        if not self.guidance:
            return x, t, self.labels
        return torch.cat([x, x]), torch.cat([t, t]), torch.cat([self.labels, torch.full_like(self.labels, self.null)])

    def combined(self, answer: Tensor, channels: int) -> Tensor:
        """The prediction [R, …] from the network's answer to `call`.

        Guidance is of the first `channels`; a variance behind them is that of the class (as DiT has it).
        """
        if not self.guidance:
            return answer
        conditional, unconditional = answer.chunk(2)
        guided = (1 + self.guidance) * conditional - self.guidance * unconditional
        guided[:, channels:] = conditional[:, channels:]
        return guided

    def rows(self, places: Sequence[int], total: int) -> list[int]:
        """The rows of `call` that belong to the images at the `places` of `total`."""
        return [branch * total + row for branch in range(self.parts) for row in places]


def branches_of(net: object, config: SampleConfig, indices: Sequence[int], labels: Tensor | None, device) -> Branches:
    """Of the images `indices`. labels: by image, [N], rows beyond the last image repeating it; None: as `config` says.

    Raises UserError as `resolved`.
    """
    config, (count, _) = resolved(net, config), classes_of(net)
    if not count:
        return Branches()
    if labels is not None:
        chosen = labels[[min(index, len(labels) - 1) for index in indices]]
    elif config.class_label is None:
        chosen = torch.tensor([index % count for index in indices])
    else:
        chosen = torch.full((len(indices),), class_index(config.class_label, count))
    return Branches(chosen.to(device), count, config.guidance)
