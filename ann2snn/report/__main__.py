"""Report on a run: python -m ann2snn.report LOGDIR

Prints the summary, writes LOGDIR/report.html (one file, nothing outside it needed) and LOGDIR/figures/*.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..arguments import Parser, answered, need


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for a folder that cannot be reported on or written to."""
    about = "Summarise a run folder on one page, report.html, made from whatever the stages left there."
    parser = Parser("python -m ann2snn.report", about)
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="the --logdir of the run")
    return answered(lambda: report(parser.read(arguments).logdir))


def report(logdir: Path) -> None:
    """Write the report and print its summary. Raises UserError."""
    need("matplotlib", "report")
    from .collect import collect  # what takes seconds to import is imported where it is used: --help does without
    from .summary import summary_text, verdict
    from .writer import write

    run = collect(logdir)
    path = write(run)
    print(verdict(run))
    print(summary_text(run))
    for note in dict.fromkeys(run.notes):
        print(f"note: {note}")
    print(path)


if __name__ == "__main__":
    sys.exit(main())
