"""The Trainer's loop with our loss: gradients do not depend on how a batch is cut up; the log tells the raw terms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from training import tiny
from xtoken.config import TeacherConfig
from xtoken.errors import DivergedError, XTokenError
from xtoken.losses import PKL, LossTerm
from xtoken.teachers.confidence import Adaptive
from xtoken.teachers.head import Head
from xtoken.teachers.online import OnlineTeacher
from xtoken.training import Collator, PreparedData, Side, XTokenTrainer, prepare, side_key, texts_from_list
from xtoken.training.distiller import SCORE, SCORED, Counts, Distiller, Terms
from xtoken.training.objectives import make_objective, projection_for

STUDENT, TEACHER = tiny.packed(), tiny.split()
# Lengths as uneven as can be: a mean of micro-batches' means would weigh them wrongly.
TEXTS = ["7", "Ada has 123 coins and gets 45 more: 168 in all.", "Bo has 9", "Cleo 55 66 77 88 99 111 222 333"]


def data(texts: list[str] = TEXTS) -> PreparedData:
    return prepare(texts_from_list(texts), Side(STUDENT, 64), [Side(TEACHER, 64)])


def online(loss: str = "p-kl", name: str = "t", weight: float = 1.0) -> OnlineTeacher:
    objective = make_objective(TeacherConfig(loss=loss), STUDENT, TEACHER, None)
    model = tiny.llama(TEACHER.size, seed=1).double()
    return OnlineTeacher(name, model, TEACHER.size, objective.loss, side=side_key(TEACHER), weight=weight)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
    } | changes
    return TrainingArguments(**settings)


class Gradients(TrainerCallback):
    """Keeps the gradients that each optimizer step is given."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    @property
    def found(self) -> dict[str, torch.Tensor]:
        """Those of the first step."""
        return self.steps[0]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def gradients(
    folder: Path,
    micro: int,
    teachers: list[OnlineTeacher],
    texts: list[str] = TEXTS,
    steps: int = 1,
    way: str = "hidden",
    **weights: Any,
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, float]]]:
    """The gradients and the lines of the log, step by step."""
    kept = Gradients()
    trainer = XTokenTrainer(
        tiny.llama(STUDENT.size + 3).double(),
        teachers,
        arguments(folder, max_steps=steps, per_device_train_batch_size=micro, gradient_accumulation_steps=4 // micro),
        data(texts),
        student_vocab_size=STUDENT.size,
        callbacks=[kept],
        **weights,
    )
    if way == "logits":
        trainer._reader = None
    trainer.train()
    return kept.steps, trainer.state.log_history


WEIGHINGS = {
    "fixed": {"kd_weight": 0.7},
    "dynamic": {"kd_weight": "dynamic"},
    "faded in": {"kd_weight": "dynamic", "kd_warmup": 0.6},
    "adaptive": {"kd_weight": "dynamic", "adaptive": Adaptive("entropy", 3.0)},
}


@pytest.mark.parametrize("weighing", sorted(WEIGHINGS))
@pytest.mark.parametrize("loss", ["p-kl", "gold", "path-kl", "strict", "partition-kl"])
def test_gradients_do_not_depend_on_how_a_batch_is_cut_up(tmp_path: Path, loss: str, weighing: str) -> None:
    """Of the first step and of a later one, from hidden states and from logits."""
    teachers = [online(loss), online("uld", "other")] if weighing == "adaptive" else [online(loss)]
    weights = WEIGHINGS[weighing]
    whole, log_whole = gradients(tmp_path, 4, teachers, steps=3, **weights)
    for micro, way in ((2, "hidden"), (1, "hidden"), (2, "logits")):
        parts, log_parts = gradients(tmp_path, micro, teachers, steps=3, way=way, **weights)
        assert len(whole) == len(parts) == 3
        for step, gradient in enumerate(whole):
            for name in gradient:
                assert torch.allclose(parts[step][name], gradient[name], rtol=1e-8, atol=1e-11), (step, name)
            for key in ("ce", "kd", "loss", "kept_chunks", "kd_factor"):
                assert log_parts[step][key] == pytest.approx(log_whole[step][key], rel=1e-5), (step, key)


@pytest.mark.parametrize("losses", [("p-kl", "uld"), ("strict", "partition-kl")])
def test_gradients_are_those_of_the_sums_over_the_counts(tmp_path: Path, losses: tuple[str, str]) -> None:
    teachers = [online(loss, name, weight) for loss, name, weight in zip(losses, "ab", (0.8, 0.2), strict=True)]
    (found,), _ = gradients(tmp_path, 2, teachers, kd_weight=0.5)
    model, batch = tiny.llama(STUDENT.size + 3).double(), Collator()(data().__getitems__([0, 1, 2, 3]))
    trainer = XTokenTrainer(model, teachers, arguments(tmp_path), data(), student_vocab_size=STUDENT.size)
    terms = trainer.distiller.terms(model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch)
    loss = terms.cross_entropy.mean() + 0.5 * (0.8 * terms.teachers["a"].mean() + 0.2 * terms.teachers["b"].mean())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("kd_weight", ["dynamic", 0.7])
@pytest.mark.parametrize("tied", [True, False])
def test_a_step_from_hidden_states_is_the_step_from_logits(tmp_path: Path, kd_weight: Any, tied: bool) -> None:
    found = {}
    for way in ("hidden", "logits"):
        kept = Gradients()
        trainer = XTokenTrainer(
            tiny.llama(STUDENT.size + 3, tie_word_embeddings=tied).double(),
            [online("p-kl", "a", 0.8), online("gold", "b", 0.2)],
            arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2),
            data(),
            student_vocab_size=STUDENT.size,
            kd_weight=kd_weight,
            callbacks=[kept],
        )
        assert trainer._reader is not None  # the default
        if way == "logits":
            trainer._reader = None
        trainer.train()
        found[way] = kept.found, trainer.state.log_history[0]
    assert found["hidden"][0].keys() == found["logits"][0].keys()
    for name, gradient in found["logits"][0].items():
        assert torch.allclose(found["hidden"][0][name], gradient, rtol=1e-9, atol=1e-12), name
    for key in ("ce", "kd/a", "kd/b", "kd_factor", "loss", "uncovered_mass", "kept_chunks", "rank_error"):
        assert found["hidden"][1][key] == pytest.approx(found["logits"][1][key], rel=1e-5), key


