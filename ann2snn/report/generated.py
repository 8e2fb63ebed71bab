"""Spikes of the generated images, as `evaluate.py` counted them beside the images."""

from __future__ import annotations

from collections.abc import Sequence

from ..generate.spikes import kept_spikes
from .collect import ImageSet
from .parse import is_carried

MOST_IMAGES = 100_000  # of a folder


def generated_spikes(sets: Sequence[ImageSet]) -> tuple[list[str], list[list[str]], range]:
    """(header, rows, numeric columns) as text: spikes of an image, all calls together, by folder that has counts."""
    header, rows = ["network", "images", "spikes per image", "fewest", "most", "calls from rest"], []
    for image_set in sets:
        entries = kept_spikes(image_set.folder, min(1 + max(image_set.indices), MOST_IMAGES))
        if not entries:
            continue
        spikes, restarts = ([getattr(entry, name) for entry in entries] for name in ("spikes", "restarts"))
        label = f"{image_set.mode.label}{', levels carried' if is_carried(image_set.settings) else ''}"
        counts = [sum(spikes) / len(spikes), min(spikes), max(spikes)]
        rested = f"{sum(restarts) / len(restarts):.3g}"
        rows.append([label, f"{len(spikes):,}", *(f"{count:,.0f}" for count in counts), rested])
    return header, rows, range(1, len(header))
