"""The file of task results: what is written is read back, and figures of other weights are not kept beside new ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from xtoken.errors import XTokenError
from xtoken.evaluation.task_results import Metric, TaskResult, read_results, weights_digest, write_results

ACC = Metric("acc", None, 0.25, 0.01)
PART = TaskResult("mmlu_law", "1.0", 3, 7, None, "bfloat16", "cais/mmlu", "law", "0.4.13", (ACC,))
MMLU = replace(PART, task="mmlu", dataset=None, dataset_config=None, parts=(PART,))
GSM8K = replace(PART, task="gsm8k", metrics=(Metric("exact_match", "strict-match", 0.5, None), ACC))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    assert write_results(file, "m", "abc", (MMLU, GSM8K)) == (MMLU, GSM8K)
    assert read_results(file) == ("abc", (MMLU, GSM8K))


def test_a_value_that_is_not_finite_is_null_and_read_as_nan(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_results(file, "m", None, (replace(GSM8K, metrics=(replace(ACC, value=math.inf),)),))
    assert json.loads(file.read_text())["tasks"][0]["metrics"][0]["value"] is None
    assert math.isnan(read_results(file)[1][0].metrics[0].value)


def test_another_task_stands_beside_the_first_and_the_same_one_replaces_it(tmp_path: Path) -> None:
    file, again = tmp_path / "x.json", replace(MMLU, shots=5)
    write_results(file, "m", "abc", (MMLU,))
    assert write_results(file, "m", "abc", (GSM8K,)) == (MMLU, GSM8K)
    assert write_results(file, "m", "abc", (again,)) == (GSM8K, again)
    assert read_results(file) == ("abc", (GSM8K, again))


@pytest.mark.parametrize("weights", ["def", None])
def test_figures_of_other_weights_are_dropped(tmp_path: Path, weights: str | None) -> None:
    file = tmp_path / "x.json"
    write_results(file, "m", "abc" if weights else None, (MMLU,))
    assert write_results(file, "m", weights, (GSM8K,)) == (GSM8K,)
    assert read_results(file) == (weights, (GSM8K,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is no file of task results"),
        ('{"results": {}}', "is no file of task results"),
        ('{"format": "xtoken-tasks", "version": 2}', "has version 2 and this xtoken reads 1"),
    ],
)
def test_a_file_of_somebody_elses_is_told_and_stays(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(XTokenError, match=message):
        write_results(file, "m", "abc", (MMLU,))
    assert file.read_text() == content


def test_the_digest_is_of_the_weights_and_nothing_else(tmp_path: Path) -> None:
    assert weights_digest(tmp_path) is None
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    first = weights_digest(tmp_path)
    (tmp_path / "README.md").write_text("x")
    assert weights_digest(tmp_path) == first
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    assert weights_digest(tmp_path) != first
