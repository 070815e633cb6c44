"""Pages in headless Chromium: they load nothing, work by keyboard, fit a phone, and show hostile text as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from report.runs import HOSTILE

_PATIENCE = 180_000  # milliseconds: a busy machine must not fail a test
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
# WCAG 2.2's ratio of two colours, 1.4.3, of every element that has text of its own against the ground painted under it.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const channel = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return rgba("Canvas");
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || ["SCRIPT", "STYLE", "TITLE", "title", "desc"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const isSvg = element instanceof SVGElement;
    const [a, b] = [luminance(rgba(isSvg ? style.fill : style.color)), luminance(ground(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.tagName, element.textContent.slice(0, 30)]);
  }
  return found;
}"""


class Page:
    """An opened page, and all that it asked for or complained of."""

    def __init__(self, tab: Any, path: Path) -> None:
        self.tab, self.complaints, self.requests = tab, [], []
        tab.on("console", lambda message: self.complaints.append(message.text))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("requestfailed", lambda request: self.complaints.append(request.url))
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.goto(path.as_uri())

    def rows(self, caption: str) -> list[str]:
        """The rows of a table that are shown."""
        return [row for row in self.table(caption).locator("tbody tr:visible").all_inner_texts() if row]

    def table(self, caption: str) -> Any:
        return self.tab.locator("div.table:visible", has=self.tab.locator("caption", has_text=caption)).first


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Any, run_html: Path) -> Iterator[Open]:
    contexts = []

    def opened(size: dict[str, int] = DESKTOP, **settings: Any) -> Page:
        contexts.append(browser.new_context(viewport=size, **settings))
        contexts[-1].set_default_timeout(_PATIENCE)
        return Page(contexts[-1].new_page(), run_html)

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_page_renders_without_complaint_and_loads_nothing_but_itself(
    open_page: Open, scheme: str, size: dict[str, int]
) -> None:
    page = open_page(size, color_scheme=scheme)
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [page.tab.url]
    assert page.tab.get_by_role("heading", level=1).inner_text() == "Run out"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    page.tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = page.tab.evaluate(CONTRASTS)
    assert len(found) > 300
    assert [each for each in found if each[0] < 4.5] == []


def test_the_schemes_differ_and_the_button_overrides_the_system(open_page: Open) -> None:
    def ground(page: Page) -> str:
        return str(page.tab.evaluate("getComputedStyle(document.body).backgroundColor"))

    page = open_page(color_scheme="light")
    light, button = ground(page), page.tab.get_by_role("button", name=re.compile("Theme"))
    button.click()
    assert (button.inner_text(), ground(page)) == ("Theme: light", light)
    button.click()
    dark = ground(page)
    assert button.inner_text() == "Theme: dark"
    assert dark == ground(open_page(color_scheme="dark")) != light
    page.tab.reload()
    assert ground(page) == dark, "the choice outlives a visit"
    button.click()
    assert (button.inner_text(), ground(page)) == ("Theme: system", light)


def test_nothing_is_wider_than_a_phone(open_page: Open) -> None:
    page = open_page(PHONE)
    page.tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for tab in page.tab.get_by_role("tab").all():
        if tab.is_visible():
            tab.click()
            assert page.tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    wide = "[...document.querySelectorAll('.table-box')].filter((box) => box.scrollWidth > box.clientWidth).length"
    assert page.tab.evaluate(wide) > 0, "a table scrolls in its own box"


