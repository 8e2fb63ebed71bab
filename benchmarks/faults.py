"""Do harm to a small run again and again, and verify that nothing is lost but the work since the last checkpoint.

    python -m benchmarks.faults --kills 120 --out logs/faults/kills.json

Training, conversion, fine-tuning, statistics and evaluation of a tiny network on small images run once without
interruption, in one process and in two, and then as often as it takes with every stage hit at random moments and
started again by the same command: it is killed, told to stop (SIGTERM, SIGHUP, also with standard error closed), its
disk is filled (in every second run, where this may mount one), its lock removed, or its images are cut short. After
each fault every file of the run must load and match its hash, and at the end weights, optimizer, logs, images and
scores must equal those of the uninterrupted run. Prints a table and writes every fault to --out; the exit code is 1 if
anything failed. Needs Linux; takes about 4 s a fault.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

from ann2snn.files.atomic import write_text
from ann2snn.run.tables import text_table

from . import fault_checks as checks
from . import fault_kinds as kinds
from . import fault_runs as runs
from .fault_kinds import BROKEN, DEAF, FULL, UNLOCKED
from .fault_runs import LAUNCHED, ONE, TINY, TWO, USUAL, Attempt, Size, Stage

KILLS = {"train": 5, "convert": 3, "fine-tune": 4, "statistics": 2, "evaluate": 3}  # planned in one run
CLOSE = 1e-4  # relative distance of two processes' weights from one's: sums in another order
EARLY, AIMED = 0.1, 0.5  # shares of kills during start-up, and of those that wait until a file is being written
AIM_SECONDS = 1.0
FAULTS = {
    ONE: [("SIGKILL", 3), ("SIGTERM", 1), ("SIGHUP", 1), (DEAF, 1), (FULL, 1), (UNLOCKED, 1), (BROKEN, 1)],
    TWO: [
        ("SIGKILL of one", 2), ("SIGKILL of all", 2), ("SIGTERM of all", 1), ("SIGHUP of all", 1),
        (FULL, 1), (UNLOCKED, 1), (BROKEN, 1),
    ],
    LAUNCHED: [
        ("SIGKILL of a worker", 1), ("SIGKILL of the launcher", 1),
        ("SIGTERM of the launcher", 1), ("SIGHUP of the launcher", 1),
    ],
}  # fmt: skip
READS_IMAGES = ("train", "fine-tune", "statistics")


@dataclass
class Kill:
    """One kill, or another fault. after: seconds since the work began (or the process, if `early`). writing: files
    half-written at that moment. seconds: until all processes were gone. lost: steps since the last checkpoint.
    rescued: the state that was written to the temporary folder. recovered: the stage came to its end, by the same
    command. different: its files that differ from the uninterrupted run's."""

    run: int
    stage: str
    way: str
    how: str
    after: float
    early: bool
    writing: int = 0
    seconds: float = 0.0
    codes: list[int] = field(default_factory=list)
    outlived: int = 0
    position: str = ""
    lost: float | None = None
    rescued: str = ""
    unloadable: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    recovered: bool = False
    different: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.unloadable or self.problems or self.different or not self.recovered)


@dataclass
class Reference:
    """An uninterrupted run. startup, work: seconds of each stage before and after its work began."""

    logdir: Path
    files: dict[str, str]
    startup: dict[str, float]
    work: dict[str, float]


class StageError(Exception):
    """A stage did not come to its end."""


def make_reference(place: Path, way: str, images: Path, size: Size) -> Reference:
    """Run all stages in a new folder without interruption. Raises StageError."""
    place.mkdir()
    startup, work, logdir = {}, {}, place / "logs"
    for stage in runs.pipeline(logdir, images, size):
        attempt = Attempt(stage, way, place / "output.txt", place)
        begun = attempt.wait(attempt.working, runs.ALARM)
        startup[stage.name] = time.monotonic() - attempt.started
        attempt.finish()
        if not begun or any(attempt.codes.values()):
            raise StageError(f"{stage.name} fails without being killed: {attempt.errors()}")
        work[stage.name] = time.monotonic() - attempt.started - startup[stage.name]
    if bad := checks.unloadable(logdir):
        raise StageError(f"unloadable without a kill: {bad}")
    return Reference(logdir, checks.fingerprints(logdir), startup, work)


@dataclass(frozen=True)
class Place:
    """Where a run lives. folder: its log and its run folder; owns_disk: which may be filled. rescue: temporary files.
    images: its data."""

    folder: Path
    owns_disk: bool
    rescue: Path
    images: Path


