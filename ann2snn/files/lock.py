"""One run at a time in a folder: a lock that ends with its holder, however that ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UserError
from .atomic import HOST, cause, guards, sweep
from .warning import warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # there is no type for a module that may be missing

LONGEST = 4096  # bytes read of a lock file
_POLL = 0.1  # seconds between two attempts
_BUSY = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_held: set[tuple[int, str]] = set()  # (process, real path): a fork inherits the set, but not the locks


@contextlib.contextmanager
def run_lock(folder: str | os.PathLike, name: str, patience: float = 5.0) -> Iterator[None]:
    """Hold `folder/.{name}.lock` for the length of a run, and clear away what killed runs left half-written.

    A POSIX record lock: the system ends it with its holder, kill -9 included, forked data-loader workers do not
    inherit it, and it works between machines where the file system does it. The file says who holds it (one JSON
    object: pid, host, since, command); what a dead holder wrote is overwritten. The file stays, because a lock on a
    deleted file would exclude nobody.

    Nothing in the holding process may open that file again: closing any descriptor of it would drop the lock.

    The lock is on a file, and its name may come to mean another one: somebody removes it, or the whole folder, and
    starts a second run. While this one holds the lock, `atomic.replacing` writes nothing in or below `folder` unless
    the name still means the file that is locked; else it raises UserError.

    patience: seconds to go on trying while another run holds it.

    Raises UserError, naming the holder, when that is over, or if the file cannot be made. Where the file system
    refuses locks a warning says so; where the system has none (Windows) nothing is locked.
    """
    path = Path(folder, f".{name}.lock")
    key = os.getpid(), os.path.realpath(path)
    if key in _held:  # the system would grant it, and drop both locks when the first is given back
        raise UserError(f"{folder} is in use by this very process: run one stage at a time")
    handle = None if fcntl is None else _acquire(path, patience)
    guard = _guard(path, handle)
    _held.add(key)
    guards.append(guard)
    try:
        sweep(folder)
        yield
    finally:
        guards.remove(guard)
        _held.discard(key)
        if handle is not None:
            os.close(handle)


def _guard(path: Path, handle: int | None) -> Callable[[Path], None]:
    """What keeps a run that has lost its folder from writing there, see `run_lock`."""
    folder, process = Path(os.path.realpath(path.parent)), os.getpid()

    def guard(written: Path) -> None:
        if handle is None or os.getpid() != process:
            return
        if Path(os.path.realpath(written.parent)).is_relative_to(folder) and not _still_names(path, handle):
            raise UserError(
                f"cannot write {written}: {path} is not the file that this run has locked: it was removed, or the "
                "folder was deleted or made again, and another run may own it now"
            )

    return guard


def _still_names(path: Path, handle: int) -> bool:
    """Whether `path` is the open file. A disk that does not answer proves nothing, and will refuse the file itself."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)


def _acquire(path: Path, patience: float) -> int:
    """A descriptor that holds the lock, or one that holds nothing where there are no locks."""
    deadline = time.monotonic() + patience
    while True:
        handle = _open(path)  # anew each time: the folder may have been deleted and made again meanwhile
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                reason = error.strerror or error
                warn(f"{path} cannot be locked ({reason}): make sure that no second run uses {path.parent}")
                return handle
            holder = _holder(handle)
            os.close(handle)
            if error.errno not in _BUSY:
                raise UserError(f"cannot lock {path}: {cause(error)}") from None
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{path.parent} is in use by another run{holder}: wait for it, stop it, or choose another --logdir"
                ) from None
            time.sleep(_POLL)
        else:
            with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
                _sign(handle)
            return handle


def _open(path: Path) -> int:
    """Raises UserError for what cannot be opened, a link, or a file that is no regular one."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UserError(f"cannot make {path}: {cause(error)}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is in the way: it is no regular file; remove it")
    return handle


def _sign(handle: int) -> None:
    since, command = time.strftime("%Y-%m-%d %H:%M:%S"), " ".join(sys.argv)[:1000]
    line = json.dumps({"pid": os.getpid(), "host": HOST, "since": since, "command": command}) + "\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, line.encode(), 0)


def _holder(handle: int) -> str:
    """` (pid 17, host box, since …)`, as far as the file says so."""
    try:
        content = json.loads(os.pread(handle, LONGEST, 0))
        details = [f"{key} {str(content[key])[:80]}" for key in ("pid", "host", "since") if key in content]
    except (OSError, ValueError, TypeError, RecursionError):
        return ""
    return f" ({', '.join(details)})" if details else ""
