"""The README's code runs as it stands, on the tokenizers it names; only where they come from differs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from xtoken.config import parse_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOCAL = {"meta-llama/Llama-3.2-1B": "llama-3", "Qwen/Qwen3-4B": "qwen3"}


def block(language: str) -> str:
    """The first fenced block of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)[0]


@pytest.mark.real
def test_the_first_code_runs(real_tokenizer: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    code = block("python")
    for hub_id, name in LOCAL.items():
        assert hub_id in code
        code = code.replace(hub_id, str(real_tokenizer(name)))
    names: dict[str, object] = {}
    exec(code, names)
    first, chunks = capsys.readouterr().out.split("\n", 1)
    assert first == "p-kl"
    # In| |201|9|,| |123|456| people|. : ten tokens of Llama-3, of which Qwen3 splits 201, 123 and 456.
    rows = np.array(re.findall(r"\d+", chunks), int).reshape(-1, 4)
    assert (rows[:, 1] - rows[:, 0]).tolist() == [1] * 10
    assert (rows[:, 3] - rows[:, 2]).tolist() == [1, 1, 3, 1, 1, 1, 3, 3, 1, 1]


def test_it_begins_within_ten_lines() -> None:
    lines = README.splitlines()
    assert lines.index("```python") < 10


def test_the_config_is_one() -> None:
    config = parse_config(yaml.safe_load(block("yaml")), where="README")
    assert config.student.model == "meta-llama/Llama-3.2-1B"
    assert config.optim.steps == 30_000


def test_every_document_it_links_to_is_there() -> None:
    links = re.findall(r"\]\((docs/[^)]+)\)", README)
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_nothing_is_left_to_fill_in() -> None:
    assert "DEMO_TABLE" not in README
