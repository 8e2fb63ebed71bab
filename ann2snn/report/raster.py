"""The spike raster: a few neurons of every layer over the time steps of one network call, and what each one did."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ..config import SpikingConfig
from ..convert.raster import Raster
from ..run.tables import counted
from .modes import Mode
from .parse import clean
from .svg import WIDTH, Entry, escape, svg, units

MOST_PANELS, MOST_LAYERS, MOST_STEPS = 3, 100, 400
ROWS = 360  # neurons of the whole figure that the eye still tells apart
ROW = 3.0  # user units of a neuron
LEFT, RIGHT, BETWEEN, HEAD, FOOT = 176, 8, 26, 34, 44


def raster_chart(rasters: Sequence[Raster]) -> tuple[str, list[str], list[list[str]], list[Entry]]:
    """(SVG, header, rows, legend): time steps to the right, layers downwards; a panel for each run mode.

    rasters: of the same neurons. Within a layer neurons are sorted by their spikes in the first panel. Each neuron's
    row says which it is (`data-neuron`), its events (`data-events`) and its membrane potentials (`data-potentials`,
    in hundredths), step by step.
    """
    rasters, names = rasters[:MOST_PANELS], rasters[0].layers[:MOST_LAYERS]
    trains = [raster.events.numpy()[: len(names), :, :MOST_STEPS] for raster in rasters]
    rows = shown_rows(trains[0])
    labels = [layer_label(name) for name in names]
    marks = [("spike", "ink", False)]
    if not all(raster.is_direct for raster in rasters):
        marks.append(("negative spike: takes one back", "red", False))
    top, height = HEAD, len(names) * layer_height(rows)
    body = [*(_layer_name(label, top + (i + 0.5) * layer_height(rows)) for i, label in enumerate(labels))]
    widths = [events.shape[2] for events in trains]
    unit = (WIDTH - LEFT - RIGHT - BETWEEN * (len(rasters) - 1)) / sum(widths)
    left = LEFT
    for raster, events in zip(rasters, trains, strict=True):
        body.append(_panel(raster, events, rows, labels, (left, top, unit)))
        left += events.shape[2] * unit + BETWEEN
    drawn = svg("Spike raster", top + height + FOOT, "".join(body), ' data-kind="raster" tabindex="0"')
    return drawn, *_table(rasters, trains, labels), marks


def shown_rows(events: np.ndarray) -> np.ndarray:
    """events [layers, K, steps] → the neurons to show [layers, k], most spikes first.

    Where not all fit, they are taken at equal distances from the sorted ones, which keeps the mix of busy and silent.
    """
    layers, recorded, _ = events.shape
    count = min(recorded, max(4, ROWS // layers))
    order = np.argsort(-np.abs(events).sum(2, dtype=np.int64), axis=1, kind="stable")
    return order[:, np.linspace(0, recorded - 1, count).round().astype(int)]


def layer_label(name: str) -> str:
    """A neuron layer's name without its place in the sequence: "downblocks.0.block1.1" → "downblocks.0.block1"."""
    return clean(re.sub(r"\.[0-9]+$", "", name), 40)


def layer_height(rows: np.ndarray) -> float:
    """Of one layer, in user units: its neurons and a margin, and room for its name."""
    return max(11.0, (rows.shape[1] + 1) * ROW)


def panel_title(raster: Raster) -> str:
    """How the network ran."""
    return clean(raster.spiking.label if raster.is_direct else Mode("converted", raster.spiking).schedule_label)


def _layer_name(label: str, y: float) -> str:
    place = f'x="{LEFT - 7}" y="{units(y)}" dy=".33em" text-anchor="end"'
    return f'<text class="tick" {place}>{escape(clean(label, 24))}</text>'


