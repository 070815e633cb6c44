"""The charts a study's page needs beside those of `charts`: many methods in few pixels, and two measures at once.

Rows are low, with the name at the left, so that forty methods can be seen together; like the other charts they
narrow instead of shrinking. On a phone page.css makes the rows higher and puts the names above them, so that what is
drawn has the whole width. Shapes, rings and words say what colours say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten, wrap

from xtoken.report import charts
from xtoken.report.page import Markup, join, markup, number
from xtoken.report.study_views import within

__all__ = ["Dot", "Link", "Spot", "dots", "scatter"]

_NAMES, _NOTES = 166, 100  # pixels: the columns of names and of notes; page.css has them too
_NAME_LETTERS, _NOTE_LETTERS = 22, 14  # that fit in them
_MOST_LINES = 4  # of a name: a claim names two methods
_MORE = 0.03  # of what the values span, at each end of an axis: a mark is not cut in half
_TICKS = 6  # at most, about
_SHAPES = len(charts.MARKS)


@dataclass(frozen=True)
class Dot:
    """A row: a value with its interval.

    Attributes:
        label: at the left, in up to four lines, and cut where it is longer.
        name: the whole name, told when the mark is pointed at.
        value, low, high: the mark and the ends of its line; no line without ends.
        series: colour and shape of the mark, from 0.
        note: at the right: the figure or the verdict, in words.
        indent: its label is set in, under that of its method.
        ring: the mark is hollow: a variant.
        outside: may lie outside of the axis, which then has an arrow at that edge: what would squeeze the rest.
    """

    label: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0
    note: str = ""
    indent: bool = False
    ring: bool = False
    outside: bool = False


@dataclass(frozen=True)
class Spot:
    """A method in a scatter: (mean, low, high) across and up."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    series: int
    is_variant: bool


@dataclass(frozen=True)
class Link:
    """A line between two spots, by their names; dotted unless it runs along a swept number."""

    start: str
    end: str
    dotted: bool


def dots(
    rows: Sequence[Dot],
    *,
    title: str,
    x_label: str,
    rules: Sequence[tuple[str, float]] = (),
) -> Markup:
    """Rows of values with intervals over one axis.

    Args:
        rows: in order, one at least that is not `outside`.
        title: what the chart shows, for those who do not see it.
        x_label: what is measured, with the unit.
        rules: (name, value) of lines down the chart, such as a baseline's mean; a legend names them.
    """
    values = [v for row in rows if not row.outside for v in (row.value, row.low, row.high) if v is not None]
    values += [value for _, value in rules]
    ticks, along, bounds = _axis(min(values), max(values))
    most = max(len(_wrapped(row)) for row in rows)
    grid = [
        markup(
            '<line class="axis" x1="{}%" x2="{}%" y1="0" y2="100%"/>'
            '<text class="quiet" x="{}%" y="100%" dy="16" text-anchor="middle">{}</text>\n',
            *(charts.position(along(tick)),) * 3,
            "" if n % 2 and len(ticks) > 4 else charts.tick_text(tick),  # a phone has room for three or four
        )
        for n, tick in enumerate(ticks)
    ]
    drawn = [
        markup('<g class="row" style="--n:{}">{}{}</g>\n', n, _dot(row, along, bounds), _names(row))
        for n, row in enumerate(rows)
    ]
    return _rule_legend([name for name, _ in rules]) + markup(
        '<svg class="chart dots" role="img" aria-label="{}" style="--rows:{};--lines:{}" '
        'xmlns="http://www.w3.org/2000/svg">\n{}{}{}'
        '<text class="quiet label" x="100%" y="100%" dx="{}" dy="36" text-anchor="end">{}</text>\n</svg>\n',
        *(title, len(rows), most),
        *(join(grid), join(_rule(n, along(value)) for n, (_, value) in enumerate(rules)), join(drawn)),
        *(_NOTES, x_label),
    )


