"""Start one process per GPU for `--parallel`, let signals stop a run cleanly, and turn failures into one line.

Workers are started by PyTorch's elastic agent, the engine of torchrun; under torchrun itself the scripts find the
world described in the environment and start nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..errors import UserError, explained, is_out_of_memory, one_line
from ..signals import STOPPING, Stopped, stoppable, stopping_signals
from . import meeting, world
from .runtime import choose_device

LAUNCHER = "ANN2SNN_LAUNCHER"  # environment variable: process id of the launcher, which workers do not outlive
SHUTDOWN_SECONDS = 120  # that workers have for finishing a step and writing a checkpoint
STARTING_SECONDS = 5  # that they have before they have joined the others


def process_count(nproc: int, parallel: bool, device: str) -> int:
    """Number of processes to start: 1 inside a world, `--nproc`, or one a visible GPU. Raises UserError."""
    if nproc < 0:
        raise UserError(f"--nproc={nproc}: use 1 or more, or 0 for one process a visible GPU")
    if meeting.launched():
        return 1
    chosen = choose_device(device)
    gpus = torch.cuda.device_count() if chosen.type == "cuda" else 0
    if gpus and nproc > gpus:
        raise UserError(f"--nproc={nproc}: {gpus} GPUs are visible; use as many at most, or add --device=cpu")
    if nproc or not parallel:
        return max(1, nproc)
    if gpus <= 1:
        print(f"--parallel: {gpus} GPUs are visible, so one process does all; --nproc=N starts N of them on a CPU")
    return max(1, gpus)


def run(main: Callable[[], int | None], processes: Callable[[], int], worker: Sequence[str] | None = None) -> int:
    """Run `main` here, or this very command line in `processes()` workers. Returns the exit code.

    worker: what Python is started with for each of these; by default what this process was.

    Bad input ends with one line on stderr and code 2, a stopping signal with 128 + its number (SIGINT 130, SIGTERM
    143), a lost process with 1.
    """
    try:
        with stoppable(), tied_to_launcher():
            count = processes()
            code = start_workers(count, worker) if count > 1 else main() or 0
            world.leave()  # in here, because it waits for the others
        return code
    except Stopped as stop:
        if world.current().main:
            print("stopped; run the same command to continue", flush=True)
        return stop.exit_code
    except Exception as error:
        if meeting.launched() and _is_lost_peer(error) and not is_out_of_memory(error):
            return _lost(error)
        message = explained(error)
        if message is None:
            raise
        return _fail(message, 2)


def _lost(error: Exception) -> int:
    if world.current().size == 1:  # it had not even joined; the one that left has said why
        return 1
    return _fail(f"another process of this run has ended; run the same command to continue ({error})", 1)


def _fail(message: str, code: int) -> int:
    """Print one line. Of several processes that fail together, the first speaks for all."""
    try:
        first = world.current().claim("error")
    except RuntimeError:  # the process that kept the store has ended, and said why
        first = False
    if first:
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    return code


def _is_lost_peer(error: Exception) -> bool:
    """Whether a collective failed because a process at its other end is gone."""
    signs = ("closed by peer", "reset by peer", "connect", "gloo", "nccl", "broken pipe", "recv", "socket")
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error).lower() for sign in signs)


@contextlib.contextmanager
def tied_to_launcher() -> Iterator[None]:
    """In a worker: stop as by SIGTERM when the launcher is gone (a kill −9 of it reaches nobody else)."""
    launcher, ended = os.environ.get(LAUNCHER), threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            if str(os.getppid()) != launcher:
                os.kill(os.getpid(), signal.SIGTERM)
                # One that has not joined has nothing to finish, and waits for the launcher where no signal gets in.
                if not ended.wait(SHUTDOWN_SECONDS if world.current().size > 1 else STARTING_SECONDS):
                    os.kill(os.getpid(), signal.SIGKILL)
                return

    if launcher and meeting.launched():
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def start_workers(count: int, worker: Sequence[str] | None = None) -> int:
    """Run `worker`, see `run`, in `count` processes of this machine; returns the exit code of the run."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the workers say what is wrong
    options: dict[str, Any] = {"shutdown_timeout": SHUTDOWN_SECONDS}  # torch 2.6 does not know it yet
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",  # the host's name may not resolve
        max_restarts=0,
        **{name: value for name, value in options.items() if name in known},
    )
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or a lost connection prints pages in every process
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    try:
        _stop_workers_by_signal()
        elastic_launch(config, sys.executable)(*(worker or sys.argv))
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        return _exit_code([failure.exitcode for failure in error.failures.values()])
    return 0


def _stop_workers_by_signal() -> None:
    """Have every stopping signal end this launcher as SIGTERM does: it passes it on, and waits for its workers.

    The engine would set SIGHUP's handler even under nohup, and does not know all of the others.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def stop(number: int, frame) -> None:
        raise SignalException(f"process {os.getpid()} got signal {number}", signal.Signals(number))

    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in stopping_signals())
    for number in stopping_signals():
        signal.signal(number, stop)


def _exit_code(codes: list[int]) -> int:
    """One exit code for the run, from those of its failed workers; says so where a worker was killed."""
    killed = [-code for code in codes if code < 0 and -code != signal.SIGTERM]
    if killed and 2 not in codes:  # then the others were stopped by us, and end with 143
        name = signal.Signals(killed[0]).name
        print(f"error: a worker was killed ({name}); run the same command to continue", file=sys.stderr)
        return 1
    stopped = [code for code in codes if code - 128 in STOPPING]
    return next((code for code in (2, 143, 130, *stopped) if code in codes), 1)
