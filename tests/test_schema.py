"""The JSON schema says of a file what the config says, and the shipped copy is current."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

import xtoken.schema
from json_schema import problems
from xtoken.config import parse_config, settings
from xtoken.errors import XTokenError
from xtoken.schema import config_schema, setting_list

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LINE = "# yaml-language-server: $schema=../docs/xtoken.schema.json"


def complaints(raw: Any) -> list[str]:
    schema = config_schema()
    return list(problems(raw, schema, schema))


def test_the_shipped_schema_is_current() -> None:
    shipped = json.loads((ROOT / "docs" / "xtoken.schema.json").read_text(encoding="utf-8"))
    assert shipped == config_schema(), "refresh with: python -m xtoken schema > docs/xtoken.schema.json"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_shipped_config_is_valid_and_names_the_schema(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert complaints(yaml.safe_load(text)) == []
    assert text.splitlines()[0] == LINE
    assert (file.parent / LINE.partition("=")[2]).is_file()


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"student": "a", "teachers": ["b", {"model": "c", "ranks": "all"}], "data": "text.txt", "output": "run"},
        {"teachers": [{"model": "b", "ranks": 12}], "loss": {"kd_weight": 0.5}},
        {"teachers": [{"model": "b"}], "loss": {"kd_weight": "dynamic"}},
        {"teachers": [{"model": "b"}], "loss": {"kd_weight": "gradient", "gradient_norms": 5}},
        {"data": {"files": None, "dataset": "d"}, "optim": {"learning_rate": 1}, "seed": 7},
    ],
)
def test_what_the_config_takes_the_schema_takes(raw: Any) -> None:
    parse_config(raw)
    assert complaints(raw) == []


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ({"studnt": "a"}, ".studnt"),
        ({"student": 3}, ".student"),
        ({"optim": "fast"}, ".optim"),
        ({"teachers": "b"}, ".teachers"),
        ({"teachers": [{"loss": "pkl"}]}, ".teachers.0.loss"),
        ({"teachers": [{"weight": 0}]}, ".teachers.0.weight"),
        ({"optim": {"steps": 0}}, ".optim.steps"),
        ({"optim": {"steps": 1.5}}, ".optim.steps"),
        ({"optim": {"warmup": 1}}, ".optim.warmup"),
        ({"output": {"trackers": "wandb"}}, ".output.trackers"),
        ({"seed": -1}, ".seed"),
    ],
)
def test_what_the_schema_refuses_the_config_refuses(raw: Any, place: str) -> None:
    assert any(place in complaint for complaint in complaints(raw))
    with pytest.raises(XTokenError):
        parse_config(raw)


def test_every_setting_is_listed_with_its_default_and_what_may_stand_there() -> None:
    listed = {setting.key: setting for setting in setting_list()}
    assert set(listed) == {key for key, _, _ in settings()}
    assert all(setting.description and setting.kind != "value" for setting in listed.values())
    assert listed["optim.schedule"].kind == "cosine | linear | constant"
    assert (listed["optim.learning_rate"].kind, listed["optim.learning_rate"].default) == ("number", "5e-05")
    assert (listed["data.append_eos"].kind, listed["data.append_eos"].default) == ("true or false", "true")
    assert (listed["data.files"].kind, listed["data.files"].default) == ("list of text", "")
    assert listed["teachers.N.ranks"].kind == "integer | all"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: int = Field(default=8, description="Its rank.")


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    adapter: Inner | None = Field(default=None, description="A section that may be left out.")
    several: list[Inner] = Field(default=[], description="Several.")


def test_a_section_that_is_new_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtoken.schema, "RunConfig", Outer)
    assert [setting.key for setting in setting_list()] == ["adapter.rank", "several.N.rank"]
    assert complaints({"adapter": {"rank": 4}, "several": [{}]}) == []
    assert complaints({"adapter": None}) == []
    assert complaints({"adapter": "a"})
