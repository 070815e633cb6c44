"""Evaluation during training: the figure is the true one, the run is as if there were none, and the best is kept."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainingArguments

from training import tiny
from xtoken.config import parse_config
from xtoken.errors import XTokenError
from xtoken.evaluation import CutText, bits_per_byte
from xtoken.training import EvaluateHeldOut, LoadedModel, Side, XTokenTrainer, distil, prepare
from xtoken.training.callbacks import StopRequest

TEXTS, HELD_OUT = tiny.documents(40), tiny.documents(6, seed=9)
DROPOUT = {"attention_dropout": 0.2}


def settings(folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "teachers": [{}],
        "optim": {"steps": 6, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-3},
        "output": {"save_every": 100},
    }
    if folder is not None:
        raw["output"]["folder"] = str(folder)
    for section, values in changes.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return raw


def go(config: dict[str, Any], learner: LoadedModel | None = None, **options: Any) -> Any:
    teachers = [tiny.teacher() for _ in config["teachers"]]
    options = {"texts": TEXTS, "quiet": True} | options
    return distil(config, student=learner or tiny.student(), teachers=teachers, **options)


def score(model: Any) -> float:
    return bits_per_byte(model, tiny.packed(), HELD_OUT).bits_per_byte


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


class Scripted:
    """Makes the figures come out as told: by step, or the true one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, figures: dict[int, float]) -> None:
        true = EvaluateHeldOut.score

        def scripted(callback: Any) -> Any:
            found = true(callback)
            step = callback.trainer.state.global_step
            if step not in figures:
                return found
            bits = figures[step] * found.total.bytes
            total = type(found.total)(found.total.tokens, found.total.bytes, bits)
            return type(found)(total, found.classes, found.documents, found.unscored_bytes)

        monkeypatch.setattr(EvaluateHeldOut, "score", scripted)


def test_there_is_a_figure_before_the_first_step_every_so_many_and_after_the_last(tmp_path: Path) -> None:
    before = score(tiny.student().model)
    result = go(settings(tmp_path, eval={"every": 4, "save": "last"}), eval_texts=HELD_OUT)
    assert [each.step for each in result.evaluations] == [0, 4, 6]
    assert result.evaluations[0].bits_per_byte == pytest.approx(before, rel=1e-6)
    assert result.evaluations[-1].bits_per_byte == pytest.approx(score(result.student), rel=1e-6)
    assert result.evaluations[-1].bits_per_byte < before
    numerals = bits_per_byte(result.student, tiny.packed(), HELD_OUT).classes["numerals"].bits_per_byte
    assert result.evaluations[-1].numerals == pytest.approx(numerals, rel=1e-6)
    assert (result.held_out.text.documents, result.held_out.text.bytes) == (6, sum(map(len, HELD_OUT)))
    written = {line["step"]: line["eval/bits_per_byte"] for line in lines(tmp_path) if "eval/bits_per_byte" in line}
    assert written == {each.step: each.bits_per_byte for each in result.evaluations}
    assert all("eval/bits_per_byte/numerals" in line for line in lines(tmp_path) if "eval/bits_per_byte" in line)


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_run_with_evaluation_is_the_run_without_to_the_bit(tmp_path: Path, log_every: int) -> None:
    def run(name: str, **options: Any) -> Any:
        learner = tiny.student(**DROPOUT)
        learner.model.config.use_cache = True
        torch.manual_seed(3)
        output = {"log_every": log_every}
        asked = {"eval": {"every": 1, "save": "last"}} if options else {}
        return go(settings(tmp_path / name, output=output, **asked), learner, **options)

    plain, evaluated = run("plain"), run("evaluated", eval_texts=HELD_OUT)
    assert len(evaluated.evaluations) == 7
    own, other = plain.student.state_dict(), evaluated.student.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
    timed = "tokens_per_second"
    rows = [[{k: v for k, v in line.items() if k != timed} for line in result.log] for result in (plain, evaluated)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6 // log_every
    assert evaluated.student.config.use_cache is True
    assert evaluated.student.training == plain.student.training


def test_evaluation_leaves_modes_and_random_state_alone(tmp_path: Path) -> None:
    learner = tiny.student()
    learner.model.config.use_cache = True
    learner.model.train().model.layers[0].eval()
    data = prepare(TEXTS, Side(learner.vocabulary, 64))
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", disable_tqdm=True)
    trainer = XTokenTrainer(learner.model, args=args, train_dataset=data)
    text = CutText(learner.model, learner.vocabulary, HELD_OUT)

    def draws(*_: Any) -> None:
        torch.rand(3)  # a model may draw whatever its mode

    state, modes = torch.get_rng_state(), [module.training for module in learner.model.modules()]
    with learner.model.register_forward_hook(draws):
        EvaluateHeldOut(trainer, text, every=1).score()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in learner.model.modules()] == modes
    assert learner.model.config.use_cache is True


