"""Fine-tuning runs: what `finetune.json` holds, checked, and the tables made from it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..run.tables import show
from .parse import MALFORMED, Json, clean, integer, number, read_json

MOST_RUNS, MOST_BLOCKS = 12, 200


@dataclass(frozen=True)
class BlockTuned:
    """Gap of a block's output on held-back images before and after its tuning, and of the prediction after it.

    block: "network" for a pass over the whole network. best_step: whose weights were kept. None or nan: not told.
    """

    block: str
    gap_before: float
    gap_after: float
    prediction_gap: float
    best_step: int | None = None
    steps: int | None = None
    seconds: float = math.nan


@dataclass(frozen=True)
class FineTuned:
    """source: hash of the checkpoint tuned from. prediction_gap: of the network before any tuning; best_gap: kept.

    settings: as printable text, by their names in the file. signed: None if not told.
    """

    folder: str
    source: str | None
    prediction_gap: float
    blocks: tuple[BlockTuned, ...]
    best_gap: float = math.nan
    settings: dict[str, str] | None = None
    signed: bool | None = None

    @property
    def bits(self) -> int | None:
        """Activation bits as the folder's name tells them."""
        match = re.match(r"SNN_(\d{1,2})bit_ft", self.folder)
        return int(match[1]) if match else None

    @property
    def seconds(self) -> float:
        """Of all blocks; nan if one does not tell."""
        return sum(block.seconds for block in self.blocks) if self.blocks else math.nan


def find_finetuned(logdir: Path, notes: list[str]) -> list[FineTuned]:
    """All fine-tuning runs of a run folder, newest first. What makes no sense is left out with a note."""
    files = sorted(logdir.glob("SNN_*_ft*/finetune.json"), key=lambda path: (-path.stat().st_mtime, path.parent.name))
    if len(files) > MOST_RUNS:
        notes.append(f"{len(files)} fine-tuning folders: the newest {MOST_RUNS} are shown")
    runs = [parse_finetuned(read_json(path, notes), path.parent.name, notes) for path in files[:MOST_RUNS]]
    return [run for run in runs if run]


def parse_finetuned(raw: Json, folder: str, notes: list[str]) -> FineTuned | None:
    """The content of `finetune.json`, older ones with fewer fields too; None, with a note, if it makes no sense."""
    if raw is None:
        return None
    try:
        identity, gaps = raw.get("identity", {}), [number(gap) for gap in _listed(raw["prediction_gap"])]
        listed = _listed(raw["blocks"])[:MOST_BLOCKS]
        reached = gaps[1:] + [math.nan] * len(listed)
        blocks = tuple(parse_block(block, gap) for block, gap in zip(listed, reached, strict=False))
        source, spiking = identity.get("source"), identity.get("spiking")
        signed = spiking.get("signed") if isinstance(spiking, dict) else None
        best = number(raw.get("best_gap"))
        return FineTuned(
            clean(folder, 60),
            None if source is None else clean(source, 40),
            gaps[0],
            blocks,
            best if best == best else min((gap for gap in gaps if gap == gap), default=math.nan),
            {clean(name, 40): as_text(value) for name, value in identity.items()},
            signed if isinstance(signed, bool) else None,
        )
    except (*MALFORMED, IndexError):
        notes.append(f"{clean(folder, 60)}/finetune.json is malformed and left out")
        return None


def parse_block(raw: dict, prediction_gap: float) -> BlockTuned:
    """Raises one of MALFORMED."""
    gaps = number(raw["gap_before"]), number(raw["gap_after"]), prediction_gap
    steps = integer(raw.get("best_step")), integer(raw.get("steps"))
    return BlockTuned(clean(raw["block"], 40), *gaps, *steps, number(raw.get("seconds")))


def _listed(value: object) -> list:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def as_text(value: object) -> str:
    """A setting in words: "weights, thresholds" for a list."""
    listed = value if isinstance(value, list) else [value]
    return clean(", ".join(str(entry) for entry in listed[:10]), 60) or "–"


def finetuned_table(runs: Sequence[FineTuned]) -> tuple[list[str], list[list[str]], range]:
    """(header, rows, numeric columns) as text: a row for each run. Missing is "–"."""
    header = ["folder", "method", "learned", "per", "inputs", "signed", "steps", "learning rate"]
    numeric = range(len(header) - 2, len(header) + 4)
    header += ["gap before", "gap after", "after / before", "time"]
    rows = []
    for run in runs:
        settings = run.settings or {}
        method = [settings.get(name, "–") for name in ("method", "learn", "granularity", "inputs")]
        signed = "–" if run.signed is None else "yes" if run.signed else "no"
        gaps = [show(run.prediction_gap), show(run.best_gap), ratio(run.best_gap, run.prediction_gap)]
        schedule = [settings.get(name, "–") for name in ("ft_steps", "lr")]
        rows.append([run.folder, *method, signed, *schedule, *gaps, duration(run.seconds)])
    return header, rows, numeric


def blocks_table(run: FineTuned) -> tuple[list[str], list[list[str]], range]:
    """(header, rows, numeric columns) as text: a row for each block in the order of tuning."""
    header = ["block", "gap before", "gap after", "after / before", "best step", "steps", "seconds", "prediction gap"]
    rows = [
        [
            block.block,
            show(block.gap_before),
            show(block.gap_after),
            ratio(block.gap_after, block.gap_before),
            show(block.best_step),
            show(block.steps),
            show(block.seconds),
            show(block.prediction_gap),
        ]
        for block in run.blocks
    ]
    return header, rows, range(1, len(header))


def ratio(after: float, before: float) -> str:
    return f"{after / before:.2f}" if after == after and before > 0 else "–"


def duration(seconds: float) -> str:
    """Such as "12.3 s", "4 min 32 s", "1 h 05 min"."""
    if not 0 <= seconds < 1e9:
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole_minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(whole_minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {remainder:02} s"
