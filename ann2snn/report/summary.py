"""The run in a few numbers: the summary table, what to mind when reading it, and a verdict of one sentence."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from ..config import FULL_PRECISION, DirectSpiking
from ..convert import GapReport
from ..run.tables import counted, distance, percent, show, text_table
from .accounts import accounts, main_row
from .collect import Run, Score
from .costs import CostAccount, joules
from .modes import NETWORK_LABELS, USUAL_MODES, Mode
from .parse import number

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


#: Of a model of 45 nm arithmetic, see docs/cost.md.
ENERGY_HEADING = "int8 energy per call (with memory)"


@dataclass(frozen=True)
class SummaryRow:
    """steps: time steps of one network call. gap: of the prediction, of carried calls the largest; nan if not measured.

    spikes: per image and call. account: what it costs. scores: by name of the score, the newest line that has it.
    """

    mode: Mode
    steps: str
    gap: float
    spikes: float
    account: CostAccount | None
    scores: dict[str, Score]


def all_reports(run: Run) -> dict[Mode, GapReport]:
    """Gap by mode. `gap.json` counts for the converted network, the newest fine-tuning's where that has nothing."""
    files = [gaps.reports for gaps in (run.gaps_finetuned, run.gaps) if gaps]
    reports = {mode: report for file in files for mode, report in file.items()}
    return dict(sorted(reports.items(), key=lambda item: item[0].order))


def summary_rows(run: Run) -> list[SummaryRow]:
    """The usual rows, filled where the files have something, and any other mode they mention."""
    reports, counted = all_reports(run), accounts(run)
    modes = {*reports, *(mode for mode in counted if mode.carried), *(score.mode for score in run.scores)}
    usual_modes = direct_modes(run) if run.direct else USUAL_MODES
    if not run.finetunings:
        usual_modes = [mode for mode in usual_modes if mode.network != "finetuned"]
    modes |= {usual for usual in usual_modes if not any(usual.same_slot(mode) for mode in modes)}
    rows = []
    for mode in sorted(modes, key=lambda mode: mode.order):
        scores = {name: s for s in run.scores if s.mode == mode for name in s.values}
        report, account = reports.get(mode), counted.get(mode)
        gap = report.prediction.error if report else math.nan
        if run.carried and account and mode.carried:
            gap = run.carried.worst
        steps, spikes = steps_per_call(run, mode, report, account), _spikes(mode, report, account, scores)
        rows.append(SummaryRow(mode, steps, gap, spikes, account, scores))
    return rows


def direct_modes(run: Run) -> list[Mode]:
    """Of a directly trained network: the network of the run, and those of its fine-tunings."""
    return [Mode("trained", source.direct) for source in (run, *run.tsm_runs) if source.direct]


def _spikes(mode: Mode, report: GapReport | None, account: CostAccount | None, scores: dict[str, Score]) -> float:
    """Spikes per image and call: those of the gap, else those of the account, else those of the images scored."""
    if report:
        return report.spikes_per_image
    if account and (mode.carried or mode.direct):
        return account.rows[0].counts["spikes"]
    return next((number(score.line.get("spikes_per_call")) for score in scores.values()), math.nan)


def steps_per_call(run: Run, mode: Mode, report: GapReport | None, account: CostAccount | None) -> str:
    """Time steps of one network call: "3 × depth" for layer_sync, "3 + 2" for a settling stream; carried, the mean."""
    if mode.spiking is None:
        return "–"
    if isinstance(mode.spiking, DirectSpiking):
        return str(mode.spiking.spike_steps)
    steps = "T" if run.spike_steps is None else str(run.spike_steps)
    if mode.spiking.schedule == "layer_sync":
        depth = run.gaps.depth if run.gaps else None
        return f"{steps} × {depth or 'depth'}"
    if mode.carried:
        return f"{account.steps_run:.3g} (mean)" if account and account.steps_run == account.steps_run else "–"
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
    listed = summary_rows(run)
    counted = any(row.account for row in listed) and not run.direct
    header += ["spikes per image and call", *([ENERGY_HEADING] if counted else [])]
    header += [f"{name} (images)" for name in names] or ["score"]
    for row in listed:
        if run.direct:
            threshold = f"{row.mode.direct.threshold:g}" if row.mode.direct else "–"
            cells = [row.mode.network_label(), threshold, row.steps]
        else:
            gap = "reference" if row.mode == USUAL_MODES[0] else show(row.gap)
            cells = [row.mode.network_label(run.bits), row.mode.schedule_label, row.steps, gap]
        cells += [amount(row.spikes), *([energy_text(row.account, "{} ({})")] if counted else [])]
        rows.append(cells + ([score_cell(row.scores.get(name), name) for name in names] or ["–"]))
    return header, rows


