"""Gradient norms of the terms: those of autograd by another way, and measured without a trace in the training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from training import tiny
from training.test_trainer import STUDENT, TEACHER, TEXTS, Gradients, arguments, data, online
from xtoken.config import LoraConfig, TeacherConfig
from xtoken.errors import XTokenError
from xtoken.losses import cross_entropy
from xtoken.losses.cross_entropy import IGNORED_LABEL
from xtoken.teachers.confidence import Adaptive
from xtoken.teachers.online import OnlineTeacher
from xtoken.training import Collator, XTokenTrainer, distil, side_key
from xtoken.training.adapters import add_lora
from xtoken.training.distiller import Distiller
from xtoken.training.objectives import make_objective
from xtoken.training.pushes import EVERY, Pushes, gradient_of
from xtoken.training.trainer import _check_measurable

Lines = list[dict[str, float]]


def trained(
    folder: Path, teachers: list[OnlineTeacher], way: str = "hidden", model: Any = None, **options: Any
) -> tuple[Any, Lines, list[dict[str, torch.Tensor]]]:
    """The student, the lines of the log and the gradients of each step."""
    kept, changes = Gradients(), options.pop("changes", {})
    model = tiny.llama(STUDENT.size + 3).double() if model is None else model
    settings = arguments(folder, **changes)
    trainer = XTokenTrainer(
        model, teachers, settings, data(), student_vocab_size=STUDENT.size, callbacks=[kept], **options
    )
    if way == "logits":
        trainer._reader = None
    trainer.train()
    return trainer, [line for line in trainer.state.log_history if "ce" in line], kept.steps


def independent(model: Any, teachers: list[OnlineTeacher], weights: list[float]) -> dict[str, float]:
    """The norms by `.backward()` through whole logits, all documents in one batch, each loss by its plain reference."""
    batch = Collator()(data().__getitems__([0, 1, 2, 3]))
    distiller = Distiller(teachers, STUDENT.size, 1.0)

    def flat(pick: Any) -> torch.Tensor:
        model.zero_grad()
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        pick(logits).backward()
        found = [p.grad.clone().flatten() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return torch.cat(found)

    def taught(teacher: OnlineTeacher) -> torch.Tensor:
        return flat(lambda logits: distiller._teach(teacher, logits, batch).mean())

    own = [taught(teacher) for teacher in teachers]
    norms = {f"gradient_norm/kd/{t.name}": float(g.norm()) for t, g in zip(teachers, own, strict=True)}
    norms["gradient_norm/ce"] = float(flat(lambda x: cross_entropy(x, batch["labels"], STUDENT.size).mean()).norm())
    norms["gradient_norm/kd"] = float(sum(w * g for w, g in zip(weights, own, strict=True)).norm())
    return norms


@pytest.mark.parametrize("way", ["hidden", "logits"])
@pytest.mark.parametrize("micro", [4, 1])
def test_the_norms_are_those_of_each_term_alone(tmp_path: Path, micro: int, way: str) -> None:
    """Over the whole window, however it is cut up, of raw means; and the sum is not the sum of the norms."""
    teachers = [online("gold", "a", 0.8), online("path-kl", "b", 0.3)]
    expected = independent(tiny.llama(STUDENT.size + 3).double(), teachers, [0.8, 0.3])
    cut = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro}
    options: dict[str, Any] = {"kd_weight": 0.7, "ce_weight": 0.5, "gradient_norms": 1, "changes": cut}
    _, (line,), _ = trained(tmp_path, teachers, way, **options)
    for name, norm in expected.items():
        assert line[name] == pytest.approx(norm, rel=1e-9), name
    ratio = 0.7 * expected["gradient_norm/kd"] / (0.5 * expected["gradient_norm/ce"])
    assert line["push_ratio"] == pytest.approx(ratio, rel=1e-9)
    norms = 0.8 * expected["gradient_norm/kd/a"] + 0.3 * expected["gradient_norm/kd/b"]
    assert line["gradient_norm/kd"] != pytest.approx(norms, rel=0.001)


@pytest.mark.parametrize("way", ["hidden", "logits"])
@pytest.mark.parametrize("kd_weight", ["dynamic", 0.7])
def test_measuring_leaves_no_trace_in_the_training(tmp_path: Path, kd_weight: Any, way: str) -> None:
    """Weights, gradients and log are those of a training that is not measured, to the bit, with dropout in it."""

    def run(**options: Any) -> tuple[Any, Lines, list[dict[str, torch.Tensor]]]:
        model = tiny.llama(STUDENT.size + 3, attention_dropout=0.3)
        two = [online("p-kl", "a"), online("gold", "b")]
        cut = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        options |= {"adaptive": Adaptive("entropy", 3.0), "kd_weight": kd_weight, "changes": cut}
        return trained(tmp_path, two, way, model, **options)

    plain, lines, gradients = run()
    measured, same, others = run(gradient_norms=2)
    for (name, weight), other in zip(plain.model.named_parameters(), measured.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    for one, other in zip(gradients, others, strict=True):
        assert all(torch.equal(gradient, other[name]) for name, gradient in one.items())
    norms = [{key for key in line if key.startswith(("gradient_norm/", "push_ratio"))} for line in same]
    assert [len(keys) for keys in norms] == [5, 0, 5, 0]  # the first step and every second from there
    untimed = {"tokens_per_second"}
    for one, other, keys in zip(lines, same, norms, strict=True):
        assert {k: v for k, v in one.items() if k not in untimed} == {
            k: v for k, v in other.items() if k not in untimed | keys
        }


class Snoop(TrainerCallback):
    """What stands in `.grad` and in the random state around the measurement."""

    def __init__(self, trainer: XTokenTrainer) -> None:
        self.trainer, self.model = trainer, trainer.model
        original = trainer.begin_step

        def begin_step() -> None:
            marks = [torch.full_like(p, 3.0) for p in self.model.parameters()]
            for parameter, mark in zip(self.model.parameters(), marks, strict=True):
                parameter.grad = mark
            state, due = torch.get_rng_state(), trainer._ahead is not None
            original()
            assert torch.equal(torch.get_rng_state(), state)
            for parameter, mark in zip(self.model.parameters(), marks, strict=True):
                assert parameter.grad is mark
                assert bool((mark == 3).all())
                parameter.grad = None
            self.seen.append(due)

        self.seen: list[bool] = []
        trainer.begin_step = begin_step  # type: ignore[method-assign]


def test_what_stands_in_grad_and_in_the_random_state_is_left(tmp_path: Path) -> None:
    model, settings = tiny.llama(STUDENT.size, attention_dropout=0.3), arguments(tmp_path, max_steps=3)
    trainer = XTokenTrainer(model, [online()], settings, data(), kd_weight=1.0, gradient_norms=2)
    snoop = Snoop(trainer)
    trainer.train()
    assert snoop.seen == [True, False, True]


def test_measured_under_dropout_are_the_gradients_of_the_step_itself(tmp_path: Path) -> None:
    """Its masks are drawn again: with one teacher and no cross-entropy the norm is the step's own."""
    model = tiny.llama(STUDENT.size + 3, attention_dropout=0.5).double()
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    _, (line,), (step,) = trained(
        tmp_path, [online("p-kl")], model=model, kd_weight=1.0, ce_weight=0.0, gradient_norms=1, changes=cut
    )
    own = torch.cat([gradient.flatten() for gradient in step.values()]).norm()
    assert line["gradient_norm/kd"] == pytest.approx(float(own), rel=1e-12)


