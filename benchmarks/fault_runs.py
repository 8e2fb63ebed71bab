"""A small run of all stages, and ways of starting and killing its processes, for `benchmarks.faults`.

Single processes, and those of a world of two, are forked from this one, which saves importing torch anew for every
start, and read their images one by one, as those of a large data set are; `launched` ones are started as a user
starts them, by `--nproc=2` in a new interpreter.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ann2snn.data import datasets

ROOT = Path(__file__).parents[1]
DATA, PIXELS, IMAGES = "fashion_mnist_10k", 8, 400  # source, side and number of the images that a run reads
TUNED = "SNN_2bit_ft"  # folder of the fine-tuning inside the logdir
ALARM = 300  # seconds after which a forked process ends by itself, should this one be gone
PATIENCE = 15.0  # seconds that the survivors of a world have for ending, before they are killed as well
LONGEST_END = 150.0  # that they have where a launcher sees to it, or the stage has to meet the fault first
LAUNCHER_PATIENCE = 60.0  # that they may take at most where a launcher sees to it; it kills what hangs after 30 to 120

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
ONE, TWO, LAUNCHED = "one process", "two processes", "two processes, launcher"


@dataclass(frozen=True)
class Size:
    """How much work the run is: training steps, channel multipliers, tuning steps a block, images."""

    train_steps: int = 40
    save_step: int = 3
    ch_mult: tuple[int, ...] = (1, 2)
    ft_steps: int = 3
    images: int = 40
    stats_images: int = 300


USUAL, TINY = Size(), Size(train_steps=16, ch_mult=(1,), ft_steps=2, images=10, stats_images=40)


@dataclass(frozen=True)
class Stage:
    """One command. lock: the file it locks when its work begins, None if it locks nothing. resumes: whether a second
    start takes up what the first one did. finished: what its error says if it was done already."""

    name: str
    script: str
    flags: tuple[str, ...]
    lock: Path | None
    resumes: bool
    finished: str = ""


def pipeline(logdir: Path, images: Path, size: Size) -> list[Stage]:
    """The five commands of a run, in order. images: folder of its data."""
    sampling, stats = ("--sampler=ddim", "--sampler_steps=3"), logdir / "stats.npz"
    common = (f"--logdir={logdir}", f"--data_dir={images}", "--num_workers=0", "--num_threads=1", "--device=cpu")
    common = (*common, *sampling)
    data = ("--dataset_type=folder", "--channels=1", f"--img_size={PIXELS}")
    lite = ("--extractor=lite0", "--lite0_size=32", f"--fid_cache={stats}")
    widths = [f"--ch_mult={width}" for width in size.ch_mult]
    train = [
        "--train", *common, *data, "--ch=8", *widths, "--bit=2", "--num_res_blocks=1", "--norm_groups=4",
        "--dropout=0.1", "--T=50", f"--total_steps={size.train_steps}", "--warmup=3", "--batch_size=8", "--lr=1e-3",
        "--ema_decay=0.9", "--log_step=1", f"--save_step={size.save_step}", "--sample_step=8", "--sample_size=4",
    ]  # fmt: skip
    tune = [
        "--fine_tune", *common, f"--ft_steps={size.ft_steps}", "--ft_batch_size=4", "--lr=1e-3", "--ft_calibrate",
        "--save_step=1", "--sample_size=2", "--gap_images=2",
    ]  # fmt: skip
    score = [
        "--eval", *common, *lite, f"--eval_model_path={logdir}/{TUNED}/model_best.pt", "--batch_size=4",
        f"--num_images={size.images}", f"--images_dir={logdir}/generated/images", "--pic_or_not", "--gen_images=4",
    ]  # fmt: skip
    make_stats = ["--make_stats", *data, f"--data_dir={images}", f"--num_images={size.stats_images}", *lite]
    make_stats += ["--num_threads=1"]
    convert = ["--eval", *common, "--gen_images=8", "--gap_images=2"]
    generating = logdir / "generated" / "images" / ".generate.lock"
    return [
        Stage("train", "ANN_train.py", tuple(train), logdir / ".train.lock", True),
        Stage("convert", "SNN_conversion.py", tuple(convert), logdir / ".convert.lock", False),
        Stage("fine-tune", "SNN_ft.py", tuple(tune), logdir / TUNED / ".finetune.lock", True),
        Stage("statistics", "evaluate.py", tuple(make_stats), None, False, "exists: name another file"),
        Stage("evaluate", "evaluate.py", tuple(score), generating, True),
    ]


def preload() -> None:
    """Do once what every forked process would do again: import torch and all stages."""
    for name in ("torch.utils.tensorboard", "ann2snn.cli.build"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


class Attempt:
    """The processes of one start of a stage, their output in `output`.

    rescue: their folder for temporary files. deaf: standard error is closed.
    pids: one a process of the world, or the launcher's alone. codes: exit codes of those that have ended.
    """

    def __init__(self, stage: Stage, way: str, output: Path, rescue: Path, deaf: bool = False) -> None:
        self.stage, self.way, self.output, self.rescue, self.deaf = stage, way, output, rescue, deaf
        self.codes: dict[int, int] = {}
        self.before = _changed(stage.lock)
        self.started, self.started_ns = time.monotonic(), time.time_ns()
        count, port = (2 if way == TWO else 1), _free_port()
        with open(output, "wb") as file:
            self.pids = [self._fork(rank, count, port, file.fileno()) for rank in range(count)]

    def _fork(self, rank: int, count: int, port: int, output: int) -> int:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            if count > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ["TMPDIR"] = tempfile.tempdir = str(self.rescue)
            _child(self.stage, self.way, output, self.deaf)
        return child

    def alive(self) -> list[int]:
        """Processes that run; reaps those that have ended."""
        for pid in self.pids:
            if pid not in self.codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                self.codes[pid] = os.waitstatus_to_exitcode(ended[1])
        return [pid for pid in self.pids if pid not in self.codes]

    def working(self) -> bool:
        """Whether its work has begun: it holds the lock, or, of a stage without one, its processes have started."""
        if self.stage.lock is None:
            return self.way != LAUNCHED or len(workers(self.pids[0])) == 2
        return _changed(self.stage.lock) != self.before

    def wait(self, until, seconds: float, poll: float = 0.001) -> bool:
        """Whether `until()` became true before every process had ended and `seconds` were over."""
        end = time.monotonic() + seconds
        while not until():
            if not self.alive() or time.monotonic() > end:
                return False
            time.sleep(poll)
        return True

    def finish(self, seconds: float = ALARM) -> bool:
        """Wait for the end; whether it came in time. What has not ended by then is killed."""
        self.wait(lambda: False, seconds)
        late = self.alive()
        for pid in late:
            os.kill(pid, signal.SIGKILL)
        self.wait(lambda: False, seconds)
        return not late

    def errors(self) -> str:
        """The end of what it printed."""
        return self.output.read_text(errors="replace")[-2000:]


def strike(attempt: Attempt, fault: str, choose) -> tuple[list[int], float]:
    """Send the signal, if `fault` names one, then wait for everybody's end, helping as a launcher would.

    fault: a signal's name, or, of several processes, "SIGKILL of all", "SIGKILL of one"; with a launcher "SIGKILL of a
    worker" or "SIGTERM of the launcher". choose: picks from a list.

    Returns the processes that had to be killed because they outlived PATIENCE, and the seconds that the end took.
    """
    number = next((number for number in SIGNALS if number.name in fault), None)
    worker_pids = workers(attempt.pids[0]) if attempt.way == LAUNCHED else []
    victims = attempt.alive()
    if fault.endswith("of one"):
        victims = [choose(attempt.pids)]
    elif fault.endswith("of a worker"):
        victims = [choose(worker_pids)] if worker_pids else []
    start = time.monotonic()
    if number is not None:
        _send(victims, number)
    if attempt.way == TWO and fault.endswith("of one"):
        time.sleep(0.2)  # most survivors notice by themselves
        _send(attempt.alive(), signal.SIGTERM)
    stubborn = _wait_for_end(
        attempt, worker_pids, LONGEST_END if attempt.way == LAUNCHED or number is None else PATIENCE
    )
    return stubborn, time.monotonic() - start


def _wait_for_end(attempt: Attempt, worker_pids: list[int], patience: float) -> list[int]:
    end = time.monotonic() + patience
    while (running := attempt.alive() + [pid for pid in worker_pids if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.002)
    _send(running, signal.SIGKILL)
    attempt.wait(lambda: False, 5)
    return running


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def workers(launcher: int) -> list[int]:
    """The launcher's worker processes."""
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
    return []


