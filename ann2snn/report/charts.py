"""The charts of a report, each a function from numbers to SVG and to the table behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..convert import BlockGap, GapReport
from ..run.tables import ROUNDING, show
from .carried import CarryFile
from .collect import Run
from .direct import tuned_chart
from .finetuned import FineTuned
from .modes import BLUE, GREEN, ORANGE, Mode, colours
from .pareto import pareto_chart
from .raster import raster_chart
from .summary import all_reports, amount
from .svg import Axis, Entry, Plot, Series, drawing, finite, legend, linear, logarithmic, named

MOST_POINTS, MOST_MARKS = 400, 80  # of a loss curve
SLANTED = 108  # user units below a plot, for the names of blocks
HEAT_ROW, MOST_TIMES = 26, 12
QUARTER_NAMES = ("first quarter (least noise)", "second", "third", "last (most noise)")
QUARTER_COLOURS = (BLUE, GREEN, "ochre", ORANGE)

Rows = list[list[str]]
Names = tuple[str, str]  # of two runs
NO_NAMES = ("", "other")


@dataclass(frozen=True)
class Chart:
    """svg: the element, "" if there is nothing to draw. header, rows: what is drawn, as text. key: its legend."""

    svg: str
    header: list[str]
    rows: Rows
    key: Sequence[Entry] = ()


def charts(run: Run) -> dict[str, Chart]:
    """Every chart there are numbers for, by name."""
    reports = all_reports(run)
    fired = {mode: report for mode, report in reports.items() if finite(b.firing_rate for b in report.rows())}
    all_charts: dict[str, Chart | None] = {
        "loss": loss_chart(run.loss) if len(run.loss) > 1 else None,
        "loss_by_time": loss_by_time_chart(run.loss_by_time) if any(len(q) > 1 for q in run.loss_by_time) else None,
        "gap": gap_chart(reports) if reports else None,
        "gap_by_time": heat_chart(reports),
        "firing_rate": rate_chart(fired) if fired else None,
        "finetune": finetune_chart(run.finetuned) if run.finetuned and run.finetuned.blocks else None,
        "carry": carry_chart(run.carried) if run.carried and run.carried.spikes else None,
        "pareto": _drawn(pareto_chart(run)),
        "raster": _drawn(raster_chart(run.rasters)) if run.rasters else None,
    }
    for tuned in run.tsm_runs:
        all_charts |= {tuned_chart(kind, tuned.logdir.name): chart for kind, chart in charts(tuned).items()}
    return {name: chart for name, chart in all_charts.items() if chart}


def _drawn(parts: tuple[str, list[str], Rows, list[Entry]] | None) -> Chart | None:
    return Chart(*parts) if parts else None


def loss_chart(loss: list[tuple[int, float]]) -> Chart:
    """loss: (step, training loss). The thin line is every logged batch, the thick one a running mean."""
    window = len(loss) // 20
    points = _thinned(loss, MOST_POINTS)
    plot = _loss_plot(loss)
    plot.draw(Series("", "faint" if window > 1 else "grey", points, [""] * len(points)), marked=False)
    smooth, key = _smooth(loss, window), []
    if window > 1:
        plot.draw(Series("", "grey", _thinned(smooth, MOST_POINTS), [""] * min(len(smooth), MOST_POINTS)), marked=False)
        key = [("each logged batch", "faint", False), (f"mean of {window} of them", "grey", False)]
    marked = _thinned(smooth, MOST_MARKS)
    titles = [f"step {step:,}: {value:.4g}" for step, value in marked]
    plot.draw(Series("", "grey", marked, titles, "none"), 2.5)
    rows = [[f"{step:,}", f"{value:.4g}"] for step, value in marked]
    return Chart(drawing("Training loss", [plot]), ["step", f"loss{', mean' if window > 1 else ''}"], rows, key)


def loss_by_time_chart(quarters: list[list[tuple[int, float]]]) -> Chart:
    """quarters: (step, training loss) at the diffusion times of each, the one with the least noise first.

    Lines are running means, as a batch has few images of a quarter.
    """
    plot = _loss_plot([point for loss in quarters for point in loss])
    rows, key = [], []
    for loss, colour, name in zip(quarters, QUARTER_COLOURS, QUARTER_NAMES, strict=True):
        if not loss:
            continue
        marked = _thinned(_smooth(loss, len(loss) // 20), MOST_MARKS)
        titles = [f"{name}, step {step:,}: {value:.4g}" for step, value in marked]
        plot.draw(Series("", colour, marked, titles), 2.5)
        rows += [[name, f"{step:,}", f"{value:.4g}"] for step, value in marked]
        key.append((name, colour, False))
    return Chart(drawing("Training loss by diffusion time", [plot]), ["diffusion times", "step", "loss"], rows, key)


def _loss_plot(loss: list[tuple[int, float]]) -> Plot:
    values = [value for _, value in loss]
    is_log = min(values) > 0 and max(values) > 3 * min(values)
    y = (logarithmic if is_log else linear)("loss (mean squared error)", values)
    return Plot(linear("training step", [step for step, _ in loss]), y, 230).axes()


def _smooth(loss: list[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """Means of `window` points after one another; the points themselves where that is less than two."""
    if window < 2:
        return loss
    sums = [0.0]
    for _, value in loss:
        sums.append(sums[-1] + value)
    means = [(sums[i + window] - sums[i]) / window for i in range(len(loss) - window + 1)]
    return [(loss[i + window // 2][0], mean) for i, mean in enumerate(means)]


def _thinned(points: list, most: int) -> list:
    """At most `most` of them, evenly spaced, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[i * (len(points) - 1) // (most - 1)] for i in range(most)]


@dataclass(frozen=True)
class Line:
    """One line over the blocks. values: one of each block."""

    label: str
    colour: str
    values: list[float]
    is_dashed: bool = False


def gap_chart(
    reports: dict[Mode, GapReport], other: dict[Mode, GapReport] | None = None, of: Names = NO_NAMES
) -> Chart:
    """Relative error by block on a logarithmic axis; what is rounding stands on the axis' foot.

    other: another run's, drawn dashed into the same axes. of: what the runs are called.
    """
    reports_by_run = dict(zip(of, (reports, other or {}), strict=True))
    names = [*_block_names(*reports_by_run.values()), "prediction"]
    lines = [
        Line(f"{run}: {mode.label}" if run else mode.label, colours(list(by_mode))[mode], errors, run == of[1])
        for run, by_mode in reports_by_run.items()
        for mode, errors in ((mode, _values(report, names, lambda b: b.error)) for mode, report in by_mode.items())
    ]
    errors = finite(value for line in lines for value in line.values)
    large = [error for error in errors if error >= ROUNDING]
    y = logarithmic("relative error", large)
    if len(large) < len(errors):  # room for what is rounding
        foot = y.low / (y.high / y.low) ** 0.12
        y = Axis(y.label, foot, y.high, ((foot, "0"), *y.ticks), is_log=True)
    return _by_block("Gap by block", names, lines, y, lambda error: error if error >= ROUNDING else y.low)


def rate_chart(reports: dict[Mode, GapReport]) -> Chart:
    """Spikes per neuron and time step of the window, of the blocks that have neurons."""
    with_neurons = {b.block for report in reports.values() for b in report.blocks if math.isfinite(b.firing_rate)}
    names, palette = [name for name in _block_names(reports) if name in with_neurons], colours(list(reports))
    lines = [
        Line(mode.label, palette[mode], _values(report, names, lambda b: b.firing_rate))
        for mode, report in reports.items()
    ]
    y = linear("spikes per neuron and step", [rate for line in lines for rate in line.values], from_zero=True)
    return _by_block("Firing rate by block", names, lines, y, lambda rate: rate)


def _by_block(label: str, names: list[str], lines: list[Line], y: Axis, place: Callable[[float], float]) -> Chart:
    """The lines, block after block. place: where a value stands."""
    plot = Plot(named(names), y, 250).axes(slanted=True)
    key, rows = [], [[name, *(show(line.values[i]) for line in lines)] for i, name in enumerate(names)]
    for index, line in enumerate(lines):
        titles = [f"{name}, {line.label}: {show(value)}" for name, value in zip(names, line.values, strict=True)]
        points = [(i, place(value) if math.isfinite(value) else value) for i, value in enumerate(line.values)]
        # Later lines lie on earlier ones: larger, hollow marks first keep both visible where they coincide.
        hollow = index % 2 == 0
        style = "dashed" if line.is_dashed else ""
        plot.draw(Series(line.label, line.colour, points, titles, style, hollow), 5 if hollow else 3)
        key.append((f"{line.label}{' (dashed)' if line.is_dashed else ''}", line.colour, hollow))
    return Chart(drawing(label, [plot], SLANTED), ["block", *(line.label for line in lines)], rows, key)


def heat_chart(reports: dict[Mode, GapReport]) -> Chart | None:
    """Relative error of block × diffusion time, from noise to image, of the modes that differ; None if not measured."""
    timed = {mode: report for mode, report in reports.items() if report.times}
    differing = {
        mode: report
        for mode, report in timed.items()
        if any(error >= ROUNDING for block in report.rows() for error in block.errors_at)
    }
    if not timed:
        return None
    names, top = [*_block_names(timed), "prediction"], 0.0
    plots: list[Plot] = []
    most = max((e for r in differing.values() for b in r.rows() for e in finite(b.errors_at)), default=1.0)
    palette = colours(list(reports))
    for index, (mode, report) in enumerate(differing.items()):
        times = sorted(report.times, reverse=True)[:MOST_TIMES]
        ticks = tuple((row + 0.5, f"t = {time:g}") for row, time in enumerate(times))
        is_last = index == len(differing) - 1
        axis = named(names if is_last else [""] * len(names))
        plot = Plot(axis, Axis("", len(times), 0, ticks), HEAT_ROW * len(times))
        plot.top += top
        words, height = legend([(f"{mode.label}; strongest: {show(most)}", palette[mode], False)], plot.top - 8)
        plot.top, plot.parts = plot.top + height, [words]
        plots.append(plot.axes(is_last, grid=False))
        top = plot.top + plot.height
        by_name = {block.block: block for block in report.rows()}
        for column, name in enumerate(names):
            for row, time in enumerate(times):
                error = _error_at(by_name.get(name), report.times.index(time))
                corners = (column - 0.48, row + 0.04), (column + 0.48, row + 0.96)
                title = f"{name} at t = {time:g}, {mode.label}: {show(error)}"
                plot.cell(*corners, palette[mode], min(error / most, 1) if error == error else 0, title)
    svg = drawing("Error by block and diffusion time", plots, SLANTED) if plots else ""
    header, rows = ["network", "block"], []
    header += [f"t = {time:g}" for time in sorted(next(iter(timed.values())).times, reverse=True)]
    for mode, report in timed.items():
        order = sorted(range(len(report.times)), key=lambda i: -report.times[i])
        for block in report.rows():
            rows.append([mode.label, block.block, *(show(_error_at(block, i)) for i in order)])
    return Chart(svg, header, rows)


def _error_at(block: BlockGap | None, index: int) -> float:
    return block.errors_at[index] if block and index < len(block.errors_at) else math.nan


def finetune_chart(tuned: FineTuned) -> Chart:
    """Each block's gap before and after its own tuning, and the prediction's gap once it is tuned."""
    names = [block.block for block in tuned.blocks]
    series = [
        ("block before", "purple", [b.gap_before for b in tuned.blocks], "none", True),
        ("block after", "purple", [b.gap_after for b in tuned.blocks], "none", False),
        ("prediction", "grey", [b.prediction_gap for b in tuned.blocks], "", False),
    ]
    if math.isfinite(tuned.prediction_gap):
        series.append(("prediction, nothing tuned", "faint", [tuned.prediction_gap] * len(names), "dashed", False))
    y = linear("relative error on held-back images", [v for s in series for v in s[2]], from_zero=True)
    plot = Plot(named(names), y, 250).axes(slanted=True)
    for label, colour, values, line, hollow in series:
        titles = [f"{name}, {label}: {show(value)}" for name, value in zip(names, values, strict=True)]
        marks = Series(label, colour, list(enumerate(values)), titles, line, hollow)
        plot.draw(marks, 5 if hollow else 3.5, marked=line != "dashed")
    key = [(label, colour, hollow) for label, colour, _, _, hollow in series]
    rows = [[name, *(show(values[i]) for _, _, values, _, _ in series[:3])] for i, name in enumerate(names)]
    header = ["block", *(label for label, *_ in series[:3])]
    return Chart(drawing("Gap before and after tuning", [plot], SLANTED), header, rows, key)


def carry_chart(carried: CarryFile | None, other: CarryFile | None = None, of: Names = NO_NAMES) -> Chart:
    """Spikes of every call along the sampler's path, from rest and carried. other, of: as of `gap_chart`.

    Either may be missing, not both.
    """
    lines = [
        Line(f"{run}: {label}" if run else label, colour, list(series), run == of[1])
        for run, carry in zip(of, (carried, other), strict=True)
        if carry
        for (label, series), colour in zip(carry.spikes.items(), ("grey", "purple", "blue"), strict=False)
    ]
    calls = max(len(line.values) for line in lines)
    y = logarithmic("spikes per image", [value for line in lines for value in line.values])
    plot, key = Plot(linear("call of the sampler, from noise to image", [1, calls]), y, 230).axes(), []
    for line in lines:
        points = [(call, value if value > 0 else math.nan) for call, value in enumerate(line.values, 1)]
        titles = [f"call {call}, {line.label}: {amount(value)} spikes" for call, value in enumerate(line.values, 1)]
        style = "dashed" if line.is_dashed else ""
        plot.draw(Series("", line.colour, points, titles, style, line.is_dashed), 3.5 if calls <= 60 else 2)
        key.append((line.label, line.colour, line.is_dashed))
    rows = [
        [str(i + 1), *(amount(line.values[i]) if i < len(line.values) else "–" for line in lines)] for i in range(calls)
    ]
    return Chart(drawing("Spikes of each call", [plot]), ["call", *(line.label for line in lines)], rows, key)


def _block_names(*runs: dict[Mode, GapReport]) -> list[str]:
    """Names of all blocks in the order of the data, without the prediction."""
    names = (block.block for reports in runs for report in reports.values() for block in report.blocks)
    return list(dict.fromkeys(names))


def _values(report: GapReport, names: list[str], field: Callable[[BlockGap], float]) -> list[float]:
    """One number per name, nan where the report has none."""
    by_name = {block.block: field(block) for block in report.rows()}
    return [by_name.get(name, math.nan) for name in names]
