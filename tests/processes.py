"""Children to be killed."""

import contextlib
import os
import signal
import traceback
from collections.abc import Callable, Iterator

SECONDS = 60


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked process, which exits with 0, or 1 and a traceback; returns its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(SECONDS)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> None:
    """kill -9, and wait until it is gone."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@contextlib.contextmanager
def child_inside(context: Callable[[], contextlib.AbstractContextManager]) -> Iterator[int]:
    """A child that has entered `context()` and stays there; killed at the end if it still lives."""
    reading, writing = os.pipe()

    def work() -> None:
        with context():
            os.write(writing, b"!")
            signal.pause()

    child = fork(work)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"!", "the child did not get in"
        yield child
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            kill(child)