def is_running(pid: int) -> bool:
    """Whether a process that is not our child has not ended yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def leftovers(logdir: Path) -> set[Path]:
    """Half-written files: what `io.atomic.replacing` was writing when its process was killed."""
    return set(_temporary(logdir))


def in_a_write(logdir: Path) -> bool:
    """Whether a file is being written right now."""
    return next(_temporary(logdir), None) is not None


def _temporary(logdir: Path) -> Iterator[Path]:
    for folder in (logdir, *(logdir / name for name in _FOLDERS)):
        with contextlib.suppress(OSError):
            yield from (Path(folder, name) for name in os.listdir(folder) if name[0] == "." and name.endswith(".tmp"))


_FOLDERS = (
    "sample", "images", "generated", "generated/images", TUNED,
    *(f"{TUNED}/{name}" for name in ("model_backpacks", "ft_blocks_samples")),
)  # fmt: skip


def _changed(path: Path | None) -> int:
    try:
        return path.stat().st_mtime_ns if path else 0
    except OSError:
        return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _child(stage: Stage, way: str, output: int, deaf: bool) -> None:
    """Become one process of an attempt; never returns."""
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        if deaf:
            os.close(2)
        os.chdir(ROOT)
        if way == LAUNCHED:
            os.setsid()
            os.execv(sys.executable, [sys.executable, stage.script, *stage.flags, "--nproc=2"])
        signal.alarm(ALARM)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = None if deaf else os.fdopen(2, "w", buffering=1)
        sys.argv = [stage.script, *stage.flags]
        datasets.MEMORY_BUDGET = 0
        runpy.run_path(stage.script, run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