def test_a_loss_without_a_fast_version_takes_the_students_logits(tmp_path: Path) -> None:
    teacher = online()
    teacher.loss = PKL(projection_for(STUDENT, TEACHER, None), "mean")
    trainer = XTokenTrainer(tiny.llama(STUDENT.size), [teacher], arguments(tmp_path), data())
    assert trainer._reader is None
    trainer.train()


def test_a_last_window_that_is_short_is_divided_by_its_own_counts(tmp_path: Path) -> None:
    (found,), _ = gradients(tmp_path, 1, [online()], texts=TEXTS[:3], kd_weight=0.7)  # 3 documents in a window of 4
    (whole,), _ = gradients(tmp_path, 4, [online()], texts=TEXTS[:3], kd_weight=0.7)
    for name, gradient in whole.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-12), name


def test_every_step_is_logged_with_its_raw_terms(tmp_path: Path) -> None:
    teachers = [online("p-kl", "a", 0.8), online("gold", "b", 0.2)]
    settings = arguments(tmp_path, max_steps=3, per_device_train_batch_size=2)
    trainer = XTokenTrainer(tiny.llama(STUDENT.size).double(), teachers, settings, data())
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["kd"] == pytest.approx(0.8 * line["kd/a"] + 0.2 * line["kd/b"], rel=1e-4)
        assert line["kd_ce_ratio"] == pytest.approx(line["kd"] / line["ce"], rel=1e-4)
        assert line["loss"] == pytest.approx(line["ce"] + line["kd_factor"] * line["kd"], rel=1e-4)
        assert 0 <= line["uncovered_mass"] == line["uncovered_mass/a"] < 1
        assert 0 < line["kept_chunks"] <= 1
        assert line["tokens_per_second"] > 0
    assert [line["ce"] for line in lines] == [line["ce"] for line in trainer.state.log_history if "ce" in line]
    # The factor is that of the step before, and of the first step its own, which pins its loss.
    factors = [line["ce"] / line["kd"] for line in lines]
    assert [line["kd_factor"] for line in lines] == pytest.approx([factors[0], *factors[:-1]], rel=1e-6)
    assert lines[0]["loss"] == pytest.approx(2 * lines[0]["ce"], rel=1e-5)


def test_the_log_tells_the_largest_factor_of_a_step(tmp_path: Path) -> None:
    settings = arguments(tmp_path, max_steps=4, logging_steps=4, learning_rate=0.05)
    trainer = XTokenTrainer(tiny.llama(STUDENT.size).double(), [online()], settings, data())
    trainer.train()
    (line,) = (line for line in trainer.state.log_history if "kd" in line)
    assert line["kd_factor_max"] > line["kd_factor"]


def test_the_teachers_are_faded_in(tmp_path: Path) -> None:
    settings = arguments(tmp_path, max_steps=8)
    trainer = XTokenTrainer(tiny.llama(STUDENT.size), [online()], settings, data(), kd_weight=0.8, kd_warmup=0.5)
    trainer.train()
    factors = [line["kd_factor"] for line in trainer.state.log_history if "kd" in line]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8])