def energy_text(account: CostAccount | None, more: str = "{} ({} with memory)") -> str:
    """Such as "1.23 µJ (111 µJ with memory)"; of an ANN the one that skips zeros."""
    if account is None:
        return "–"
    energies = main_row(account).energies
    return more.format(joules(energies["int8", "compute_pj"]), joules(energies["int8", "total_pj"]))


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
    """A sentence or two made from the numbers there are."""
    clauses = [clause for clause in (*_gap_clauses(run), _finetune_clause(run), _score_clause(run)) if clause]
    if not clauses:
        clauses = [_training_clause(run)]
    precision = "full-precision" if run.bits == FULL_PRECISION else f"{run.bits}-bit"
    subject = f"{precision} network: " if run.bits else f"{run.direct.label}: " if run.direct else ""
    sentence = subject + "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}.{_carry_sentence(run)}"


def _gap_clauses(run: Run) -> list[str]:
    clauses = []
    for row in summary_rows(run):
        if row.mode.network != "converted" or row.mode.carried or row.gap != row.gap:
            continue
        name = row.mode.schedule_label
        if row.mode.converted and row.mode.converted.schedule == "stream":
            name += f" ({row.steps} steps)"
        clauses.append(f"{name} {distance(row.gap)}")
    return clauses


def _carry_sentence(run: Run) -> str:
    """Of carried levels: the spikes, the error, and the energy beside the ANN's."""
    rows = summary_rows(run)
    carried = next((row for row in rows if row.mode.carried and row.account), None)
    if carried is None or run.carried is None:
        return ""
    share = "" if math.isnan(run.carried.share) else f" takes {percent(run.carried.share)} of the spikes and"
    ann = next((row.account for row in rows if row.mode == USUAL_MODES[0]), None)
    ann_energy = f", one of the quantized ANN {energy_text(ann)}" if ann else ""
    return (
        f" With levels carried from call to call {carried.mode.schedule_label.replace(' carried', '', 1)}{share} "
        f"{distance(carried.gap)}; in int8 a call takes {energy_text(carried.account)}{ann_energy}."
    )


def _finetune_clause(run: Run) -> str:
    before, after = before_and_after(run)
    if after is None or after.prediction.error != after.prediction.error:
        return ""
    if before is None or before.prediction.error != before.prediction.error:
        return f"the fine-tuned network {distance(after.prediction.error)}"
    return f"fine-tuning takes the gap from {percent(before.prediction.error)} to {percent(after.prediction.error)}"


def _score_clause(run: Run) -> str:
    for name in score_names(run):
        scored = [(row.mode, row.scores[name]) for row in summary_rows(run) if name in row.scores]
        networks = [(mode, score) for mode, score in scored if mode.network in NETWORK_LABELS]
        if not networks or incomparable([score for _, score in networks]):
            continue
        shown = [f"{_short(mode)} {amount(score.values[name])}" for mode, score in networks]
        real = [score for _, score in scored if score.is_real][:1]
        if real and not incomparable([score for _, score in networks] + real):
            shown.append(f"real images {amount(real[0].values[name])}")
        return f"{name} on {counted(networks[0][1].count, 'image')}: {', '.join(shown)}"
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
