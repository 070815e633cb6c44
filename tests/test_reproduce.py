"""docs/reproduce.md says what the paper says, and each of its commands is one that xtoken takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from benchmarks.estimates import CONFIGS
from benchmarks.paper import ROWS, TASKS, Row, command, evaluation
from benchmarks.reproduce import DOCUMENT, gpu_hours, in_document, main, table

from xtoken.config import RunConfig, load_config

ROOT = Path(__file__).resolve().parents[1]
TRAINED = [row for row in ROWS if row.config is not None]
# What a row's label says of its teachers.
LOSSES = {
    "alone": [],
    "llama-3b": ["same"],
    "qwen-uld": ["uld"],
    "qwen-gold": ["gold"],
    "qwen-p-kl": ["p-kl"],
    "qwen-p-kl-fixed": ["p-kl"],
    "qwen-h-kl": ["h-kl"],
    "phi-uld": ["uld"],
    "phi-gold": ["gold"],
    "phi-h-kl": ["h-kl"],
    "phi-p-kl": ["p-kl"],
    "phi-llama": ["h-kl", "same"],
    "phi-qwen": ["h-kl", "p-kl"],
    "three": ["h-kl", "same", "p-kl"],
}
MODELS = {"phi": "microsoft/Phi-4-mini-instruct", "qwen": "Qwen/Qwen3-4B", "llama": "meta-llama/Llama-3.2-3B"}


def config_of(row: Row) -> RunConfig:
    """As the row's command would have it."""
    words = shlex.split(command(row) or "")
    assert words[:2] == ["xtoken", "train"]
    assert words[3::2] == ["--set"] * len(words[4::2])
    return load_config(ROOT / words[2], words[4::2])


@pytest.mark.parametrize("row", [row for row in ROWS if row.figures], ids=lambda row: row.key)
def test_the_papers_averages_are_those_of_its_figures(row: Row) -> None:
    """Which a slip of the pen in one of them would break."""
    assert len(row.figures) == len(TASKS)
    assert sum(row.figures) / len(TASKS) == pytest.approx(row.average, abs=0.011)


def test_every_row_has_a_name_of_its_own_and_every_config_a_row() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS) == 1 + len(LOSSES)
    assert {f"{row.config}.yaml" for row in TRAINED} == {file.name for file in CONFIGS}


@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row.key)
def test_a_rows_command_trains_what_the_row_says(row: Row) -> None:
    config = config_of(row)
    assert [teacher.loss for teacher in config.teachers] == LOSSES[row.key]
    named = [name for name in re.split("-", row.key) if name in MODELS]
    if row.key not in ("alone", "three"):
        assert [teacher.model for teacher in config.teachers] == [MODELS[name] for name in named]
    assert [t.top_k for t in config.teachers] == [8192 if t.loss == "p-kl" else None for t in config.teachers]
    assert [t.projection.learnable for t in config.teachers] == [row.key == "qwen-p-kl" for _ in config.teachers]
    assert config.output.folder == f"runs/{row.key}"
    assert config.student.model == "meta-llama/Llama-3.2-1B"


def test_the_document_holds_the_table_as_it_is_made() -> None:
    assert in_document() == table(), "refresh with: python -m benchmarks.reproduce --write"


def test_the_hours_are_those_of_the_config() -> None:
    text = (ROOT / "configs" / "llama-3.2-1b-from-qwen3-4b.yaml").read_text()
    assert f" {gpu_hours('llama-3.2-1b-from-qwen3-4b'):,} hours" in text.split("8 GPUs")[0]


def test_another_price_makes_another_cost_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--price", "10"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[3:]]
    for cells, usual in zip(rows, table().splitlines()[3:], strict=True):
        expected = usual.split(" | ")
        assert cells[:4] + cells[5:] == expected[:4] + expected[5:]
        assert float(cells[4].replace(",", "")) == pytest.approx(10 * float(cells[3].replace(",", "")), abs=51)


def test_the_evaluations_in_the_document_are_those_of_the_rows() -> None:
    text = DOCUMENT.read_text()
    by_key = {row.key: row for row in ROWS}
    assert evaluation(by_key["base"]) in text
    assert evaluation(by_key["qwen-p-kl"]) in text
