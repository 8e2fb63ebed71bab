"""Real file systems that are small or read-only, for tests that make a disk refuse."""

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(size: str = "256k") -> Iterator[Path]:
    """Mount a tmpfs of `size` and yield its folder; unmounted in any case. Skips the test where that is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    try:
        done = _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            if _run("umount", str(folder)).returncode:
                _run("umount", "-l", str(folder))
    finally:
        folder.rmdir()


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Remount a `small_disk` read-only for a while."""
    assert _run("mount", "-o", "remount,ro", str(disk)).returncode == 0
    try:
        yield
    finally:
        _run("mount", "-o", "remount,rw", str(disk))


def fill(disk: Path) -> None:
    """Leave no free byte."""
    with contextlib.suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


NEW_MOUNTS, NEW_PROCESSES = 0x00020000, 0x20000000  # sched.h: CLONE_NEWNS, CLONE_NEWPID


def may_unshare() -> bool:
    """Whether a process may leave its name spaces here."""
    if not hasattr(os, "geteuid") or os.geteuid():
        return False
    return _run("unshare", "--mount", "--pid", "--fork", "true").returncode == 0


def unshare(what: int) -> None:
    """Have this process (of `NEW_MOUNTS`) or its children (of `NEW_PROCESSES`) live in a name space of their own."""
    if ctypes.CDLL(None, use_errno=True).unshare(what):
        raise OSError(ctypes.get_errno(), "unshare")


def small_shared_memory(size: str = "64k") -> None:
    """Give this process and its children a /dev/shm of `size`, which nobody else sees."""
    unshare(NEW_MOUNTS)
    assert _run("mount", "--make-rprivate", "/").returncode == 0
    assert _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm").returncode == 0


def _run(*command: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
