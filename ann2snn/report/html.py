"""The report as one page of HTML that needs nothing outside itself. Every string from a file is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..convert.raster import Raster
from ..run.tables import counted, show
from .charts import Chart, charts
from .collect import Run, Score
from .costs import cost_table, generation_table, layer_table
from .denoising import denoising
from .direct import tuned_chart
from .elements import details, document, figure, optional, section, table, text_table
from .finetuned import blocks_table, finetuned_table
from .generated import generated_spikes
from .grids import Grid, GridGroup, sample_groups, training_grids
from .modes import Mode, colours
from .parse import clean, number, sampling_text, shareable
from .summary import (
    all_reports,
    amount,
    distance,
    percent,
    score_names,
    score_value,
    summary_notes,
    summary_rows,
    summary_table,
    verdict,
)
from .svg import escape

LONGEST_FLAGFILE = 200_000  # characters
GAP_CAPTION = (
    "<b>Gap.</b> Relative L2 error of each block's time-averaged output against the quantized ANN, in the order of "
    "the data; <b>prediction</b> is the network's output. Logarithmic; on the line at 0 stand errors below 1e-9, which "
    "are rounding."
)
HEAT_CAPTION = (
    "<b>Gap by block and diffusion time</b>, noise above, image below, of the networks that are not exact: the "
    "stronger the colour, the larger."
)
PARETO_CAPTION = (
    "<b>What a network call costs.</b> Lower and further left is better; the dashed steps join the networks that no "
    "other beats in both. Energies are a model of 45 nm arithmetic, for one image and call. The ANN takes no time "
    "steps and stands as a vertical line; so does it where it was not scored. Only scores that were measured are "
    "drawn, though a spiking network that equals its ANN has the ANN's."
)
RATE_CAPTION = (
    "<b>Firing rate.</b> Spikes of either sign per neuron and time step of the window; settling adds spikes, not steps."
)
SCORES_INTRO = (
    "Scores compare only under the same settings: those that share extractor, images, sampler, seed and "
    "reference. Lower distances and a higher IS are better. Of scores with the same settings the newest is shown."
)
COST_INTRO = (
    "Operations in which neither the input nor the weight is zero, counted on a run. <b>AC</b>: accumulates, one for "
    "each spike and synapse. <b>MAC</b>: multiply-accumulates, where real values are read, norms included. "
    "<b>Additions</b>: of real values, outside synapses. <b>Updates</b>: evaluations of neurons whose input changed "
    "(behind a norm all of them) and of functions of real values. <b>Steps</b>: latency of a network call in time "
    "steps, and where it differs, on hardware that delays every layer by a step. Energies are a model of 45 nm "
    "arithmetic at two widths, without and with memory accesses: compare rows within a column. <b>16-bit state</b>: "
    "int8 with memory, where accumulators and levels are half as wide. <b>Weights by event</b>: int8 with "
    "memory, where every event fetches its weights. <b>All MAC</b>: the same run with every synaptic operation a "
    "multiplication. The definitions are in <code>docs/cost.md</code>."
)
DIRECT_NOTE = (
    "<p class=note>Trained as a spiking network: there is no ANN to compare it with. <b>Threshold</b>: of all neurons, "
    "as the network ran. <b>Steps per call</b>: time steps for one call of the network, in each of which spikes cross "
    "all of it. <b>Spikes</b>: for one image and one call; an image takes as many calls as the sampler has steps.</p>"
)
CARRY_CAPTION = (
    "<b>Spikes of each call</b>, on the path of the quantized network; logarithmic. The first call runs from rest in "
    "either case."
)
FINETUNE_NOTE = (
    "<p class=note>Newest run first. <b>Gap</b>: of the prediction on images held back from tuning, before any tuning "
    "and for the network that was kept.</p>"
)
FINETUNE_CAPTION = (
    "<b>The newest run, block after block.</b> Relative error of each block on images held back from tuning, just "
    "before and after that block was tuned; and of the prediction with all blocks up to there tuned."
)


def page(run: Run) -> str:
    """The whole document."""
    groups, training = sample_groups(run), training_grids(run)  # first: they may add notes
    figures = charts(run)
    tuned = [_tuned(tuned_run, figures, training_grids(tuned_run)) for tuned_run in run.tsm_runs]
    sections = [
        _summary(run),
        denoising(run.paths),
        settings_section(run),
        optional("Training", *_training_parts(run, figures, training)),
        _samples(run, groups),
        _scores(run),
        optional("Score, energy, time steps", figure(figures, "pareto", PARETO_CAPTION)),
        optional(
            "Gap, block by block", figure(figures, "gap", GAP_CAPTION), figure(figures, "gap_by_time", HEAT_CAPTION)
        ),
        _finetune(run, figures),
        optional("Spikes", *_spike_parts(run, figures)),
        optional("Cost", *cost_parts(run)),
        optional("Carrying", *_carry_parts(run, figures)),
        *tuned,
    ]
    title = f"{escape(run.name)}: {'' if run.direct else 'conversion '}report"
    return document(title, _header(run) + "\n".join(section for section in sections if section))


def _header(run: Run) -> str:
    kind, facts = "ANN-to-SNN conversion report", []
    if run.direct:
        kind, facts = "Spiking network report", [run.direct.name, f"threshold {run.direct.threshold:g}"]
    if run.bits:
        facts.append(f"{run.bits} bits")
    if run.spike_steps:
        facts.append(f"{'S' if run.direct else 'T'} = {run.spike_steps} time steps")
    notes = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(run.notes))
    return (
        f"<header><p class=kicker>{' · '.join([kind, *facts])}</p>"
        f"<h1>{escape(run.name)}</h1><p class=verdict>{escape(verdict(run))}</p>"
        + (f"<div class=warning><b>Not everything could be read</b><ul>{notes}</ul></div>" if notes else "")
        + "</header>\n"
    )


def _summary(run: Run) -> str:
    header, rows = summary_table(run)
    palette = colours([row.mode for row in summary_rows(run)])
    cells = [
        [f'<span class="dot {colour}"></span>{escape(row[0])}', *map(escape, row[1:])]
        for row, colour in zip(rows, palette.values(), strict=True)
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in summary_notes(run))
    explanation = (
        "<p class=note><b>Steps per call</b>: time steps for one call of the network. <code>layer_sync</code> takes "
        "T steps for each neuron layer in sequence, carried or not, <code>stream</code> T steps for the whole network, "
        "plus settling. <b>Gap</b>: relative L2 error of the prediction against the quantized ANN"
        f"{_measured_on(run)}; of carried levels, the largest of any call. <b>Spikes</b>: of either sign, for one "
        "image and one call; an image takes as many calls as the sampler has steps. <b>Energy</b>: of the same, a "
        "model of 45 nm arithmetic in int8, and with memory; of the quantized ANN, zeros skipped.</p>"
    )
    if run.direct:
        explanation = DIRECT_NOTE
    warning = f"<ul class=mind>{notes}</ul>" if notes else ""
    return section("Summary", table([escape(h) for h in header], cells, range(2, len(header))), warning, explanation)


def _measured_on(run: Run) -> str:
    gaps = run.gaps or run.gaps_finetuned
    if not gaps or gaps.images is None:
        return ""
    return f", on {counted(gaps.images, 'image')} at {counted(gaps.times, 'time')} of the ANN's sampling path"


def _samples(run: Run, groups: list[GridGroup]) -> str:
    if not groups:
        return ""
    gaps = {mode: report.prediction.error for mode, report in all_reports(run).items()}
    parts = []
    for group in groups:
        sampled = f"{group.heading}. Each column shows what the same noise became." if group.strips else group.heading
        parts.append(f"<p>{escape(sampled)}</p>" if sampled else "")
        if group.strips:
            strips = "".join(_strip(grid, gaps) for grid in group.grids)
            parts.append(f'<div class="scroll strips">{strips}</div>')
        else:
            parts.append(_pictures(group.grids))
    return section("Samples", *parts)


def _image(grid: Grid) -> str:
    return f'<img alt="{escape(grid.title)}" style="width:{grid.width}px" src="{grid.data_uri}">'


def _strip(grid: Grid, gaps: dict[Mode, float]) -> str:
    """One network's images beside its name, gap and checkpoint."""
    details = [grid.mode.schedule_label] if grid.mode and grid.mode.spiking else []
    if grid.mode in gaps:
        details.append(f"gap {show(gaps[grid.mode])}")
    if grid.source:
        details.append(f"checkpoint {grid.source[:8]}")
    title = grid.mode.network_label() if grid.mode else grid.title
    small = "".join(f"<small>{escape(detail)}</small>" for detail in details)
    return f"<figure class=strip><figcaption><b>{escape(title)}</b>{small}</figcaption>{_image(grid)}</figure>"


