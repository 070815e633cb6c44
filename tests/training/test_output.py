"""Which checkpoint a run goes on from, and what replacing a run removes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xtoken.errors import XTokenError
from xtoken.files import write_whole
from xtoken.training.output import claim_folder, clear_folder, last_checkpoint


def checkpoint(folder: Path, name: str, *, whole: bool = True) -> None:
    (folder / name).mkdir(parents=True)
    if whole:
        (folder / name / "trainer_state.json").write_text("{}")


def test_the_last_checkpoint_is_of_the_latest_step_and_whole(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best"):
        checkpoint(tmp_path, name)
    checkpoint(tmp_path, "checkpoint-11", whole=False)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_replacing_a_run_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    checkpoint(tmp_path, "checkpoint-1")
    for name in ("model-00001-of-00002.safetensors", "metrics.jsonl", "xtoken_config.yaml", "notes.md", "data.jsonl"):
        (tmp_path / name).write_text("x")
    clear_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "notes.md"]


@pytest.mark.parametrize("trace", ["config.json", "metrics.jsonl", "xtoken_config.yaml", "model.safetensors"])
def test_any_trace_of_a_run_or_a_model_keeps_a_folder(tmp_path: Path, trace: str) -> None:
    claim_folder(tmp_path, resume=False, overwrite=False)
    (tmp_path / trace).write_text("x")
    with pytest.raises(XTokenError, match="already holds a run or a model"):
        claim_folder(tmp_path, resume=False, overwrite=False)
    claim_folder(tmp_path, resume=False, overwrite=True)
    assert (tmp_path / trace).exists()


@pytest.mark.parametrize("trace", ["config.json", "metrics.jsonl", "xtoken_config.yaml", "model.safetensors"])
def test_resume_never_enters_a_folder_that_holds_something_else_than_a_run(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).write_text("x")
    with pytest.raises(XTokenError, match=rf"holds {trace}, but not the xtoken_run.json .*--overwrite"):
        claim_folder(tmp_path, resume=True, overwrite=False)
    (tmp_path / "xtoken_run.json").write_text("{}")
    (tmp_path / "xtoken_config.yaml").write_text("{}")
    claim_folder(tmp_path, resume=True, overwrite=False)


def test_replacing_a_run_removes_the_files_it_copied_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    listed = ["chat_template.jinja", "vocab.txt", "gone.json", "../outside.txt"]
    (tmp_path / "out" / "xtoken_run.json").write_text(json.dumps({"copied_files": listed}))
    for name in ("out/chat_template.jinja", "out/vocab.txt", "out/added_tokens.json", "outside.txt"):
        (tmp_path / name).write_text("x")
    clear_folder(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["added_tokens.json"]
    assert (tmp_path / "outside.txt").exists()


def test_a_list_of_copied_files_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "xtoken_run.json").write_text("{")
    clear_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    write_whole(file, "old")
    with pytest.raises(UnicodeEncodeError):  # stands for any failure in the middle of writing
        write_whole(file, "new \ud800")
    assert ([path.name for path in tmp_path.iterdir()], file.read_text()) == (["run.json"], "old")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(XTokenError, match="cannot make the output folder"):
        claim_folder(tmp_path / "file" / "out", resume=False, overwrite=False)
