"""The model card: metadata that Hugging Face parses, the run's own figures, and names shown word for word."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from training import tiny
from xtoken.config import LossName, RunConfig, parse_config
from xtoken.training import distil
from xtoken.training.card import CARD_FILE, SOURCES, is_own_card, model_card, write_card
from xtoken.training.output import clear_folder

TEXTS, HELD_OUT = tiny.documents(40), tiny.documents(6, seed=9)
ODD = "a|b`c*d _e_[f](g) <b>h</b> # $x$ & \\ ~~i~~"


def run(folder: Path, **changes: Any) -> tuple[RunConfig, Any]:
    """A finished run of a second, and its resolved config."""
    raw: dict[str, Any] = {
        "student": {"model": str(tiny.student_folder(folder / "base"))},
        "teachers": [{"model": str(tiny.teacher_folder(folder / "big"))}],
        "optim": {"steps": 4, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-3},
        "eval": {"every": 2},
        "output": {"folder": str(folder / "out")},
    } | changes
    result = distil(raw, texts=TEXTS, eval_texts=HELD_OUT, quiet=True)
    return parse_config(yaml.safe_load((folder / "out" / "xtoken_config.yaml").read_text())), result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Any, str]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("card")
        patch.setenv("XTOKEN_CACHE", str(folder / "cache"))
        config, result = run(folder, student={"model": str(tiny.student_folder(folder / "base"))})
        return config, result, (folder / "out" / "README.md").read_text()


VERSIONS = {"xtoken": "1.2.3", "torch": "4.5", "transformers": "6.7"}


def tables(card: str) -> list[list[list[str]]]:
    """The tables as they are shown: lists of rows of cells."""
    found: list[list[list[str]]] = []
    in_table = False
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(ModelCard(card).text):
        if token.type in ("table_open", "table_close"):
            in_table = token.type == "table_open"
            found += [[]] if in_table else []
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and in_table:
            found[-1][-1].append(shown(token))
    return found


def shown(inline: Any) -> str:
    assert {child.type for child in inline.children} <= {"text", "text_special", "softbreak", "code_inline"}, (
        inline.content
    )
    return "".join(child.content for child in inline.children)


def cells(card: str) -> dict[str, list[str]]:
    """Every row by its first cell."""
    return {row[0]: row[1:] for table in tables(card) for row in table}


def test_every_figure_is_the_runs_own(made: tuple[RunConfig, Any, str]) -> None:
    _, result, card = made
    rows, (first, *_, last) = cells(card), result.log
    assert rows["cross-entropy (ce), nats per token"] == [f"{first['ce']:.4f}", f"{last['ce']:.4f}"]
    assert rows["teachers' weighted sum (kd)"] == [f"{first['kd']:.4f}", f"{last['kd']:.4f}"]
    assert rows["kd/big"] == [f"{first['kd/big']:.4f}", f"{last['kd/big']:.4f}"]
    assert rows["training loss"] == ["step 1", "step 4"]
    figures = {each.step: each for each in result.evaluations}
    before, after = figures[0], figures[result.student_step]
    assert rows["all text"][:2] == [f"{before.bits_per_byte:.4f}", f"{after.bits_per_byte:.4f}"]
    assert rows["numerals"][:2] == [f"{before.numerals:.4f}", f"{after.numerals:.4f}"]
    assert f"6 held-out documents of {sum(map(len, HELD_OUT)):,} scored bytes" in card
    data = result.data
    assert rows["documents"] == [f"{data.documents:,}"]
    assert rows["bytes"] == [f"{data.bytes:,}"]
    assert rows["tokens of the student"] == [f"{data.student_tokens:,}"]
    assert rows["cut to the context"] == [f"{data.truncated:,}"]
    (choice,) = result.teachers
    assert rows["big"] == ["big", "p-kl", "1", "1", choice.reason]
    assert "digits-3" in choice.reason


def test_the_best_and_the_last_are_both_there_where_they_differ(made: tuple[RunConfig, Any, str]) -> None:
    config, result, _ = made
    figures = [f"{each.bits_per_byte:.4f}" for each in result.evaluations]
    for step, head, row in (
        (2, ["before", "this student (step 2)", "last step"], figures),
        (4, ["before", "this student (step 4)"], [figures[0], figures[2]]),
    ):
        rows = cells(model_card(config, replace(result, student_step=step), VERSIONS))
        assert rows["held-out bits per byte"] == head
        assert rows["all text"] == row


def test_the_settings_in_it_start_the_same_run(made: tuple[RunConfig, Any, str]) -> None:
    config, _, card = made
    found = parse_config(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0]))
    assert (found.student.model, found.teachers[0].model) == ("base", "big")  # published without the folders above
    expected = config.model_dump()
    for section in (expected["student"], expected["teachers"][0]):
        section["model"] = Path(section["model"]).name
    expected["output"]["folder"] = None
    expected["eval"] = found.eval.model_dump()  # it names no text: that was passed in memory
    assert found.model_dump() == expected
    assert "xtoken train config.yaml" in card


def test_no_local_path_is_published(made: tuple[RunConfig, Any, str], tmp_path: Path) -> None:
    config, result, card = made
    assert str(result.folder.parent) not in card
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "held.txt").write_text("\n".join(HELD_OUT))
    local = config.model_copy(
        update={
            "data": config.data.model_copy(update={"files": [str(tmp_path / "text.jsonl")]}),
            "eval": config.eval.model_copy(update={"files": [str(tmp_path / "held.txt")]}),
        }
    )
    card = model_card(local, result, VERSIONS)
    assert str(tmp_path) not in card
    assert cells(card)["source"] == ["text.jsonl"]
    assert "held.txt" in card


def test_the_metadata_names_what_the_hub_knows(made: tuple[RunConfig, Any, str]) -> None:
    config, result, card = made
    data = ModelCard(card).data
    assert (data.base_model, data.datasets) == (None, None)  # the hub refuses a model that is not one of its own
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["xtoken", "knowledge-distillation"]
    named = config.model_copy(
        update={
            "student": config.student.model_copy(update={"model": "some-org/small-1B"}),
            "data": config.data.model_copy(update={"dataset": "some-org/text"}),
        }
    )
    content = model_card(named, result, VERSIONS)
    data = ModelCard(content).data
    assert (data.base_model, data.datasets) == ("some-org/small-1B", ["some-org/text"])
    assert cells(content)["source"] == ["some-org/text"]


def test_names_are_shown_word_for_word_whatever_they_hold(made: tuple[RunConfig, Any, str]) -> None:
    config, result, _ = made
    title, fence = ODD.replace("/", ""), "x\n```\ny"
    odd = config.model_copy(
        update={
            "student": config.student.model_copy(update={"model": f"{ODD}: 'yes'\n---\nlicense: mit"}),
            "teachers": [config.teachers[0].model_copy(update={"model": ODD, "name": fence})],
            "data": config.data.model_copy(update={"dataset": f'"{ODD}"'}),
            "output": config.output.model_copy(update={"push_to_hub": f"u/{title}"}),
        }
    )
    choice = replace(result.teachers[0], name=ODD, reason=f"because\n{ODD}\n```")
    log = [line | {f"kd/{ODD}": 1.0} for line in result.log]
    card = model_card(odd, replace(result, teachers=(choice,), log=log), VERSIONS)
    rows = cells(card)
    assert rows[ODD] == [ODD, "p-kl", "1", "1", f"because {ODD} ```"]
    assert rows[f"kd/{ODD}"] == ["1.0000", "1.0000"]
    assert rows["source"] == [f'"{ODD}"']
    data = ModelCard(card).data
    assert data.base_model == f"{ODD}: 'yes'\n---\nlicense: mit"
    assert (data.datasets, data.license) == ([f'"{ODD}"'], None)
    body = MarkdownIt("commonmark").parse(ModelCard(card).text)
    headings = [body[i + 1] for i, token in enumerate(body) if token.type == "heading_open"]
    assert shown(headings[0]) == title
    (block,) = (token.content for token in body if token.type == "fence" and token.info == "yaml")
    assert parse_config(yaml.safe_load(block)).teachers[0].name == fence
    assert not any(token.type == "html_block" and "xtoken" not in token.content for token in body)


def test_every_loss_says_where_it_comes_from(made: tuple[RunConfig, Any, str]) -> None:
    config, result, card = made
    assert set(SOURCES) == set(get_args(LossName)) - {"auto"}
    for loss, source in SOURCES.items():
        choice = replace(result.teachers[0], loss=loss)
        assert f"- {loss}: {source}" in model_card(config, replace(result, teachers=(choice,)), VERSIONS)
    assert "2605.21699" in card
    assert "version = {1.2.3}" in model_card(config, result, VERSIONS)


def test_a_run_without_teachers_or_held_out_text_has_a_card(tmp_path: Path) -> None:
    result = distil(
        {"optim": {"steps": 1, "batch_size": 2}, "output": {"folder": str(tmp_path / "out")}},
        student=tiny.student(),
        texts=TEXTS,
        quiet=True,
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained by cross-entropy alone" in card
    assert "bits per byte" not in card
    assert cells(card)["cross-entropy (ce), nats per token"][1] == f"{result.log[-1]['ce']:.4f}"
    assert ModelCard(card).data.library_name == "transformers"


def test_the_title_is_the_repositorys_or_the_folders_name(made: tuple[RunConfig, Any, str]) -> None:
    config, result, card = made
    assert "\n# out\n" in card
    pushed = config.model_copy(update={"output": config.output.model_copy(update={"push_to_hub": "me/mine"})})
    assert "\n# mine\n" in model_card(pushed, result, VERSIONS)


def test_a_readme_of_ones_own_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    raw = {"optim": {"steps": 1, "batch_size": 2}, "output": {"folder": str(tmp_path / "out")}}
    for options in ({}, {"overwrite": True}):
        distil(raw, student=tiny.student(), texts=TEXTS, quiet=True, **options)
        assert (tmp_path / "out" / "README.md").read_text() == "mine"
    assert "so it stays and no model card is written" in caplog.text
    (tmp_path / "out" / "README.md").unlink()
    distil(raw, student=tiny.student(), texts=TEXTS, quiet=True, overwrite=True)
    assert is_own_card(tmp_path / "out" / "README.md")


def test_replacing_a_run_removes_its_card(made: tuple[RunConfig, Any, str], tmp_path: Path) -> None:
    write_card(tmp_path, made[2])
    assert is_own_card(tmp_path / CARD_FILE)
    clear_folder(tmp_path)
    assert not list(tmp_path.iterdir())
