"""The page's parts: text is never markup, nothing is loaded, figures read well, and charts stay inside their frame."""

from __future__ import annotations

import html
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken.report.charts import Bar, Interval, Series, bars, grid, intervals, lines, percent
from xtoken.report.page import (
    Keyed,
    Markup,
    Section,
    details,
    facts,
    figure,
    headline,
    join,
    markup,
    note,
    number,
    page,
    paragraphs,
    table,
    tabs,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
VOID = {"meta", "link", "br", "input", "img", "circle", "rect", "path", "line", "polyline"}


class Reader(HTMLParser):
    """What a browser would see: elements, their attributes and the text between them."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []  # type: ignore[var-annotated]
        self.feed(document)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def everything(text: str) -> str:
    """A page with a text in every place that takes one."""
    cells = [[text, Keyed(text, text), 1.5], [Keyed(markup("<b>{}</b>", text), 2.0), None, 3]]
    points = [(0.0, 1.0), (1.0, 2.0)]
    chart = figure(bars([Bar(text, 1, text)], title=text), text) + grid([[1, 0], [0, 20]], title=text)
    chart += lines([Series(text, points)], title=text, x_label=text, y_label=text, reference=1.5)
    chart += lines([], title=text, x_label=text, y_label=text)
    chart += intervals([(text, [Interval(text, 1, 0, 2, 1, text)])], title=text, x_label=text, names=[text])
    parts = [
        paragraphs(text),
        note(text),
        headline([(text, text, text)]),
        facts([(text, text)]),
        details(text, chart),
        tabs(text, [(text, table([text, "second", "third"], cells, caption=text, searchable=True, numeric=["third"]))]),
    ]
    return page(text, text, [Section(text, "a", Markup("").join(parts))])


@given(st.text(alphabet=st.sampled_from("<>&\"'/={}ab !-\n\\script"), min_size=1, max_size=30))
def test_no_text_changes_the_elements_of_a_page(text: str) -> None:
    plain, odd = Reader(everything("plain")), Reader(everything(text))
    assert [tag for tag, _ in odd.elements] == [tag for tag, _ in plain.elements]
    assert [sorted(attributes) for _, attributes in odd.elements] == [sorted(a) for _, a in plain.elements]
    assert odd.text.count(text) >= plain.text.count("plain")


def test_a_string_in_place_of_markup_is_shown_and_not_obeyed() -> None:
    document = page("t", "l", [Section("s", "a", "<script>1</script>")])  # type: ignore[arg-type]
    assert html.escape("<script>1</script>") in document


def test_a_page_refers_to_nothing_outside_itself() -> None:
    document = everything("text")
    for _, attributes in Reader(document).elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|importScripts", document)
    assert set(re.findall(r"https?://[\w./]+", document)) <= {"http://www.w3.org/2000/svg"}, "SVG's namespace alone"


def test_sections_have_anchors_of_their_own() -> None:
    with pytest.raises(ValueError, match="anchors of their own, got a, a"):
        page("t", "l", [Section("1", "a", Markup("")), Section("2", "a", Markup(""))])


def test_a_lone_surrogate_is_written_out() -> None:
    assert "\\ud800" in page("\ud800", "l", [])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (12345, "12,345"),
        (2.0, "2"),
        (0.12345, "0.1235"),
        (12.345, "12.35"),
        (1234.56, "1,235"),
        (-0.5, "-0.5000"),
        (1e-5, "1.000e-05"),
        (0.99996, "1.0000"),
        (1.5e7, "15,000,000"),
        (1.5e7 + 0.5, "1.500e+07"),
        (None, "–"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_figures_have_four_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.123, "12.3 %"), (1e-6, "< 0.1 %"), (0.9999, "> 99.9 %"), (None, "–")],
)  # fmt: skip
def test_a_share_is_never_rounded_to_all_or_nothing(value: float | None, shown: str) -> None:
    assert percent(value) == shown


def places(drawn: str) -> list[float]:
    """All places in per cent, and the points of lines."""
    points = [float(x) for points in re.findall(r'points="([^"]*)"', drawn) for x in re.split("[ ,]", points) if x]
    return [float(x) for x in re.findall(r'(?:x|y|x1|x2|y1|y2)="([-\d.]+)%"', drawn)] + points


@given(st.lists(st.tuples(st.integers(0, 10_000), FINITE), min_size=1, max_size=40), st.sampled_from(["linear", "log"]))
def test_lines_stay_inside_their_frame(points: list[tuple[int, float]], scale: str) -> None:
    series = [Series("s", sorted(points))]
    drawn = lines(series, title="t", x_label="x", y_label="y", scale=scale)  # type: ignore[arg-type]
    assert all(0 <= place <= 100 for place in places(str(drawn)))
    if scale == "linear" or any(y > 0 for _, y in points):
        assert "polyline" in drawn
    else:
        assert "no value to draw" in drawn


@given(st.lists(st.tuples(FINITE, st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=8))
def test_intervals_stay_inside_their_frame_with_the_point_between_its_ends(
    found: list[tuple[float, float, float]],
) -> None:
    group = [Interval(str(n), value, value - down, value + up) for n, (value, down, up) in enumerate(found)]
    drawn = str(intervals([("", group)], title="t", x_label="x", reference=0.0))
    assert all(0 <= place <= 100 for place in places(drawn))
    for low, high, point in re.findall(r'x1="([\d.]+)%" x2="([\d.]+)%" y1="28".*?<svg x="([\d.]+)%"', drawn, re.S)[:1]:
        assert float(low) <= float(point) <= float(high)


def test_a_larger_value_stands_higher_on_both_scales() -> None:
    for scale in ("linear", "log"):
        series = [Series("s", [(0, 0.01), (1, 0.5), (2, 30.0)])]
        drawn = str(lines(series, title="t", x_label="x", y_label="y", scale=scale))  # type: ignore[arg-type]
        (points,) = re.findall(r'points="([^"]*)"', drawn)
        down = [float(point.split(",")[1]) for point in points.split()]
        assert down == sorted(down, reverse=True)
        assert len(set(down)) == 3


def test_a_long_line_is_thinned_and_keeps_both_ends() -> None:
    drawn = str(lines([Series("s", [(n, n) for n in range(10_000)])], title="t", x_label="x", y_label="y"))
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    assert 100 < len(points.split()) <= 301
    assert (points.split()[0].split(",")[0], points.split()[-1].split(",")[0]) == ("0", "100")


def test_what_is_not_finite_is_left_out_of_a_line() -> None:
    points = [(0, 1.0), (1, None), (2, math.nan), (3, math.inf), (4, 2.0)]
    drawn = str(lines([Series("s", points)], title="t", x_label="x", y_label="y"))
    (found,) = re.findall(r'points="([^"]*)"', drawn)
    assert len(found.split()) == 2


def test_series_differ_by_more_than_colour() -> None:
    series = [Series(str(n), [(0, n), (1, n + 1)]) for n in range(6)]
    drawn = str(lines(series, title="t", x_label="x", y_label="y"))
    assert len(set(re.findall(r'stroke-dasharray="([^"]*)" points', drawn))) == 6
    assert len(set(re.findall(r'class="series-fill">(<\w+[^>]*>)', drawn))) == 6
    assert len(set(re.findall(r'<g class="(s\d)"', drawn))) == 6


def test_joining_escapes_what_is_no_markup() -> None:
    assert join(["<b>", Markup("<i>"), 3], "<br>") == "&lt;b&gt;<br><i><br>3"
    assert markup("<b>{}</b>", "<i>") == "<b>&lt;i&gt;</b>"
