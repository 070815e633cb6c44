"""Whole runs on conversations: the student learns, from memory and from files; settings without effect are errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from training import chats, tiny
from xtoken.config import parse_config
from xtoken.errors import XTokenError
from xtoken.losses.cross_entropy import IGNORED_LABEL
from xtoken.training import Collator, distil
from xtoken.training.inputs import sources_of, training_data
from xtoken.training.participants import gather


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "student": {"model": str(chats.student_folder(folder / "student"))},
        "teachers": [{"model": str(chats.teacher_folder(folder / "teacher"))}],
        "data": {"format": "chat"},
        "optim": {"steps": 30, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 5e-3},
    }
    return {**raw, **{key: {**raw.get(key, {}), **value} for key, value in changes.items()}}


def test_a_student_learns_from_conversations(tmp_path: Path) -> None:
    result = distil(config(tmp_path, loss={"kd_weight": 1.0}), texts=chats.sums(60), quiet=True)
    assert result.log[-1]["ce"] < 0.7 * result.log[0]["ce"]
    taught = distil(config(tmp_path, loss={"kd_weight": 1.0, "ce_weight": 0.0}), texts=chats.sums(60), quiet=True)
    assert taught.log[-1]["kd"] < 0.5 * taught.log[0]["kd"]
    assert (result.data.documents, result.data.unusable) == (60, 0)


@pytest.mark.parametrize("loss", ["p-kl", "path-kl", "gold", "uld"])
def test_every_loss_takes_conversations(tmp_path: Path, loss: str) -> None:
    settings = config(tmp_path, optim={"steps": 1})
    settings["teachers"][0]["loss"] = loss
    (line,) = distil(settings, texts=chats.sums(8), quiet=True).log
    assert line["kept_chunks"] == 1.0  # no chunk is the first token of its sequence


def test_a_teacher_with_the_students_tokenizer_and_another_template(tmp_path: Path) -> None:
    settings = config(tmp_path, optim={"steps": 2})
    other = tmp_path / "other.jinja"
    other.write_text(chats.tiny_template("<|end|>").replace("{{ m.content }}", "{{ m.content | trim }}"))
    settings["teachers"] = [{"model": settings["student"]["model"], "chat_template": str(other)}]
    result = distil(settings, texts=chats.sums(8), quiet=True)
    assert result.teachers[0].loss == "same"
    assert result.log[0]["kd"] == pytest.approx(0, abs=1e-5)  # it is the student itself


def test_a_run_from_a_file_is_the_run_from_memory_and_its_config_starts_it_again(tmp_path: Path) -> None:
    talks = chats.sums(20)
    file = tmp_path / "talks.jsonl"
    rows = [{"question": a["content"], "answer": b["content"]} for a, b in talks]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"files": [str(file)], "chat_columns": ["question", "answer"], "loss_on": "assistant"}
    settings = config(tmp_path, optim={"steps": 3}, data=data, output={"folder": str(tmp_path / "out")})
    result = distil(settings, quiet=True)
    memory = distil(config(tmp_path, optim={"steps": 3}), texts=talks, quiet=True)
    assert [line["ce"] for line in memory.log] == [line["ce"] for line in result.log]
    resolved = yaml.safe_load((tmp_path / "out" / "xtoken_config.yaml").read_text())
    resolved["output"]["folder"] = str(tmp_path / "again")
    again = distil(resolved, quiet=True)
    assert [line["ce"] for line in again.log] == [line["ce"] for line in result.log]


def test_a_side_without_a_template_is_named(tmp_path: Path) -> None:
    settings = config(tmp_path)
    tiny.teacher_folder(tmp_path / "plain")
    settings["teachers"] = [{"model": str(tmp_path / "plain")}]
    with pytest.raises(XTokenError, match=r"teachers.0: its folder has no chat template"):
        distil(settings, texts=chats.sums(4), quiet=True)
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}")
    settings["teachers"][0]["chat_template"] = str(tmp_path / "mine.jinja")
    settings["optim"]["steps"] = 1
    assert distil(settings, texts=chats.sums(8), quiet=True).log[0]["kept_chunks"] == 1.0


def test_a_conversation_that_cannot_be_rendered_is_named(tmp_path: Path) -> None:
    settings = config(tmp_path)
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content | replace('x', 'y') }}</s>{% endfor %}")
    settings["student"]["chat_template"] = str(tmp_path / "mine.jinja")
    talks = [*chats.sums(2), chats.turns("x", "y")]
    with pytest.raises(XTokenError, match=r"the given conversations, document 2 .*: student: its chat template"):
        distil(settings, texts=talks, quiet=True)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"data": {"loss_on": "all"}}, "data: loss_on has no effect with format text"),
        ({"data": {"chat_columns": ["talk"]}}, "data: chat_columns has no effect with format text"),
        ({"data": {"format": "chat", "text_column": "x"}}, "data: text_column has no effect with format chat"),
        ({"data": {"format": "chat", "split_text_by": "line"}}, "data: split_text_by has no effect with format chat"),
        ({"data": {"format": "chat", "append_eos": False}}, "data: append_eos has no effect with format chat"),
        ({"student": {"chat_template": "x"}}, "chat_template has no effect with data.format text"),
        ({"teachers": [{"chat_template": "x"}]}, "chat_template has no effect with data.format text"),
        ({"data": {"format": "chat", "chat_columns": ["a", "b", "c"]}}, "data.chat_columns is "),
        ({"data": {"format": "char"}}, r"data.format is 'char' \(did you mean 'chat'\?\)"),
    ],
)
def test_a_setting_without_effect_is_an_error(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        parse_config(raw)


def test_texts_are_no_conversations(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match="given conversations, document 0"):
        distil({"data": {"format": "chat"}}, texts=[{"text": "x"}])
    with pytest.raises(XTokenError, match=r"the data section's files, dataset and columns have no effect"):
        distil({"data": {"format": "chat", "chat_columns": ["talk"]}}, texts=[])


@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_packed_conversations_learn_what_unpacked_ones_do(tmp_path: Path, packing: str) -> None:
    """The same labels and chunks in fewer sequences, each token of them once."""
    settings = config(tmp_path, data={"format": "chat", "context_length": 120, "packing": packing})
    unpacked = config(tmp_path, data={"format": "chat", "context_length": 120})
    found = []
    for asked in (settings, unpacked):
        parsed = parse_config(asked)
        participants = gather(parsed, None, [], None)
        data = training_data(sources_of(parsed.data, chats.sums(24)), participants, tmp_path / "cache", progress=False)
        batch = Collator()(data.__getitems__(list(range(len(data)))))
        labels = batch["labels"][batch["labels"] != IGNORED_LABEL].sort().values
        (side,) = batch["teachers"].values()
        found.append((len(data), labels, side["index"]["student_tokens"].sort().values))
    assert found[0][0] < found[1][0] / 1.5
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])
    result = distil({**settings, "loss": {"kd_weight": 1.0}}, texts=chats.sums(60), quiet=True)
    assert result.log[-1]["ce"] < 0.7 * result.log[0]["ce"]
