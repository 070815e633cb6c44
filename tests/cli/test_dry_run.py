"""`xtoken train --dry-run` and the help, as a user meets them: nothing is loaded, and what has no effect is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig
from typer.testing import CliRunner

from xtoken.cli import app
from xtoken.schema import setting_list


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config whose models are folders with a config.json and nothing else, and whose text is not there."""
    for name, layers in (("student", 2), ("teacher", 3)):
        LlamaConfig(
            vocab_size=1000,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
        ).save_pretrained(tmp_path / name)
    raw = {
        "student": str(tmp_path / "student"),
        "teachers": [{"model": str(tmp_path / "teacher"), "loss": "p-kl"}],
        "data": {"files": [str(tmp_path / "none.txt")], "context_length": 64},
        "optim": {"steps": 5, "batch_size": 16},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def run(*arguments: str, columns: int = 80) -> Any:
    result = CliRunner().invoke(app, ["train", *arguments], env={"COLUMNS": str(columns)})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_it_prints_what_a_run_would_take_and_writes_nothing(file: Path) -> None:
    before = sorted(file.parent.rglob("*"))
    result = run(str(file), "--dry-run")
    assert result.exit_code == 0
    for said in ("student, AdamW's moments", "8 GPUs, FSDP", "989 TFLOP/s x 40%", "fits in 80 GB", "GPU hours"):
        assert said in " ".join(result.stdout.split())
    assert max(len(line) for line in result.stdout.splitlines() if not line.startswith(str(file))) <= 80
    assert sorted(file.parent.rglob("*")) == before


def test_the_machine_can_be_told(file: Path) -> None:
    options = ("--gpus", "2", "--flops", "312", "--utilisation", "0.5", "--memory", "0.000001", "--json")
    found = json.loads(run(str(file), "--dry-run", *options).stdout)
    assert [plan["gpus"] for plan in found["plans"]] == [1, 2, 2]
    assert (found["machine"]["flops"], found["machine"]["memory"]) == (312e12, 1000)
    rate = found["plans"][1]["tokens_per_second"]
    assert rate == pytest.approx(2 * 312e12 * 0.5 / found["flops_per_token"])
    assert not any(plan["fits"] for plan in found["plans"])
    assert all(plan["advice"] for plan in found["plans"])


def test_settings_on_the_command_line_count(file: Path) -> None:
    def steps(*options: str) -> int:
        return int(json.loads(run(str(file), "--dry-run", "--json", *options).stdout)["tokens"])

    assert steps("--set", "optim.steps=50") == 10 * steps()


def test_a_batch_that_eight_gpus_cannot_share_is_estimated_for_one(file: Path) -> None:
    found = json.loads(run(str(file), "--dry-run", "--json", "--set", "optim.batch_size=3").stdout)
    assert [plan["name"] for plan in found["plans"]] == ["1 GPU"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", "2"), "--gpus has no effect without --dry-run"),
        (("--json",), "--json has no effect without --dry-run"),
        (("--dry-run", "--resume"), "--resume has no effect on a dry run"),
        (("--dry-run", "--gpus", "3"), "batch_size 16 does not divide"),
        (("--dry-run", "--utilisation", "2"), "utilisation is 2; it must be above 0 and at most 1"),
        (("--dry-run", "--set", "student=./none"), "student: there is no model folder ./none"),
    ],
)
def test_mistakes_are_one_message(file: Path, options: tuple[str, ...], message: str) -> None:
    result = run(str(file), *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("columns", [80, 120])
def test_help_shows_every_setting_with_its_default(columns: int) -> None:
    result = run("--help", columns=columns)
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    for setting in setting_list():
        assert f"{setting.key}: {setting.kind} (default {setting.default or 'none'})" in shown
        assert setting.description in shown
    assert max(len(line) for line in result.stdout.splitlines()) <= columns
