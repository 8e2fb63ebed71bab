"""The picture of `benchmarks.carry`: score against what an image costs, with the best of every way joined by a line."""

from __future__ import annotations

import io
from collections.abc import Sequence

#: Way of the table → (name in the picture, colour, marker).
LOOKS = {
    "b-bit ANN, zeros skipped": ("quantized ANN, zeros skipped", "#767676", "s"),
    "b-bit ANN, differences": ("quantized ANN, differences of calls", "#E69F00", "D"),
    "layer_sync, from rest": ("spiking, from rest", "#56B4E9", "^"),
    "layer_sync, carried": ("spiking, carried", "#6A51A3", "o"),
}
#: Scores above so many times the best are left out of the picture.
WORST_SHOWN = 1.5
#: Price list and part of an energy → title of its panel.
PANELS = {
    ("fp32", "compute_pj"): "fp32, arithmetic",
    ("fp32", "total_pj"): "fp32, with memory",
    ("int8", "total_pj"): "int8, with memory",
}
PICOJOULES_PER_MILLIJOULE = 1e9


def best(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, score) that no other beats in both, by cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points):
        if not front or score < front[-1][1]:
            front.append((cost, score))
    return front


def draw(rows: Sequence[dict]) -> bytes:
    """rows: of the table, those with a score, but for scores so much worse than the best that they hide the others'
    differences. Returns a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    scored = [line for line in rows if line.get("score") is not None]
    best_score = min((line["score"] for line in scored), default=0)
    scored = [line for line in scored if line["score"] <= WORST_SHOWN * best_score]
    streams = list(dict.fromkeys(line["way"] for line in scored if line["way"].startswith("stream")))
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    panels = figure.subplots(1, len(PANELS) + bool(streams), sharey=True)
    for axes, ((prices, part), title) in zip(panels, PANELS.items(), strict=False):
        for way, look in LOOKS.items():
            points = [
                (line["steps"] * line["energy"][prices][part] / PICOJOULES_PER_MILLIJOULE, line["score"])
                for line in scored
                if line["way"] == way and prices in line["energy"]
            ]
            _plot(axes, points, *look)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("mJ an image")
    for way in streams:
        points = [(line["steps"] * line["steps_run"], line["score"]) for line in scored if line["way"] == way]
        panels[-1].plot(*zip(*sorted(points), strict=True), "o-", markersize=5, label=way.removesuffix(", carried"))
    if streams:
        panels[-1].set_title("latency, step by step", fontsize=10)
        panels[-1].set_xlabel("time steps an image")
        panels[-1].legend(fontsize=8, frameon=False)
    for axes in panels:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("FD_efficientnet_lite0 (lower is better)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _plot(axes, points: Sequence[tuple[float, float]], label: str, colour: str, marker: str) -> None:
    if not points:
        return
    axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=5, alpha=0.55, label=label)
    axes.plot(*zip(*best(points), strict=True), "-", color=colour, linewidth=1.3)
