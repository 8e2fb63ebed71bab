"""Charts as inline SVG: axes, marks that tell their value, a legend. Colours are the names of CSS classes."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 960  # user units, of every chart; about a page pixel each
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 18, 44
LETTER = 6.6  # width of the average letter, for legends
LEGEND_LINE = 20

Point = tuple[float, float]
Entry = tuple[str, str, bool]  # of a legend: label, colour, hollow


@dataclass(frozen=True)
class Axis:
    """low, high: its ends. ticks: (value, text). is_log: whether it is logarithmic."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where a value is, 0 at the low end and 1 at the high one; values beyond the ends just beyond them."""
        if self.is_log and value <= 0:
            return -0.05
        low, high, value = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return min(max((value - low) / (high - low), -0.05), 1.05)


@dataclass(frozen=True)
class Series:
    """points in order; one that is not finite interrupts the line. titles: what each point says.

    line: "", "dashed" or "none". hollow: markers are rings.
    """

    label: str
    colour: str
    points: Sequence[Point]
    titles: Sequence[str]
    line: str = ""
    hollow: bool = False


def escape(value: object) -> str:
    """Text for an element or a quoted attribute; what UTF-8 cannot hold becomes "?"."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def units(value: float) -> str:
    """A coordinate to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def linear(label: str, values: Iterable[float], from_zero: bool = False) -> Axis:
    """An axis that holds all values, with round ticks."""
    numbers = finite(values) or [0.0]
    low, high = min(numbers), max(numbers)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    step = _round_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple((i * step, f"{i * step:,.10g}" if step >= 1 else f"{i * step:.4g}") for i in range(first, last + 1))
    return Axis(label, first * step, last * step, ticks)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - 1e-9))


