"""What a score and a network call cost, one network against another: score, energy and time steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..metrics.registry import lower_is_better
from .accounts import accounts, main_row, steps_of
from .collect import Run
from .costs import CostRow, joules
from .modes import Mode, colours
from .summary import amount, score_names
from .svg import LEFT, RIGHT, TOP, WIDTH, Entry, Plot, Series, drawing, finite, linear, logarithmic

#: Energies that are drawn, with the words for an axis.
DRAWN = ((("int8", "compute_pj"), "arithmetic, int8"), (("int8", "total_pj"), "with memory, int8"))
HEIGHT, BETWEEN = 190, 68


@dataclass(frozen=True)
class Candidate:
    """A network as it ran. steps: of a call, nan for an ANN. scores: by name, nan where it was not scored so."""

    label: str
    colour: str
    row: CostRow
    steps: float
    scores: dict[str, float]


def candidates(run: Run) -> list[Candidate]:
    """The b-bit ANN, with its zeros skipped, and every spiking network that was counted."""
    counted = accounts(run)
    modes = sorted(counted, key=lambda mode: mode.order)
    palette, points = colours(modes), []
    for mode in modes:
        row = main_row(counted[mode])
        label = row.label if mode.spiking is None else mode.schedule_label
        points.append(Candidate(label, palette[mode], row, steps_of(counted[mode]), _scores_of(run, mode)))
    return points


def _scores_of(run: Run, mode: Mode) -> dict[str, float]:
    """Of every score the newest of this network, run in this way."""
    alike = [s for s in run.scores if s.mode.network in ("trained", "converted")]
    alike = [s for s in alike if (s.mode.spiking, s.mode.carried) == (mode.spiking, mode.carried)]
    return {name: value for s in alike for name, value in s.values.items()}


def microjoules(row: CostRow, energy: tuple[str, str]) -> float:
    """One of a row's energies; nan where a file has nothing that a logarithmic axis could hold."""
    picojoules = row.energies[energy]
    return picojoules * 1e-6 if picojoules > 0 else math.nan


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in one coordinate without losing in the other; less is better. By the first."""
    kept: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def pareto_chart(run: Run) -> tuple[str, list[str], list[list[str]], list[Entry]] | None:
    """(SVG, header, rows, legend): score and steps over energy, per image and call; None where nothing was counted."""
    networks = [] if run.direct else candidates(run)
    if not any(finite([f.steps]) and finite(f.row.energies[energy] for energy, _ in DRAWN) for f in networks):
        return None
    names = [n for n in score_names(run) if n.startswith(lower_is_better()) and any(n in f.scores for f in networks)][
        :1
    ]
    plots, width = [], (WIDTH - 2 * (LEFT + RIGHT)) / 2
    for line, name in enumerate([*names, "steps"]):
        for column, (energy, words) in enumerate(DRAWN):
            heights = [f.steps if name == "steps" else f.scores.get(name, math.nan) for f in networks]
            values = [(microjoules(f.row, energy), height) for f, height in zip(networks, heights, strict=True)]
            label = "time steps per call" if name == "steps" else name.replace("_", " ")
            y = (logarithmic if name == "steps" else linear)(label, heights)
            x = logarithmic(f"µJ per image and call, {words}", [e for e, _ in values])
            plot = Plot(x, y, HEIGHT, LEFT + column * (width + LEFT + RIGHT), width)
            plot.top = TOP + line * (HEIGHT + BETWEEN)
            plots.append(_panel(plot.axes(), networks, values, label))
    key = [(f.label, f.colour, math.isnan(f.steps)) for f in networks]
    header = ["network", *names, "steps per call", *(words for _, words in DRAWN), "with memory, fp32"]
    columns = [*(energy for energy, _ in DRAWN), ("fp32", "total_pj")]
    rows = [
        [
            f.label,
            *(amount(f.scores.get(n, math.nan)) for n in names),
            amount(f.steps),
            *(joules(f.row.energies[e]) for e in columns),
        ]
        for f in networks
    ]
    return drawing("Score, energy and time steps", plots), header, rows, key


def _panel(plot: Plot, candidates: list[Candidate], values: list[tuple[float, float]], label: str) -> Plot:
    """Points, the front that none of them beats, and a line where one has an energy only, as the ANN has no steps."""
    points = [value for value in values if len(finite(value)) == 2]
    best = front(points)
    corners = [c for i, p in enumerate(best) for c in ([(p[0], best[i - 1][1]), p] if i else [p])]
    plot.draw(Series("", "faint", corners, [""] * len(corners), "dashed"), marked=False)
    for candidate, (energy, value) in zip(candidates, values, strict=True):
        title = f"{candidate.label}: {joules(energy * 1e6)}, {label} {amount(value)}"
        if math.isfinite(energy) and math.isfinite(value):
            plot.draw(Series("", candidate.colour, [(energy, value)], [title], "none"), 5.5)
        elif math.isfinite(energy) and candidate.row.steps[0] is None:
            plot.vertical(energy, f"{candidate.label}, {joules(energy * 1e6)}", candidate.colour)
    return plot
