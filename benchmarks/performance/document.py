"""The tables of a run inside a Markdown page: what stands between two marks is replaced, the rest is left alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ann2snn.config import require
from ann2snn.run.tables import show

from .output import about_line, target_row
from .results import Section
from .targets import NOT_MEASURED

TARGETS = "targets"
_BLOCK = re.compile(r"<!-- (?P<name>[a-z0-9]+) -->\n.*?<!-- /(?P=name) -->", re.DOTALL)


def filled(page: str, about: dict[str, str], lines: list[dict], sections: dict[str, list[Section]]) -> str:
    """`page` with the tables of this run between `<!-- group -->` and `<!-- /group -->`; groups that did not run stay.

    "targets" is the table of targets, filled where every group has run. Raises UserError for a page without marks.
    """
    require(_BLOCK.search(page) is not None, "the page has no <!-- group --> marks to put tables between")
    blocks = {name: "\n\n".join(map(_section, group)) for name, group in sections.items()}
    if not any(line["verdict"] == NOT_MEASURED and "--only" in line["why"] for line in lines):
        blocks[TARGETS] = f"{about_line(about)}\n\n{_targets(lines)}"

    def replaced(match: re.Match) -> str:
        name = match["name"]
        return f"<!-- {name} -->\n{blocks[name]}\n<!-- /{name} -->" if name in blocks else match[0]

    return _BLOCK.sub(replaced, page)


def _targets(lines: list[dict]) -> str:
    header = ["what", "on", "allowed", "measured (quartiles)", "worst at", "verdict"]
    two_digits = "{:.2f}".format
    return _table(header, [target_row(line, two_digits, two_digits) for line in lines])


def _section(section: Section) -> str:
    parts = [f"*{section.title}*"]
    if section.rows:
        parts.append(_table(section.header, section.rows))
    if section.note:
        parts.append(section.note)
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *([show(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
