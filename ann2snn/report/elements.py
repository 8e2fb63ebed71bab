"""The pieces that pages are made of. Cells, titles and captions are HTML; the callers escape what comes from files."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib import resources

from .charts import Chart
from .svg import escape


@functools.cache
def asset(name: str) -> str:
    """A file that is shipped beside this one: the style or the script of a page."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def document(title: str, body: str) -> str:
    """A whole page. title, body: HTML. A browser fetches nothing for it, and runs the page's own script alone."""
    script, style = asset("page.js"), asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{title}</title><style>\n{style}</style></head><body><main>\n{body}\n</main>"
        f"<script>{script}</script></body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: range) -> str:
    """A table that scrolls sideways where it must. Cells are HTML; the columns in `numeric` align right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        columns = (f"<{tag}{' class=num' if i in numeric else ''}>{c}</{tag}>" for i, c in enumerate(cells))
        return f"<tr>{''.join(columns)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    head = line("th", header)
    wide = " class=wide" if len(header) > 10 else ""
    return f'<div class="scroll" tabindex="0"><table{wide}><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>'


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: range) -> str:
    """The same of plain text."""
    return table([escape(cell) for cell in header], [[escape(cell) for cell in row] for row in rows], numeric)


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>\n" + "\n".join(part for part in parts if part) + "</section>"


def optional(title: str, *parts: str) -> str:
    """A section; empty if all its parts are."""
    return section(title, *parts) if any(parts) else ""


def details(summary: str, content: str, is_open: bool = False) -> str:
    """What opens on a click."""
    return f"<details{' open' if is_open else ''}><summary>{summary}</summary>{content}</details>"


def figure(charts: dict[str, Chart], name: str, caption: str) -> str:
    """A chart, what it shows, and the numbers behind it; empty if there is none."""
    chart = charts.get(name)
    if chart is None:
        return ""
    numbers = details("the numbers", text_table(chart.header, chart.rows, range(1, len(chart.header))))
    dots = (
        f'<span><span class="dot {colour}{" hollow" if is_hollow else ""}"></span>{escape(label)}</span>'
        for label, colour, is_hollow in chart.key
    )
    key = f'<p class="key">{"".join(dots)}</p>' if chart.key else ""
    drawn = f'{key}<div class="scroll">{chart.svg}</div>' if chart.svg else ""
    return f'<figure class="chart"><figcaption>{caption}</figcaption>{drawn}{numbers}</figure>'
