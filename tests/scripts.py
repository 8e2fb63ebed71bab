"""Running the scripts as a user would."""

import dataclasses
import functools
import importlib
import os
import pkgutil
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

from ann2snn import cli, report, stages
from ann2snn.config import ImageSize
from ann2snn.data import datasets
from ann2snn.quant import calibrate, uniform
from ann2snn.stages import finetune_run

SHIPPED = "fashion_mnist_10k"
# Scaling these pictures takes longer than most runs here: done once, for all processes that are forked.
_shipped = functools.lru_cache(datasets._LOADERS[SHIPPED])

ROOT = Path(__file__).parents[1]
NETWORK = [
    "--dataset_type=fashion_mnist_10k", "--img_size=8", "--ch=8", "--ch_mult=1", "--ch_mult=2", "--bit=2",
    "--num_res_blocks=1", "--norm_groups=4", "--dropout=0.1", "--T=50", "--num_threads=1", "--device=cpu",
]  # fmt: skip
SAMPLING = ["--sampler=ddim", "--sampler_steps=3"]
SECONDS = 300
#: Of the search for clips, which else takes a quarter of a training of a few steps: (module, constant, value).
FEWER_CLIPS = [
    (module, *tried) for module in (calibrate, uniform) for tried in (("COARSE_STEPS", 16), ("FINE_STEPS", 8))
]


class Done(NamedTuple):
    """returncode: as subprocess gives it, negative for a signal."""

    returncode: int
    stdout: str
    stderr: str


def script(name: str, *flags: str, before=lambda: None) -> Done:
    """Run a script from the repository's root in a forked process, which saves importing torch once more.

    before: called in the child first, to make a fault happen.
    """
    return processes(1, name, *flags, before=before)[0]


def processes(count: int, name: str, *flags: str, before=lambda: None) -> list[Done]:
    """Run a script in `count` forked processes that form a world, as torchrun would start them.

    before: as above, in every process; `RANK` in the environment tells which.
    """
    _imported()
    _shipped(datasets._Request(SHIPPED, Path(), ImageSize(8, 8), True, None))
    port, running = _free_port(), []
    for rank in range(count):
        out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        child = os.fork()
        if child == 0:
            if count > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            _child(name, flags, before, out.fileno(), err.fileno())
        running.append((child, out, err))
    return [_finished(*process) for process in running]


@functools.cache
def _imported() -> None:
    """What scripts import once they have read their flags takes a second: the forked ones share it."""
    for room in (cli, report, stages):
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
    importlib.import_module("torch.utils.tensorboard")


def _finished(child: int, out, err) -> Done:
    _, status = os.waitpid(child, 0)
    with out, err:
        out.seek(0)
        err.seek(0)
        return Done(os.waitstatus_to_exitcode(status), out.read(), err.read())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _child(name: str, flags: tuple, before, out: int, err: int) -> None:
    code = 1
    try:
        signal.alarm(SECONDS)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.chdir(ROOT)
        datasets._LOADERS[SHIPPED] = lambda request: _shipped(dataclasses.replace(request, data_dir=Path()))
        for fewer in FEWER_CLIPS:
            setattr(*fewer)
        sys.argv = [name, *flags]
        before()
        runpy.run_path(name, run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def four_blocks() -> None:
    """For `before`: the first three blocks and the last are tuned; the others would be by the same code."""
    original = finetune_run.tunable_blocks
    finetune_run.tunable_blocks = lambda snn: original(snn)[:3] + original(snn)[-1:]


def check(done: Done) -> str:
    """Its standard output; fails the test with its errors if it did not end well."""
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def train_flags(logdir: Path, steps: int, *extra: str) -> list[str]:
    """A training run of seconds, with warm-up and dropout on."""
    return [
        "--train",
        f"--logdir={logdir}",
        *NETWORK,
        f"--total_steps={steps}",
        "--warmup=3",
        "--batch_size=8",
        "--lr=1e-3",
        "--ema_decay=0.9",
        "--log_step=1",
        "--save_step=4",
        "--sample_step=0",
        *extra,
    ]
