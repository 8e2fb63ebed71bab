"""The spike raster: a few neurons of every layer over the time steps of one network call."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..config import DirectSpiking
from ..convert.raster import Raster
from .modes import BLUE, Mode
from .parse import clean
from .style import WIDTH

MOST_PANELS, MOST_LAYERS, MOST_STEPS = 3, 100, 400
ROWS = 360  # neurons of the whole figure that the eye still tells apart
POSITIVE, NEGATIVE = "#222222", "#d62728"
BAND = "#f3f3f3"  # ground of every other layer


def raster_chart(rasters: Sequence[Raster]) -> Figure:
    """Time steps to the right, layers downwards; a panel for each run mode, with the same neurons in each.

    rasters: of the same neurons. Within a layer neurons are sorted by their spikes in the first panel.
    """
    rasters, names = rasters[:MOST_PANELS], rasters[0].layers[:MOST_LAYERS]
    trains = [raster.events.numpy()[: len(names), :, :MOST_STEPS] for raster in rasters]
    rows = shown_rows(trains[0])
    figure = Figure(figsize=(WIDTH, 1.4 + max(0.17 * len(names), 0.03 * rows.size)), layout="constrained")
    widths = [events.shape[2] + 1 for events in trains]
    panels = figure.subplots(1, len(rasters), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, raster, events in zip(panels, rasters, trains, strict=True):
        _panel(axes, raster, np.take_along_axis(events, rows[:, :, None], axis=1))
        axes.tick_params(axis="y", length=0)
    middles = (np.arange(len(names)) + 0.5) * (rows.shape[1] + 1)
    panels[0].set_yticks(middles, [layer_label(name) for name in names], fontsize=7.5)
    marks = [Patch(color=POSITIVE, label="spike")]
    if not all(raster.is_direct for raster in rasters):
        marks.append(Patch(color=NEGATIVE, label="negative spike: takes one back"))
    figure.legend(handles=marks, loc="outside upper left", ncols=2)
    return figure


def shown_rows(events: np.ndarray) -> np.ndarray:
    """events [layers, K, steps] → the neurons to show [layers, k], most spikes first.

    Where not all fit, they are taken at equal distances from the sorted ones, which keeps the mix of busy and silent.
    """
    layers, recorded, _ = events.shape
    kept = min(recorded, max(4, ROWS // layers))
    order = np.argsort(-np.abs(events).sum(2, dtype=np.int64), axis=1, kind="stable")
    return order[:, np.linspace(0, recorded - 1, kept).round().astype(int)]


def layer_label(name: str) -> str:
    """A neuron layer's name without its place in the sequence: "downblocks.0.block1.1" → "downblocks.0.block1"."""
    return clean(re.sub(r"\.[0-9]+$", "", name), 40)


def _panel(axes, raster: Raster, events: np.ndarray) -> None:
    layers, neurons, steps = events.shape
    height = neurons + 1  # of a layer, in rows: its neurons and a margin
    for layer in range(1, layers, 2):
        axes.axhspan(layer * height, (layer + 1) * height, color=BAND, linewidth=0)
    axes.hlines(np.arange(1, layers) * height, 0.5, steps + 0.5, color="#cccccc", linewidth=0.5)
    _bars(axes, events > 0, POSITIVE)
    _bars(axes, events < 0, NEGATIVE)
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_ylim(layers * height, 0)
    axes.grid(visible=False)
    spiking = raster.spiking
    direct = isinstance(spiking, DirectSpiking)
    title = clean(spiking.label if direct else Mode("converted", spiking).schedule_label)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10, pad=16)
    own = not isinstance(spiking, DirectSpiking) and spiking.schedule == "layer_sync"
    cut = f", the first {steps}" if steps < raster.events.shape[2] else ""
    axes.set_xlabel(("step of each layer's own window" if own else "time step") + cut)
    axes.set_xticks(_ticks(steps))
    if raster.window < steps:
        axes.axvline(raster.window + 0.5, color=BLUE, linewidth=1.8)
        axes.annotate(
            "settling",
            (raster.window + 0.5, 1),
            (3, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=BLUE,
            fontsize=9,
        )


def _bars(axes, where: np.ndarray, colour: str) -> None:
    """A bar in every cell of `where` [layers, k, steps] that is true."""
    layer, neuron, step = np.nonzero(where)
    row = layer * (where.shape[1] + 1) + neuron + 0.5
    corners = np.array([(-0.4, 0.12), (0.4, 0.12), (0.4, 0.88), (-0.4, 0.88)])
    cells = np.stack([step + 1, row], axis=1)[:, None] + corners
    # Unsnapped: rounded to whole pixels, bars of one height would differ in it.
    axes.add_collection(PolyCollection(cells, facecolor=colour, linewidth=0, snap=False))


def _ticks(steps: int) -> list[int]:
    """Every step where there is room, otherwise the first and every tenth or fiftieth."""
    distance = 1 if steps <= 20 else 10 if steps <= 100 else 50
    return sorted({1, *range(distance, steps + 1, distance)})
