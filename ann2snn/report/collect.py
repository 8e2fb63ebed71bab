"""Gather what the stages left in a run folder. Any of it may be missing; what is damaged becomes a note."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..config import FULL_PRECISION, DirectSpiking, SpikingConfig
from ..convert.raster import Raster
from ..errors import UserError
from ..files.flagfile import MOST_BYTES
from ..files.plain import read_text
from ..generate.images import existing_indices
from ..metrics.registry import settings_of_all
from ..run.folder import (
    CARRY_FILE,
    COST_FILE,
    FLAGFILE,
    GAP_FILE,
    GENERATED,
    LINES,
    PATHS_FILE,
    PICTURES,
    RASTER_FILE,
    REAL_IMAGES,
    RESULTS,
    SAMPLES,
    SETTINGS,
)
from ..run.lines import LOSS_QUARTERS
from ..run.paths import SamplingPaths, load_paths
from ..run.rasters import load_rasters
from .carried import CarryFile, parse_carry
from .costs import CostFile, parse_costs
from .direct import direct_of_flags, direct_of_name, tsm_folders
from .finetuned import FineTuned, find_finetuned
from .modes import Mode
from .parse import (
    MALFORMED,
    GapFile,
    clean,
    integer,
    number,
    options_text,
    parse_gaps,
    parse_mode,
    read_json,
    read_json_lines,
)

#: Fields of a line of scores that say how the score came about; any other float is a score.
SCORE_SETTINGS = (
    "count", "extractor", "notes", "checkpoint", "step", "network", "bits", "weights", "spiking", "sampler",
    "sampler_steps", "eta", "clip_x0", "var_type", "seed", "reference", "reference_count", "image_size",
    "device", "date", "time_steps", "direct", "sampler_options", "statistics",
    "spikes_per_call", "time_steps_per_call", "restarts_per_image",
    *settings_of_all(),
)  # fmt: skip
MOST_SCORES = 200  # lines that are shown: a table of more is not read
#: Of these, the ones that may differ between two lines where the newer replaces the older.
INCIDENTAL = ("notes", "device", "date", "time_steps", "spikes_per_call", "time_steps_per_call", "restarts_per_image")
NO_OPTIONS: dict[str, object] = {
    "sampler_options": {}
}  # what lines have in effect that were written before there were any


@dataclass(frozen=True)
class Score:
    """One line of scores. values: by name. line: all its fields, unchecked."""

    mode: Mode
    values: dict[str, float]
    count: int | None
    line: dict

    @property
    def is_real(self) -> bool:
        """Whether images of the data set were scored, not a network's."""
        return self.mode.network.startswith("real images")

    def text(self, name: str) -> str:
        """A field as printable text; "–" if it is missing."""
        if name == "sampler_options":
            return options_text(self.line, " and ") or "default"
        value = self.line.get(name)
        return "–" if value is None else clean(value)


@dataclass(frozen=True)
class ImageSet:
    """A folder of numbered images. settings: how they were made, unchecked; empty if unknown."""

    mode: Mode
    folder: Path
    indices: tuple[int, ...]
    settings: dict


