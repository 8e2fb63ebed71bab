"""The signals that ask a program to end, and those of them that a run answers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

#: What `signal.signal` takes and returns; None stands for a handler that was not Python's.
Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

_NAMES = (
    "SIGINT",  # Ctrl-C
    "SIGTERM",  # kill, and most schedulers when the time is up
    "SIGHUP",  # a terminal or ssh session that closes
    "SIGQUIT",  # Ctrl-\
    "SIGUSR1",  # Slurm's and Grid Engine's warning, where one was asked for
    "SIGUSR2",  # LSF's warning, and Grid Engine's
    "SIGXCPU",  # the soft limit of processor time, every second until the hard one
)
STOPPING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
#: Those that somebody sends again when the first was too slow; the others repeat, or announce one of these.
INSISTENT = frozenset(number for number in STOPPING if number.name in ("SIGINT", "SIGTERM", "SIGQUIT"))
_ALWAYS = (signal.SIGINT, signal.SIGTERM)


def stopping_signals() -> list[signal.Signals]:
    """The stopping signals but those that whoever started the program had it ignore, as nohup does with SIGHUP."""
    return [n for n in STOPPING if n in _ALWAYS or signal.getsignal(n) is not signal.SIG_IGN]


def restore(handlers: Mapping[int, Handler]) -> None:
    """Set handlers, by number of their signal, that `signal.signal` has returned."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Stopped(BaseException):
    """A stopping signal asked for the end. Derived from BaseException, as KeyboardInterrupt is."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """The stopping signals raise `Stopped` in here. Stages with something to finish first set their own handlers."""

    def stop(number: int, frame: FrameType | None) -> None:
        for later in stopping_signals():  # a second signal does not wait for the first one's clean end
            signal.signal(later, signal.SIG_DFL if later in INSISTENT else signal.SIG_IGN)
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Handler] = {number: signal.signal(number, stop) for number in stopping_signals()}
    try:
        yield
    finally:
        restore(previous)


class Interruption:
    """Context in which the stopping signals ask for a clean stop instead of ending the program.

    `requested` is 0 or the signal's number; exit with 128 + it, after saving. A signal that is `INSISTENT` acts at once
    when it comes a second time, but not in a worker of PyTorch's launcher: a scheduler signals both, the launcher
    passes it on, and it kills its workers itself if they take too long.
    """

    def __init__(self) -> None:
        self.requested = 0
        self.previous: dict[int, Handler] = {}

    def __enter__(self) -> Interruption:
        self.previous = {number: signal.signal(number, self._note) for number in stopping_signals()}
        return self

    def __exit__(self, *exc) -> None:
        restore(self.previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        if number in INSISTENT and "TORCHELASTIC_RUN_ID" not in os.environ:
            restore({number: self.previous[number]})
