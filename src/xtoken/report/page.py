"""The page: one HTML document that loads nothing, whatever it shows.

Text is told from markup by type (markupsafe): a `Markup` goes into the page as it is, anything else is escaped. Law: no
`str` reaches a page unescaped, so a training text that holds `<script>` stays text. Build markup with
`markup("<b>{}</b>", x)`, which escapes what it fills in; an f-string makes a `str`, which is shown as text.

Without JavaScript everything is there to read: tables unsorted, tabs one below the other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup, escape

from xtoken.files import write_whole

__all__ = [
    "Cell",
    "Keyed",
    "Markup",
    "Section",
    "details",
    "escape",
    "facts",
    "figure",
    "headline",
    "is_own_page",
    "join",
    "markup",
    "note",
    "number",
    "page",
    "paragraphs",
    "table",
    "tabs",
    "write_page",
]

_ASSETS = Path(__file__).parent / "assets"
_GENERATOR = '<meta name="generator" content="xtoken">'
_KEY_DIGITS = 9  # that a number is sorted by: enough for any token's id, and half the bytes of all of them
_HEAD = 512  # bytes of a document that hold it


@dataclass(frozen=True)
class Section:
    """One part of a page, under a heading of level 2.

    Attributes:
        title: the heading, and the entry in the list of contents.
        anchor: its id; letters, digits and hyphens, other than those of the page's other sections.
        html: what it holds; headings in it begin at level 3.
    """

    title: str
    anchor: str
    html: Markup


@dataclass(frozen=True)
class Keyed:
    """A cell that shows one thing and sorts by another.

    Attributes:
        shown: text or markup.
        key: what to sort by; None and NaN come last, whichever way.
    """

    shown: str | Markup
    key: float | str | None


Cell = str | int | float | None | Keyed


def markup(template: str, *values: object, **named: object) -> Markup:
    """A template with values filled in at `{}`, each escaped unless it is markup."""
    return Markup(template).format(*values, **named)


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Parts one after the other, each escaped unless it is markup."""
    return Markup(between).join(escape(part) for part in parts)


def number(value: float | None) -> str:
    """A figure with four significant digits, thousands apart; an en dash for none."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def paragraphs(*texts: str | Markup) -> Markup:
    """Each text as a paragraph."""
    return join(markup("<p>{}</p>\n", text) for text in texts)


def note(text: str | Markup) -> Markup:
    """A remark that stands out: what is missing and why, or what to beware of."""
    return markup('<p class="note">{}</p>\n', text)


def headline(figures: Sequence[tuple[str, str, str]]) -> Markup:
    """The figures to see first: (what, the figure, a remark that may be empty)."""
    cards = [
        markup(
            '<div class="card"><dt>{}</dt><dd>{}{}</dd></div>\n',
            name,
            markup('<span class="figure-number">{}</span>', value),
            markup('<span class="remark">{}</span>', remark) if remark else "",
        )
        for name, value, remark in figures
    ]
    return markup('<dl class="headline">\n{}</dl>\n', join(cards))


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names with what they stand for, one under the other."""
    return markup(
        '<dl class="facts">\n{}</dl>\n',
        join(markup("<div><dt>{}</dt><dd>{}</dd></div>\n", name, value) for name, value in pairs),
    )


def details(summary: str, content: Markup) -> Markup:
    """Content that is folded away until asked for."""
    return markup("<details>\n<summary>{}</summary>\n{}</details>\n", summary, content)


def figure(content: Markup, caption: str | Markup) -> Markup:
    """A chart with what it shows beneath it."""
    return markup("<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n", content, caption)


def tabs(label: str, panels: Sequence[tuple[str, Markup]]) -> Markup:
    """Panels of which one is shown at a time; without JavaScript all are, each under its title (level 3)."""
    return markup(
        '<div class="tabs" data-tabs="{}">\n{}</div>\n',
        label,
        join(
            markup('<div class="panel" data-title="{}">\n<h3>{}</h3>\n{}</div>\n', title, title, content)
            for title, content in panels
        ),
    )


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    caption: str,
    sortable: bool = True,
    searchable: bool = False,
    numeric: Collection[str] = (),
) -> Markup:
    """A table in a box that scrolls by itself; the first column names its row.

    Args:
        headings: of the columns, each once.
        rows: a cell a column: text, a number (shown by `number`, sorted by its value), markup, or `Keyed`.
        caption: what the table is, shown above it.
        sortable: headings are buttons that sort.
        searchable: a field above it narrows the rows down.
        numeric: headings of columns to set to the right.
    """
    right = [heading in numeric for heading in headings]
    head = [_heading(heading, is_right, sortable) for heading, is_right in zip(headings, right, strict=True)]
    body = [_row(row, right) for row in rows]
    return markup(
        '<div class="table"{}>\n{}<div class="table-box" role="region" aria-label="{}" tabindex="0">\n'
        "<table>\n<caption><span>{}</span></caption>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table>\n</div>\n</div>\n",
        Markup(" data-sortable") if sortable else "",
        _search(caption, len(body)) if searchable else "",
        caption,
        caption,
        join(head),
        join(body),
    )