def _pictures(grids: list[Grid]) -> str:
    cards = "".join(
        f"<figure class=picture>{_image(grid)}<figcaption>{escape(grid.title)}</figcaption></figure>" for grid in grids
    )
    return f"<div class=pictures>{cards}</div>" if cards else ""


def _finetune(run: Run, figures: dict[str, Chart]) -> str:
    """All runs in a table; then the newest as a chart, and each one's blocks."""
    if not run.finetunings:
        return ""
    blocks = [
        details(escape(tuned.folder), text_table(*blocks_table(tuned)), is_open=index == 0)
        for index, tuned in enumerate(run.finetunings)
        if tuned.blocks
    ]
    overview = text_table(*finetuned_table(run.finetunings))
    return section("Fine-tuning", overview, FINETUNE_NOTE, figure(figures, "finetune", FINETUNE_CAPTION), *blocks)


def _spike_parts(run: Run, figures: dict[str, Chart]) -> tuple[str, ...]:
    return figure(figures, "firing_rate", RATE_CAPTION), figure(figures, "raster", raster_caption(run.rasters))


def _tuned(run: Run, figures: dict[str, Chart], grids: list[Grid]) -> str:
    """A fine-tuning with TSM: what its own folder holds, except for scores and images, which are with the others'."""
    folder = run.logdir.name
    kinds = ("loss", "loss_by_time", "raster")
    own = {kind: figures[name] for kind in kinds if (name := tuned_chart(kind, folder)) in figures}
    parts = (*_training_parts(run, own, grids), *_spike_parts(run, own), *cost_parts(run))
    return section(f"Fine-tuning with TSM: {escape(folder)}", *parts)


