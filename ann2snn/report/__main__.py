"""Report on a run: python -m ann2snn.report LOGDIR

Prints the summary, writes LOGDIR/report.html (one file, nothing outside it needed) and LOGDIR/figures/*.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import UserError
from ..output import unbreakable_output


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for a folder that cannot be reported on or written to."""
    parser = argparse.ArgumentParser(
        prog="python -m ann2snn.report",
        description="Summarise a run folder on one page, report.html, made from whatever the stages left there.",
    )
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="the --logdir of the run")
    logdir = parser.parse_args(arguments).logdir
    with unbreakable_output():
        return report(logdir)


def report(logdir: Path) -> int:
    """Write the report and print its summary; the exit code."""
    from .collect import collect  # what takes seconds to import is imported where it is used: --help does without
    from .summary import summary_text, verdict
    from .writer import write

    try:
        run = collect(logdir)
        path = write(run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(verdict(run))
    print(summary_text(run))
    for note in dict.fromkeys(run.notes):
        print(f"note: {note}")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