@dataclass
class Run:
    """Everything the report is made from. loss: (step, loss). training_scores: by step. notes: what went unread.

    loss_by_time: as `loss`, of each quarter of the diffusion times, the one with the least noise first.
    tsm_runs: the fine-tunings with TSM, whose scores and images are among this run's own.
    """

    logdir: Path
    loss: list[tuple[int, float]] = field(default_factory=list)
    loss_by_time: list[list[tuple[int, float]]] = field(default_factory=list)
    flagfiles: dict[str, str] = field(default_factory=dict)
    gaps: GapFile | None = None
    gaps_finetuned: GapFile | None = None
    finetunings: list[FineTuned] = field(default_factory=list)  # newest first
    rasters: list[Raster] = field(default_factory=list)
    costs: CostFile | None = None
    carried: CarryFile | None = None
    paths: SamplingPaths | None = None
    scores: list[Score] = field(default_factory=list)
    training_scores: dict[int, dict[str, float]] = field(default_factory=dict)
    image_sets: list[ImageSet] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)
    samples: dict[int, Path] = field(default_factory=dict)
    tsm_runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return clean(self.logdir.resolve().name or "run", 80)

    @property
    def finetuned(self) -> FineTuned | None:
        """The newest fine-tuning run."""
        return self.finetunings[0] if self.finetunings else None

    @property
    def direct(self) -> DirectSpiking | None:
        """How the network runs that this run has trained as a spiking network; None for a run of another kind."""
        candidates: list[SpikingConfig | DirectSpiking | None] = [raster.spiking for raster in self.rasters]
        candidates += [account.direct for account in (self.costs.accounts if self.costs else ())]
        candidates += [direct_of_flags(self.flagfiles.get(FLAGFILE, "")), direct_of_name(self.logdir.name)]
        candidates += [score.mode.spiking for score in self.scores] + [
            images.mode.spiking for images in self.image_sets
        ]
        return next((spiking for spiking in candidates if isinstance(spiking, DirectSpiking)), None)

    @property
    def bits(self) -> int | None:
        """Activation bits as the newest file tells them; None where the activations are spikes from the start."""
        if self.direct:
            return None
        candidates = [s.line.get("bits") for s in reversed(self.scores)] + [
            s.settings.get("bits") for s in self.image_sets
        ]
        candidates += [tuned.bits for tuned in self.finetunings]
        if match := re.search(r"(?m)^--bit=(\d{1,2})(?:\.0)?$", self.flagfiles.get(FLAGFILE, "")):
            candidates.append(int(match[1]))
        return next((b for b in map(integer, candidates) if b in (*range(1, 17), FULL_PRECISION)), None)

    @property
    def spike_steps(self) -> int | None:
        """Time steps of the window, 2^bits − 1, or those a network was trained with."""
        if self.direct:
            return self.direct.spike_steps
        return None if self.bits in (None, FULL_PRECISION) else 2**self.bits - 1

    def is_empty(self) -> bool:
        contents = (
            self.loss,
            self.flagfiles,
            self.gaps,
            self.gaps_finetuned,
            self.finetunings,
            self.rasters,
            self.costs,
            self.carried,
            self.paths,
            self.scores,
            self.training_scores,
        )
        return not any((*contents, self.image_sets, self.pictures, self.samples, self.tsm_runs, self.notes))


def collect(logdir: Path) -> Run:
    """Read a run folder. Raises UserError if it does not exist or holds nothing a stage wrote."""
    if not logdir.is_dir():
        raise UserError(f"{logdir} is not a folder: give the --logdir of a run")
    run = Run(logdir)
    try:
        _collect_files(run)
        _collect_tuned(run)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or logdir}: {error.strerror or error}") from None
    if run.is_empty():
        raise UserError(f"{logdir} holds nothing to report on: run a training or SNN_conversion.py on it first")
    return run


def _collect_files(run: Run) -> None:
    logdir, notes = run.logdir, run.notes
    logged = read_json_lines(logdir / LINES, notes)
    run.loss = loss_curve(logged)
    run.loss_by_time = [loss_curve(logged, name) for name in LOSS_QUARTERS]
    for path in sorted(logdir.glob("flagfile*.txt")):
        try:
            run.flagfiles[clean(path.name)] = read_text(path, MOST_BYTES, errors="replace")
        except OSError:
            notes.append(f"{clean(path.name)} cannot be read and is left out")
    run.gaps = parse_gaps(read_json(logdir / GAP_FILE, notes), GAP_FILE, notes)
    run.finetunings = find_finetuned(logdir, notes)
    if run.finetuned:
        name = f"{run.finetuned.folder}/gap.json"
        run.gaps_finetuned = parse_gaps(read_json(logdir / name, notes), name, notes)
    run.rasters = find_rasters(logdir / RASTER_FILE, notes)
    run.paths = find_paths(logdir / PATHS_FILE, notes)
    run.costs = parse_costs(read_json(logdir / COST_FILE, notes), COST_FILE, notes)
    run.carried = parse_carry(read_json(logdir / CARRY_FILE, notes), CARRY_FILE, notes)
    lines = read_json_lines(logdir / RESULTS, notes)
    run.scores = newest_scores([line for line in lines if "network" in line], notes)
    run.training_scores = training_scores([line for line in lines if "network" not in line], notes)
    run.image_sets = list(find_image_sets(logdir, notes))
    pictures = [logdir / REAL_IMAGES, *sorted(logdir.glob(f"{PICTURES}/*.png"))]
    pictures = [path for path in pictures if not path.match("*.prev.png")]  # of a network that was here before
    run.pictures = {path.relative_to(logdir).as_posix(): path for path in pictures if path.is_file()}
    steps = [path for path in logdir.glob(f"{SAMPLES}/*.png") if re.fullmatch(r"[0-9]{1,12}", path.stem)]
    run.samples = {int(path.stem): path for path in sorted(steps, key=lambda path: int(path.stem))}