def cost_parts(run: Run) -> list[str]:
    """Totals of the networks and of the ANNs they are compared with, per call and per generated image; the layers."""
    costs = run.costs
    if not costs or not costs.accounts:
        return []
    measured = f", on {counted(costs.images, 'image')} at {counted(costs.times, 'time')}" if costs.images else ""
    parts = [
        f"<p>Per image and network call{measured}.</p>",
        text_table(*cost_table(costs)),
        f"<p class=note>{COST_INTRO}</p>",
    ]
    if costs.calls:
        parts += [f"<p>Per generated image, {counted(costs.calls, 'call')}.</p>", text_table(*generation_table(costs))]
    parts += [
        details(f"{escape(account.label)}: layers", text_table(*layer_table(account))) for account in costs.accounts
    ]
    return parts


def _carry_parts(run: Run, figures: dict[str, Chart]) -> list[str]:
    """What it takes if levels are carried from call to call."""
    carried, generated = run.carried, generated_spikes(run.image_sets)
    counted_images = f"<p>Counted while images were generated.</p>{text_table(*generated)}" if generated[1] else ""
    if carried is None:
        return [counted_images]
    saving = "" if math.isnan(carried.share) else f": {percent(carried.share)} of the spikes"
    return [
        f"<p>Levels carried from one call of the sampler ({escape(carried.sampler)}) to the next, so that spikes are "
        f"sent only for what changes{saving}; the network then {distance(carried.worst)} in every call.</p>",
        figure(figures, "carry", CARRY_CAPTION),
        text_table(*cost_table(carried.costs)),
        "<p class=note>Per image and call, the mean of all calls, the first from rest among them.</p>",
        counted_images,
    ]


def raster_caption(rasters: Sequence[Raster]) -> str:
    """What the raster shows, and that its neurons are busier than the average one."""
    if not rasters:
        return ""
    first, recorded = rasters[0], rasters[0].neurons.shape[1]
    if first.is_direct:
        return (
            f"<b>Spike raster</b> of one call on one image at t = {first.t:g}; a line is a neuron. Of each layer "
            f"{recorded} were drawn, half of them among those that fire, so the picture is busier than the network; "
            "where they do not all fit, it shows an even selection. They are sorted by their spikes."
        )
    return (
        f"<b>Spike raster</b> of the converted network on one image at t = {first.t:g}; a line is a neuron. Of each "
        f"layer {recorded} were drawn, half of them among those that fire under <code>layer_sync</code>, so the "
        "picture is busier than the network; where they do not all fit, it shows an even selection. "
        "The neurons are the same in every panel, sorted by their spikes in the first. A blue line ends the window of "
        f"T = {first.window} steps: up to there a settling network is the same as one that does not settle."
    )