class KilledRun:
    """One run through all stages, each hit several times. `kills`: what was done to it, in order."""

    def __init__(self, number: int, place: Place, size: Size, processes: int, reference: Reference, seed: int) -> None:
        self.number, self.place, self.processes, self.reference = number, place, processes, reference
        self.logdir, self.was_full = place.folder / "logs", False
        self.stages = runs.pipeline(self.logdir, place.images, size)
        self.random = random.Random(f"{seed}/{number}")
        self.kills: list[Kill] = []
        self.images: dict[Path, int] = {}
        self.litter: set[Path] = set()
        self.planned: dict[str, int] = KILLS

    def go(self, most: int) -> None:
        """Run all stages, killing at most `most` times, and compare the result. Raises StageError."""
        each, rest = divmod(most, len(KILLS))  # few kills are spread over the stages
        self.planned = {name: min(KILLS[name], each + (i < rest)) for i, name in enumerate(KILLS)}
        for stage in self.stages:
            first, ended = len(self.kills), False
            for after, early in self.moments(stage):
                if ended or len(self.kills) >= most:
                    break
                ended = self.ends_before_kill(stage, after, early)
            if not ended:
                self.finish(stage)
            for kill in self.kills[first:]:
                kill.recovered = True
        self.compare()

    def moments(self, stage: Stage) -> Iterator[tuple[float, bool]]:
        """(seconds, whether they count from the start of the process) of the kills planned for a stage."""
        count, work = self.planned[stage.name], self.reference.work[stage.name]
        strata = self.random.sample(range(count), count)
        for index in range(count):
            if self.random.random() < EARLY:
                yield self.random.random() * self.reference.startup[stage.name], True
            elif stage.resumes:  # what is left of the work, on average cut into equal parts
                after = self.random.random() * min(1.0, 2 / (count - index + 1)) * work
                work -= after
                yield after, False
            else:
                yield (strata[index] + self.random.random()) / count * work, False

    def ends_before_kill(self, stage: Stage, after: float, early: bool) -> bool:
        """Start a stage and kill it; False if it was killed, True if it was done first."""
        way, fault = self.choose_way(stage, early)
        attempt = self.start(stage, way, fault == DEAF)
        if not early and not attempt.wait(attempt.working, runs.ALARM):
            return self.ended(attempt)
        started = attempt.started if early else time.monotonic()
        moment = started + after
        attempt.wait(lambda: time.monotonic() >= moment, after + 1)
        if not early and self.random.random() < AIMED:
            attempt.wait(lambda: runs.in_a_write(self.logdir), AIM_SECONDS, poll=0)
        if not attempt.alive():
            return self.ended(attempt)
        kill = Kill(self.number, stage.name, way, fault, round(time.monotonic() - started, 4), early)
        self.kill(attempt, kill)
        if not any(attempt.codes.values()):  # it came to its end while the signal was on its way
            self.kills.remove(kill)
            return True
        return False

    def choose_way(self, stage: Stage, early: bool) -> tuple[str, str]:
        way = ONE if self.processes == 1 else LAUNCHED if not early and self.random.random() < 0.35 else TWO
        possible = {FULL: self.place.owns_disk, UNLOCKED: stage.lock is not None, BROKEN: stage.name in READS_IMAGES}
        faults, weights = zip(*(pair for pair in FAULTS[way] if possible.get(pair[0], True)), strict=True)
        fault = self.random.choices(faults, weights)[0]
        if early and "SIGKILL" not in fault:  # a script that has just started has no handler yet
            fault = faults[0]
        return way, fault

    def start(self, stage: Stage, way: str, deaf: bool = False) -> Attempt:
        return Attempt(stage, way, self.place.folder / "output.txt", self.place.rescue, deaf)

    def kill(self, attempt: Attempt, kill: Kill) -> None:
        """Do the harm, mend it, and look at what is left."""
        self.kills.append(kill)
        self.was_full |= kill.how == FULL
        with kinds.provoked(kill.how, attempt.stage, self.place.folder, self.place.images):
            stubborn, seconds = runs.strike(attempt, kill.how, self.random.choice)
        kill.rescued = kinds.bring_back(self.place.rescue, attempt.stage, self.logdir)
        kill.codes, kill.outlived, kill.seconds = list(attempt.codes.values()), len(stubborn), round(seconds, 3)
        kill.problems += wrong_codes(kill, attempt.errors())
        if kill.way == LAUNCHED and (stubborn or seconds > runs.LAUNCHER_PATIENCE):
            kill.problems.append(f"{len(stubborn)} processes were left, the end took {seconds:.0f} s")
        litter = runs.leftovers(self.logdir)
        kill.writing = len(litter - self.litter)
        kill.problems += self.look(attempt, litter)
        kill.unloadable = checks.unloadable(self.logdir, cut_lines=self.was_full)
        kill.position, kill.lost = checks.position(kill.stage, self.logdir, attempt.started_ns)
        if kill.stage == "train" and kill.lost and "SIGKILL" not in kill.how:
            kill.problems.append(f"{kill.lost} steps are lost that could have been saved")

    def look(self, attempt: Attempt, litter: set[Path]) -> list[str]:
        """What an attempt that began its work did wrong: litter of earlier ones left, images generated twice."""
        wrong = []
        begun = attempt.working() if attempt.stage.lock else bool(litter - self.litter) or 0 in attempt.codes.values()
        if begun and (old := litter & self.litter):
            wrong.append(f"half-written files of earlier kills stay: {sorted(path.name for path in old)}")
        now = checks.image_times(self.logdir)
        if repeated := [path.name for path, when in self.images.items() if now.get(path) != when]:
            wrong.append(f"images generated twice: {repeated}")
        self.litter, self.images = litter, now
        return wrong

    def finish(self, stage: Stage) -> None:
        """Start a stage and let it end."""
        attempt = self.start(stage, ONE if self.processes == 1 else TWO)
        attempt.finish()
        self.ended(attempt)

    def ended(self, attempt: Attempt) -> bool:
        """True for an attempt that ended by itself. Raises StageError if it did not end well."""
        codes = list(attempt.codes.values())
        finished = attempt.stage.finished
        if any(codes) and not (finished and set(codes) <= {0, 2} and finished in attempt.errors()):
            raise StageError(f"{attempt.stage.name} ended with {codes}: {attempt.errors()}")
        if wrong := self.look(attempt, runs.leftovers(self.logdir)):
            (self.kills[-1].problems if self.kills else []).extend(wrong)
        return True

    def compare(self) -> None:
        """Note, at each stage's kills, the files that differ from the uninterrupted run's."""
        different = checks.differences(self.fingerprints(), self.reference.files)
        litter = sorted(path.name for path in runs.leftovers(self.logdir))
        for kill in self.kills:
            kill.different = [name for name in different if checks.stage_of(name) == kill.stage]
        if self.kills and (unassigned := set(different) - {name for kill in self.kills for name in kill.different}):
            self.kills[-1].problems.append(f"differ without a kill of their stage: {sorted(unassigned)}")
        if self.kills and litter:
            self.kills[-1].problems.append(f"half-written files at the end: {litter}")

    def fingerprints(self) -> dict[str, str]:
        """Those of a log from which a full disk kept lines are the reference's, if nothing else is in it."""
        if not self.was_full:
            return checks.fingerprints(self.logdir)
        short = [name for name in self.reference.files if checks.is_log(name)]
        short = [n for n in short if not checks.differences_of_log(self.logdir / n, self.reference.logdir / n)]
        return checks.fingerprints(self.logdir, without=short) | {name: self.reference.files[name] for name in short}