def _names(row: Dot) -> Markup:
    """A row's name and note; the title holds what was cut from the name."""
    lines = _wrapped(row)
    whole = Markup("") if " ".join(lines) == row.label else markup("<title>{}</title>", row.name)
    texts = [
        markup(
            '<text class="name" x="{}" y="{:g}">{}{}</text>',
            *((14 if row.indent else 0) - _NAMES, 4 + 15 * n - 7.5 * (len(lines) - 1), line, whole),
        )
        for n, line in enumerate(lines)
    ]
    names = join(texts) if len(lines) == 1 else markup('<g style="--own:{}">{}</g>', len(lines), join(texts))
    return markup(
        '{}<text class="quiet note-text" x="100%" dx="{}" y="4" text-anchor="end">{}</text>\n',
        *(names, _NOTES, shorten(row.note, _NOTE_LETTERS, placeholder="…")),
    )


def _wrapped(row: Dot) -> list[str]:
    letters = _NAME_LETTERS - (2 if row.indent else 0)
    return wrap(row.label, letters, max_lines=_MOST_LINES, placeholder="…", break_on_hyphens=False) or [""]


def _dot(row: Dot, along: Callable[[float], float], bounds: tuple[float, float]) -> Markup:
    if row.outside and not bounds[0] <= row.value <= bounds[1]:
        low = row.value < bounds[0]
        return markup(
            '<text class="quiet" x="{}" y="{}" text-anchor="{}">{}</text>\n',
            *("0" if low else "100%", 4, "start" if low else "end"),
            "◂" if low else "▸",
        )
    told = f"{row.name}: {number(row.value)}"
    whisker = Markup("")
    if row.low is not None and row.high is not None:
        told += f", {number(row.low)} to {number(row.high)}"
        whisker = markup(
            '<line class="whisker series-stroke" x1="{}%" x2="{}%" y1="{}" y2="{}"/>',
            *(charts.position(along(row.low)), charts.position(along(row.high)), 0, 0),
        )
    at = charts.position(along(row.value))
    return markup(
        '<g class="s{}">{}{}</g>\n',
        *(_colour(row.series), whisker, _mark(row.series, f"{at}%", "0", told, ring=row.ring)),
    )


def _mark(series: int, x: str, y: str, told: str, *, ring: bool) -> Markup:
    """A mark that tells something when pointed at. From the seventh series on, shapes meet other colours."""
    shape = Markup(charts.MARKS[series % _SHAPES])
    style = Markup(' style="fill:var(--ground);stroke:var(--series);stroke-width:1.75"') if ring else Markup("")
    return markup(
        '<svg x="{}" y="{}" overflow="visible" class="series-fill"><g{}>{}<title>{}</title></g></svg>',
        *(x, y, style, shape, told),
    )