@pytest.mark.parametrize("score", ["ce", "entropy", "max_prob"])
def test_adaptive_weights_follow_what_the_teachers_say_of_the_text(tmp_path: Path, score: Any) -> None:
    """By hand, from the logits of two teachers on the first step's batch."""
    sharp, plain = online("p-kl", "sharp"), online("p-kl", "plain")
    for parameter in sharp.model.parameters():
        parameter.data.mul_(2)
    settings = arguments(tmp_path, max_steps=2)
    trainer = XTokenTrainer(
        tiny.llama(STUDENT.size), [sharp, plain], settings, data(), kd_weight=1.0, adaptive=Adaptive(score, 2.0)
    )
    batch = Collator()(data().__getitems__([0, 1, 2, 3]))["teachers"][side_key(TEACHER)]
    scores = []
    for teacher in (sharp, plain):
        logits = teacher.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[..., : TEACHER.size]
        log_probs = logits.flatten(0, 1)[batch["index"]["teacher_rows"]].log_softmax(-1)
        realised = log_probs.gather(1, batch["index"]["teacher_tokens"][:, None]).squeeze(1)
        by_token = {
            "ce": realised,
            "entropy": (log_probs.exp() * log_probs).sum(-1),
            "max_prob": log_probs.exp().amax(-1),
        }
        scores.append(by_token[score].mean())
    expected = torch.softmax(2.0 * torch.stack(scores), 0).tolist()
    trainer.train()
    for line in trainer.state.log_history[:2]:  # the teachers do not change, and each step sees all documents
        found = [line["teacher_weight/sharp"], line["teacher_weight/plain"]]
        assert found == pytest.approx(expected, rel=1e-6)
        assert line["teacher_score/sharp"] == pytest.approx(scores[0].item(), rel=1e-6)
        assert line["kd"] == pytest.approx(found[0] * line["kd/sharp"] + found[1] * line["kd/plain"], rel=1e-6)
    assert abs(expected[0] - expected[1]) > 0.003


def test_adaptive_weights_need_two_teachers(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match="adaptive weights need two teachers or more, and there are 1"):
        XTokenTrainer(tiny.llama(STUDENT.size), [online()], arguments(tmp_path), data(), adaptive=Adaptive("ce"))
    with pytest.raises(XTokenError, match="there is no score 'loss'"):
        Adaptive("loss")  # type: ignore[arg-type]


def test_a_line_is_the_mean_over_its_steps(tmp_path: Path) -> None:
    def lines(every: int) -> list[dict[str, float]]:
        folder = tmp_path / str(every)
        settings = arguments(folder, max_steps=4, logging_steps=every, per_device_train_batch_size=4, learning_rate=0.0)
        XTokenTrainer(tiny.llama(STUDENT.size).double(), [online()], settings, data()).train()
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    (each, *_), (both, _) = lines(1), lines(2)
    assert both["ce"] == pytest.approx(each["ce"], rel=1e-5)  # the model does not move and each step sees all documents
    assert both["kd"] == pytest.approx(each["kd"], rel=1e-5)


def test_cross_entropy_alone_is_what_transformers_computes(tmp_path: Path) -> None:
    model, batch = tiny.llama(STUDENT.size).double(), Collator()(data().__getitems__([0, 1, 2, 3]))
    expected = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss.item()
    trainer = XTokenTrainer(model, args=arguments(tmp_path), train_dataset=data())
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["ce"] == pytest.approx(expected, rel=1e-5)
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert "kd" not in line


def test_evaluation_gives_a_loss_and_leaves_the_training_log_alone(tmp_path: Path) -> None:
    trainer = XTokenTrainer(tiny.llama(STUDENT.size).double(), [online()], arguments(tmp_path), data(), data())
    found = trainer.evaluate()
    trainer.train()
    line = trainer.state.log_history[0]
    assert found["eval_loss"] == pytest.approx(line["loss"], rel=1e-4)


def test_nothing_is_printed_and_the_bar_shows_the_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = arguments(tmp_path, disable_tqdm=False, max_steps=2)
    XTokenTrainer(tiny.llama(STUDENT.size).double(), [online()], settings, data()).train()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "ce=" in printed.err
    assert "kd=" in printed.err
    assert "{" not in printed.err


def test_without_a_bar_nothing_is_printed_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    XTokenTrainer(tiny.llama(STUDENT.size).double(), [online()], arguments(tmp_path), data()).train()
    assert capsys.readouterr() == ("", "")


def test_the_students_config_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny.llama(STUDENT.size)
    model.config.use_cache = True
    XTokenTrainer(model, args=arguments(tmp_path), train_dataset=data())
    assert model.config.use_cache is True


