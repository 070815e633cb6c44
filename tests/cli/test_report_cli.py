"""`xtoken report` and the pages of `audit` and `align`: where they are written, and which options go together."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from report.runs import made_run
from small_tokenizers import packing_json, splitting_json
from training import tiny
from xtoken.cli import app
from xtoken.report.page import page
from xtoken.training.output import clear_folder

SCRIPT = "In 2019 </title><script>alert(1)</script>"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two folders with a tokenizer each."""
    monkeypatch.setenv("XTOKEN_CACHE", str(tmp_path / "cache"))
    for name, make in (("packing", packing_json), ("splitting", splitting_json)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(make(), encoding="utf-8")
    return str(tmp_path / "packing"), str(tmp_path / "splitting")


def run(*arguments: object, code: int = 0) -> str:
    """What a command said, on both streams."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output.replace("\n", " ")


def test_the_audit_as_a_page(pair: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("Anna has 12 apples.")
    path = tmp_path / "new" / "audit.html"
    assert str(path) in run("audit", *pair, "--html", path, "--corpus", tmp_path / "corpus.txt")
    document = path.read_text(encoding="utf-8")
    assert "digits-3" in document
    assert "weighed by corpus.txt" in document
    assert '<section id="projection"' in document


def test_an_alignment_as_a_page(pair: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "align.html"
    run("align", *pair, "--text", SCRIPT, "--html", path)
    document = path.read_text(encoding="utf-8")
    assert document.count("<script>") == 2
    assert '<ol class="chunks">' in document


@pytest.mark.parametrize("command", [["audit"], ["align", "--text", "x"]])
def test_json_and_a_page_exclude_each_other(pair: tuple[str, str], tmp_path: Path, command: list[str]) -> None:
    name, *options = command
    said = run(name, *pair, *options, "--json", "--html", tmp_path / "x.html", code=2)
    assert "give one of them" in said
    assert not (tmp_path / "x.html").exists()


def test_a_run_is_reported_into_its_own_folder_or_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTOKEN_CACHE", str(tmp_path / "cache"))
    teachers = [{"model": str(tiny.teacher_folder(tmp_path / "big"))}]
    folder = made_run(tmp_path, teachers=teachers)
    run("report", folder, "--documents", 2)
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    (tmp_path / "held_out.txt").unlink()
    said = run("report", folder, "--out", tmp_path / "elsewhere.html")
    assert "No texts were read" in said
    assert (tmp_path / "elsewhere.html").is_file()


def test_a_run_that_is_replaced_takes_its_report_along_and_nobody_elses(pair: tuple[str, str], tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run("audit", *pair, "--html", ours / "report.html")
    theirs.mkdir()
    (theirs / "report.html").write_text("<html>mine</html>")
    clear_folder(ours)
    clear_folder(theirs)
    assert list(ours.iterdir()) == []
    assert "is not xtoken's" in run("report", theirs, code=2)
    assert (theirs / "report.html").read_text() == "<html>mine</html>"


def test_a_folder_of_a_study_is_the_studys_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("xtoken.report.study")
    module.study_page = lambda folder: page(f"page of {folder.name}", "", [])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xtoken.report.study", module)
    study = tmp_path / "study"
    study.mkdir()
    (study / "study.yaml").write_text("name: study\n")
    run("report", study)
    assert "<h1>page of study</h1>" in (study / "report.html").read_text()
    assert "no effect on the report of a study" in run("report", study, "--documents", 3, code=2)


def test_what_is_no_run_is_a_mistake(tmp_path: Path) -> None:
    assert "there is no folder" in run("report", tmp_path / "none", code=2)
    assert "holds no run" in run("report", tmp_path, code=2)
    assert list(tmp_path.iterdir()) == []
