"""The run in a few numbers: the summary table, what to mind when reading it, and a verdict of one sentence."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from ..config import FULL_PRECISION, DirectSpiking
from ..convert import GapReport
from ..run.tables import counted, distance, percent, show, text_table
from .collect import Run, Score
from .modes import NETWORK_LABELS, USUAL_MODES, Mode

#: Settings two scores must share to be compared, as the reader knows them.
COMPARABLE = {
    "extractor": "extractor",
    "count": "image count",
    "image_size": "image size",
    "sampler": "sampler",
    "sampler_steps": "sampler steps",
    "eta": "eta",
    "sampler_options": "sampler options",
    "clip_x0": "clipping",
    "var_type": "variance",
    "seed": "seed",
    "reference": "reference statistics",
    "reference_count": "reference images",
}
#: Of these, the ones that say how images were generated.
OF_SAMPLING = ("sampler", "sampler_steps", "eta", "sampler_options", "clip_x0", "var_type", "seed")


@dataclass(frozen=True)
class SummaryRow:
    """steps: time steps of one network call. scores: by name of the score, the newest line that has it."""

    mode: Mode
    steps: str
    report: GapReport | None
    scores: dict[str, Score]

    @property
    def gap(self) -> float:
        return self.report.prediction.error if self.report else math.nan


def all_reports(run: Run) -> dict[Mode, GapReport]:
    """Gap by mode. `gap.json` counts for the converted network, the newest fine-tuning's where that has nothing."""
    files = [gaps.reports for gaps in (run.gaps_finetuned, run.gaps) if gaps]
    reports = {mode: report for file in files for mode, report in file.items()}
    return dict(sorted(reports.items(), key=lambda item: item[0].order))


def summary_rows(run: Run) -> list[SummaryRow]:
    """The usual rows, filled where the files have something, and any other mode they mention."""
    reports = all_reports(run)
    modes = {*reports, *(score.mode for score in run.scores)}
    usual_modes = direct_modes(run) if run.direct else USUAL_MODES
    if not run.finetunings:
        usual_modes = [mode for mode in usual_modes if mode.network != "finetuned"]
    modes |= {usual for usual in usual_modes if not any(usual.same_slot(mode) for mode in modes)}
    rows = []
    for mode in sorted(modes, key=lambda mode: mode.order):
        scores = {name: s for s in run.scores if s.mode == mode for name in s.values}
        report = reports.get(mode)
        rows.append(SummaryRow(mode, steps_per_call(run, mode, report), report, scores))
    return rows


def direct_modes(run: Run) -> list[Mode]:
    """Of a directly trained network: the network of the run, and those of its fine-tunings."""
    return [Mode("trained", source.direct) for source in (run, *run.tsm_runs) if source.direct]


def spikes_of(run: Run, row: SummaryRow) -> float:
    """Spikes per image and call: of a directly trained network those of the cost account, else those of the gap."""
    if row.report or not row.mode.direct:
        return row.report.spikes_per_image if row.report else math.nan
    files = [source.costs for source in (run, *run.tsm_runs) if source.costs]
    rows = [cost for file in files for a in file.accounts if a.direct == row.mode.direct for cost in a.rows]
    return rows[0].counts["spikes"] if rows else math.nan


def steps_per_call(run: Run, mode: Mode, report: GapReport | None) -> str:
    """Time steps of one network call: "3 × depth" for layer_sync, "3 + 2" for a settling stream."""
    if mode.spiking is None:
        return "–"
    if isinstance(mode.spiking, DirectSpiking):
        return str(mode.spiking.spike_steps)
    steps = "T" if run.spike_steps is None else str(run.spike_steps)
    if mode.spiking.schedule == "layer_sync":
        depth = run.gaps.depth if run.gaps else None
        return f"{steps} × {depth or 'depth'}"
    settle = report.settle_steps if report else mode.spiking.settle_steps
    return f"{steps} + {settle}" if settle else steps


def score_names(run: Run) -> list[str]:
    """Names of all scores, Fréchet distances first; a standard deviation goes with its score."""
    names = {name for score in run.scores for name in score.values if not name.endswith("_std")}
    return sorted(names, key=lambda name: (not name.startswith(("FD", "FID")), name))


def summary_table(run: Run) -> tuple[list[str], list[list[str]]]:
    """(header, rows) as text. Missing is "–"."""
    names, header, rows = score_names(run), ["network", "schedule", "steps per call", "gap"], []
    if run.direct:  # converted from nothing
        header = ["network", "threshold", "steps per call"]
    header += ["spikes per image and call", *([f"{name} (images)" for name in names] or ["score"])]
    for row in summary_rows(run):
        if run.direct:
            threshold = f"{row.mode.direct.threshold:g}" if row.mode.direct else "–"
            cells = [row.mode.network_label(), threshold, row.steps]
        else:
            gap = "reference" if row.mode == USUAL_MODES[0] else show(row.gap)
            cells = [row.mode.network_label(run.bits), row.mode.schedule_label, row.steps, gap]
        cells.append(amount(spikes_of(run, row)))
        rows.append(cells + ([score_cell(row.scores.get(name), name) for name in names] or ["–"]))
    return header, rows


def summary_text(run: Run) -> str:
    """The table and its notes, for a terminal."""
    return "\n".join([text_table(*summary_table(run)), *(f"note: {note}" for note in summary_notes(run))])


