"""The data beside what every sampler made of the same noise."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .sample import Result

STYLE: dict[Any, Any] = {  # matplotlib's own type lists the names there are
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#333333",
    "axes.grid": False,
}
PANEL, LABEL = 1.55, 0.45  # inches
MARGIN = 1.15  # of a panel, in largest coordinates of the data
GRID = 6  # pictures to a side


def picture(data: Tensor, results: Sequence[Result]) -> bytes:
    """PNG: a row for each sampler, first the data [N, *S], then one panel for each number of network calls."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.sampler, []).append(result)
    columns = 1 + max(map(len, rows.values()))
    size = (PANEL * columns + LABEL, (PANEL + 0.2) * len(rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, row_results) in zip(axes, rows.items(), strict=True):
            _panel(line[0], data, data, "data")
            line[0].set_ylabel(name)
            for place, result in zip(line[1:], row_results, strict=False):
                _panel(place, result.samples, data, f"{result.calls} calls")
            for unused in line[1 + len(row_results) :]:
                unused.set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
        return buffer.getvalue()


def _panel(axes, samples: Tensor, data: Tensor, title: str) -> None:
    axes.set_title(title, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(True)
    if samples.dim() == 4:
        axes.imshow(_tiles(samples), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        return
    reach = MARGIN * float(data.abs().max())
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    x, y = samples.numpy().T
    axes.plot(x, y, ".", markersize=0.9, alpha=0.5, color="#1f4e9c", markeredgewidth=0)


def _tiles(images: Tensor) -> np.ndarray:
    """The first pictures [N, 1, H, W] in a square, with dark gaps."""
    height = images.shape[-1] + 1
    sheet = np.full((GRID * height - 1, GRID * height - 1), -0.4, dtype=np.float32)
    for index, image in enumerate(images[: GRID**2, 0]):
        y, x = (height * place for place in divmod(index, GRID))
        sheet[y : y + height - 1, x : x + height - 1] = image.numpy()
    return sheet
