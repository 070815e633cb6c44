"""The page of a study in headless Chromium: no complaint, nothing loaded, tabs, search and sort, a phone's width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report.study_folders import MadeUp, write_study
from xtoken.report.study import study_page

LONG = "a method with a long name, longer than there is room for"
WIDTH = 360


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    made = MadeUp(methods=("ce", "gold", "p-kl", LONG), varied=("p-kl", LONG), failed=1, seeds=(0, 1, 2, 3))
    path = write_study(folder / "made-up", made) / "report.html"
    path.write_text(study_page(path.parent), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Any, html: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page with all that it complained of or asked for; a width may be asked for."""
    context = browser.new_context(viewport={"width": getattr(request, "param", 1200), "height": 900})
    tab = context.new_page()
    tab.heard = []
    tab.on("console", lambda message: tab.heard.append(message.text))
    tab.on("pageerror", lambda error: tab.heard.append(str(error)))
    tab.on(
        "request", lambda asked: tab.heard.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None
    )
    tab.goto(html.as_uri())
    yield tab
    context.close()


def first_column(tab: Any, section: str) -> list[str]:
    return [row.split("\t")[0] for row in tab.locator(f"#{section} tbody tr:visible").all_inner_texts()]


def test_it_renders_without_complaint_and_loads_nothing(opened: Any) -> None:
    assert opened.heard == []
    assert opened.locator("section").count() == 13
    assert opened.locator("#verdict").is_visible()


def test_a_tab_shows_its_measure_and_hides_the_others(opened: Any) -> None:
    tabs = opened.locator("#methods [role=tab]")
    assert tabs.all_inner_texts()[:2] == ["exact_answers", "bits_per_byte"]
    tabs.nth(1).click()
    shown = opened.locator("#methods [role=tabpanel]:visible")
    assert shown.count() == 1
    assert "bits per byte, lower is better" in shown.inner_text()
    assert opened.heard == []


def test_search_leaves_the_rows_that_hold_every_word(opened: Any) -> None:
    everything = len(first_column(opened, "summary"))
    opened.locator("#summary input[type=search]").fill("p-kl equal packs teacher_kl/numerals")
    assert first_column(opened, "summary") == ["p-kl @ equal gradient"]
    assert everything == 168


def test_sorting_by_the_difference_goes_by_its_value(opened: Any) -> None:
    opened.locator("#comparisons button.sort", has_text="difference").click()
    cells = opened.locator("#comparisons tbody td:nth-child(6)")
    values = [float(key) for key in cells.evaluate_all("found => found.map(cell => cell.dataset.key)")]
    assert values == sorted(values)
    assert values[0] < 0 < values[-1]


@pytest.mark.parametrize("opened", [WIDTH], indirect=True)
def test_every_tab_fits_a_phone(opened: Any) -> None:
    for tab in opened.locator("[role=tab]").all():
        tab.click()
        assert opened.evaluate("document.documentElement.scrollWidth") <= WIDTH


@pytest.mark.parametrize("opened", [WIDTH], indirect=True)
def test_on_a_phone_names_stand_above_and_the_plot_has_the_width(opened: Any) -> None:
    found = opened.evaluate(
        """() => [...document.querySelectorAll("svg.dots")].filter((chart) => chart.checkVisibility()).map((chart) => {
          const box = (each) => each.getBoundingClientRect();
          const rows = [...chart.querySelectorAll(".row:has(svg)")].map((row) => [
            Math.max(...[...row.querySelectorAll("text.name")].map((name) => box(name).bottom)),
            box(row.querySelector("svg.series-fill > g")).top,
            box(row.querySelector("svg.series-fill > g")).bottom,
          ]);
          const names = 15 * Number(getComputedStyle(chart).getPropertyValue("--lines"));
          const next = rows.slice(1).map(([bottom], n) => [rows[n][2], bottom - names]);
          const { paddingLeft, paddingRight } = getComputedStyle(chart);
          const margins = parseFloat(paddingLeft) + parseFloat(paddingRight);
          const ticks = Math.max(...[...chart.querySelectorAll(":scope > text")].map((text) => box(text).bottom));
          return {
            inside: ticks <= box(chart).bottom + 1,
            above: rows.every(([name, mark]) => name <= mark + 4),
            apart: next.every(([mark, name]) => mark <= name + 4),
            share: 1 - margins / box(chart).width,
          };
        })"""
    )
    assert found
    assert all(each["inside"] and each["above"] and each["apart"] and each["share"] > 0.9 for each in found), found


@pytest.mark.parametrize("opened", [1200], indirect=True)
def test_names_do_not_run_into_the_plot(opened: Any) -> None:
    """A row's name ends before the first line of the grid begins."""
    ends = opened.evaluate(
        """() => [...document.querySelectorAll("#methods svg.chart, #baselines svg.chart")]
        .filter((chart) => chart.checkVisibility()).map((chart) => {
          const left = (mark) => mark.getBoundingClientRect().left;
          const names = [...chart.querySelectorAll("text.name")].map((t) => t.getBoundingClientRect().right);
          return [Math.max(...names), Math.min(...[...chart.querySelectorAll("line.axis")].map(left))];
        })"""
    )
    assert ends
    assert all(names <= grid for names, grid in ends), ends