def test_a_trainer_of_ones_own_takes_the_callback(tmp_path: Path) -> None:
    learner = tiny.student()
    args = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = prepare(TEXTS, Side(learner.vocabulary, 64))
    trainer = XTokenTrainer(learner.model, args=args, train_dataset=data, student_vocab_size=learner.vocabulary.size)
    text = CutText(learner.model, learner.vocabulary, HELD_OUT, context_length=64)
    trainer.add_callback(EvaluateHeldOut(trainer, text, every=4))
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "eval_bits_per_byte" in line] == [0, 4, 8, 10]
    assert trainer.state.log_history[-2]["eval_bits_per_byte"] == pytest.approx(score(learner.model), rel=1e-5)


def test_time_spent_on_evaluation_is_not_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}

    def tick() -> float:
        clock["now"] += 1.0
        return clock["now"]

    monkeypatch.setattr(time, "perf_counter", tick)
    true = EvaluateHeldOut.score

    def slow(callback: Any) -> Any:
        clock["now"] += 1e6
        return true(callback)

    monkeypatch.setattr(EvaluateHeldOut, "score", slow)
    result = go(settings(tmp_path, eval={"every": 1}), eval_texts=HELD_OUT)
    assert all(line["tokens_per_second"] > 1 for line in result.log)


def test_the_best_checkpoint_is_kept_and_is_the_student_that_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scripted(monkeypatch, {2: 0.5})
    result = go(settings(tmp_path, eval={"every": 1}, output={"save_every": 1}), eval_texts=HELD_OUT)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-6"]  # the best, and the newest to go on from
    assert (result.best_step, result.student_step, result.steps) == (2, 2, 6)
    best, saved = (load_file(tmp_path / sub / "model.safetensors") for sub in ("checkpoint-2", "."))
    last = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(best[name], saved[name]) for name in best)
    assert not all(torch.equal(best[name], last[name]) for name in best)
    ids = torch.tensor([[0, 5, 6, 7]])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, result.student.eval()(ids).logits)


@pytest.mark.parametrize(
    ("asked", "kept"), [({"save": "last"}, ["checkpoint-2", "checkpoint-6"]), ({"keep_best": False}, ["checkpoint-6"])]
)
def test_the_last_student_is_saved_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], kept: list[str]
) -> None:
    Scripted(monkeypatch, {2: 0.5})
    result = go(settings(tmp_path, eval={"every": 2} | asked), eval_texts=HELD_OUT)
    assert (checkpoints(tmp_path), result.student_step) == (kept, 6)
    saved, last = (load_file(tmp_path / sub / "model.safetensors") for sub in (".", "checkpoint-6"))
    assert all(torch.equal(saved[name], last[name]) for name in last)


def test_a_student_that_gets_worse_is_told_and_a_trained_one_is_saved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Scripted(monkeypatch, {0: 0.1, 3: 0.3, 6: 0.4})
    with caplog.at_level(logging.WARNING, "xtoken"):
        result = go(settings(tmp_path, eval={"every": 3}), eval_texts=HELD_OUT)
    assert "never fell below the 0.1000 before training" in caplog.text
    assert result.student_step == 3


def test_a_figure_that_is_not_a_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, {2: 0.5, 4: float("nan"), 6: float("inf")})
    result = go(settings(tmp_path, eval={"every": 2}), eval_texts=HELD_OUT)
    assert result.best_step == 2
    assert [line["eval/bits_per_byte"] for line in lines(tmp_path) if "eval/bits_per_byte" in line][2:] == [None, None]


@pytest.mark.parametrize("stopped_at", [3, 4])
def test_a_run_that_goes_on_keeps_the_best_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    Scripted(monkeypatch, {2: 0.5})
    config = settings(tmp_path / "whole", eval={"every": 2})
    whole = go(config, tiny.student(**DROPOUT), eval_texts=HELD_OUT)
    config["output"]["folder"] = str(tmp_path / "broken")

    def stop(self: StopRequest, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == stopped_at:
            self.asked = control.should_save = control.should_training_stop = True

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "on_step_end", stop)
        first = go(config, tiny.student(**DROPOUT), eval_texts=HELD_OUT)
    assert (first.interrupted, first.steps) == (True, stopped_at)
    assert [each.step for each in first.evaluations] == [0, 2]  # who wants to stop does not wait for a figure
    assert checkpoints(tmp_path / "broken") == ["checkpoint-2", f"checkpoint-{stopped_at}"]
    second = go(config, tiny.student(seed=5, **DROPOUT), eval_texts=HELD_OUT, resume=True)
    assert (second.best_step, second.student_step) == (2, 2)
    assert second.evaluations == whole.evaluations  # what the stop left out is made up for
    saved = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    figures = [
        [line["step"] for line in lines(tmp_path / name) if "eval/bits_per_byte" in line]
        for name in ("whole", "broken")
    ]
    assert figures[0] == figures[1] == [0, 2, 4, 6]


