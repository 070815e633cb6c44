"""`xtoken train` as a user meets it: what goes wrong is one message without a traceback, and Ctrl-C loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from training import tiny
from xtoken.cli.train import train_command

app = typer.Typer()
app.command("train")(train_command)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.student_folder(folder / "student")
    tiny.teacher_folder(folder / "teacher")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTOKEN_CACHE", str(tmp_path / "cache"))


def config(folder: Path, models: Path, **changes: Any) -> Path:
    """Writes a config of a run of two steps; a change replaces a section."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("\n".join(tiny.documents(20)))
    raw: dict[str, Any] = {
        "student": {"model": str(models / "student")},
        "teachers": [{"model": str(models / "teacher")}],
        "data": {"files": [str(text)]},
        "optim": {"steps": 2, "batch_size": 4},
        "output": {"folder": str(folder / "out")},
    } | changes
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def train(file: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, stdout, and stderr with its line ends made spaces."""
    result = CliRunner().invoke(app, [str(file), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_a_run_from_a_file_saves_a_student(tmp_path: Path, models: Path) -> None:
    code, out, err = train(config(tmp_path, models))
    assert code == 0
    assert f"student saved in {tmp_path / 'out'} after step 2" in out
    assert "teacher teacher teaches by p-kl: digits-2 and digits-3" in err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 432
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2


def test_quiet_says_the_result_alone(tmp_path: Path, models: Path) -> None:
    code, out, err = train(config(tmp_path, models), "--quiet", "--set", "optim.steps=1")
    assert (code, err) == (0, "")
    assert "after step 1" in out


def test_held_out_text_is_scored_and_told(tmp_path: Path, models: Path) -> None:
    (tmp_path / "held_out.txt").write_text("\n".join(tiny.documents(5, seed=9)))
    code, out, err = train(config(tmp_path, models), "--set", f"eval={tmp_path / 'held_out.txt'}")
    assert code == 0
    assert re.search(r"bits per byte on 5 held-out documents: \d\.\d{4} after step 0, \d\.\d{4} after step 2", out)
    assert "held out: 5 documents" in err


def test_settings_are_listed(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--settings"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "teachers.N.loss" in result.stdout
    assert "eval.max_documents" in result.stdout
    assert "5e-05" in result.stdout


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"student": {"model": "/nowhere/student"}}, (), "student: there is no model folder /nowhere/student"),
        ({"teachers": [{"model": "./nowhere"}]}, (), "teachers.0: there is no model folder ./nowhere"),
        ({"studnt": {}}, (), "unknown key studnt (did you mean 'student'?)"),
        ({}, ("--set", "teachers.0.loss=pk-l"), "teachers.0.loss is 'pk-l' (did you mean 'p-kl'?)"),
        ({}, ("--set", "output.folder=null"), "output.folder is missing"),
        ({"data": {"files": ["nowhere.txt"]}}, (), "there is no text file nowhere.txt"),
        ({}, ("--resume", "--overwrite"), "give one of them"),
    ],
)
def test_mistakes_are_one_message(
    tmp_path: Path, models: Path, changes: dict[str, Any], options: tuple[str, ...], message: str
) -> None:
    code, out, err = train(config(tmp_path, models, **changes), *options)
    assert (code, out) == (2, "")
    assert message in err
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"\n \n", "no document to train on (2 read, 2 empty"),
        ("latin.txt", b"caf\xe9\n", "is not UTF-8: the byte 0xE9 at offset 3"),
        ("other.jsonl", b'{"body": "x", "id": 1}\n', "no column 'text'; there are 'body', 'id'"),
        ("lone.jsonl", b'{"text": "\\ud800"}\n', "document 0 (counting from 0): the text holds a lone surrogate"),
    ],
)
def test_data_that_cannot_be_used_is_told(
    tmp_path: Path, models: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    code, _, err = train(config(tmp_path, models, data={"files": [str(tmp_path / name)]}))
    assert code == 2
    assert message in err


def test_a_folder_that_is_no_model_is_told(tmp_path: Path, models: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    file = config(tmp_path, models, student={"model": str(folder)})
    assert "is no model folder: it has no config.json (it holds nothing)" in train(file)[2]
    tiny.student_folder(folder)
    (folder / "model.safetensors").write_bytes(b"cut short")
    code, _, err = train(file)
    assert code == 2
    assert re.search(r"student: cannot load a causal language model from .*model'", err)
    (folder / "model.safetensors").unlink()
    assert "student: cannot load a causal language model" in train(file)[2]
    (folder / "config.json").write_text("{")
    assert "student: cannot load a causal language model" in train(file)[2]


def test_weights_that_are_missing_are_never_made_up(tmp_path: Path, models: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny.student_folder(tmp_path / "model")
    kept = {
        name: value for name, value in load_file(folder / "model.safetensors").items() if "layers.1.mlp" not in name
    }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    code, _, err = train(config(tmp_path, models, student={"model": str(folder)}))
    assert code == 2
    assert "lacks 3 of the model's weights, model.layers.1.mlp" in err


def test_a_tokenizer_larger_than_the_model_is_told(tmp_path: Path, models: Path) -> None:
    tiny.llama(300).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(tiny.tokenizer_json(3, 420))
    code, _, err = train(config(tmp_path, models, student={"model": str(tmp_path / "model")}))
    assert code == 2
    assert "its output head has 300 rows, but its tokenizer has 420 tokens" in err


def test_a_long_document_is_cut_and_counted(tmp_path: Path, models: Path) -> None:
    code, out, err = train(config(tmp_path, models), "--set", "data.context_length=9")
    assert code == 0
    assert "20 of 20 documents were cut to the context" in out
    assert "20 documents longer than the context were cut, on every side at the same byte" in err


def test_an_output_folder_in_use_is_refused(tmp_path: Path, models: Path) -> None:
    file = config(tmp_path, models)
    assert train(file)[0] == 0
    code, _, err = train(file)
    assert code == 2
    assert "already holds a run or a model" in err
    assert "--resume" in err
    assert "--overwrite" in err
    assert train(file, "--overwrite")[0] == 0
    assert train(file, "--resume")[0] == 0


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, models: Path) -> None:
    steps = {"optim": {"steps": 100_000, "batch_size": 4, "schedule": "constant"}}
    file, metrics = config(tmp_path, models, **steps), tmp_path / "out" / "metrics.jsonl"
    code = "import typer; from xtoken.cli.train import train_command; typer.run(train_command)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline, "no steps were made"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert "stopping after this step, with a checkpoint; Ctrl-C again stops at once" in err
    done = int(re.search(r"stopped after step ([\d,]+) of 100,000", err)[1].replace(",", ""))  # type: ignore[index]
    assert (tmp_path / "out" / f"checkpoint-{done}" / "trainer_state.json").exists()
    assert f"xtoken train {file} --resume" in err
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, done + 1))

    again, out, _ = train(file, "--resume", "--set", f"optim.steps={done + 2}")
    assert again == 0
    assert f"after step {done + 2:,}" in out
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, done + 3))
