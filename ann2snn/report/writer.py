"""Write a run's report: one page, and its charts as files."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..files.atomic import replacing, write_text
from .collect import Run
from .figures import charts
from .html import page
from .samples import samples_png

REPORT = "report.html"
FIGURES = "figures"


def write(run: Run) -> Path:
    """`report.html` and `figures/*.png` in the run's folder; returns the page's path.

    Every file appears whole or not at all. Raises UserError if the folder cannot be written.
    """
    drawn = charts(run)
    samples = samples_png(run)
    target = run.logdir / REPORT
    folder = run.logdir / FIGURES
    try:
        files = drawn | ({"samples": samples} if samples else {})
        if files:
            folder.mkdir(exist_ok=True)
        for name, png in files.items():
            with replacing(folder / f"{name}.png") as temporary:
                temporary.write_bytes(png)
        write_text(target, page(run, drawn))
    except OSError as error:
        raise UserError(f"cannot write the report to {run.logdir}: {error.strerror or error}") from None
    return target
