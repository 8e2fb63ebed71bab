"""Directly trained spiking networks: how one runs, as its run folder tells, and its fine-tunings with TSM."""

from __future__ import annotations

import re
from pathlib import Path

from ..config import DirectSpiking
from ..nets.architecture import CONFIGS
from ..nets.direct import DirectConfig
from .parse import clean

MOST_RUNS = 12
TSM_FOLDER = re.compile(r"SDM_([1-9][0-9]{0,2})T[A-Za-z0-9_.-]{0,60}")


def direct_of_flags(text: str) -> DirectSpiking | None:
    """What the flags of a training say; None if they are another network's."""
    kind = CONFIGS.get(_flag(text, "arch") or "")
    if kind is None or not issubclass(kind, DirectConfig):
        return None
    defaults = kind()
    steps, threshold = _flag(text, "timestep"), _flag(text, "threshold")
    try:
        return DirectSpiking(
            kind.arch,
            int(steps) if steps else defaults.spike_steps,
            float(threshold) if threshold else defaults.threshold,
            bool(re.search(r"(?mi)^--tsm(=true)?$", text)),
        )
    except ValueError:
        return None


def _flag(text: str, name: str) -> str | None:
    match = re.search(rf"(?m)^--{name}=(\S{{1,40}})$", text)
    return match[1] if match else None


def direct_of_name(folder: str) -> DirectSpiking | None:
    """What the name of a TSM fine-tuning's folder says; None for another folder."""
    match = TSM_FOLDER.fullmatch(folder)
    return DirectSpiking("sddpm", int(match[1]), tsm=True) if match and int(match[1]) <= 256 else None


def tuned_chart(kind: str, folder: str) -> str:
    """Name of a chart of the fine-tuning in `folder`."""
    return f"{kind}_{folder}"


def tsm_folders(logdir: Path, notes: list[str]) -> list[Path]:
    """The folders of all fine-tunings with TSM in a run folder, by name; run folders themselves."""
    folders = sorted(path for path in logdir.glob("SDM_*") if path.is_dir() and TSM_FOLDER.fullmatch(path.name))
    if len(folders) > MOST_RUNS:
        notes.append(f"{len(folders)} folders of fine-tuning with TSM in {clean(logdir.name)}: {MOST_RUNS} are shown")
    return folders[:MOST_RUNS]
