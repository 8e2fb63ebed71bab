"""The charts of a report, each a function from numbers to a matplotlib figure, drawn without a display."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..convert import GapReport
from ..run.tables import ROUNDING
from .carried import CarryFile
from .collect import Run
from .direct import tuned_chart
from .finetuned import FineTuned
from .modes import GREY, PURPLE, Mode, colours
from .raster import raster_chart
from .style import WIDTH
from .summary import all_reports

LIGHT = "#b5b5b5"
STYLE: dict[Any, Any] = {  # matplotlib's own type lists the names there are
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # names come from files
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def charts(run: Run) -> dict[str, bytes]:
    """PNG files by name (without ending) of every chart there are numbers for."""
    reports = all_reports(run)
    fired = {
        mode: report for mode, report in reports.items() if any(b.firing_rate == b.firing_rate for b in _all(report))
    }
    drawn = {}
    with matplotlib.rc_context(STYLE):
        if len(run.loss) > 1:
            drawn["loss"] = to_png(loss_chart(run.loss))
        if reports:
            drawn["gap"] = to_png(gap_chart(reports))
        if fired:
            drawn["firing_rate"] = to_png(rate_chart(fired))
        if run.finetuned and run.finetuned.blocks:
            drawn["finetune"] = to_png(finetune_chart(run.finetuned))
        if run.carried and run.carried.spikes:
            drawn["carry"] = to_png(carry_chart(run.carried))
        if run.rasters:
            drawn["raster"] = to_png(raster_chart(run.rasters))
    for tuned in run.tsm_runs:
        drawn |= {tuned_chart(kind, tuned.logdir.name): png for kind, png in charts(tuned).items()}
    return drawn


def to_png(figure: Figure) -> bytes:
    """The figure at 144 dots per inch. It belongs to no window and goes with its last reference."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def loss_chart(loss: list[tuple[int, float]]) -> Figure:
    """loss: (step, training loss). The thin line is every logged batch, the thick one a running mean."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.add_subplot()
    steps, values = np.array([step for step, _ in loss]), np.array([value for _, value in loss])
    window = len(loss) // 20
    if window < 2:
        axes.plot(steps, values, color=GREY, marker="o", markersize=3)
    else:
        axes.plot(steps, values, color=LIGHT, linewidth=0.7, label="each logged batch")
        smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
        axes.plot(
            steps[window // 2 : window // 2 + len(smooth)],
            smooth,
            color=GREY,
            linewidth=2,
            label=f"mean of {window} of them",
        )
        axes.legend(loc="upper right")
    if values.min() > 0 and values.max() > 3 * values.min():
        _log_axis(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (mean squared error)")
    return figure


def gap_chart(reports: dict[Mode, GapReport]) -> Figure:
    """Relative error by block on a logarithmic axis, broken between what matters and what is rounding."""
    blocks, prediction = _block_names(reports)
    names = [*blocks, prediction]
    series = {mode: _values(report, names, "error") for mode, report in reports.items()}
    errors = np.concatenate(list(series.values()))
    errors = errors[np.isfinite(errors)]
    large, small = errors[errors >= ROUNDING], errors[errors < ROUNDING]
    figure = Figure(figsize=(WIDTH, 4.6 if large.size and small.size else 3.8), layout="constrained")
    if large.size and small.size:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
    else:
        upper = lower = figure.add_subplot()
    if large.size:
        _plot(upper, series, keep=lambda value: value >= ROUNDING)
        _log_axis(upper)
        upper.set_ylim(0.7 * large.min(), 1.5 * large.max())
        upper.grid(axis="x", visible=False)
        upper.set_ylabel("relative error")
    if small.size:
        _plot(lower, {m: np.where(v == 0, 1e-18, v) for m, v in series.items()}, keep=lambda value: value < ROUNDING)
        lower.set_yscale("log")
        lower.set_ylim(3e-19, 1e-12 if small.max() < 1e-12 else ROUNDING)
        lower.set_yticks([1e-18, 1e-16, 1e-14], ["0", "1e-16", "1e-14"])
        lower.minorticks_off()
        lower.set_ylabel("rounding")
    _name_blocks(lower, names)
    _legend(figure, upper)
    return figure


def rate_chart(reports: dict[Mode, GapReport]) -> Figure:
    """Spikes per neuron and time step of the window, of the blocks that have neurons."""
    blocks, _ = _block_names(reports)
    by_name = [{b.block: b.firing_rate for b in _all(report)} for report in reports.values()]
    names = [name for name in blocks if any(math.isfinite(rates.get(name, math.nan)) for rates in by_name)]
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.add_subplot()
    _plot(axes, {mode: _values(report, names, "firing_rate") for mode, report in reports.items()})
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("spikes per neuron and step")
    _name_blocks(axes, names)
    _legend(figure, axes)
    return figure


def finetune_chart(tuned: FineTuned) -> Figure:
    """Each block's gap before and after its own tuning, and the prediction's gap once it is tuned."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.add_subplot()
    x = np.arange(len(tuned.blocks))
    before = np.array([block.gap_before for block in tuned.blocks])
    after = np.array([block.gap_after for block in tuned.blocks])
    axes.vlines(x, before, after, color=PURPLE, linewidth=2.5, alpha=0.45)
    axes.plot(x, before, "o", color=PURPLE, markerfacecolor="white", markersize=7, label="block before")
    axes.plot(x, after, "o", color=PURPLE, label="block after")
    prediction = np.array([block.prediction_gap for block in tuned.blocks])
    axes.plot(x, prediction, color=GREY, linewidth=1.2, label="prediction")
    if np.isfinite(tuned.prediction_gap):
        axes.axhline(tuned.prediction_gap, color=GREY, linewidth=1, linestyle=":", label="prediction, nothing tuned")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("relative error on held-back images")
    _name_blocks(axes, [block.block for block in tuned.blocks], bold_last=False)
    _legend(figure, axes)
    return figure