#: Way of killing → (exit codes that may occur, the one that must).
CODES = {
    "SIGKILL": ({-9}, -9),
    "SIGTERM": ({143}, 143),
    "SIGKILL of one": ({-9, 1, 143}, -9),
    "SIGKILL of all": ({-9}, -9),
    "SIGTERM of all": ({143, 1}, 143),
    "SIGKILL of a worker": ({1}, 1),
    "SIGKILL of the launcher": ({-9}, -9),
    "SIGTERM of the launcher": ({143}, 143),
    "SIGHUP": ({129}, 129),
    "SIGHUP of all": ({129, 1}, 129),
    "SIGHUP of the launcher": ({129}, 129),
    DEAF: ({143}, 143),
    FULL: ({2, 1}, 2),
    UNLOCKED: ({2, 1}, 2),
    BROKEN: ({2, 1}, 2),
}


def wrong_codes(kill: Kill, printed: str) -> list[str]:
    """What is wrong with the way a killed attempt ended. 0 is allowed: it may have been done before the signal came."""
    codes, (allowed, needed) = set(kill.codes), CODES[kill.how]
    wrong = []
    if codes - {0} - allowed or not codes & {0, needed}:
        wrong.append(f"exit codes {kill.codes}: {printed}")
    return wrong + ([f"traceback: {printed}"] if "Traceback" in printed else [])


