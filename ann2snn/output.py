"""Standard output and error that no longer end a run when nobody can be told anything any more.

A log on a disk that fills up, `| head`, a terminal that closes: what cannot be written is dropped, and the next line
is tried again.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO


class _Patient(io.FileIO):
    """A file descriptor whose writes never raise OSError."""

    def write(self, data) -> int:
        """All of `data` counts as written where the system takes none of it."""
        try:
            written = super().write(data)
            while written is None:  # somebody made it non-blocking: wait, as for any other reader that is slow
                select.select([], [self.fileno()], [])
                written = super().write(data)
            return written
        except OSError:
            return len(data)


@contextlib.contextmanager
def unbreakable_output() -> Iterator[None]:
    """In here `sys.stdout` and `sys.stderr` raise nothing, whatever is behind them; also where they are closed.

    A closed descriptor is pointed to nowhere first: the next file that is opened would get its number, and with it
    whatever a library prints. Characters that the encoding does not have are written as escapes.
    """
    _occupy_standard_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _unbreakable(sys.stdout, 1), _unbreakable(sys.stderr, 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _occupy_standard_descriptors() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest free number is given, which is this one
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)


def _unbreakable(stream: TextIO | None, number: int) -> TextIO:
    """`stream` itself if it is no file, as in a notebook; `number`: the descriptor where there is no stream."""
    if stream is not None:
        try:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
            number = stream.fileno()
        except (AttributeError, OSError, ValueError):
            if not getattr(stream, "closed", False):
                return stream
    raw = _Patient(number, "wb", closefd=False)
    live = getattr(stream, "line_buffering", True) or raw.isatty()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=live, write_through=False
    )