def _panel(
    raster: Raster, events: np.ndarray, rows: np.ndarray, labels: list[str], place: tuple[float, float, float]
) -> str:
    """One run mode. place: left, top and the width of a time step, in user units."""
    (left, top, unit), (layers, _, steps) = place, events.shape
    pitch, right = layer_height(rows), place[0] + events.shape[2] * place[2]
    bands = "".join(
        f"M{units(left)} {units(top + i * pitch)}H{units(right)}v{units(pitch)}H{units(left)}z"
        for i in range(1, layers, 2)
    )
    parts = [f'<path class="band" d="{bands}"/>'] if bands else []
    for layer in range(layers):
        for place_in_layer, neuron in enumerate(rows[layer]):
            y = top + layer * pitch + (place_in_layer + 1) * (pitch / (rows.shape[1] + 1))
            parts.append(_neuron(raster, events[layer, neuron], (layer, int(neuron)), labels[layer], (left, y, unit)))
    is_layer_sync = isinstance(raster.spiking, SpikingConfig) and raster.spiking.schedule == "layer_sync"
    cut = f", the first {steps}" if steps < raster.events.shape[2] else ""
    bottom, middle = top + layers * pitch, units((left + right) / 2)
    for step in _ticks(steps):
        x = units(left + (step - 0.5) * unit)
        parts.append(f'<text class="tick" text-anchor="middle" x="{x}" y="{units(bottom + 15)}">{step}</text>')
    words = ("step of each layer's own window" if is_layer_sync else "time step") + cut
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{middle}" y="{units(bottom + 35)}">{words}</text>'
        f'<text class="title" x="{units(left)}" y="{units(top - 14)}">{escape(panel_title(raster))}</text>'
    )
    if raster.window < steps:
        x = units(left + raster.window * unit)
        parts.append(
            f'<path class="blue settling" d="M{x} {units(top - 10)}V{units(bottom)}"/>'
            f'<text class="blue word" x="{units(float(x) + 4)}" y="{units(top - 3)}">settling</text>'
        )
    return (
        f'<g data-panel="{escape(panel_title(raster))}" data-left="{units(left)}" data-unit="{unit:.4f}" '
        f'data-steps="{steps}" data-window="{raster.window}" data-top="{units(top)}" data-bottom="{units(bottom)}">'
        f"{''.join(parts)}</g>"
    )


def _neuron(
    raster: Raster, events: np.ndarray, index: tuple[int, int], label: str, place: tuple[float, float, float]
) -> str:
    """One neuron's bars and, as data, its events [steps] and potentials. index: its layer and row of the raster."""
    left, y, unit = place
    bars = [
        (
            colour,
            "".join(
                f"M{units(left + (s + 0.12) * unit)} {units(y)}h{units(0.76 * unit)}" for s in np.flatnonzero(mask)
            ),
        )
        for colour, mask in (("ink", events > 0), ("red", events < 0))
    ]
    paths = "".join(f'<path class="spikes {colour}" d="{bar}"/>' for colour, bar in bars if bar)
    back = int(-events[events < 0].sum(dtype=np.int64))
    name = f"{label}, neuron {int(raster.neurons[index]):,}"
    sent = int(events[events > 0].sum(dtype=np.int64))
    summary = f"{name}: {counted(sent, 'spike')}"
    summary += "" if raster.is_direct else f", {back} taken back, level {sent - back}"
    data = f'data-neuron="{escape(name)}" data-y="{units(y)}" data-events="{",".join(map(str, events))}"'
    if raster.potentials is not None:
        hundredths = (raster.potentials[index][: len(events)].double() * 100).round().int().tolist()
        data += f' data-potentials="{",".join(map(str, hundredths))}"'
    hit = f'<path class="hit" d="M{units(left)} {units(y)}h{units(len(events) * unit)}"/>'
    return f"<g {data}><title>{escape(summary)}</title>{hit}{paths}</g>"


def _ticks(steps: int) -> list[int]:
    """Every step where there is room, otherwise the first and every fifth, tenth or fiftieth."""
    distance = 1 if steps <= 8 else 5 if steps <= 40 else 10 if steps <= 100 else 50
    return sorted({1, *range(distance, steps + 1, distance)})


def _table(
    rasters: Sequence[Raster], trains: Sequence[np.ndarray], labels: list[str]
) -> tuple[list[str], list[list[str]]]:
    """(header, rows): spikes of the recorded neurons of each layer, and how many of them are negative."""
    header = ["layer", "neurons"]
    for raster in rasters:
        kinds = ("spikes",) if raster.is_direct else ("spikes", "negative")
        header += [f"{panel_title(raster)}: {kind}" for kind in kinds]
    rows = []
    for layer, label in enumerate(labels):
        row = [label, str(trains[0].shape[1])]
        for raster, events in zip(rasters, trains, strict=True):
            row.append(f"{np.abs(events[layer]).sum(dtype=np.int64):,}")
            row += [] if raster.is_direct else [f"{-events[layer][events[layer] < 0].sum(dtype=np.int64):,}"]
        rows.append(row)
    return header, rows
