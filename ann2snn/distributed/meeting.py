"""Where the processes of a world find each other: the environment that a launcher sets, and the main one's store."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..errors import UserError
from .gpus import MINUTES, TIMEOUT
from .lifelines import POLL_SECONDS

# Waiting for a slow peer is no error; one that has ended is noticed by its lifeline.
PATIENCE = timedelta(days=7)
MEETING = timedelta(minutes=10)  # for all processes to have started
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MOST_PROCESSES = 1 << 16
Result = TypeVar("Result")


def launched() -> bool:
    """Whether a launcher (`--parallel`, `--nproc`, torchrun) has started this process as one of a world."""
    return os.environ.keys() >= set(ENVIRONMENT)


def check_environment() -> None:
    """Raise UserError, naming the variable, unless the environment describes a world, or none."""
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        partial = "RANK" not in missing and os.environ.get("WORLD_SIZE", "1").strip() not in ("", "1")
        if partial:
            raise UserError(
                f"{', '.join(missing)} not set, but RANK and WORLD_SIZE: a launcher sets all of "
                f"{', '.join(ENVIRONMENT)}; unset RANK to run one process"
            )
        return
    size = _number("WORLD_SIZE", 1, MOST_PROCESSES)
    _number("RANK", 0, size - 1)
    _number("LOCAL_RANK", 0, size - 1, os.environ["RANK"])
    _number("MASTER_PORT", 1, 65535)
    _number(TIMEOUT, 1, PATIENCE // timedelta(minutes=1), str(MINUTES))


def _number(name: str, least: int, most: int, default: str = "") -> int:
    text = os.environ.get(name, default)
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise UserError(f"{name}={text} in the environment: must be a whole number, {least} to {most}")
    return int(text)


def meet() -> tuple[dist.Store, int, int]:
    """The store of the main process, rank and size. Raises UserError where that cannot be found or made."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]

    def connection() -> tuple[dist.Store, int, int]:
        try:
            socket.getaddrinfo(host, int(port))
        except (OSError, UnicodeError) as error:
            raise UserError(f"MASTER_ADDR={host}: no such host is known here ({error})") from None
        return next(rendezvous("env://", timeout=MEETING))

    try:
        return _while_signals_get_in(connection)
    except RuntimeError as error:
        message = str(error).lower()
        if "in use" in message or "eaddrinuse" in message:
            raise UserError(f"MASTER_PORT={port}: another program of this machine uses it; choose another") from None
        if "listen" in message or "bind" in message:
            raise UserError(f"MASTER_PORT={port}: this machine does not let it be opened; choose another") from None
        if "timed out" in message or "timeout" in message:
            raise UserError(f"no main process at MASTER_ADDR={host}, MASTER_PORT={port} for {MEETING}") from None
        raise


def _while_signals_get_in(work: Callable[[], Result]) -> Result:
    """What `work()` returns or raises: it waits in C++, where no signal would be answered, in a thread of its own."""
    results: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
    if failed:
        raise failed[0]
    return results[0]
