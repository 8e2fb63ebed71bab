"""How fast: each performance target with its measured ratio, and the tables behind it.

    python -m benchmarks --quick                          # small sizes, about three minutes on one core
    python -m benchmarks --threads 2 --out logs/performance.json --page docs/performance.md
    python -m benchmarks --only stream,profile

Everything that is compared runs in the same rounds, in turn (A B C A B C …), at least 7 times after warm-up; figures
are medians, with quartiles in brackets. Measure on an idle machine: nothing here knows what else runs on it.
docs/performance.md explains every row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ann2snn.arguments import Parser
from ann2snn.config import require
from ann2snn.distributed import launch
from ann2snn.distributed.runtime import choose_device, keep_freed_memory
from ann2snn.errors import UserError
from ann2snn.files.atomic import write_text
from benchmarks.performance import plan
from benchmarks.performance.document import filled
from benchmarks.performance.machine import machine
from benchmarks.performance.output import about_line, section_table, targets_table, write
from benchmarks.performance.results import Bench, Case, Section
from benchmarks.performance.run import GROUPS, measure
from benchmarks.performance.targets import target_lines


def _parser() -> Parser:
    parser = Parser("python -m benchmarks", __doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="smaller networks and batches, fewer T: indicative")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch its own choice")
    parser.add_argument("--out", type=Path, help="JSON file for all of it")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables of the groups measured are replaced")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups to measure, of {','.join(GROUPS)}")
    return parser


def groups(text: str) -> tuple[str, ...]:
    """Distinct names in the order they run. Raises UserError for an unknown one."""
    names = set(text.split(","))
    strange = sorted(names - set(GROUPS))
    require(not strange, f"--only={text}: unknown {', '.join(map(repr, strange))}; use {', '.join(GROUPS)}")
    return tuple(name for name in GROUPS if name in names)


def cases_of(sections: dict[str, list[Section]]) -> dict[str, list[Case]]:
    """Target name → cases, of all tables."""
    return {name: cases for group in sections.values() for section in group for name, cases in section.cases.items()}


def read_page(path: Path) -> str:
    """A page with marks for tables. Raises UserError before anything is measured."""
    try:
        page = path.read_text(encoding="utf-8")
        filled(page, {}, [], {})
    except (OSError, UnicodeError, UserError) as error:
        raise UserError(f"--page={path}: {error}") from None
    return page


def _main(args: argparse.Namespace) -> int:
    names = groups(args.only)
    require(args.threads >= 0, f"--threads={args.threads}: use 1 or more, or 0 for torch's own choice")
    require(args.out is None or not args.out.is_dir(), f"--out={args.out}: is a folder; name a file")
    page = None if args.page is None else read_page(args.page)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()  # as the scripts do
    bench = Bench((plan.QUICK if args.quick else plan.FULL).on(device), device)
    about = machine(device, bench.plan)
    sections_by_group: dict[str, list[Section]] = {}
    for name, sections in measure(bench, names):
        sections_by_group[name] = sections
        lines = target_lines(cases_of(sections_by_group), device.type, tuple(sections_by_group))
        if args.out is not None:  # after every group: a run that is stopped keeps what it has
            write(args.out, about, lines, sections_by_group)
    if page is not None:
        write_text(args.page, filled(page, about, lines, sections_by_group))
    print(about_line(about), end="\n\n")
    print(targets_table(lines))
    for group in sections_by_group.values():
        for section in group:
            print(f"\n{section_table(section)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 after one line on stderr for bad input."""
    return launch.run(lambda: _main(_parser().parse_args(argv)), lambda: 1)


if __name__ == "__main__":
    sys.exit(main())
