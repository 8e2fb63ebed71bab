"""Draws the floors of the house, docs/figures/architecture.svg, from the list that the tests enforce.

python -m benchmarks.architecture docs/figures/architecture.svg
"""

from __future__ import annotations

import argparse
import ast
from html import escape
from pathlib import Path

from tests.test_architecture import FLOORS

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT, GAP, MARGIN, MOST = 236, 62, 10, 16, 4
COLOURS = ("#eef3fb", "#e6f2ea")  # of every other floor


def duty(room: str) -> str:
    """The first sentence of a room's docstring."""
    places = (ROOT / "ann2snn" / room / "__init__.py", ROOT / "ann2snn" / f"{room}.py")
    path = next(place for place in places if place.exists())
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].rstrip(".")


def wrapped(text: str, most: int = 38, lines: int = 2) -> list[str]:
    rows = [""]
    for word in text.split():
        if len(rows[-1]) + len(word) >= most:
            rows.append("")
        rows[-1] = f"{rows[-1]} {word}".strip()
    if len(rows) > lines:
        rows = [*rows[: lines - 1], rows[lines - 1][: most - 1] + "…"]
    return rows


def box(room: str, x: int, y: int, colour: str) -> str:
    lines = "".join(
        f'<text x="{x + 10}" y="{y + 36 + 14 * i}" font-size="10.5" fill="#555">{escape(line)}</text>'
        for i, line in enumerate(wrapped(duty(room)))
    )
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="{colour}" stroke="#9aa8b8"/>'
        f'<text x="{x + 10}" y="{y + 19}" font-size="14" font-weight="bold" fill="#222">{room}</text>{lines}'
    )


def draw() -> str:
    """The picture, as SVG."""
    y, boxes = MARGIN, []
    for number, floor in enumerate(FLOORS):
        rooms = sorted(floor)
        for start in range(0, len(rooms), MOST):
            for column, room in enumerate(rooms[start : start + MOST]):
                boxes.append(box(room, MARGIN + column * (WIDTH + GAP), y, COLOURS[number % 2]))
            y += HEIGHT + GAP
    width = 2 * MARGIN + MOST * (WIDTH + GAP) - GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + MARGIN - GAP}" '
        'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(boxes)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the picture (.svg)")
    parser.parse_args().out.write_text(draw(), encoding="utf-8")