def carry_chart(carried: CarryFile) -> Figure:
    """Spikes of every call along the sampler's path, from rest and carried."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for (label, series), colour, marker in zip(carried.spikes.items(), (GREY, PURPLE), "so", strict=False):
        shown = [value if value > 0 else math.nan for value in series]
        axes.plot(range(1, len(series) + 1), shown, color=colour, marker=marker, markersize=4, label=label)
    _log_axis(axes)
    axes.set_xlabel("call of the sampler, from noise to image")
    axes.set_ylabel("spikes per image")
    _legend(figure, axes)
    return figure


def _log_axis(axes) -> None:
    """A logarithmic vertical axis with plain numbers at 1, 2 and 5 of every decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _all(report: GapReport) -> list:
    return [*report.blocks, report.prediction]


def _block_names(reports: dict[Mode, GapReport]) -> tuple[list[str], str]:
    """Names of all blocks in the order of the data, and that of the prediction."""
    names = list(dict.fromkeys(block.block for report in reports.values() for block in report.blocks))
    return names, next(iter(reports.values())).prediction.block


def _values(report: GapReport, names: list[str], field: str) -> np.ndarray:
    """One number per name, nan where the report has none."""
    by_name = {block.block: getattr(block, field) for block in _all(report)}
    return np.array([by_name.get(name, math.nan) for name in names], dtype=float)


def _plot(axes, series: dict[Mode, np.ndarray], keep=lambda value: value == value) -> None:
    """One line per mode; values that `keep` turns down are left out of this axis."""
    palette = colours(list(series))
    for index, (mode, values) in enumerate(series.items()):
        shown = np.where(keep(values), values, np.nan)
        # Later lines lie on earlier ones: larger, hollow markers first keep both visible where they coincide.
        axes.plot(
            np.arange(len(values)),
            shown,
            color=palette[mode],
            marker=MARKERS[index % len(MARKERS)],
            markerfacecolor="white" if index % 2 == 0 else palette[mode],
            markersize=7 if index % 2 == 0 else 4.5,
            label=mode.label,
        )


def _name_blocks(axes, names: list[str], bold_last: bool = True) -> None:
    size = 9 if len(names) <= 30 else 7
    axes.set_xticks(np.arange(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_xlim(-0.5, max(0.5, len(names) - 0.5))
    axes.grid(axis="x", visible=False)
    if bold_last and names and names[-1] == "prediction":
        axes.get_xticklabels()[-1].set_fontweight("bold")


def _legend(figure: Figure, axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    # Columns are as wide as the longest label; 150 characters and their markers fill the figure's width.
    fitting = 150 // (8 + max((len(label) for label in labels), default=1))
    figure.legend(handles, labels, loc="outside upper left", ncols=max(1, min(4, fitting, len(handles))))
