"""Values from files that may be damaged, foreign or hostile, checked before anything else sees them."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..config import DirectSpiking, SpikingConfig
from ..convert import BlockGap, GapReport
from ..convert.gap import PREDICTION
from ..files.plain import read_text
from ..run.tables import counted
from .modes import Mode

LONGEST = 300  # characters of a string shown
LARGEST = 1e100  # of a figure: spans of those beyond overflow
MOST_GAPS, MOST_GAP_BLOCKS = 100, 500  # reports of a file and blocks of a report that are shown
MOST_TIMES = 50  # diffusion times of a report
MOST_JSON, MOST_LINES = 1 << 25, 1 << 28  # bytes of a JSON file; of a log, in which 800,000 steps take some 100 MB
#: What a file of JSON holds, of which nothing is known yet.
Json = Any
#: What parsing foreign JSON can raise; UserError is a ValueError.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError)


def clean(value: object, longest: int = LONGEST) -> str:
    """`value` as one line of printable text: no control characters, no lone surrogates, cut at `longest`."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value)[: longest + 1])
    return text if len(text) <= longest else text[: longest - 1] + "…"


def number(value: object) -> float:
    """A JSON number as float; nan for anything else, infinities and what no axis can be drawn for included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if abs(value) <= LARGEST else math.nan
    except OverflowError:
        return math.nan


def integer(value: object) -> int | None:
    """A JSON number without fraction as int; None for anything else."""
    value = number(value)
    return int(value) if value == value and value == int(value) else None


def options_text(settings: dict, between: str = ", ") -> str:
    """The sampler's options that are not the default, such as "order 3, skip quadratic"; "" if there are none.

    settings: of a line of scores or of a folder of images, unchecked.
    """
    options = settings.get("sampler_options")
    if not isinstance(options, dict):
        return ""
    return clean(between.join(f"{name} {options[name]}" for name in sorted(options)))


def is_carried(settings: dict) -> bool:
    """Whether levels were carried from call to call, by the same settings."""
    options = settings.get("sampler_options")
    return isinstance(options, dict) and options.get("carry") is True


def sampling_text(settings: dict) -> str:
    """Such as "ddim, 50 steps, eta 0.0, skip quadratic"; of the same settings."""
    sampler = "–" if settings.get("sampler") is None else clean(settings["sampler"])
    steps = counted(integer(settings.get("sampler_steps")), "step")
    eta = "" if settings.get("eta") is None else f"eta {clean(settings['eta'])}"
    clip = "no clipping" if settings.get("clip_x0") is False else ""
    more = eta, clip, options_text(settings)
    return ", ".join(part for part in (sampler, steps, *more) if part)


def read_json(path: Path, notes: list[str]) -> Json:
    """The file's content; None if it is missing, or damaged, which adds a note."""
    if not path.is_file():
        return None
    try:
        return json.loads(read_text(path, MOST_JSON))
    except (OSError, ValueError, RecursionError):
        notes.append(f"{clean(path.name)} cannot be read as JSON and is left out")
        return None


def read_json_lines(path: Path, notes: list[str]) -> list[dict]:
    """The objects of a JSON-lines file; lines that are none are counted in a note."""
    if not path.is_file():
        return []
    entries, skipped = [], 0
    try:
        lines = read_text(path, MOST_LINES, errors="replace").split("\n")
    except OSError as error:
        notes.append(f"{clean(path.name)} cannot be read and is left out ({clean(error.strerror or error, 80)})")
        return []
    for line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            skipped += 1
    if skipped:
        notes.append(f"{clean(path.name)}: {skipped} malformed {'line' if skipped == 1 else 'lines'} skipped")
    return entries


def parse_spiking(raw: dict) -> SpikingConfig:
    """Raises one of MALFORMED."""
    names = [field.name for field in fields(SpikingConfig)]
    settings = {name: raw[name] for name in names if name in raw}
    if not isinstance(settings.get("signed", True), bool):
        raise ValueError("signed is no boolean")
    return SpikingConfig(**settings)


