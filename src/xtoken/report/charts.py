"""Charts as inline SVG: bars, lines and intervals, drawn with the page's own style.

Positions across are in per cent of the width and text is in pixels, so a chart is as readable on a phone as on a
screen: it gets narrower, not smaller. Series differ by colour, by dashes and by the shape of their marks, and each
point tells its value when pointed at. A chart is an image to assistive technology, named by its title; give the figures
as a table besides where they matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from xtoken.report.page import Markup, join, markup, number

__all__ = [
    "COLOURS",
    "DASHES",
    "MARGIN",
    "MARKS",
    "Bar",
    "Interval",
    "Scale",
    "Series",
    "bars",
    "chart",
    "grid",
    "intervals",
    "lines",
    "percent",
    "position",
    "round_step",
    "tick_text",
]

Scale = Literal["linear", "log"]

COLOURS = 6  # s1 to s6 in page.css
DASHES = ("none", "7 4", "2 3", "9 3 2 3", "12 4", "1 4")
# Marks in a box from -5 to 5.
MARKS = (
    '<circle r="4"/>',
    '<rect x="-3.5" y="-3.5" width="7" height="7"/>',
    '<path d="M0-5 4.5 3.5H-4.5Z"/>',
    '<path d="M0-5 5 0 0 5-5 0Z"/>',
    '<path d="M0 5 4.5-3.5H-4.5Z"/>',
    '<path d="M-5-1.5H-1.5V-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5Z"/>',
)
# A line is drawn through at most this many points: more are not to be told apart, and cost bytes.
_POINTS = 300
MARGIN = 52  # pixels at the left of lines, for the figures at the axis
_MARKED = 12  # at most so many of them have a mark


@dataclass(frozen=True)
class Bar:
    """A bar with its name.

    Attributes:
        label: above the bar, at its start.
        value: its length; not below 0.
        shown: above it, at the end: the figure in words, such as `0 of 100`.
    """

    label: str
    value: float
    shown: str


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: in the legend.
        points: (x, y), in order of x; a y that is None or not finite breaks nothing and is left out.
    """

    name: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Interval:
    """A value with what it may lie between.

    Attributes:
        label: what it is of.
        value: the point.
        low, high: the ends of its interval; None for a point alone.
        series: which colour and mark, from 0.
        note: at the end of its label, such as `5 seeds`.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0
    note: str = ""


def percent(value: float | None) -> str:
    """A share in words: `12.3 %`, `100 %`, `< 0.1 %`."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < value < 0.001:
        return "< 0.1 %"
    if 0.999 < value < 1:
        return "> 99.9 %"
    return f"{value:.1%}".replace(".0%", "%").replace("%", " %")


def bars(items: Sequence[Bar], *, title: str, maximum: float | None = None) -> Markup:
    """Bars one under the other, each with its name and its figure above it.

    Args:
        items: in order.
        title: what the chart shows, for those who do not see it.
        maximum: the value of a full track; by default the largest there is.
    """
    full = maximum if maximum is not None else max((item.value for item in items), default=0.0)
    step = 40
    drawn = [
        markup(
            '<text x="0" y="{}">{}</text><text x="100%" y="{}" text-anchor="end">{}</text>'
            '<rect class="track" x="0" y="{}" width="100%" height="9" rx="2"/>'
            '<rect class="bar" x="0" y="{}" width="{}%" height="9" rx="2"/>\n',
            *(n * step + 14, item.label, n * step + 14, item.shown, n * step + 21, n * step + 21),
            position(item.value / full if full else 0.0),
        )
        for n, item in enumerate(items)
    ]
    return chart(title, len(items) * step, join(drawn))


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    scale: Scale = "linear",
    reference: float | None = None,
) -> Markup:
    """Lines over one axis, with a legend above.

    Args:
        series: at most six are told apart.
        title: what the chart shows, for those who do not see it.
        x_label, y_label: what the axes measure, with the unit.
        scale: of y; `log` leaves out what is not above 0.
        reference: a y to mark by a dashed line.
    """
    kept = [(each.name, _drawable(each.points, scale)) for each in series]
    values = [y for _, points in kept for _, y in points] + ([reference] if reference is not None else [])
    if not values:
        return markup('<p class="note">{}: no value to draw.</p>\n', title)
    steps = [x for _, points in kept for x, _ in points] or [0.0]
    y_ticks, up = _axis(min(values), max(values), scale)
    x_ticks, along = _axis(min(steps), max(steps), "linear", tight=True)
    height, top = 240, 26
    rules = [
        markup(
            '<line class="axis" x1="0" x2="100%" y1="{}%" y2="{}%"/>'
            '<text class="quiet" x="-8" y="{}%" dy="4" text-anchor="end">{}</text>\n',
            *(position(1 - up(tick)),) * 3,
            tick_text(tick),
        )
        for tick in y_ticks
    ]
    label = '<text class="quiet" x="{}%" y="100%" dy="18" text-anchor="middle">{}</text>\n'
    rules += [markup(label, position(along(tick)), tick_text(tick)) for tick in x_ticks]
    if reference is not None:
        at = position(1 - up(reference))
        rules.append(markup('<line class="reference" x1="0" x2="100%" y1="{}%" y2="{}%"/>\n', at, at))
    drawn = [_line(n, name, points, along, up) for n, (name, points) in enumerate(kept)]
    inner = markup(
        '<text class="quiet" x="-{}" y="14">{}</text>\n'
        '<svg y="{}" width="100%" height="{}" overflow="visible">\n{}{}</svg>\n'
        '<text class="quiet" x="100%" y="{}" text-anchor="end">{}</text>\n',
        *(MARGIN, y_label, top, height, join(rules), join(drawn), top + height + 38, x_label),
    )
    return _legend([each.name for each in series]) + chart(title, top + height + 46, inner, MARGIN, 16)


