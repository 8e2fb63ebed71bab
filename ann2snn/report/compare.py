"""Two runs on one page, side by side: what came out, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Callable

from .charts import Chart, carry_chart, gap_chart
from .collect import Run
from .costs import cost_table
from .elements import document, figure, optional, section, text_table
from .parse import clean, shareable
from .summary import all_reports, score_names, score_value, summary_table, verdict
from .svg import escape

MOST_SETTINGS = 400  # that are shown
INCIDENTAL = ("logdir", "eval_model_path", "resume_with")  # differ between any two runs
GAP_CAPTION = "<b>Gap</b>, block by block; the second run is dashed. On the line at 0 stand errors of rounding."
CARRY_CAPTION = "<b>Spikes of each call</b>, from rest and carried; the second run is dashed."


def comparison(first: Run, second: Run) -> str:
    """The whole document."""
    runs, names = (first, second), run_names(first, second)

    columns = [f"<div><h3>{escape(n)}</h3><p>{escape(verdict(r))}</p></div>" for n, r in zip(names, runs, strict=True)]
    charts = _charts(runs, names)
    sections = [
        section("Summary", f'<div class="pair">{"".join(columns)}</div>'),
        optional("Networks", _joined(runs, names, summary_table, 2)),
        optional("Scores", _scores(runs, names)),
        optional("Settings that differ", _settings(runs, names)),
        optional("Gap, block by block", figure(charts, "gap", GAP_CAPTION)),
        optional("Cost, per image and network call", _joined(runs, names, _costs, 1)),
        optional("Carrying", figure(charts, "carry", CARRY_CAPTION)),
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for run in runs for note in dict.fromkeys(run.notes))
    warning = f"<div class=warning><b>Not everything could be read</b><ul>{notes}</ul></div>" if notes else ""
    title = f"{names[0]} and {names[1]}"
    head = f"<header><p class=kicker>Two runs</p><h1>{escape(title)}</h1>{warning}</header>\n"
    return document(f"{escape(title)}: comparison", head + "\n".join(part for part in sections if part))


def run_names(first: Run, second: Run) -> tuple[str, str]:
    """What the runs are called; with their parents' names where they are called alike."""
    names = [run.name for run in (first, second)]
    if names[0] == names[1]:
        names = [clean("/".join(run.logdir.resolve().parts[-2:]), 120) for run in (first, second)]
    return names[0], names[1] if names[1] != names[0] else f"{names[1]} (2)"


def _charts(runs: tuple[Run, Run], names: tuple[str, str]) -> dict[str, Chart]:
    """What either run measured, in the same axes."""
    charts: dict[str, Chart] = {}
    first, second = (all_reports(run) for run in runs)
    if first or second:
        charts["gap"] = gap_chart(first, second, names)
    carried, other = (run.carried if run.carried and run.carried.spikes else None for run in runs)
    if carried or other:
        charts["carry"] = carry_chart(carried, other, names)
    return charts


def _joined(runs: tuple[Run, Run], names: tuple[str, str], listed: Callable[[Run], tuple], key: int) -> str:
    """One table of both runs' rows, of the columns that either has; rows of the same first `key` cells together."""
    tables = [listed(run) for run in runs]
    header = list(dict.fromkeys(title for table in tables if table[1] for title in table[0]))
    together: dict[tuple[str, ...], list[list[str]]] = {}
    for name, table in zip(names, tables, strict=True):
        for row in table[1]:
            cells = dict(zip(table[0], row, strict=True))
            together.setdefault(tuple(row[:key]), []).append([name, *(cells.get(title, "–") for title in header)])
    rows = [[*row[1 : key + 1], row[0], *row[key + 1 :]] for group in together.values() for row in group]
    columns = [*header[:key], "run", *header[key:]]
    return text_table(columns, rows, range(key + 1, len(columns))) if rows else ""


def _costs(run: Run) -> tuple[list[str], list[list[str]]]:
    files = [file for file in (run.costs, run.carried.costs if run.carried else None) if file]
    tables = [cost_table(file) for file in files]
    rows = {row[0]: row for table in reversed(tables) for row in table[1]}
    return (tables[0][0], list(rows.values())) if tables else ([], [])


def _scores(runs: tuple[Run, Run], names: tuple[str, str]) -> str:
    """A row for each network as it was run and sampled, with the scores of either run."""
    scored = list(dict.fromkeys(name for run in runs for name in score_names(run)))
    columns = ("count", "extractor", "sampler", "sampler_steps", "eta", "sampler_options", "seed", "reference_count")
    ordered = []
    for run, name in zip(runs, names, strict=True):
        for score in run.scores:
            values = [score_value(score, key) if key in score.values else "–" for key in scored]
            settings = [clean(score.text(column), 60) for column in columns]
            network = [score.mode.network_label(run.bits), score.mode.schedule_label, name]
            ordered.append((score.mode.order, [*network, *values, *settings]))
    rows = [row for _, row in sorted(ordered, key=lambda entry: entry[0])]
    header = ["network", "schedule", "run", *scored, *(column.replace("_", " ") for column in columns)]
    note = "<p class=note>Compare lines that share extractor, images, sampler, seed and reference alone.</p>"
    return text_table(header, rows, range(3, 3 + len(scored))) + note if rows else ""


def flags_of(text: str) -> dict[str, str]:
    """The settings of a flagfile, by name: "--nocarry" is carry, "False". The lines after a comment repeat some."""
    by_name: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("--"):
            name, has_value, value = line[2:].partition("=")
            if not has_value:
                name, value = (name[2:], "False") if name.startswith("no") else (name, "True")
            by_name.setdefault(clean(name, 60), []).append(clean(shareable(value), 120))
    return {name: ", ".join(values) for name, values in by_name.items()}


def _settings(runs: tuple[Run, Run], names: tuple[str, str]) -> str:
    """A row for each setting of a stage that differs; "–" where one run does not have it."""
    rows = []
    for stage in sorted({stage for run in runs for stage in run.flagfiles}):
        first, second = (flags_of(run.flagfiles.get(stage, "")) for run in runs)
        if not first or not second:
            rows.append([stage, "–", *("–" if not flags else "has run" for flags in (first, second))])
            continue
        for name in sorted({*first, *second} - {*INCIDENTAL}):
            values = first.get(name, "–"), second.get(name, "–")
            if values[0] != values[1]:
                rows.append([stage, f"--{name}", *values])
    if not rows:
        return "<p>None.</p>" if any(run.flagfiles for run in runs) else ""
    return text_table(["stage", "setting", *names], rows[:MOST_SETTINGS], range(0))
