"""The tables of a run, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ann2snn.files.atomic import write_text
from ann2snn.run.tables import show, text_table

from .results import Section
from .targets import DEVICE_NAMES


def targets_table(lines: list[dict]) -> str:
    """One line a target and device."""
    header = ["target", "on", "allowed", "measured", "at", "verdict"]
    return text_table(header, [target_row(line, show, "{:g}".format) for line in lines])


def target_row(line: dict, ratio: Callable[[float], str], bound: Callable[[float], str]) -> list[str]:
    """The cells of a target's line. ratio, bound: how what was measured, and a case's own bound, are written."""
    limit, measured = line["bound"], "–"
    if line.get("allowed") is not None:
        limit += f" = {bound(line['allowed'])}"
    if line["measured"] is not None:
        spread = "" if line["low"] is None else f" ({ratio(line['low'])}–{ratio(line['high'])})"
        measured = ratio(line["measured"]) + spread
    verdict = line["verdict"] + (f": {line['why']}" if line["why"] else "")
    return [line["what"], DEVICE_NAMES[line["device"]], limit, measured, line.get("at", "–"), verdict]


def section_table(section: Section) -> str:
    note = f"\n{section.note}" if section.note else ""
    table = f"\n{text_table(section.header, section.rows)}" if section.rows else ""
    return f"{section.title}{table}{note}"


def about_line(about: dict[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in about.items())


def write(path: Path, about: dict[str, str], lines: list[dict], sections: dict[str, list[Section]]) -> None:
    """Everything as JSON; "targets" are the lines of the table, "sections" the tables by the name of --only."""
    tables = {name: [section.to_dict() for section in group] for name, group in sections.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"about": about, "targets": lines, "sections": tables}, indent=1) + "\n")