def logarithmic(label: str, values: Iterable[float]) -> Axis:
    """An axis that holds all values above 0; ticks at 1, 2 and 5 of every decade, or at some decades."""
    positive = [value for value in finite(values) if value > 0] or [1.0]
    low, high = 0.8 * min(positive), 1.25 * max(positive)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors, stride = ((1, 2, 5), 1) if last - first <= 3 else ((1,), max(1, (last - first) // 6))
    values = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
    ticks = tuple((value, tick_text(value)) for value in values if low <= value <= high)
    return Axis(label, low, high, ticks, is_log=True)


def tick_text(value: float) -> str:
    """Such as "0.05", "200", "20 k" or "1e+18 T"; value > 0."""
    power = 0 if value < 1e4 else min(int(math.log10(value) + 1e-9) // 3, 4)
    return f"{value / 1000**power:g} {('', 'k', 'M', 'G', 'T')[power]}".strip()


def named(names: Sequence[str]) -> Axis:
    """Places 0, 1, … with names."""
    return Axis("", -0.5, max(0.5, len(names) - 0.5), tuple(enumerate(names)))


class Plot:
    """One pair of axes on a chart; parts are drawn in the order of the calls."""

    def __init__(self, x: Axis, y: Axis, height: float, left: float = LEFT, width: float = WIDTH - LEFT - RIGHT):
        """height: of the area between the axes. left, width: of it."""
        self.x, self.y, self.height, self.left, self.width, self.top = x, y, height, left, width, float(TOP)
        self.parts: list[str] = []

    def at(self, x: float, y: float) -> Point:
        """From values to user units."""
        return self.left + self.x.share(x) * self.width, self.top + (1 - self.y.share(y)) * self.height

    def axes(self, slanted: bool = False, grid: bool = True) -> Plot:
        """Ticks, labels and grid lines. slanted: for names below the plot."""
        bottom, right = self.top + self.height, self.left + self.width
        for value, text in self.y.ticks:
            y, before = units(self.at(self.x.low, value)[1]), units(self.left - 7)
            if grid:
                self.parts.append(f'<path class="grid" d="M{units(self.left)} {y}H{units(right)}"/>')
            place = f'x="{before}" y="{y}" dy=".32em" text-anchor="end"'
            self.parts.append(f'<text class="tick" {place}>{escape(text)}</text>')
        for value, text in self.x.ticks:
            x = self.at(value, self.y.low)[0]
            place = f'text-anchor="end" transform="translate({units(x)} {units(bottom + 13)})rotate(-38)"'
            if not slanted:
                cut = x + LETTER * len(text) / 2 + 2 > WIDTH  # off the chart's edge, were it centred
                across = f'text-anchor="end" x="{WIDTH}"' if cut else f'text-anchor="middle" x="{units(x)}"'
                place = f'{across} y="{units(bottom + 17)}"'
            self.parts.append(f'<text class="tick" {place}>{escape(text)}</text>')
        middle = units(self.top + self.height / 2)
        turned = units(self.left - LEFT + 13)
        self.parts.append(
            f'<text class="axis" text-anchor="middle" transform="translate({turned} {middle})rotate(-90)">'
            f"{escape(self.y.label)}</text>"
            f'<text class="axis" text-anchor="middle" x="{units(self.left + self.width / 2)}" y="{units(bottom + 38)}">'
            f"{escape(self.x.label)}</text>"
            f'<path class="base" d="M{units(self.left)} {units(bottom)}H{units(right)}"/>'
        )
        return self

    def draw(self, series: Series, size: float = 3.5, marked: bool = True) -> Plot:
        """A line through the points and a marker with a title on each."""
        pieces, inside = [], False
        for x, y in series.points:
            if math.isfinite(y):
                pieces.append(f"{'L' if inside else 'M'}{' '.join(map(units, self.at(x, y)))}")
            inside = math.isfinite(y)
        body = f'<path class="line {series.line}" d="{"".join(pieces)}"/>' if series.line != "none" else ""
        for point, title in zip(series.points, series.titles, strict=True):
            if marked and math.isfinite(point[1]):
                left, top = map(units, self.at(*point))
                kind = "mark hollow" if series.hollow else "mark"
                body += (
                    f'<circle class="{kind}" cx="{left}" cy="{top}" r="{size}"><title>{escape(title)}</title></circle>'
                )
        self.parts.append(f'<g class="{series.colour}">{body}</g>')
        return self

    def vertical(self, x: float, text: str, colour: str) -> Plot:
        """A dashed line at x with words above it."""
        place = units(self.at(x, self.y.low)[0])
        anchor = ("start", "middle", "end")[min(int(3 * self.x.share(x)), 2)]
        words = f'text-anchor="{anchor}" x="{place}" y="{units(self.top - 5)}"'
        self.parts.append(
            f'<g class="{colour}"><path class="line dashed mark" d="M{place} {units(self.top)}v{units(self.height)}">'
            f"<title>{escape(text)}</title></path>"
            f'<text class="word" {words}>{escape(text)}</text></g>'
        )
        return self

    def cell(self, left: Point, right: Point, colour: str, strength: float, title: str) -> Plot:
        """A rectangle between two corners, in values; strength 0…1."""
        (x, y), (end, bottom) = self.at(*left), self.at(*right)
        self.parts.append(
            f'<rect class="mark cell {colour}" x="{units(x)}" y="{units(y)}" width="{units(end - x)}" '
            f'height="{units(bottom - y)}" fill-opacity="{strength:.3f}"><title>{escape(title)}</title></rect>'
        )
        return self


def legend(entries: Sequence[Entry], top: float = 0) -> tuple[str, float]:
    """(SVG, height) of lines with a dot and a label for each entry."""
    parts, x, line = [], 8.0, 0
    for label, colour, hollow in entries:
        width = 26 + LETTER * len(label)
        if x > 8 and x + width > WIDTH:
            x, line = 8.0, line + 1
        y, kind = top + LEGEND_LINE * (line + 0.55), "hollow" if hollow else "full"
        parts.append(
            f'<g class="{colour}"><circle class="{kind}" cx="{units(x)}" cy="{units(y)}" r="4"/></g>'
            f'<text class="word" x="{units(x + 9)}" y="{units(y)}" dy=".34em">{escape(label)}</text>'
        )
        x += width
    return "".join(parts), LEGEND_LINE * (line + 1) if entries else 0


def drawing(label: str, plots: Sequence[Plot], below: float = BOTTOM) -> str:
    """The plots. below: units that their labels take under them."""
    bottom = max(plot.top + plot.height for plot in plots) + below
    return svg(label, bottom, "".join(part for plot in plots for part in plot.parts))


def svg(label: str, height: float, body: str, attributes: str = "") -> str:
    """An element that a page can hold; `attributes` are HTML."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {units(height)}" role="img" '
        f'aria-label="{escape(label)}"{attributes}>{body}</svg>'
    )


def with_legend(drawn: str, key: Sequence[Entry], style: str) -> str:
    """A chart as a file, on white ground, with its legend above it. style: the rules of CSS that it needs."""
    words, height = legend(key)
    size = re.compile(r'viewBox="0 0 (\d+) ([0-9.]+)"')
    drawn = size.sub(lambda m: f'viewBox="0 {-height} {m[1]} {units(float(m[2]) + height)}"', drawn, count=1)
    start = drawn.index(">") + 1
    ground = f'<rect y="{-height}" width="100%" height="100%" fill="#fff"/>'
    above = f'<g transform="translate(0 {-height})">{words}</g>'
    return f"{drawn[:start]}<style>{style}</style>{ground}{above}{drawn[start:]}\n"
