"""Files appear whole or not at all, and what a killed program left half-written is found and removed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # there is no type for a module that may be missing

HOST = re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())[:64] or "localhost"
LONGEST_NAME = 255  # bytes of a file's name that usual file systems take
SWEEP_DEPTH = 2  # folders below the one swept: {run}/SNN_2bit_ft/model_backpacks
_TEMPORARY = re.compile(r"\..+\.(?P<host>[A-Za-z0-9_-]+)\.(?P<pid>[1-9][0-9]{0,9})\.[0-9a-f]{8}\.tmp")
_mine: set[Path] = set()  # temporary files this process is writing
#: Called with a file's path before it takes its name there; raise UserError where it must not. See `lock`.
guards: list[Callable[[Path], None]] = []
UNLOCKABLE_AGE = 24 * 3600  # seconds that a temporary file stays where locks cannot tell whether it is being written
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES}
_LOCKED = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
_CURES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EFBIG: "lift the limit on file sizes (ulimit -f) or choose another file system",
    errno.ENOENT: "its folder is not there, or no longer; make it or choose another one",
    errno.EACCES: "change the permissions or choose another folder",
    errno.EPERM: "change the permissions or choose another folder",
}


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, previous: str | os.PathLike | None = None, settled: bool = True
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the name `path`, on failure it disappears.

    The data reach the disk before the name does, and the name before this returns: a crash leaves the old file or the
    new one, a power cut later the new one. For `sweep` the temporary's name carries host and process, and it is locked.

    previous: name under which the file that `path` named so far is kept. `path` is there at every moment.
    settled: False leaves the name to a later `sync_folder`, one for many files; a power cut may then lose a whole file.

    Raises UserError, saying what failed and what to do, where the disk refuses (full, quota, read-only, vanished, …).
    """
    path, temporary, handle = Path(path), None, None
    try:
        temporary = _temporary_name(path)
        handle = _create(temporary)
        yield temporary
        _sync(temporary)
        for guard in guards:
            guard(path)
        if previous is not None and path.exists():
            _keep(path, Path(previous))
        os.replace(temporary, path)
        if settled:
            sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {cause(error)}") from None
    finally:
        if temporary is not None:
            _remove(temporary)
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; on success it takes the name `path`, on failure it disappears.

    `path` may be an empty folder, whose place it takes; the folders above are made. As with `replacing`, the files in
    it reach the disk before the name does, and `sweep` finds what a killed process left.

    Raises UserError, saying what failed and what to do, where the disk refuses or `path` is anything else.
    """
    target, temporary, handle = Path(os.path.abspath(path)), None, None  # "." has no name to begin one with
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, depth=0)
        temporary = _temporary_name(target)
        handle = _create(temporary, os.mkdir)
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        sync_folder(temporary)
        for guard in guards:
            guard(target)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {cause(error)}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
            _mine.discard(temporary)
        if handle is not None:
            os.close(handle)


def cause(error: OSError) -> str:
    """Why writing failed and what to do about it, in a few words."""
    cure = _CURES.get(error.errno or 0, "choose another folder")
    return f"{error.strerror or error}; {cure}"


def sweep(folder: str | os.PathLike, depth: int = SWEEP_DEPTH) -> list[Path]:
    """Remove what `replacing` and `new_folder` left in `folder` and `depth` levels below when their process was killed.

    What is another host's, of a process that lives, or locked by somebody stays: a container may have this host's name
    and numbers of its own for processes. Returns what was removed. Errors are not reported: litter harms nobody.
    """
    removed: list[Path] = []
    if os.name != "posix":  # elsewhere os.kill(pid, 0) is no harmless question
        return removed
    top = Path(folder)
    for parent, folders, names in os.walk(top):
        for name in (*names, *folders):
            path, match = Path(parent, name), _TEMPORARY.fullmatch(name)
            if match and match["host"] == HOST and _is_abandoned(path, int(match["pid"])):
                with contextlib.suppress(OSError):
                    _remove_unlocked(path)
                    removed.append(path)
        if len(Path(parent).relative_to(top).parts) >= depth:
            folders.clear()
    return removed


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises UserError if the disk refuses."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_hash(path: str | os.PathLike) -> str:
    """First 16 hexadecimal digits of the file's SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _temporary_name(path: Path) -> Path:
    ending = f".{HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    most = LONGEST_NAME - len(ending) - 1
    begin = os.fsencode(path.name)[:most].decode(errors="ignore") or "_"  # the name itself may be as long as any
    name = path.with_name(f".{begin}{ending}").absolute()
    _mine.add(name)
    return name


def _new_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _create(temporary: Path, make: Callable[[Path], None] = _new_file) -> int | None:
    """A new file, or what `make` makes, locked while the descriptor stays open that is returned. Raises OSError."""
    while True:
        make(temporary)
        if fcntl is None:  # an open file could not be renamed there
            return None
        with contextlib.suppress(FileNotFoundError):  # swept before the lock was there
            handle = _locked(temporary)
            if os.path.exists(temporary) and os.path.samestat(os.fstat(handle), os.stat(temporary)):
                return handle
            os.close(handle)


def _locked(path: Path) -> int:
    """A descriptor of a file, with its lock where that is possible; the lock ends with it, however it is closed."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # not for writing: the disk may become read-only meanwhile
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        # NFS makes its locks of those that need a file open for writing, which no folder can be.
        if error.errno == errno.EBADF and not path.is_dir():
            os.close(handle)
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _remove_unlocked(path: Path) -> None:
    """Raises OSError if the file or folder is locked, or if nobody can tell and it is not old."""
    folder = path.is_dir()
    access = os.O_RDONLY if folder else os.O_RDWR
    handle = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _LOCKED or time.time() - os.fstat(handle).st_mtime < UNLOCKABLE_AGE:
                raise
        if folder:
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(handle)


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink()
    _mine.discard(temporary)


def _is_abandoned(path: Path, pid: int) -> bool:
    if pid == os.getpid():  # an earlier process may have had this number, as in a container started again
        return path.absolute() not in _mine
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _keep(path: Path, previous: Path) -> None:
    """Give the file `path` the second name `previous`, on file systems without hard links a copy of that name."""
    spare = _temporary_name(previous)
    handles: list[int | None] = []
    try:
        try:
            if fcntl is not None:
                handles.append(_locked(path))  # a second name of a file has its lock
            os.link(path, spare)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            handles.append(_create(spare))
            shutil.copyfile(path, spare)
            _sync(spare)
        os.replace(spare, previous)
    finally:
        _remove(spare)  # still there also if `previous` was this very file: rename then does nothing
        for handle in handles:
            if handle is not None:
                os.close(handle)


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