def amount(value: float) -> str:
    """A count or a score: whole above 1000, else with the digits that mean something."""
    if value != value:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def score_value(score: Score, name: str) -> str:
    """Such as "9.24 ± 0.11"; the deviation where the line has one."""
    deviation = score.values.get(f"{name}_std", math.nan)
    return amount(score.values.get(name, math.nan)) + (f" ± {amount(deviation)}" if deviation == deviation else "")


def score_cell(score: Score | None, name: str) -> str:
    return "–" if score is None else f"{score_value(score, name)} ({show(score.count)})"


def summary_notes(run: Run) -> list[str]:
    """Where two rows of the table must not be compared."""
    notes = []
    for name in score_names(run):
        differing = incomparable([row.scores[name] for row in summary_rows(run) if name in row.scores])
        if differing:
            notes.append(f"{name} is not comparable between all rows, which differ in {'; '.join(differing)}")
    return notes + _repeat_notes(run) + _gap_notes(run) + _source_notes(run)


def _repeat_notes(run: Run) -> list[str]:
    """Which networks were sampled in several ways, of which the table has room for the newest."""
    notes = []
    for row in summary_rows(run):
        alike = [score for score in run.scores if score.mode == row.mode]
        for name in row.scores:
            if differing := incomparable([score for score in alike if name in score.values], OF_SAMPLING):
                ways = f"in several ways, which differ in {'; '.join(differing)}"
                notes.append(f"{row.mode.label} was sampled {ways}: the newest score is shown")
    return list(dict.fromkeys(notes))


def incomparable(scores: list[Score], fields: Collection[str] = COMPARABLE) -> list[str]:
    """The settings among `fields` in which the lines differ, with their values."""
    differing = []
    for field, words in COMPARABLE.items():
        if field not in fields:
            continue
        # Real images were not sampled, and have no say in how.
        concerned = [score for score in scores if field not in OF_SAMPLING or not score.is_real]
        values = list(dict.fromkeys(score.text(field) for score in concerned))
        if len(values) > 1:
            differing.append(f"{words} ({', '.join(values)})")
    return differing


def _gap_notes(run: Run) -> list[str]:
    if not (run.gaps and run.gaps_finetuned) or run.gaps.images == run.gaps_finetuned.images:
        return []
    note = (
        f"gap measured on {counted(run.gaps_finetuned.images, 'image')} for the fine-tuned network, "
        f"on {counted(run.gaps.images, 'image')} for the converted"
    )
    before, _ = before_and_after(run)
    if before:
        note += f"; on the same images the converted network has {show(before.prediction.error)}"
    return [note]


def _source_notes(run: Run) -> list[str]:
    trained = [s for s in run.scores if s.mode == USUAL_MODES[0] and s.line.get("checkpoint")]
    source = run.finetuned.source if run.finetuned else None
    if not trained or not source or trained[-1].text("checkpoint") == source:
        return []
    return [f"fine-tuning started from checkpoint {source}, the ANN scored is {trained[-1].text('checkpoint')}"]


def before_and_after(run: Run) -> tuple[GapReport | None, GapReport | None]:
    """Gap of the converted and of the fine-tuned network on the same images."""
    reports = run.gaps_finetuned.reports if run.gaps_finetuned else {}
    after = {mode: report for mode, report in reports.items() if mode.network == "finetuned"}
    for mode, report in after.items():
        return reports.get(Mode("converted", mode.spiking)), report
    return None, None


def verdict(run: Run) -> str:
    """One sentence made from the numbers there are."""
    clauses = [clause for clause in (*_gap_clauses(run), _finetune_clause(run), _score_clause(run)) if clause]
    if not clauses:
        clauses = [_training_clause(run)]
    precision = "full-precision" if run.bits == FULL_PRECISION else f"{run.bits}-bit"
    subject = f"{precision} network: " if run.bits else f"{run.direct.label}: " if run.direct else ""
    sentence = subject + "; ".join(clauses)
    return sentence[0].upper() + sentence[1:] + "."


def _gap_clauses(run: Run) -> list[str]:
    clauses = []
    for row in summary_rows(run):
        if row.mode.network != "converted" or row.gap != row.gap:
            continue
        name = row.mode.schedule_label
        if row.mode.converted and row.mode.converted.schedule == "stream":
            name += f" ({row.steps} steps)"
        clauses.append(f"{name} {distance(row.gap)}")
    return clauses


def _finetune_clause(run: Run) -> str:
    before, after = before_and_after(run)
    if after is None or after.prediction.error != after.prediction.error:
        return ""
    if before is None or before.prediction.error != before.prediction.error:
        return f"the fine-tuned network {distance(after.prediction.error)}"
    return f"fine-tuning takes the gap from {percent(before.prediction.error)} to {percent(after.prediction.error)}"


def _score_clause(run: Run) -> str:
    for name in score_names(run):
        rows = [row for row in summary_rows(run) if name in row.scores and row.mode.network in NETWORK_LABELS]
        if not rows or incomparable([row.scores[name] for row in rows]):
            continue
        values = [f"{_short(row.mode)} {amount(row.scores[name].values[name])}" for row in rows]
        return f"{name} on {counted(rows[0].scores[name].count, 'image')}: {', '.join(values)}"
    return ""


def _short(mode: Mode) -> str:
    if mode.spiking is None:
        return "ANN"
    if mode.direct:
        return mode.direct.label
    return mode.schedule_label if mode.network == "converted" else mode.network_label().removesuffix(" SNN")


def _training_clause(run: Run) -> str:
    if not run.loss:
        return "nothing measured yet"
    step, loss = run.loss[-1]
    missing = "score" if run.direct else "gap or score"
    return f"trained for {step + 1:,} steps, last logged loss {loss:.3g}; no {missing} measured yet"
