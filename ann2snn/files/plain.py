"""Files from outside: opened only if they are plain files of a size that can be meant."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO


def open_plain(path: str | os.PathLike, most: int | None = None) -> BinaryIO:
    """Open a plain file of at most `most` bytes for reading.

    A pipe would block until somebody writes, a device may never end; links to plain files are followed.

    Raises:
        OSError: missing or unreadable, no plain file, or too large.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", os.fspath(path))
        if most is not None and status.st_size > most:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, more than {most}", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: str | os.PathLike, most: int, errors: str = "strict") -> str:
    """The text of a plain UTF-8 file of at most `most` bytes, without the byte order mark that some editors put first.

    Raises:
        OSError: as `open_plain`.
        ValueError: not UTF-8, unless `errors` says to replace what is not.
    """
    with open_plain(path, most) as file:
        # A file may grow between the look at its size and the reading.
        return file.read(most).decode("utf-8-sig", errors)


def machine_memory() -> int:
    """Bytes of physical memory: what is announced to be larger cannot be meant. 2^36 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 36
