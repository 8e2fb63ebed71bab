"""Tables as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from ..convert import GapReport
from ..data import ImageDataset

ROUNDING = 1e-9  # relative errors below are float64's rounding, not the network's


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned, first one left, the others right; numbers shortened to three significant digits."""
    cells = [[str(h) for h in header], *[[show(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same as Markdown; a bar inside a cell would end it, and becomes a slash."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def show(value: object) -> str:
    """A cell: three significant digits for a float, "–" for nan or None."""
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def counted(count: float | None, noun: str) -> str:
    """Such as "1 image" or "5,000 images"; of a float three significant digits."""
    return f"{show(count)} {noun}{'' if count == 1 else 's'}"


def first_of(count: int, noun: str) -> str:
    """Such as "first image" or "first 8 images"."""
    return f"first {noun}" if count == 1 else f"first {counted(count, noun)}"


def parameters_of(net: nn.Module) -> str:
    """Such as "2,423,107 parameters"."""
    return counted(sum(parameter.numel() for parameter in net.parameters()), "parameter")


def images_of(dataset: ImageDataset) -> str:
    """Such as "60,000 images of fashion_mnist (train)"."""
    return f"{counted(len(dataset), 'image')} of {dataset.name} ({dataset.split})"


def gap_table(reports: Sequence[GapReport]) -> str:
    """Block by block: error of every report, then firing rate and share of negative spikes of each."""
    header = ["block"]
    for report in reports:
        header += [f"{report.label}: error", "rate", "negative"]
    rows = []
    for group in zip(*[report.rows() for report in reports], strict=True):
        row: list[object] = [group[0].block]
        for gap in group:
            row += [gap.error, gap.firing_rate, gap.negative_share]
        rows.append(row)
    return text_table(header, rows)


def distance(gap: float) -> str:
    """A relative error in words."""
    if gap == 0:
        return "equals its quantized ANN exactly"
    return f"equals it to rounding ({gap:.0e})" if gap < ROUNDING else f"is {percent(gap)} off"


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"