@pytest.mark.parametrize("way", ["hidden", "logits"])
def test_weighed_by_gradients_both_terms_push_equally_hard(tmp_path: Path, way: str) -> None:
    """The step's gradient is g_CE + (|g_CE| / |g_KD|) g_KD, though ce_weight halves the first."""
    teachers = [online("gold", "a", 0.8), online("p-kl", "b", 0.3)]
    expected = independent(tiny.llama(STUDENT.size + 3).double(), teachers, [0.8, 0.3])
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 2}
    _, lines, whole = trained(tmp_path, teachers, way, kd_weight="gradient", ce_weight=0.5, changes=cut)
    factor = expected["gradient_norm/ce"] / expected["gradient_norm/kd"]
    assert [line["kd_factor"] for line in lines] == pytest.approx([factor, factor], rel=1e-9)  # step 2 is not measured
    assert lines[0]["push_ratio"] == pytest.approx(2.0, rel=1e-9)
    assert "push_ratio" not in lines[1]
    assert lines[0]["loss"] == pytest.approx(0.5 * lines[0]["ce"] + factor * lines[0]["kd"], rel=1e-9)
    _, _, text = trained(tmp_path, teachers, way, kd_weight=0.0, ce_weight=0.5, changes=cut)
    parts = [(whole[0][name] - text[0][name]).flatten() for name in whole[0]]
    push, pull = torch.cat(parts).norm(), torch.cat([g.flatten() for g in text[0].values()]).norm()
    assert float(push) == pytest.approx(2 * float(pull), rel=1e-8)