def parse_direct(raw: dict, arch: str) -> DirectSpiking:
    """Raises one of MALFORMED."""
    return DirectSpiking(arch, raw["spike_steps"], raw.get("threshold", 1.0), raw.get("tsm", False))


def parse_mode(raw: dict) -> Mode:
    """Mode of a line of scores or of a folder's settings. Raises one of MALFORMED."""
    spiking: SpikingConfig | DirectSpiking | None
    if raw.get("direct") is not None:
        spiking = parse_direct(raw["direct"], raw["arch"])
    else:
        spiking = None if raw.get("spiking") is None else parse_spiking(raw["spiking"])
    return Mode(clean(raw["network"], 40), spiking, clean(raw.get("weights", "ema"), 20))


@dataclass(frozen=True)
class GapFile:
    """images, times: what the gap was measured on. depth: neuron layers in sequence. reports: by mode."""

    images: int | None
    times: int | None
    depth: int | None
    reports: dict[Mode, GapReport]


def listed_reports(raw: object, name: str, notes: list[str]) -> list | None:
    """The `reports` of a file's content; None, with a note where the file exists, if there is no such list."""
    if raw is None:
        return None
    listed = raw.get("reports") if isinstance(raw, dict) else None
    if isinstance(listed, list):
        return listed
    notes.append(f"{name} holds no list of reports and is left out")
    return None


def parse_gaps(raw: Json, name: str, notes: list[str]) -> GapFile | None:
    """A gap file's content. A report that makes no sense is left out with a note."""
    listed = listed_reports(raw, name, notes)
    if listed is None:
        return None
    if len(listed) > MOST_GAPS:
        notes.append(f"{name}: {len(listed) - MOST_GAPS:,} of {len(listed):,} reports are left out")
    reports, cut = {}, False
    for entry in listed[:MOST_GAPS]:
        try:
            network = "finetuned" if str(entry["label"]).startswith("fine-tuned") else "converted"
            report = parse_report(entry)
            cut = cut or len(entry["blocks"]) > MOST_GAP_BLOCKS + 1
        except MALFORMED:
            notes.append(f"{name}: a malformed report is left out")
        else:
            reports[Mode(network, report.spiking)] = report
    if cut:
        notes.append(f"{name}: of each report the first {MOST_GAP_BLOCKS} blocks are shown")
    return GapFile(integer(raw.get("images")), integer(raw.get("times")), integer(raw.get("depth")), reports)


def parse_report(raw: dict) -> GapReport:
    """The report behind `GapReport.to_dict`. Raises one of MALFORMED."""
    inner = itertools.islice((b for b in raw["blocks"] if b["block"] != PREDICTION), MOST_GAP_BLOCKS)
    rows = [
        BlockGap(
            clean(b["block"], 40),
            number(b.get("error")),
            number(b.get("firing_rate")),
            number(b.get("negative_share")),
            tuple(number(error) for error in (b.get("errors_at") or ())[:MOST_TIMES]),
        )
        for b in (*inner, *(b for b in raw["blocks"] if b["block"] == PREDICTION))
    ]
    blocks = unique(row for row in rows if row.block != PREDICTION)
    [prediction] = [row for row in rows if row.block == PREDICTION]
    settle, spikes = integer(raw.get("settle_steps")) or 0, number(raw.get("spikes_per_image"))
    times = tuple(dict.fromkeys(number(time) for time in (raw.get("times") or ())[:MOST_TIMES]))
    times = times if all(time == time for time in times) else ()
    return GapReport(parse_spiking(raw["spiking"]), blocks, prediction, spikes, settle, times=times)


def unique(rows: Iterable[BlockGap]) -> tuple[BlockGap, ...]:
    """The rows, the first of each block."""
    by_block: dict[str, BlockGap] = {}
    for row in rows:
        by_block.setdefault(row.block, row)
    return tuple(by_block.values())


def shareable(text: str) -> str:
    """Without the folders of this machine: of absolute paths the last name alone, "…/stats.npz"."""
    return re.sub(r"(^|[\s=,])(?:/|~/|[A-Za-z]:\\)(?:[^\s,/\\]+[/\\])+([^\s,/\\]+)", r"\1…/\2", text)