def intervals(
    groups: Sequence[tuple[str, Sequence[Interval]]],
    *,
    title: str,
    x_label: str,
    scale: Scale = "linear",
    reference: float | None = None,
    names: Sequence[str] = (),
) -> Markup:
    """Points with their intervals, one under the other, in groups.

    Args:
        groups: (name, intervals); a name may be empty.
        title: what the chart shows, for those who do not see it.
        x_label: what is measured, with the unit.
        scale: of the axis.
        reference: a value to mark by a dashed line, such as 0 for differences.
        names: of the series, for a legend; none without.
    """
    every = [each for _, group in groups for each in group]
    values = [v for each in every for v in (each.value, each.low, each.high) if v is not None and math.isfinite(v)]
    values += [reference] if reference is not None else []
    if not every or not values:
        return markup('<p class="note">{}: no value to draw.</p>\n', title)
    ticks, along = _axis(min(values), max(values), scale)
    drawn: list[Markup] = []
    y = 0
    for name, group in groups:
        if name:
            drawn.append(markup('<text class="group" x="0" y="{}">{}</text>\n', y + 18, name))
            y += 26
        for each in group:
            drawn.append(_interval(each, y, along))
            y += 40
        y += 6
    grid = [
        markup(
            '<line class="axis" x1="{}%" x2="{}%" y1="0" y2="{}"/>'
            '<text class="quiet" x="{}%" y="{}" text-anchor="middle">{}</text>\n',
            *(position(along(tick)), position(along(tick)), y, position(along(tick)), y + 16, tick_text(tick)),
        )
        for tick in ticks
    ]
    if reference is not None:
        at = position(along(reference))
        grid.append(markup('<line class="reference" x1="{}%" x2="{}%" y1="0" y2="{}"/>\n', at, at, y))
    inner = markup(
        '{}{}<text class="quiet" x="100%" y="{}" text-anchor="end">{}</text>\n',
        join(grid),
        join(drawn),
        y + 36,
        x_label,
    )
    return _legend(names, dashes=False) + chart(title, y + 44, inner, 14, 20)


def chart(title: str, height: int, content: Markup, left: int = 0, right: int = 0) -> Markup:
    """The whole chart; its margins are padding, so that per cent are of what lies between them.

    Args:
        title: what the chart shows, for those who do not see it.
        height: pixels, with the axis's text.
        content: what is drawn, across in per cent.
        left, right: pixels of the margins.
    """
    return markup(
        '<svg class="chart" role="img" aria-label="{}" height="{}" style="padding:0 {}px 0 {}px" '
        'xmlns="http://www.w3.org/2000/svg">\n{}</svg>\n',
        title,
        height,
        right,
        left,
        content,
    )


def tick_text(value: float) -> str:
    """A value beside an axis, in as few letters as it takes."""
    return f"{value:,.10g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.0e}"


def position(share: float) -> str:
    """A share of the whole as per cent, without the sign; what is outside goes to the edge."""
    return f"{100 * min(max(share, 0.0), 1.0):.2f}".rstrip("0").rstrip(".")


def _drawable(points: Iterable[tuple[float, float | None]], scale: Scale) -> list[tuple[float, float]]:
    kept = [(x, y) for x, y in points if y is not None and math.isfinite(y) and (scale == "linear" or y > 0)]
    if len(kept) <= _POINTS:
        return kept
    every = math.ceil(len(kept) / _POINTS)
    return [*kept[:-1:every], kept[-1]]


def _axis(
    low: float, high: float, scale: Scale, *, tight: bool = False
) -> tuple[list[float], Callable[[float], float]]:
    """Ticks, and where a value stands from 0 to 1. A tight axis ends at its values, another at a tick or beyond."""
    if scale == "log":
        return _log_axis(low, high)
    if low == high:
        low, high = (low, low + 1) if tight else (low - abs(low) / 10 - 0.05, high + abs(high) / 10 + 0.05)
    step = round_step((high - low) / 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if not tight:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        low, high = first * step, last * step
    ticks = [round(n * step, 12) for n in range(first, last + 1)]
    return ticks, lambda value: (value - low) / (high - low)


def _log_axis(low: float, high: float) -> tuple[list[float], Callable[[float], float]]:
    """Ticks at 1, 2 and 5 of each decade, or at every decade where there are many."""
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-12)
    mantissas = (1, 2, 5) if top - bottom <= 2 else (1,)
    candidates = [m * 10.0**e for e in range(bottom, top + 1) for m in mantissas]
    below = max((c for c in candidates if c <= low * (1 + 1e-9)), default=low)
    above = min((c for c in candidates if c >= high * (1 - 1e-9)), default=high)
    if below == above:
        below, above = below / 2, above * 2
    ticks = [c for c in candidates if below * (1 - 1e-9) <= c <= above * (1 + 1e-9)]
    start, width = math.log10(below), math.log10(above) - math.log10(below)
    return ticks[:: math.ceil(len(ticks) / 7)], lambda value: (math.log10(value) - start) / width


