"""Write a run's report: one page, and its charts as files."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError
from ..files.atomic import replacing, write_text
from .charts import charts
from .collect import Run
from .compare import comparison
from .elements import asset
from .html import page
from .samples import samples_png
from .svg import with_legend

REPORT = "report.html"
FIGURES = "figures"


def write(run: Run) -> Path:
    """`report.html`, `figures/*.svg` and `figures/samples.png` in the run's folder; returns the page's path.

    Every file appears whole or not at all. Raises UserError if the folder cannot be written.
    """
    style = asset("page.css")
    rules = style[style.index("/* Colours") : style.index("/* What the script")]
    files = {name: with_legend(chart.svg, chart.key, rules) for name, chart in charts(run).items() if chart.svg}
    contents = {f"{name}.svg": content.encode("utf-8") for name, content in files.items()}
    samples = samples_png(run)
    if samples:
        contents["samples.png"] = samples
    folder = run.logdir / FIGURES
    try:
        if contents:
            folder.mkdir(exist_ok=True)
        for name, content in contents.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise unwritable(run, error) from None
    return _write(run, REPORT, page(run))


def write_comparison(run: Run, other: Run) -> Path:
    """`report_vs_NAME.html` in the first run's folder, NAME being the other's; returns the page's path.

    Raises UserError if the folder cannot be written.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", other.name)[:60]
    return _write(run, f"report_vs_{name}.html", comparison(run, other))


def unwritable(run: Run, error: OSError) -> UserError:
    return UserError(f"cannot write the report to {run.logdir}: {error.strerror or error}")


def _write(run: Run, name: str, content: str) -> Path:
    try:
        write_text(run.logdir / name, content)
    except OSError as error:
        raise unwritable(run, error) from None
    return run.logdir / name
