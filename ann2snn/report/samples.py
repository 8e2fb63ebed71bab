"""The sample strips as one picture, for slides and README files."""

from __future__ import annotations

import dataclasses
import io

from PIL import Image

from .collect import Run
from .grids import GridGroup, sample_groups

ROW_INCHES, LETTER_INCHES, STRIP_INCHES = 0.62, 0.07, 8.6


def samples_png(run: Run) -> bytes | None:
    """The first group of strips, a row each with its label on the left; None where nothing was generated."""
    groups = [g for g in sample_groups(dataclasses.replace(run, notes=[])) if g.strips]
    return _draw(groups[0]) if groups else None


def _draw(group: GridGroup) -> bytes:
    from matplotlib.figure import Figure

    rows = len(group.grids)
    label_inches = 0.2 + LETTER_INCHES * max(len(grid.title) for grid in group.grids)
    width = label_inches + STRIP_INCHES
    figure = Figure(figsize=(width, ROW_INCHES * rows + 0.1), dpi=100)
    for index, grid in enumerate(group.grids):
        left = label_inches / width
        axes = figure.add_axes((left, 1 - (index + 1) / rows, 1 - left, 0.94 / rows))
        axes.imshow(Image.open(io.BytesIO(grid.png)), interpolation="nearest", aspect="equal")
        axes.set_anchor("W")
        axes.axis("off")
        figure.text(left - 0.01, 1 - (index + 0.53) / rows, grid.title, ha="right", va="center", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
