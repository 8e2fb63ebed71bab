"""Report on a run: python -m ann2snn.report LOGDIR [OTHER]

Prints the summary, writes LOGDIR/report.html (one file, nothing outside it needed) and LOGDIR/figures/*.svg. With two
folders: LOGDIR/report_vs_OTHER.html, both runs side by side.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..arguments import Parser, exit_code_of, need
from ..errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for a folder that cannot be reported on or written to."""
    about = (
        "Summarise a run folder on one page, report.html, made from whatever the stages left there; or two of\n"
        "them side by side, on report_vs_OTHER.html in the first."
    )
    parser = Parser("python -m ann2snn.report", about)
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="the --logdir of the run")
    parser.add_argument("other", metavar="OTHER", type=Path, nargs="?", help="that of a run to compare it with")

    def answer() -> None:
        given = parser.read(arguments)
        report(given.logdir, given.other)

    return exit_code_of(answer)


def report(logdir: Path, other: Path | None = None) -> None:
    """Write the report, or the comparison, and print the summary of every run. Raises UserError."""
    need("matplotlib", "report")
    from .collect import collect  # what takes seconds to import is imported where it is used: --help does without
    from .summary import summary_text, verdict
    from .writer import write, write_comparison

    if other is not None and logdir.resolve() == other.resolve():
        raise UserError(f"{other}: is the same folder twice; give two runs to compare them")
    runs = [collect(folder) for folder in (logdir, other) if folder is not None]
    path = write(runs[0]) if other is None else write_comparison(*runs)
    for run in runs:
        if other is not None:
            print(f"{run.logdir}:")
        print(verdict(run))
        print(summary_text(run))
        for note in dict.fromkeys(run.notes):
            print(f"note: {note}")
    print(path)


if __name__ == "__main__":
    sys.exit(main())