def _colour(series: int) -> int:
    """The class s1 to s6, shifted with each round of shapes, so that 36 series differ."""
    return (series + series // _SHAPES) % charts.COLOURS + 1


def _rule(n: int, share: float) -> Markup:
    at = charts.position(share)
    return markup(
        '<line class="reference" style="stroke-dasharray:{}" x1="{}%" x2="{}%" y1="0" y2="100%"/>\n',
        *(charts.DASHES[(n + 1) % len(charts.DASHES)], at, at),
    )


def _rule_legend(names: Sequence[str]) -> Markup:
    items = [
        markup(
            '<li><svg aria-hidden="true"><line class="reference" style="stroke:var(--quiet);stroke-dasharray:{}" '
            'x1="0" x2="100%" y1="50%" y2="50%" stroke-width="2"/></svg>{}</li>\n',
            *(charts.DASHES[(n + 1) % len(charts.DASHES)], name),
        )
        for n, name in enumerate(names)
    ]
    return markup('<ul class="legend">\n{}</ul>\n', join(items)) if items else Markup("")


def _shape_legend(names: Sequence[str]) -> Markup:
    items = [
        markup(
            '<li><svg class="s{}" aria-hidden="true" style="width:1rem">{}</svg>{}</li>\n',
            *(_colour(n), _mark(n, "50%", "50%", name, ring=False), name),
        )
        for n, name in enumerate(names)
    ]
    return markup('<ul class="legend">\n{}</ul>\n', join(items)) if items else Markup("")


def scatter(
    spots: Sequence[Spot], links: Sequence[Link], *, title: str, x_label: str, y_label: str, legend: Sequence[str] = ()
) -> Markup:
    """Methods at two measures, with both intervals, cut at the edge; variants are rings, joined by lines.

    Args:
        spots: at least one.
        links: between spots, by name.
        title: what the chart shows, for those who do not see it.
        x_label, y_label: what is measured, with the unit and the better direction.
        legend: names of the series 0, 1, ...
    """
    x_ticks, along = _between(*within(s.x[0] for s in spots))
    y_ticks, rise = _between(*within(s.y[0] for s in spots))

    def across(value: float) -> str:
        return f"{charts.position(along(value))}%"

    def up(value: float) -> str:
        return f"{charts.position(1 - rise(value))}%"

    height, top = 280, 26
    grid = [
        markup(
            '<line class="axis" x1="0" x2="100%" y1="{}" y2="{}"/>'
            '<text class="quiet" x="-8" y="{}" dy="4" text-anchor="end">{}</text>\n',
            *(up(tick), up(tick), up(tick), charts.tick_text(tick)),
        )
        for tick in y_ticks
    ]
    grid += [
        markup(
            '<line class="axis" x1="{}" x2="{}" y1="0" y2="100%"/>'
            '<text class="quiet" x="{}" y="100%" dy="18" text-anchor="middle">{}</text>\n',
            *(across(tick), across(tick), across(tick), charts.tick_text(tick)),
        )
        for tick in x_ticks
    ]
    at = {spot.name: spot for spot in spots}
    drawn = [_link(at[link.start], at[link.end], across, up, link.dotted) for link in links]
    drawn += [_spot(spot, across, up) for spot in sorted(spots, key=lambda spot: not spot.is_variant)]
    inner = markup(
        '<text class="quiet" x="-{}" y="14">{}</text>\n'
        '<svg y="{}" width="100%" height="{}" overflow="visible">\n{}{}</svg>\n'
        '<text class="quiet" x="100%" y="{}" text-anchor="end">{}</text>\n',
        *(charts.MARGIN, y_label, top, height, join(grid), join(drawn), top + height + 38, x_label),
    )
    return _shape_legend(legend) + charts.chart(title, top + height + 46, inner, charts.MARGIN, 16)


def _link(
    start: Spot, end: Spot, across: Callable[[float], str], up: Callable[[float], str], is_dotted: bool
) -> Markup:
    return markup(
        '<g class="s{}"><line class="series-stroke" x1="{}" y1="{}" x2="{}" y2="{}"{}/></g>\n',
        *(_colour(start.series), across(start.x[0]), up(start.y[0]), across(end.x[0]), up(end.y[0])),
        Markup(' stroke-dasharray="2 3"') if is_dotted else "",
    )


def _spot(spot: Spot, across: Callable[[float], str], up: Callable[[float], str]) -> Markup:
    told = f"{spot.name}: {number(spot.x[0])} across, {number(spot.y[0])} up"
    x, y = across(spot.x[0]), up(spot.y[0])
    return markup(
        '<g class="s{}"><g class="series-stroke" opacity="0.45"><line x1="{}" x2="{}" y1="{}" y2="{}"/>'
        '<line x1="{}" x2="{}" y1="{}" y2="{}"/></g>{}</g>\n',
        *(_colour(spot.series), across(spot.x[1]), across(spot.x[2]), y, y, x, x, up(spot.y[1]), up(spot.y[2])),
        _mark(spot.series, x, y, told, ring=spot.is_variant),
    )


def _axis(low: float, high: float) -> tuple[list[float], Callable[[float], float], tuple[float, float]]:
    """Ticks, where a value stands from 0 to 1, and the axis's ends: the values' own and a little more."""
    more = _MORE * (high - low) or abs(high) / 10 or 1.0
    low, high = low - more, high + more
    return *_between(low, high), (low, high)


def _between(low: float, high: float) -> tuple[list[float], Callable[[float], float]]:
    """Ticks of an axis that ends at `low` and `high`, and where a value stands from 0 to 1."""
    step = charts.round_step((high - low) / _TICKS)
    ticks = [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return ticks, lambda value: (value - low) / (high - low)
