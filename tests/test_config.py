"""A config says what it does: unknown keys and settings without effect are errors that help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xtoken.config import RunConfig, load_config, parse_config, settings
from xtoken.errors import XTokenError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def test_the_defaults_are_the_papers_recipe() -> None:
    optim = parse_config({}).optim
    assert (optim.learning_rate, optim.warmup, optim.schedule, optim.weight_decay) == (5e-5, 0.05, "cosine", 0.1)
    assert (optim.max_grad_norm, optim.batch_size, optim.steps) == (1.0, 768, 30_000)
    assert parse_config({}).data.context_length == 4096


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"studnt": {}}, r"unknown key studnt \(did you mean 'student'\?\)"),
        ({"optim": {"learning_rat": 1}}, r"unknown key optim.learning_rat \(did you mean 'learning_rate'\?\)"),
        ({"teachers": [{"wieght": 1}]}, r"unknown key teachers.0.wieght \(did you mean 'weight'\?\)"),
        (
            {"teachers": [{"loss": "pkl"}]},
            r"teachers.0.loss is 'pkl' \(did you mean 'p-kl'\?\); expected one of auto, p-kl",
        ),
        (
            {"loss": {"kd_weight": "dynamc"}, "teachers": [{}]},
            r"loss.kd_weight is 'dynamc' \(did you mean 'dynamic'\?\)",
        ),
        ({"optim": {"steps": 0}}, "optim.steps is 0: "),
        ({"loss": {"kd_weight": -1}, "teachers": [{}]}, r"\n  loss.kd_weight is -1: .* greater than .*\n.* dynamic"),
        ({"optim": {"batch-size": 8}}, r"unknown key optim.batch-size \(did you mean 'batch_size'\?\)"),
        ({"teachers": [{"a[b-c]": 8}]}, r"unknown key teachers.0.a\[b-c\]; there are model, "),
        ({"optim": {"learning_rate": float("inf")}}, "optim.learning_rate is inf: .* finite"),
        ({"loss": {"kd_weight": float("inf")}, "teachers": [{}]}, "loss.kd_weight is inf: .* finite"),
        ({"data": {"files": ["a"], "dataset": "b"}}, "give files or dataset, not both"),
        ({"student": {"lora": {"rnk": 4}}}, r"unknown key student.lora.rnk \(did you mean 'rank'\?\)"),
        ({"student": {"lora": {"save": "merge"}}}, r"student.lora.save is 'merge' \(did you mean 'merged'\?\)"),
        ({"student": {"lora": 8}}, r"student.lora is 8; expected keys such as rank, alpha, dropout"),
    ],
)
def test_a_mistake_is_told_with_its_place(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        parse_config(raw)


def test_a_bare_string_stands_for_a_sections_main_key() -> None:
    short = parse_config({"student": "a", "teachers": ["b"], "data": "text.txt", "eval": "held.txt", "output": "run"})
    long = {"student": {"model": "a"}, "teachers": [{"model": "b"}], "data": {"files": ["text.txt"]}}
    long["eval"] = {"files": ["held.txt"]}
    assert short == parse_config({**long, "output": {"folder": "run"}})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"loss": {"kd_weight": 1}}, "loss.kd_weight has no effect without teachers"),
        ({"loss": {"kd_weight": "gradient"}}, "loss.kd_weight has no effect without teachers"),
        ({"loss": {"gradient_norms": 10}}, "loss.gradient_norms has no effect without teachers"),
        ({"data": {"alignment": "dp"}}, "data.alignment has no effect without teachers"),
        ({"data": {"split": "test"}}, "split has no effect without dataset"),
        ({"data": {"dataset": "a", "split_text_by": "line"}}, "split_text_by has no effect with dataset"),
        ({"student": {"revision": "main"}}, "revision has no effect without model"),
        ({"loss": {"ce_weight": 0, "kd_weight": 0}, "teachers": [{}]}, "nothing to learn from"),
        ({"loss": {"ce_weight": 0}}, "nothing to learn from"),
        ({"teachers": [{"projection": {"learning_rate": 0.1}}]}, "learning_rate has no effect without learnable"),
        ({"teachers": [{"projection": {"learnable": True}}], "loss": {"kd_weight": 0}}, "learnable has no effect"),
    ],
)
def test_a_setting_without_effect_is_an_error(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        parse_config(raw)


def test_a_section_that_may_be_left_out_is_there_where_a_key_of_it_is(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("student: a\n")
    assert load_config(file).student.lora is None
    file.write_text("student: {model: a}\n")
    lora = load_config(file, ["student.lora.rank=8"]).student.lora
    assert lora is not None
    assert (lora.rank, lora.save) == (8, "merged")


def test_numbers_that_yaml_reads_as_strings_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {learning_rate: 5e-4}\nteachers: [{}]\n")  # YAML 1.1 takes 5e-4 for a string
    config = load_config(file, ["loss.kd_weight=1e-1"])
    assert config.optim.learning_rate == 5e-4
    assert config.loss.kd_weight == 0.1


def test_overrides_reach_into_sections_and_lists(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("teachers: [{model: a}, {model: b}]\n")
    config = load_config(file, ["teachers.1.weight=0.25", "optim.steps=7", "data.files=[x.txt, y.txt]", "seed=3"])
    assert [teacher.weight for teacher in config.teachers] == [1.0, 0.25]
    assert (config.optim.steps, config.data.files, config.seed) == (7, ["x.txt", "y.txt"], 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.steps", "expected key=value"),
        ("teachers.2.weight=1", "'2' is no place in a list of 1"),
        ("seed.x=1", "no keys"),
        ("optim.stps=1", r"unknown key optim.stps \(did you mean 'steps'\?\)"),
        ("optim.steps=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_told(tmp_path: Path, override: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("teachers: [{model: a}]\nseed: 1\n")
    with pytest.raises(XTokenError, match=message):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("content", "message"), [(b"- a\n", "expected keys"), (b"a: [", "not valid YAML"), (b"\xff", "cannot read")]
)
def test_a_file_that_is_no_config_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(XTokenError, match=message):
        load_config(file)
    with pytest.raises(XTokenError, match="there is no config file"):
        load_config(tmp_path / "other.yaml")


def test_what_a_config_resolves_to_is_a_config_of_the_same_run() -> None:
    config = parse_config({"student": {"model": "a"}, "data": {"files": ["b"]}})
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(exclude_none=True)))) == config


def test_every_setting_is_described() -> None:
    listed = list(settings())
    assert all(description for _, _, description in listed)
    assert {"student.model", "student.lora.rank", "teachers.N.loss", "optim.steps", "seed"} <= {
        key for key, _, _ in listed
    }


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_shipped_config_loads(file: Path) -> None:
    config = load_config(file)
    assert isinstance(config, RunConfig)
    assert config.student.model
    assert config.output.folder


@pytest.mark.parametrize(
    ("name", "teachers"),
    [
        ("llama-3.2-1b-alone", []),
        ("llama-3.2-1b-from-llama-3.2-3b", [("meta-llama/Llama-3.2-3B", "same", 1.0)]),
        (
            "llama-3.2-1b-from-phi-and-qwen",
            [("microsoft/Phi-4-mini-instruct", "h-kl", 1.0), ("Qwen/Qwen3-4B", "p-kl", 1.0)],
        ),
        (
            "llama-3.2-1b-from-three-teachers",
            [
                ("microsoft/Phi-4-mini-instruct", "h-kl", 1.0),
                ("meta-llama/Llama-3.2-3B", "same", 1.0),
                ("Qwen/Qwen3-4B", "p-kl", 1.0),
            ],
        ),
        ("llama-3.2-1b-from-qwen3-4b", [("Qwen/Qwen3-4B", "p-kl", 1.0)]),
        ("llama-3.2-1b-from-phi-4-mini", [("microsoft/Phi-4-mini-instruct", "h-kl", 1.0)]),
        (
            "llama-3.2-1b-from-two-teachers",
            [("microsoft/Phi-4-mini-instruct", "h-kl", 0.8), ("meta-llama/Llama-3.2-3B", "same", 0.2)],
        ),
    ],
)
def test_the_papers_runs_follow_its_recipe(name: str, teachers: list[tuple[str, str, float]]) -> None:
    config = load_config(CONFIGS[0].with_name(f"{name}.yaml"))
    assert config.student.model == "meta-llama/Llama-3.2-1B"
    assert [(t.model, t.loss, t.weight) for t in config.teachers] == teachers
    assert config.optim == parse_config({}).optim  # which is the paper's, by the first test
    assert (config.data.context_length, config.loss.kd_weight) == (4096, "auto")


def test_configs_are_shipped() -> None:
    assert CONFIGS


def test_a_section_in_its_short_form_can_be_changed_by_key(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("student: A\nteachers: [B]\ndata: text.txt\noutput: out\n")
    changes = ["student.lora.rank=4", "teachers.0.weight=2", "data.packing=documents", "output.save_every=5"]
    found = load_config(path, changes)
    assert (found.student.model, found.student.lora and found.student.lora.rank) == ("A", 4)
    assert (found.teachers[0].model, found.teachers[0].weight) == ("B", 2)
    assert (found.data.files, found.data.packing) == (["text.txt"], "documents")
    assert (found.output.folder, found.output.save_every) == ("out", 5)
    with pytest.raises(XTokenError, match=r"there is a str .* above it, which has no keys"):
        load_config(path, ["student.model.name=x"])
