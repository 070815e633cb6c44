"""`xtoken report STUDY` writes the page, and with --figures the figures; options without effect are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from report.study_folders import MadeUp, write_study
from xtoken.cli.report import report_command

app = typer.Typer()
app.command("report")(report_command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = MadeUp(methods=("ce", "gold"), varied=(), pairs=("p",), measures=("bits_per_byte",))
    return write_study(tmp_path_factory.mktemp("study") / "made-up", made)


def test_the_page_goes_into_the_studys_folder(folder: Path) -> None:
    result = CliRunner().invoke(app, [str(folder)])
    assert result.exit_code == 0, result.output
    assert "Study: made-up" in (folder / "report.html").read_text()


def test_figures_go_where_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures"
    result = CliRunner().invoke(app, [str(folder), "--out", str(page), "--figures", str(figures)])
    assert result.exit_code == 0, result.output
    assert page.is_file()
    assert {path.name for path in figures.iterdir()} == {
        f"{name}{suffix}"
        for name in (
            "questions",
            "means-bits_per_byte",
            "against-ce-bits_per_byte",
            "against-gold-bits_per_byte",
            "sweep",
        )
        for suffix in (".svg", ".png")
    }


@pytest.mark.parametrize("option", [("--documents", "3"), ("--texts", "t.txt")])
def test_what_belongs_to_a_run_is_refused(folder: Path, option: tuple[str, str]) -> None:
    result = CliRunner().invoke(app, [str(folder), *option])
    assert result.exit_code == 2
    assert "have no effect on the report of a study" in result.output


def test_figures_of_a_run_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path), "--figures", str(tmp_path / "figures")])
    assert result.exit_code == 2
    assert "--figures has no effect on the report of a run" in result.output
    assert not (tmp_path / "figures").exists()
