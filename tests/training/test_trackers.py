"""Trackers get the raw terms, the held-out figures and the run's settings; TensorBoard's files are read back."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from transformers import TrainerCallback

from training import tiny
from xtoken.config import parse_config
from xtoken.training import distil
from xtoken.training.arguments import trainer_arguments

TEXTS, HELD_OUT = tiny.documents(20), tiny.documents(4, seed=9)


def settings(folder: Path, tracker: str) -> dict[str, Any]:
    return {
        "teachers": [{"name": "big", "weight": 0.8}, {"name": "small", "loss": "gold", "weight": 0.2}],
        "optim": {"steps": 3, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3},
        "eval": {"every": 2},
        "output": {"folder": str(folder), "trackers": [tracker]},
    }


def go(config: dict[str, Any]) -> Any:
    teachers = [tiny.teacher() for _ in config["teachers"]]
    return distil(config, student=tiny.student(), teachers=teachers, texts=TEXTS, eval_texts=HELD_OUT, quiet=True)


def events(file: Path) -> list[Event]:
    """A file of TFRecords: a length of 8 bytes, 4 of checksum, the event, 4 of checksum."""
    raw, found, at = file.read_bytes(), [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<Q", raw, at)
        found.append(Event.FromString(raw[at + 12 : at + 12 + length]))
        at += 12 + length + 4
    return found


def test_tensorboard_has_every_term_of_every_step_and_the_settings(tmp_path: Path) -> None:
    result = go(settings(tmp_path, "tensorboard"))
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    scalars: dict[str, dict[int, float]] = {}
    texts: dict[str, str] = {}
    for event in events(file):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            else:
                texts[value.tag.removesuffix("/text_summary")] = value.tensor.string_val[0].decode()
    for term in ("ce", "kd", "kd/big", "kd/small", "kd_ce_ratio", "kd_factor", "uncovered_mass/big"):
        expected = {line["step"]: pytest.approx(line[term], rel=1e-6) for line in result.log}
        assert scalars[f"train/{term}"] == expected, term
        assert len(expected) == 3
    figures = {each.step: pytest.approx(each.bits_per_byte, rel=1e-6) for each in result.evaluations}
    assert scalars["eval/bits_per_byte"] == figures
    assert list(figures) == [0, 2, 3]
    recorded = json.loads(texts["args"])
    assert recorded["xtoken/teachers.1.loss"] == "gold"
    assert recorded["xtoken/teachers.0.loss"] == "p-kl"  # as it came out, not as it was asked for
    assert recorded["xtoken/optim.batch_size"] == 4
    assert recorded["learning_rate"] == 1e-3


def test_any_tracker_of_transformers_is_given_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    class Stub(TrainerCallback):
        logged: list[dict[str, Any]] = []  # noqa: RUF012
        recorded: dict[str, Any] = {}  # noqa: RUF012

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            Stub.recorded = args.to_dict()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            Stub.logged.append(integration_utils.rewrite_logs(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Stub)
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    result = go(settings(tmp_path, "wandb"))
    assert [line["train/kd/small"] for line in Stub.logged if "train/ce" in line] == [
        line["kd/small"] for line in result.log
    ]
    assert [line["eval/bits_per_byte"] for line in Stub.logged if "eval/bits_per_byte" in line] == [
        each.bits_per_byte for each in result.evaluations
    ]
    assert Stub.recorded["xtoken/loss.kd_weight"] == "dynamic"
    assert Stub.recorded["xtoken/teachers.1.name"] == "small"


def test_settings_are_plain_values_under_keys_of_their_own(tmp_path: Path) -> None:
    config = parse_config({"teachers": [{"model": "a/b"}], "output": {"folder": "x", "trackers": []}})
    recorded = trainer_arguments(config, tmp_path, saves=True, quiet=True).to_dict()
    own = {key: value for key, value in recorded.items() if key.startswith("xtoken/")}
    assert own["xtoken/teachers.0.model"] == "a/b"
    assert all(isinstance(value, (str, int, float, bool)) for value in own.values())
