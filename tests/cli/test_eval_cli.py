"""`xtoken eval` prints bits per byte, for people or as one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from training import tiny
from xtoken.cli.eval import eval_command

app = typer.Typer()
app.command("eval")(eval_command)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.student_folder(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text("\n".join(tiny.documents(5)))
    return file


def test_json_is_one_object_and_nothing_else(model: Path, text: Path) -> None:
    result = CliRunner().invoke(app, [str(model), "--text", str(text), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["documents"] == 5
    assert found["bytes"] == len(text.read_bytes()) - 4  # a line's end is no text
    assert found["bits_per_byte"] > 0
    assert {"digits-1", "punctuation", "numerals"} <= found["classes"].keys()


def test_help_says_the_dtype() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert "bfloat16 on a GPU and float32 on a CPU" in result.stdout


def test_people_get_a_table(model: Path, text: Path) -> None:
    result = CliRunner().invoke(app, [str(model), "--text", str(text), "--split-text-by", "document"])
    assert result.exit_code == 0
    assert "bits per byte" in result.stdout
    assert "numerals" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["/nowhere", "--text", "TEXT"], "model: there is no model folder /nowhere"),
        (["MODEL", "--text", "nowhere.txt"], "there is no text file nowhere.txt"),
        (["MODEL", "--text", "TEXT", "--context-length", "999"], "longer than the 128 positions"),
        (["MODEL", "--text", "TEXT", "--context-length", "1"], "must be at least 2"),
        (["MODEL", "--text", "TEXT", "--split-text-by", "word"], "expected one of line, paragraph, document"),
        (["MODEL", "--text", "TEXT", "--text-column", "body"], "text_column 'body' has no effect"),
    ],
)
def test_mistakes_are_one_message(model: Path, text: Path, options: list[str], message: str) -> None:
    named = [str(model) if o == "MODEL" else str(text) if o == "TEXT" else o for o in options]
    result = CliRunner().invoke(app, named)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert isinstance(result.exception, SystemExit)


def test_an_empty_text_is_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    result = CliRunner().invoke(app, [str(model), "--text", str(tmp_path / "empty.txt")])
    assert result.exit_code == 2
    assert "there is no text to score" in result.stderr
