"""Spikes of a converted network while it samples, image by image, and the file that keeps them beside the images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files.atomic import cause
from ..files.lines import append_line
from ..files.plain import read_text
from ..neurons import IFNeuron
from ..run.folder import SPIKES_FILE

EXACT_IN_SINGLE = 2**24
MOST_BYTES = 2**30  # of such a file: ten million lines


@dataclass(frozen=True)
class ImageSpikes:
    """One image, all network calls together.

    spikes: units of events, of either sign. time_steps: that were run, of layer_sync its passes. restarts: calls that
    began from rest.
    """

    image: int
    spikes: int
    time_steps: int
    restarts: int


class SpikeTally:
    """A monitor that adds up the events of each row of a batch.

    spikes: int64 [N]. time_steps: run so far; of layer_sync its passes, one a call.
    """

    def __init__(self) -> None:
        self.spikes: Tensor | None = None
        self.time_steps = 0
        self._first: nn.Module | None = None

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        """events [L, N, *S]."""
        assert isinstance(neuron, IFNeuron)  # a converted network has no others
        self._first = self._first or neuron
        if neuron is self._first:
            self.time_steps += len(events)
        # Whole numbers, whose sum is exact in any order as long as the type has digits for it: the same on any machine.
        most = events[0, 0].numel() * (neuron.levels.hi - neuron.levels.lo)
        total = torch.float64 if most >= EXACT_IN_SINGLE else events.dtype
        counts = events.abs().flatten(2).sum(2, dtype=total).sum(0, dtype=torch.float64)
        self.spikes = counts if self.spikes is None else self.spikes + counts

    def of(self, images: Sequence[int], rows: Sequence[int], restarts: int, branches: int = 1) -> list[ImageSpikes]:
        """The tallies of `rows`, which became `images`. branches: in how many parts of a batch each row was."""
        assert self.spikes is not None, "the network has not been called"
        spikes = self.spikes.view(branches, -1).sum(0).long().tolist()
        return [
            ImageSpikes(image, spikes[row], self.time_steps, restarts) for image, row in zip(images, rows, strict=True)
        ]


def keep_spikes(folder: Path, image_spikes: Iterable[ImageSpikes]) -> None:
    """Append them to the folder's file, before the images are saved: an image that is there has been counted.

    Raises UserError if the disk refuses.
    """
    path = folder / SPIKES_FILE
    try:
        for line in image_spikes:
            append_line(path, json.dumps(vars(line)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {cause(error)}") from None


def kept_spikes(folder: Path, count: int) -> list[ImageSpikes]:
    """Those of images 0..count−1 that are known, of lines for the same image the last."""
    spikes_by_image: dict[int, ImageSpikes] = {}
    try:
        lines = read_text(folder / SPIKES_FILE, MOST_BYTES, errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            entry = ImageSpikes(**json.loads(line))
        except (ValueError, TypeError, RecursionError):  # cut off by a kill; the next line is whole again
            continue
        if all(type(value) is int for value in vars(entry).values()) and 0 <= entry.image < count:
            spikes_by_image[entry.image] = entry
    return [spikes_by_image[image] for image in sorted(spikes_by_image)]