def _collect_tuned(run: Run) -> None:
    """The fine-tunings with TSM."""
    for folder in tsm_folders(run.logdir, run.notes):
        tuned = Run(folder)
        _collect_files(tuned)
        if not tuned.is_empty():
            run.tsm_runs.append(tuned)
            run.scores += tuned.scores
            run.image_sets += tuned.image_sets
            run.notes += tuned.notes
            tuned.notes = run.notes
    run.image_sets.sort(key=lambda images: (images.mode.order, images.folder))


def loss_curve(entries: list[dict], name: str = "loss") -> list[tuple[int, float]]:
    """(step, training loss), by step. name: under which it was logged."""
    points = [(integer(e.get("step")), number(e.get(name))) for e in entries if e.get("stage") == "train"]
    return sorted((step, loss) for step, loss in points if step is not None and loss == loss)


def newest_scores(lines: list[dict], notes: list[str]) -> list[Score]:
    """The scores, of lines with the same settings the last that has all their figures; in the order of the file."""
    newest: list[tuple[str, Score]] = []
    if len(lines) > MOST_SCORES:
        notes.append(f"{RESULTS}: the newest {MOST_SCORES} of {len(lines):,} lines are shown")
    for line in lines[-MOST_SCORES:]:
        try:
            score = Score(parse_mode(line), scores_in(line), integer(line.get("count")), line)
            settings = NO_OPTIONS | line
            key = json.dumps([settings.get(name) for name in SCORE_SETTINGS if name not in INCIDENTAL], sort_keys=True)
        except MALFORMED:
            notes.append(f"{RESULTS}: a line without usable settings is left out")
            continue
        newest = [(k, old) for k, old in newest if k != key or not old.values.keys() <= score.values.keys()]
        newest.append((key, score))
    return [score for _, score in newest]


def training_scores(lines: list[dict], notes: list[str]) -> dict[int, dict[str, float]]:
    """Scores by training step, of lines with the same step the last."""
    by_step = {}
    for line in lines:
        step, values = integer(line.get("step")), scores_in(line)
        if step is None or not values:
            notes.append(f"{RESULTS}: a line without usable settings is left out")
        else:
            by_step[step] = values
    return dict(sorted(by_step.items()))


def scores_in(line: dict) -> dict[str, float]:
    """The fields that are scores."""
    return {clean(k, 40): number(v) for k, v in line.items() if k not in SCORE_SETTINGS and isinstance(v, float)}


def find_rasters(path: Path, notes: list[str]) -> list[Raster]:
    """Spike rasters of the same neurons; none, with a note, if the file is damaged."""
    try:
        return load_rasters(path) if path.is_file() else []
    except UserError:
        notes.append(f"{clean(path.name)} cannot be read as spike rasters and is left out")
        return []


def find_paths(path: Path, notes: list[str]) -> SamplingPaths | None:
    """The way of the first images from noise; None, with a note, if the file is damaged."""
    try:
        return load_paths(path) if path.is_file() else None
    except UserError:
        notes.append(f"{clean(path.name)} cannot be read as sampling paths and is left out")
        return None


def find_image_sets(logdir: Path, notes: list[str]) -> Iterable[ImageSet]:
    """Folders of numbered images below `generated/`."""
    for folder in sorted(path for path in logdir.glob(f"{GENERATED}/*") if path.is_dir()):
        indices = tuple(sorted(existing_indices(folder)))
        if not indices:
            continue
        settings = read_json(folder / SETTINGS, notes)
        try:
            yield ImageSet(parse_mode(settings), folder, indices, settings)
        except MALFORMED:
            notes.append(f"{GENERATED}/{clean(folder.name)}: no usable {SETTINGS}")
            yield ImageSet(Mode(clean(folder.name, 40)), folder, indices, {})