def campaign(kills: int, seed: int, share: float, size: Size, folder: Path) -> tuple[list[Kill], dict]:
    """Kill runs until `kills` is reached, `share` of them with two processes.

    Returns the kills, and what else was found: seconds of the uninterrupted runs and distances of weights.
    """
    runs.preload()
    counts = [1, 2] if share > 0 else [1]
    ways = {1: ONE, 2: TWO}
    images = folder / "images"
    kinds.write_images(images)
    references = {n: make_reference(folder / f"whole{n}", ways[n], images, size) for n in counts}
    facts: dict = {"seconds": {ways[n]: round(sum(r.work.values()), 2) for n, r in references.items()}}
    all_kills: list[Kill] = []
    distances, number = [], 0
    while len(all_kills) < kills:
        number += 1
        processes = 2 if int(number * share) > int((number - 1) * share) else 1
        rescue = folder / f"temporary{number}"
        rescue.mkdir()
        with kinds.own_disk(folder / f"run{number}", separate=number % 2 == 0) as owns_disk:
            place = Place(folder / f"run{number}", owns_disk, rescue, images)
            run = KilledRun(number, place, size, processes, references[processes], seed)
            try:
                run.go(kills - len(all_kills))
                if processes == 2:
                    distances.append(checks.weight_distance(run.logdir, references[1].logdir))
            except StageError as error:
                (run.kills[-1].problems if run.kills else facts.setdefault("failures", [])).append(str(error))
        all_kills += run.kills
        if "failures" in facts:  # it fails without being killed
            break
        print(f"run {number} ({processes} processes): {len(run.kills)} kills, {len(all_kills)} in all", file=sys.stderr)
    facts["runs"] = number
    if distances:
        facts["largest distance of two processes' weights from one's"] = max(distances)
    return all_kills, facts


def table(kills: list[Kill]) -> str:
    """One row a stage and way of killing, and their sum."""
    head = ["stage", "processes", "killed by", "kills", "while writing", "unloadable files", "recovered"]
    head += ["mean steps lost", "longest end (s)", "different files", "other problems"]
    order = [(stage, way, fault) for stage in KILLS for way, faults in FAULTS.items() for fault, _ in faults]
    groups = [(key, [k for k in kills if (k.stage, k.way, k.how) == key]) for key in order]
    rows = [[*key, *_figures(group)] for key, group in groups if group]
    return text_table(head, [*rows, ["all", "", "", *_figures(kills)]])


def _figures(kills: list[Kill]) -> list[object]:
    losses = [kill.lost for kill in kills if kill.lost is not None]
    return [
        len(kills),
        sum(kill.writing > 0 for kill in kills),
        sum(len(kill.unloadable) for kill in kills),
        sum(kill.recovered for kill in kills),
        sum(losses) / len(losses) if losses else None,
        max((kill.seconds for kill in kills), default=0.0),
        len({(kill.run, name) for kill in kills for name in kill.different}),
        sum(len(kill.problems) for kill in kills),
    ]


def environment(folder: Path) -> dict[str, str]:
    """Where and when this was measured."""
    completed = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = Counter(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    processor = f"{os.cpu_count()} × {next(iter(models), platform.machine())}"
    about = {"processor": processor, "system": f"{platform.system()} {platform.release()}"}
    about["file system"] = completed.stdout.strip()
    return about | {"python": platform.python_version(), "torch": torch.__version__, "date": date.today().isoformat()}


def main(argv: list[str] | None = None) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by all that is started here as well
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0, help="the moments and ways of killing follow from it")
    parser.add_argument("--nproc", type=float, default=0.4, help="share of the runs that use two processes, 0 to 1")
    parser.add_argument("--tiny", action="store_true", help="less work in a run")
    parser.add_argument("--workdir", type=Path, help="where the runs are made; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="every kill (.json)")
    args = parser.parse_args(argv)
    start = time.monotonic()
    if args.workdir:
        args.workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="faults-", dir=args.workdir) as folder:
        about = environment(Path(folder))
        kills, facts = campaign(args.kills, args.seed, args.nproc, TINY if args.tiny else USUAL, Path(folder))
    facts |= {"minutes": round((time.monotonic() - start) / 60, 1), "seed": args.seed} | about
    print(table(kills))
    print(", ".join(f"{name}: {value}" for name, value in facts.items()))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"about": facts, "kills": [dataclasses.asdict(kill) for kill in kills]}
        write_text(args.out, json.dumps(content, indent=1) + "\n")
    far = facts.get("largest distance of two processes' weights from one's", 0.0) > CLOSE
    failed = [kill for kill in kills if kill.failed]
    for kill in failed:
        print(f"FAILED: {kill}", file=sys.stderr)
    return int(bool(failed or far or facts.get("failures")))


if __name__ == "__main__":
    sys.exit(main())