def test_a_finished_run_that_is_resumed_still_knows_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, {2: 0.5})
    config = settings(tmp_path, eval={"every": 2})
    first = go(config, eval_texts=HELD_OUT)
    (tmp_path / "model.safetensors").unlink()
    again = go(config, tiny.student(seed=5), eval_texts=HELD_OUT, resume=True)
    assert (again.steps, again.student_step, again.evaluations) == (6, 2, first.evaluations)
    saved, best = (load_file(tmp_path / sub / "model.safetensors") for sub in (".", "checkpoint-2"))
    assert all(torch.equal(saved[name], best[name]) for name in best)


def test_a_best_checkpoint_that_was_removed_is_told_and_the_last_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Scripted(monkeypatch, {2: 0.5})
    config = settings(tmp_path, eval={"every": 2})
    go(config, eval_texts=HELD_OUT)
    shutil.rmtree(tmp_path / "checkpoint-2")
    with caplog.at_level(logging.WARNING, "xtoken"):
        again = go(config, eval_texts=HELD_OUT, resume=True)
    assert "the best checkpoint, of step 2, is not in" in caplog.text
    assert again.student_step == 6


def test_other_held_out_text_does_not_compare(tmp_path: Path) -> None:
    config = settings(tmp_path, eval={"every": 2})
    go(config, eval_texts=HELD_OUT)
    for other in ([*HELD_OUT, "one more"], None):
        changed = config if other else config | {"eval": {}}
        with pytest.raises(XTokenError, match="is evaluated on other held-out text"):
            go(changed, eval_texts=other, resume=True)
    go(config | {"eval": {"every": 3, "save": "last"}}, eval_texts=HELD_OUT, resume=True)  # how often may change


def test_nothing_is_kept_of_a_run_without_a_folder() -> None:
    result = go(settings(eval={"every": 2}), eval_texts=HELD_OUT)
    assert (result.best_step, result.student_step, len(result.evaluations)) == (None, 6, 4)
    assert result.evaluations[-1].bits_per_byte == pytest.approx(score(result.student), rel=1e-6)
    with pytest.raises(XTokenError, match=r"eval.save: best needs output.folder"):
        go(settings(eval={"save": "best"}), eval_texts=HELD_OUT)


def test_without_held_out_text_nothing_is_evaluated(tmp_path: Path) -> None:
    result = go(settings(tmp_path))
    assert (result.held_out, result.evaluations, result.best_step, result.student_step) == (None, (), None, 6)
    assert not any("eval/bits_per_byte" in line for line in lines(tmp_path))


@pytest.mark.parametrize(
    ("asked", "texts", "message"),
    [
        ({"every": 5}, None, "names no held-out text, so it has no effect"),
        ({}, ["", ""], r"held-out text \(the given eval_texts\): there is no text to score"),
        ({"context_length": 4096}, HELD_OUT, "a context of 4096 tokens is longer than the 128 positions"),
        ({"context_length": 1}, HELD_OUT, "a context of 1 tokens predicts nothing"),
        ({"files": ["nowhere.txt"]}, None, "there is no text file nowhere.txt"),
        ({"files": ["nowhere.txt"]}, HELD_OUT, "eval_texts were passed"),
    ],
)
def test_a_mistake_is_found_before_the_first_step(
    tmp_path: Path, asked: dict[str, Any], texts: list[str] | None, message: str
) -> None:
    with pytest.raises(XTokenError, match=message):
        go(settings(tmp_path / "out", eval=asked), eval_texts=texts)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"files": ["a.txt"], "dataset": "b"}, "give files or dataset, not both"),
        ({"split": "test"}, "split has no effect without dataset"),
        ({"dataset": "b"}, "name the dataset's split that is held out"),
        ({"dataset": "b", "split": "test", "split_text_by": "line"}, "split_text_by has no effect with dataset"),
        ({"files": ["a.txt"], "keep_best": False, "save": "best"}, "leave keep_best on"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        parse_config({"eval": asked})


def test_held_out_documents_that_are_trained_on_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    config = settings(
        eval={"files": [str(tmp_path / "text.txt")], "max_documents": 5}, data={"files": [str(tmp_path / "text.txt")]}
    )
    with caplog.at_level(logging.INFO, "xtoken"):
        result = go(config | {"optim": {"steps": 1, "batch_size": 2}}, texts=None)
    assert "5 of 5 held-out documents are trained on as well" in caplog.text
    assert f"held out: 5 documents, {result.held_out.text.bytes} bytes" in caplog.text
    caplog.clear()
    go(settings(optim={"steps": 1}), eval_texts=HELD_OUT)
    assert "trained on as well" not in caplog.text


def test_the_resolved_config_starts_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text("\n".join(HELD_OUT))
    first = go(settings(tmp_path / "a", eval={"files": [str(tmp_path / "held_out.txt")], "every": 2}))
    resolved = yaml.safe_load((tmp_path / "a" / "xtoken_config.yaml").read_text())
    resolved["output"]["folder"] = str(tmp_path / "b")
    assert go(resolved).evaluations == first.evaluations
