"""Faults of a run's surroundings, for `benchmarks.faults`: a full disk, a removed lock, broken images.

Each is provoked while a stage works and lasts until that has ended; then it is mended as docs/reliability.md says.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ann2snn.data import load_dataset
from ann2snn.run.folder import CHECKPOINT

from .fault_runs import DATA, IMAGES, PIXELS, TUNED, Stage

FULL, UNLOCKED, BROKEN, DEAF = "full disk", "removed lock", "broken images", "closed stderr, SIGTERM"
RESUMED = {"train": CHECKPOINT, "fine-tune": f"{TUNED}/ft_state.pt"}  # what a rescued state becomes
DISK = "48m"


@contextlib.contextmanager
def own_disk(folder: Path, separate: bool) -> Iterator[bool]:
    """Make `folder`; if `separate`, a file system of its own where this may mount one. Whether it is."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = separate and bool(shutil.which("mount"))
    mounted = mounted and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted and subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)  # somebody looks at it
        shutil.rmtree(folder, ignore_errors=True)


def write_images(folder: Path) -> None:
    """The images that all runs are made with, as files."""
    folder.mkdir()
    images = load_dataset(DATA, "", PIXELS)
    for index in range(IMAGES):
        Image.fromarray(images[index][0].numpy()).save(folder / f"{index:03d}.png")


@contextlib.contextmanager
def provoked(fault: str, stage: Stage, place: Path, images: Path) -> Iterator[None]:
    """In here the fault is there; a signal, which `fault_runs.strike` sends, needs nothing.

    place: the run's disk; images: its data.
    """
    if fault == FULL:
        filler = place / "filler"
        _fill(filler)
        yield
        filler.unlink()
    elif fault == UNLOCKED:
        stage.lock.unlink(missing_ok=True)
        yield
    elif fault == BROKEN:
        aside = images.with_suffix(".whole")
        images.rename(aside)
        shutil.copytree(aside, images)
        for path in images.iterdir():
            os.truncate(path, 60)
        yield
        shutil.rmtree(images)
        aside.rename(images)
    else:
        yield


def _fill(path: Path) -> None:
    """Leave no free byte on the disk."""
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def bring_back(rescue: Path, stage: Stage, logdir: Path) -> str:
    """Copy the state that a stage wrote to the temporary folder to where it resumes; its name, if there is one."""
    states = sorted(rescue.glob("ann2snn-rescue-*.pt"), key=lambda path: path.stat().st_mtime_ns)
    for path in states:
        if stage.name not in RESUMED:
            raise ValueError(f"{stage.name} rescued {path.name}")
        shutil.copy(path, logdir / RESUMED[stage.name])
        path.unlink()
    return states[-1].name if states else ""