def test_gradients_do_not_depend_on_how_a_batch_is_cut_up(tmp_path: Path) -> None:
    options: dict[str, Any] = {"kd_weight": "gradient", "gradient_norms": 2, "kd_warmup": 0.6}
    found = []
    for micro, way in ((4, "hidden"), (1, "hidden"), (2, "logits")):
        cut = {"max_steps": 3, "per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro}
        found.append(trained(tmp_path, [online("gold"), online("uld", "other")], way, changes=cut, **options)[1:])
    lines, gradients = found[0]
    for other_lines, other in found[1:]:
        for step, gradient in enumerate(gradients):
            assert all(torch.allclose(other[step][n], g, rtol=1e-8, atol=1e-11) for n, g in gradient.items()), step
            for key in ("kd_factor", "gradient_norm/ce", "gradient_norm/kd", "push_ratio"):
                assert other_lines[step].get(key, 0) == pytest.approx(lines[step].get(key, 0), rel=1e-8), key


def test_the_factor_is_faded_in_and_the_log_tells_the_push_that_was_made(tmp_path: Path) -> None:
    options: dict[str, Any] = {"kd_weight": "gradient", "kd_warmup": 0.5, "gradient_norms": 1}
    _, lines, _ = trained(tmp_path, [online()], changes={"max_steps": 4}, **options)
    assert [line["push_ratio"] for line in lines] == pytest.approx([0.5, 1.0, 1.0, 1.0], rel=1e-9)
    factors = [line["gradient_norm/ce"] / line["gradient_norm/kd"] for line in lines]
    assert lines[0]["kd_factor"] == pytest.approx(0.5 * factors[0], rel=1e-9)
    assert [line["kd_factor"] for line in lines[1:]] == pytest.approx(factors[1:], rel=1e-9)


def test_a_line_over_several_steps_has_the_mean_over_those_that_were_measured(tmp_path: Path) -> None:
    options: dict[str, Any] = {"kd_weight": "dynamic", "gradient_norms": 2}
    _, each, _ = trained(tmp_path, [online()], changes={"max_steps": 6}, **options)
    _, lines, _ = trained(tmp_path, [online()], changes={"max_steps": 6, "logging_steps": 3}, **options)
    for key in ("gradient_norm/ce", "gradient_norm/kd", "push_ratio"):
        assert lines[0][key] == pytest.approx((each[0][key] + each[2][key]) / 2, rel=1e-12)
        assert lines[1][key] == pytest.approx(each[4][key], rel=1e-12)


def test_of_a_student_with_adapters_what_learns_is_measured(tmp_path: Path) -> None:
    def student() -> Any:
        return add_lora(tiny.llama(STUDENT.size + 3).double(), LoraConfig(rank=2), seed=0, revision=None)

    expected = independent(student(), [online()], [1.0])
    whole = independent(tiny.llama(STUDENT.size + 3).double(), [online()], [1.0])
    assert expected["gradient_norm/ce"] != pytest.approx(whole["gradient_norm/ce"], rel=1e-3)
    for way in ("hidden", "logits"):
        _, (line,), _ = trained(tmp_path, [online()], way, student(), kd_weight="gradient")
        assert line["gradient_norm/kd"] == pytest.approx(expected["gradient_norm/kd"], rel=1e-9)
        assert line["kd_factor"] == pytest.approx(expected["gradient_norm/ce"] / expected["gradient_norm/kd"], rel=1e-9)


@pytest.mark.parametrize("way", ["hidden", "logits"])
def test_a_learnable_w_is_left_out_and_left_alone(tmp_path: Path, way: str) -> None:
    def teacher() -> OnlineTeacher:
        settings = TeacherConfig.model_validate({"loss": "p-kl", "projection": {"learnable": True}})
        model, loss = tiny.llama(TEACHER.size, seed=1).double(), make_objective(settings, STUDENT, TEACHER, None).loss
        return OnlineTeacher("t", model, TEACHER.size, loss, side=side_key(TEACHER))

    expected = independent(tiny.llama(STUDENT.size + 3).double(), [online()], [1.0])
    plain, measured = teacher(), teacher()
    trained(tmp_path, [plain], way, kd_weight=0.7, changes={"max_steps": 3})
    _, lines, _ = trained(tmp_path, [measured], way, kd_weight=0.7, gradient_norms=1, changes={"max_steps": 3})
    assert lines[0]["gradient_norm/kd"] == pytest.approx(expected["gradient_norm/kd"], rel=1e-5)  # W is float32
    for one, other in zip(plain.loss.parameters(), measured.loss.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(one, other)


def test_recomputed_activations_change_no_norm(tmp_path: Path) -> None:
    def line(**changes: bool) -> dict[str, float]:
        optim = {"steps": 1, "batch_size": 4, "micro_batch_size": 2, **changes}
        config = {"teachers": [{"loss": "p-kl", "name": "t"}], "loss": {"kd_weight": "gradient"}, "optim": optim}
        (found,) = distil(config, student=tiny.student(), teachers=[tiny.teacher()], texts=TEXTS, quiet=True).log
        return found

    plain, recomputed = line(), line(gradient_checkpointing=True)
    for key in ("gradient_norm/ce", "gradient_norm/kd/t", "kd_factor"):
        assert recomputed[key] == pytest.approx(plain[key], rel=1e-5)


def test_a_resumed_training_has_the_factor_of_the_unbroken_one_to_the_bit(tmp_path: Path) -> None:
    """With dropout; from a checkpoint that no measurement follows, and one in mid-epoch that one follows."""

    def run(folder: Path, resume: int | None = None) -> tuple[Any, Lines]:
        settings = {
            "max_steps": 5,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "learning_rate": 0.02,
        }
        model = tiny.llama(STUDENT.size + 3, attention_dropout=0.3)
        trainer = XTokenTrainer(
            model,
            [online()],
            arguments(folder, **settings),
            data(),
            student_vocab_size=STUDENT.size,
            kd_weight="gradient",
            gradient_norms=3,
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(folder / f"checkpoint-{resume}"))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return trainer.model, [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]

    whole, lines = run(tmp_path / "whole")
    factors = [line["kd_factor"] for line in lines]
    assert factors[0] == factors[1] == factors[2] != factors[3] == factors[4]
    for step in (2, 3):
        folder = tmp_path / "whole"
        resumed, same = run(folder, resume=step)
        assert same == lines
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("silent", ["teacher", "text"])
def test_a_step_without_chunks_or_scored_tokens_leaves_the_factor_as_it_was(tmp_path: Path, silent: str) -> None:
    options: dict[str, Any] = {"kd_weight": "gradient", "gradient_norms": 1}
    trainer, (line,), _ = trained(tmp_path, [online()], **options)
    assert trainer.distiller.kd_weight == line["kd_factor"] != 1
    (batch,) = trainer.get_train_dataloader()
    index = batch["teachers"][side_key(TEACHER)]["index"]
    if silent == "text":
        batch["labels"] = torch.full_like(batch["labels"], IGNORED_LABEL)
    for name, tensor in index.items() if silent == "teacher" else ():
        batch["teachers"][side_key(TEACHER)]["index"][name] = _no_chunks(name, tensor)
    batches, counts = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    trainer._ahead = batches, counts
    trainer.begin_step()
    pushes = trainer._window.pushes
    assert (pushes.distillation == 0, pushes.cross_entropy == 0) == (silent == "teacher", silent == "text")
    assert trainer.distiller.kd_weight == line["kd_factor"]


def test_a_checkpoint_without_a_factor_is_told(tmp_path: Path) -> None:
    def made(kd_weight: Any) -> XTokenTrainer:
        return XTokenTrainer(tiny.llama(STUDENT.size), [online()], arguments(tmp_path), data(), kd_weight=kd_weight)

    kept = made("dynamic").exported()
    made("dynamic").restore(made("gradient").exported())
    with pytest.raises(XTokenError, match="was made under another kd_weight"):
        made("gradient").restore(kept)


def _no_chunks(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("starts"):
        return tensor[:1] * 0
    return tensor if tensor.dim() == 0 else tensor[:0]


def test_the_factor_is_1_where_the_teachers_do_not_push() -> None:
    assert Pushes(2.0, 0.5, {}).factor == 4.0
    assert Pushes(2.0, 0.0, {}).factor == 1.0


def test_one_tensor_for_two_parameters_is_not_added_to_twice() -> None:
    a, b, unused = (torch.zeros(3, requires_grad=True) for _ in range(3))

    def losses() -> Iterator[torch.Tensor]:
        for scale in (1.0, 2.0):
            yield scale * (a + b).sum()

    found = gradient_of(losses(), [a, b, unused])
    assert [part.tolist() for part in found] == [[3.0] * 3, [3.0] * 3, [0.0] * 3]
    assert a.grad is None


def test_evaluation_is_weighed_as_the_last_step_was(tmp_path: Path) -> None:
    teachers, settings = [online()], arguments(tmp_path, learning_rate=0.0)
    model = tiny.llama(STUDENT.size).double()
    trainer = XTokenTrainer(model, teachers, settings, data(), data(), kd_weight="gradient")
    trainer.train()
    (line,) = (line for line in trainer.state.log_history if "ce" in line)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(line["loss"], rel=1e-5)


def test_a_whole_run_takes_the_settings(tmp_path: Path) -> None:
    config = {
        "teachers": [{"loss": "p-kl", "name": "t"}],
        "loss": {"kd_weight": "gradient", "gradient_norms": 3},
        "optim": {"steps": 4, "batch_size": 4, "micro_batch_size": 2},
        "output": {"folder": str(tmp_path / "out")},
    }
    distil(config, student=tiny.student(), teachers=[tiny.teacher()], texts=tiny.documents(16), quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["push_ratio"] for line in lines if "push_ratio" in line] == pytest.approx([1.0, 1.0], rel=1e-4)
    assert [line["step"] for line in lines if "gradient_norm/kd/t" in line] == [1, 4]
    assert "lets both push equally hard" in (tmp_path / "out" / "README.md").read_text()


def test_by_default_the_factor_is_measured_every_twenty_steps(tmp_path: Path) -> None:
    trainer = XTokenTrainer(tiny.llama(STUDENT.size), [online()], arguments(tmp_path), data(), kd_weight="gradient")
    assert trainer._measured_every == EVERY == 20
    assert XTokenTrainer(tiny.llama(STUDENT.size), [online()], arguments(tmp_path), data())._measured_every is None


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    def made(*teachers: OnlineTeacher, **options: Any) -> XTokenTrainer:
        return XTokenTrainer(tiny.llama(STUDENT.size), teachers, arguments(tmp_path), data(), **options)

    with pytest.raises(XTokenError, match="gradient_norms has no effect without teachers"):
        made(gradient_norms=5)
    with pytest.raises(XTokenError, match="kd_weight 'gradient' has no effect without teachers"):
        made(kd_weight="gradient")
    with pytest.raises(XTokenError, match="gradient_norms is 0; expected a number of steps"):
        made(online(), gradient_norms=0)
    with pytest.raises(XTokenError, match="term by term under FSDP or DeepSpeed"):
        _check_measurable(is_sharded=True, scales_loss=False)
    with pytest.raises(XTokenError, match="measured in fp16"):
        _check_measurable(is_sharded=False, scales_loss=True)
    with pytest.raises(XTokenError, match="a Distiller takes a number or 'dynamic'"):
        Distiller([online()], STUDENT.size, kd_weight="gradient")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"kd_weight": "gradient"}, {"gradient_norms": 5}])
def test_a_sharded_student_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    original = XTokenTrainer.create_accelerator_and_postprocess

    def sharded(trainer: XTokenTrainer) -> None:
        original(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(XTokenTrainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(XTokenError, match="under FSDP or DeepSpeed"):
        XTokenTrainer(tiny.llama(STUDENT.size), [online()], arguments(tmp_path), data(), **options)
