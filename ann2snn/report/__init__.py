"""Logs and reports of a run."""

from __future__ import annotations

import os
from pathlib import Path


def write_report(logdir: str | os.PathLike) -> Path:
    """Write `logdir/report.html` and `logdir/figures/*.png` from what the stages left there; returns the page's path.

    Raises UserError (a ValueError) if the folder does not exist, holds nothing to report on, or cannot be written.
    """
    from .collect import collect  # here, so that importing the package stays light
    from .writer import write

    return write(collect(Path(logdir)))