def round_step(rough: float) -> float:
    """The round step (1, 2 or 5 times a power of ten) at or above a rough one."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _line(
    n: int,
    name: str,
    points: Sequence[tuple[float, float]],
    along: Callable[[float], float],
    up: Callable[[float], float],
) -> Markup:
    placed = [(position(along(x)), position(1 - up(y)), x, y) for x, y in points]
    path = " ".join(f"{x},{y}" for x, y, *_ in placed)
    every = max(1, math.ceil(len(placed) / _MARKED))
    marks = [
        _mark(n, left, top, f"{name}: {number(y)} at {number(x)}")
        for k, (left, top, x, y) in enumerate(placed)
        if k % every == 0 or k == len(placed) - 1
    ]
    return markup(
        '<g class="s{}"><svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none" '
        'overflow="visible"><polyline class="line series-stroke" vector-effect="non-scaling-stroke" '
        'stroke-dasharray="{}" points="{}"/></svg>{}</g>\n',
        *(n % COLOURS + 1, DASHES[n % COLOURS], path, join(marks)),
    )


def _mark(n: int, x: str, y: str, told: str) -> Markup:
    """A mark of a series at a place in per cent, that tells something when pointed at."""
    return markup(
        '<svg x="{}%" y="{}" overflow="visible" class="series-fill">{}<title>{}</title></svg>',
        *(x, y if y.endswith("px") else f"{y}%", Markup(MARKS[n % COLOURS]), told),
    )


def _interval(each: Interval, y: int, along: Callable[[float], float]) -> Markup:
    told = f"{each.label}: {number(each.value)}"
    whisker = Markup("")
    if each.low is not None and each.high is not None:
        told += f", {number(each.low)} to {number(each.high)}"
        ends = position(along(each.low)), position(along(each.high))
        whisker = markup(
            '<line class="whisker series-stroke" x1="{}%" x2="{}%" y1="{}" y2="{}"/>'
            '<line class="whisker series-stroke" x1="{}%" x2="{}%" y1="{}" y2="{}"/>'
            '<line class="whisker series-stroke" x1="{}%" x2="{}%" y1="{}" y2="{}"/>',
            *(ends[0], ends[1], y + 28, y + 28),
            *(ends[0], ends[0], y + 23, y + 33),
            *(ends[1], ends[1], y + 23, y + 33),
        )
    figures = told.removeprefix(f"{each.label}: ") + (f" ({each.note})" if each.note else "")
    return markup(
        '<g class="s{}"><text x="0" y="{}">{} <tspan class="quiet">{}</tspan></text>{}{}</g>\n',
        *(each.series % COLOURS + 1, y + 16, each.label, figures, whisker),
        _mark(each.series, position(along(each.value)), f"{y + 28}px", told),
    )


def _legend(names: Sequence[str], *, dashes: bool = True) -> Markup:
    if not names:
        return Markup("")
    items = [
        markup(
            '<li><svg class="s{}" aria-hidden="true">'
            '<line class="series-stroke" x1="0" x2="100%" y1="50%" y2="50%" stroke-width="2" stroke-dasharray="{}"/>'
            "{}</svg>{}</li>\n",
            *(n % COLOURS + 1, DASHES[n % COLOURS] if dashes else "none", _mark(n, "50", "50", name), name),
        )
        for n, name in enumerate(names)
    ]
    return markup('<ul class="legend">\n{}</ul>\n', join(items))


def grid(counts: Sequence[Sequence[int]], *, title: str) -> Markup:
    """Counts as squares, the darker the more, in steps of powers of ten; an empty one is left out.

    Args:
        counts: row by row, each as long as there are rows.
        title: what the chart shows, for those who do not see it.
    """
    side = len(counts)
    deepest = max((math.log10(n) for row in counts for n in row if n), default=0.0)
    squares = [
        markup('<rect x="{}" y="{}" width="1" height="1" opacity="{}"/>', x, y, f"{_depth(n, deepest):.2g}")
        for y, row in enumerate(counts)
        for x, n in enumerate(row)
        if n
    ]
    return markup(
        '<svg class="grid" role="img" aria-label="{}" viewBox="0 0 {} {}" xmlns="http://www.w3.org/2000/svg">'
        '<rect class="track" width="{}" height="{}"/>{}</svg>\n',
        title,
        *(side, side, side, side),
        join(squares),
    )


def _depth(n: int, deepest: float) -> float:
    return 1.0 if not deepest else 0.2 + 0.8 * math.floor(math.log10(n) + 1e-9) / max(1, math.floor(deepest + 1e-9))