def _training_parts(run: Run, figures: dict[str, Chart], grids: list[Grid]) -> tuple[str, ...]:
    loss = figure(figures, "loss", f"<b>Training loss</b>{'' if run.direct else ' of the ANN'}.")
    by_time = figure(figures, "loss_by_time", "<b>Training loss by diffusion time</b>, unweighted, in running means.")
    pictures = f"<p>Samples during training, always from the same noise.</p>{_pictures(grids)}" if grids else ""
    return loss, by_time, pictures, _training_scores(run)


def _training_scores(run: Run) -> str:
    if not run.training_scores:
        return ""
    names = list(dict.fromkeys(name for values in run.training_scores.values() for name in values))
    rows = [
        [f"{step:,}", *(amount(values.get(name, math.nan)) for name in names)]
        for step, values in run.training_scores.items()
    ]
    intro = "<p>Scores during training; <b>EMA</b> marks the averaged weights.</p>"
    return intro + table([escape(name) for name in ("step", *names)], rows, range(1, 1 + len(names)))


def _scores(run: Run) -> str:
    if not run.scores:
        return ""
    names, footnotes = score_names(run), footnotes_of(run.scores)
    scores = sorted(run.scores, key=lambda score: score.mode.order)
    settings = [how_scored(score, footnotes) for score in scores]
    shared = {
        key: settings[0][key]
        for key in settings[0]
        if len(settings) > 1 and len({setting[key] for setting in settings}) == 1
    }
    differing = [key for key in settings[0] if key not in shared]
    rows = []
    for score, setting in zip(scores, settings, strict=True):
        values = [score_value(score, name) if name in score.values else "–" for name in names]
        mode = [score.mode.network_label(run.bits), score.mode.schedule_label]
        rows.append([escape(cell) for cell in (*mode, *values, *(setting[key] for key in differing))])
    header = [escape(cell) for cell in ("network", "schedule", *names, *differing)]
    listed = "".join(f"<li>{escape(text)}</li>" for text in footnotes)
    return section(
        "Scores",
        f"<p>{SCORES_INTRO}</p>",
        table(header, rows, range(2, 2 + len(names))),
        "<p class=note><b>The same in every line</b>: "
        + " · ".join(f"{key} <b>{escape(value)}</b>" for key, value in shared.items() if value != "–")
        + "</p>"
        if shared
        else "",
        f"<p class=note><b>Notes</b></p><ol class=footnotes>{listed}</ol>" if listed else "",
    )


def footnotes_of(scores: Sequence[Score]) -> dict[str, int]:
    """The notes of all lines, numbered from 1."""
    lists = [score.line.get("notes") for score in scores]
    texts = dict.fromkeys(clean(note) for notes in lists if isinstance(notes, list) for note in notes)
    return {text: index for index, text in enumerate(texts, 1)}


def how_scored(score: Score, footnotes: dict[str, int]) -> dict[str, str]:
    """What makes a score comparable, as plain text by column."""
    notes = score.line.get("notes")
    numbers = [str(footnotes[clean(note)]) for note in notes] if isinstance(notes, list) else []
    return {
        "images": show(score.count),
        "extractor": score.text("extractor"),
        "sampler": "–" if score.is_real else sampling_text(score.line),
        "spikes per call": amount(number(score.line.get("spikes_per_call"))),
        "seed": score.text("seed"),
        "checkpoint": score.text("checkpoint")[:8],  # as below the samples
        "trained or tuned steps": score.text("step"),
        "weights": score.text("weights"),
        "reference": shareable(score.text("reference")),
        "reference images": score.text("reference_count"),
        "image size": score.text("image_size"),
        "device": score.text("device"),
        "date": score.text("date"),
        "notes": ", ".join(numbers) or "–",
    }


def settings_section(run: Run) -> str:
    if not run.flagfiles:
        return ""
    parts = [
        details(escape(name), f'<pre tabindex="0">{escape(shareable(text[:LONGEST_FLAGFILE]))}</pre>')
        for name, text in run.flagfiles.items()
    ]
    return section("Settings", "<p>The settings each stage ran with; below them the flags that were given.</p>", *parts)