def _heading(heading: str, is_right: bool, sortable: bool) -> Markup:
    content = (
        markup('<button type="button" class="sort">{}<span class="arrow" aria-hidden="true"></span></button>', heading)
        if sortable
        else heading
    )
    return markup('<th scope="col"{}>{}</th>', Markup(' class="number"') if is_right else "", content)


def _row(row: Sequence[Cell], right: Sequence[bool]) -> Markup:
    name, *others = [(_side(is_right), _key(cell), _shown(cell)) for cell, is_right in zip(row, right, strict=True)]
    cells = join(markup("<td{}{}>{}</td>", *other) for other in others)
    return markup("<tr>{}{}</tr>\n", markup('<th scope="row"{}{}>{}</th>', *name), cells)


def _side(is_right: bool) -> Markup:
    return Markup(' class="number"') if is_right else Markup("")


def _key(cell: Cell) -> Markup:
    """What JavaScript sorts by, where that is not the text shown."""
    key = cell.key if isinstance(cell, Keyed) else cell if not isinstance(cell, str) else ...
    if key is ...:
        return Markup("")
    if key is None or (isinstance(key, float) and not math.isfinite(key)):
        return Markup(' data-key=""')
    return markup(' data-key="{}"', key if isinstance(key, str) else f"{key:.{_KEY_DIGITS}g}")


def _shown(cell: Cell) -> str | Markup:
    if isinstance(cell, Keyed):
        return cell.shown
    return cell if isinstance(cell, str) else number(cell)


def _search(caption: str, count: int) -> Markup:
    return markup(
        '<p class="search"><label>Search <input type="search" data-search aria-label="Search: {}"></label> '
        '<output aria-live="polite">{} rows</output></p>\n',
        caption,
        f"{count:,}",
    )


def page(title: str, lede: str | Markup, sections: Sequence[Section]) -> str:
    """A whole HTML document, with its style and its script inside and nothing to load.

    Args:
        title: of the document, its heading of level 1.
        lede: what it is about, in a sentence or two under the title.
        sections: in order; they make the list of contents.

    Raises:
        ValueError: two sections with one anchor.
    """
    anchors = [section.anchor for section in sections]
    if len({*anchors, "content"}) != len(anchors) + 1:
        raise ValueError(f"sections of one page need anchors of their own, got {', '.join(anchors)}")
    document = Markup(_DOCUMENT).format(
        title=title,
        lede=lede,
        css=_asset("page.css"),
        early=_asset("early.js"),
        js=_asset("page.js"),
        contents=join(markup('<li><a href="#{}">{}</a></li>\n', section.anchor, section.title) for section in sections),
        sections=join(_section(section) for section in sections),
    )
    # A lone surrogate has no UTF-8: it is shown as its escape, as other bytes that are no text are.
    return str(document).encode("utf-8", "backslashreplace").decode()


def write_page(path: Path, document: str) -> None:
    """Writes a document whole, as UTF-8; a folder that is missing is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, document)


def is_own_page(path: Path) -> bool:
    """Whether a file is a page of ours, which may be replaced."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _GENERATOR.encode() in file.read(_HEAD)


def _section(section: Section) -> Markup:
    return markup(
        '<section id="{}" aria-labelledby="{}-title">\n<h2 id="{}-title">{}</h2>\n{}</section>\n',
        section.anchor,
        section.anchor,
        section.anchor,
        section.title,
        section.html,
    )


@cache
def _asset(name: str) -> Markup:
    return Markup((_ASSETS / name).read_text(encoding="utf-8"))


# `data:,` as the icon: a browser would ask a server for one otherwise.
_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="xtoken">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{css}</style>
<script>
{early}</script>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<div class="bar">
<button type="button" id="theme" hidden>Theme: system</button>
</div>
<h1>{title}</h1>
<p class="lede">{lede}</p>
</header>
<div class="columns">
<nav aria-label="Contents">
<ul>
{contents}</ul>
</nav>
<main id="content" tabindex="-1">
{sections}</main>
</div>
<footer>
<p>Made by xtoken. This file is whole in itself: it loads nothing.</p>
</footer>
<script>
{js}</script>
</body>
</html>
"""