def test_what_it_cannot_honour_is_refused(tmp_path: Path) -> None:
    model = tiny.llama(STUDENT.size)
    with pytest.raises(XTokenError, match="label_smoothing_factor has no effect"):
        XTokenTrainer(model, args=arguments(tmp_path, label_smoothing_factor=0.1), train_dataset=data())
    other = prepare(texts_from_list(TEXTS), Side(STUDENT, 64))
    with pytest.raises(XTokenError, match="not prepared for the tokenizer of teacher 't'"):
        XTokenTrainer(model, [online()], arguments(tmp_path), other)
    with pytest.raises(XTokenError, match="the student: its output head has"):
        XTokenTrainer(model, args=arguments(tmp_path), train_dataset=data(), student_vocab_size=STUDENT.size + 1)


def test_under_autocast_the_hidden_states_are_read_and_the_head_runs_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16: no logits of a batch; the head's products in half precision, the teacher's in its own."""
    seen: dict[str, set[torch.dtype]] = {"head": set(), "teacher": set()}
    original = Head.logits

    def logits(self: Head, hidden: torch.Tensor, size: int, out: torch.Tensor) -> None:
        seen["teacher" if size == TEACHER.size else "head"].add(hidden.dtype)
        original(self, hidden, size, out)

    def train(**changes: Any) -> Any:
        settings = arguments(tmp_path, max_steps=2, use_cpu=True, **changes)
        teacher = online()
        teacher.model.float()
        trainer = XTokenTrainer(tiny.llama(STUDENT.size), [teacher], settings, data(), kd_weight=0.5)
        assert trainer._reader is not None
        monkeypatch.setattr(Head, "logits", logits)
        trainer.train()
        monkeypatch.undo()
        return trainer

    half = train(bf16=True)
    assert seen == {"head": {torch.bfloat16}, "teacher": {torch.float32}}
    whole = train()
    for key in ("ce", "kd"):
        assert half.state.log_history[1][key] == pytest.approx(whole.state.log_history[1][key], rel=2e-2)


def test_a_teacher_that_has_nothing_to_say_of_a_step_does_not_upset_the_next(tmp_path: Path) -> None:
    """Its weight, and the factor, are those of the last step in which it spoke."""
    whole = data()

    class Silenced:
        """In every second step teacher a's chunks are gone."""

        sides = whole.sides

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            example = whole[index % 2]
            if index % 2 == 0:
                return example
            none = {side: replace(t, chunks=t.chunks[:0]) for side, t in example.teachers.items()}
            return replace(example, teachers=none)

    settings = arguments(
        tmp_path, max_steps=4, per_device_train_batch_size=1, learning_rate=0.0, train_sampling_strategy="sequential"
    )
    trainer = XTokenTrainer(tiny.llama(STUDENT.size).double(), [online()], settings, Silenced())
    trainer.train()
    lines = [line for line in trainer.state.log_history if "kd" in line]
    assert [line["kd"] > 0 for line in lines] == [True, False, True, False]
    factors = [line["kd_factor"] for line in lines]
    assert factors == pytest.approx([factors[0]] * 4, rel=1.0)  # and never 1, or a million
    assert min(factors) > 2


def test_a_teacher_without_a_token_is_weighed_as_the_others_are_on_average() -> None:
    one = torch.tensor(1.0)
    teachers = [online("p-kl", name) for name in "abc"]
    distiller = Distiller(teachers, STUDENT.size, 1.0, adaptive=Adaptive("ce", 1.0))
    metrics = {"a": (-2.0, 1), "b": (-8.0, 2), "c": (0.0, 0)}
    terms = {
        name: LossTerm(one, one, {SCORE: torch.tensor(score), SCORED: torch.tensor(n)})
        for name, (score, n) in metrics.items()
    }
    found = distiller.weigh(Terms(LossTerm(one, one), terms), Counts(one, dict.fromkeys("abc", one))).teachers
    expected = torch.softmax(torch.tensor([-2.0, -4.0, -3.0]), 0)
    torch.testing.assert_close(torch.stack([found[name] for name in "abc"]), expected)


def test_a_gradient_that_is_not_finite_is_found_without_clipping_too(tmp_path: Path) -> None:
    model = tiny.llama(STUDENT.size)
    model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = model.model.norm.weight.clone()
    with pytest.raises(DivergedError, match="step 1: gradient is not finite"):
        XTokenTrainer(model, [online()], arguments(tmp_path), data()).train()  # max_grad_norm is 0
    assert torch.equal(model.model.norm.weight, before)


def test_a_teacher_that_is_not_finite_is_named(tmp_path: Path) -> None:
    teacher = online()
    teacher.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"step 1: total of teacher 't' .*so look at the teacher: its dtype"):
        XTokenTrainer(tiny.llama(STUDENT.size), [teacher], arguments(tmp_path), data(), kd_weight=0.5).train()