def test_sorting_goes_up_then_down_by_value_and_keeps_what_has_none_last(open_page: Open) -> None:
    page = open_page()
    table = page.table("The student's tokens by class")
    heading = table.get_by_role("columnheader", name="tokens")
    values = table.locator("tbody td:nth-child(2)")

    def column() -> list[int]:
        return [int(text.replace(",", "")) for text in values.all_inner_texts()]

    before = column()
    heading.get_by_role("button").click()
    assert column() == sorted(before)
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").click()
    assert column() == sorted(before, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    of_text = table.get_by_role("columnheader", name="of it in common").get_by_role("button")
    for _ in ("up", "down"):
        of_text.click()
        shown = table.locator("tbody td:nth-child(6)").all_inner_texts()
        assert shown[-1] == "–"
        assert "–" not in shown[: len([x for x in shown if x != "–"])]
    assert heading.get_attribute("aria-sort") is None


def test_search_keeps_the_rows_that_hold_every_word(open_page: Open) -> None:
    page = open_page()
    caption = "every rule represented"
    everything = page.rows(caption)
    field = page.table(caption).get_by_role("searchbox")
    field.fill("PIECES digits")
    found = page.rows(caption)
    assert 0 < len(found) < len(everything)
    assert found == [row for row in everything if "pieces" in row and "digits" in row]
    assert page.table(caption).locator("output").inner_text() == f"{len(found)} of {len(everything)} rows"
    field.fill("")
    assert page.rows(caption) == everything


def test_the_keyboard_reaches_and_works_everything(open_page: Open) -> None:
    page = open_page()
    seen: set[str] = set()
    told = """() => {
      const at = document.activeElement;
      const name = at.className || at.getAttribute("role") || at.type || at.tagName;
      const shown = getComputedStyle(at).outlineStyle !== "none";
      return [at.tagName + ":" + name, shown, at.getAttribute("role")];
    }"""
    for _ in range(400):
        page.tab.keyboard.press("Tab")
        what, shown, role = page.tab.evaluate(told)
        if what == "BODY:BODY":
            break
        assert shown, f"{what} has the focus and does not show it"
        if role == "tab" and "moved" not in seen:
            before = page.tab.evaluate("document.activeElement.id")
            page.tab.keyboard.press("ArrowRight")
            assert page.tab.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
            assert page.tab.evaluate("document.activeElement.id") != before
            seen.add("moved")
        if what == "BUTTON:sort" and "sorted" not in seen:
            page.tab.keyboard.press("Enter")
            assert page.tab.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
            seen.add("sorted")
        seen.add(what)
    kinds = {"A:skip", "BUTTON:button", "BUTTON:sort", "INPUT:search", "DIV:table-box", "BUTTON:tab", "SUMMARY:SUMMARY"}
    assert kinds | {"moved", "sorted"} <= seen


def test_a_script_in_a_text_stays_text(open_page: Open) -> None:
    page = open_page()
    assert page.tab.evaluate("window.hacked") is None
    assert page.tab.locator("img").count() == 0
    assert page.tab.locator("script").count() == 2, "the page's own"
    spelled = "[...document.querySelectorAll('ol.chunks')].map((list) => [...list.querySelectorAll('li:not(.gap) > "
    spelled += "span:first-child')].map((side) => side.textContent).join(''))"
    assert f"<s>{HOSTILE}".replace(" ", "·") in page.tab.evaluate(spelled)


def test_headings_do_not_skip_a_level_and_tables_name_their_rows_and_columns(open_page: Open) -> None:
    page = open_page()
    levels = page.tab.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert page.tab.locator("thead th:not([scope=col])").count() == 0
    assert page.tab.locator("tbody tr:not(:has(> th[scope=row]:first-child))").count() == 0
    assert page.tab.locator("table:not(:has(caption))").count() == 0
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert page.tab.get_by_role(landmark).count() == 1
    targets = "[...document.querySelectorAll('a[href^=\"#\"]')].every((a) => document.querySelector(a.hash))"
    assert page.tab.evaluate(targets)
    ids = "[...document.querySelectorAll('[id]')].map((each) => each.id)"
    found = page.tab.evaluate(ids)
    assert len(set(found)) == len(found)


def test_who_wants_less_motion_gets_none(open_page: Open) -> None:
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert open_page(reduced_motion="reduce").tab.evaluate(behaviour) == "auto"
    assert open_page(reduced_motion="no-preference").tab.evaluate(behaviour) == "smooth"


def test_without_javascript_everything_is_there_to_read(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert page.tab.locator(".panel").count() == page.tab.locator(".panel:visible").count() > 4
    assert not page.tab.locator("#theme").is_visible()
