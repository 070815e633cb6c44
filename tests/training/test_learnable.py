"""A learnable W in training: its own optimizer group, exact gradients, resume to the bit, a file that loads again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from training import tiny
from xtoken.config import TeacherConfig
from xtoken.errors import DivergedError, FingerprintMismatchError, XTokenError
from xtoken.losses import PKL, ChunkIndex
from xtoken.projection import Projection
from xtoken.teachers import DenseSignal
from xtoken.teachers.online import OnlineTeacher
from xtoken.training import PreparedData, Side, XTokenTrainer, distil, prepare, side_key, texts_from_list
from xtoken.training.learnable import LearnableProjections, learnt_projection, moved_rows, projection_file
from xtoken.training.objectives import make_objective, projection_for

STUDENT, TEACHER = tiny.packed(), tiny.split()
TEXTS = ["7", "Ada has 123 coins and gets 45 more: 168 in all.", "Bo has 9", "Cleo 55 66 77 88 99 111 222 333"]


def data(texts: list[str] = TEXTS) -> PreparedData:
    return prepare(texts_from_list(texts), Side(STUDENT, 64), [Side(TEACHER, 64)])


def learner(rate: float | None = None) -> OnlineTeacher:
    loss = PKL(projection_for(STUDENT, TEACHER, None), learnable=True).double()
    model = tiny.llama(TEACHER.size, seed=1).double()
    return OnlineTeacher("t", model, TEACHER.size, loss, side=side_key(TEACHER), loss_learning_rate=rate)


def log_weights(teacher: OnlineTeacher) -> torch.nn.Parameter:
    found = teacher.loss.row_weights.log_weights  # type: ignore[attr-defined]
    assert isinstance(found, torch.nn.Parameter)
    return found


def trainer_of(folder: Path, teacher: OnlineTeacher, **changes: Any) -> XTokenTrainer:
    options = {k: changes.pop(k) for k in ("callbacks", "optimizers", "kd_weight", "ce_weight") if k in changes}
    settings = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
    } | changes
    model = tiny.llama(STUDENT.size + 3).double()
    options = {"kd_weight": 0.7} | options
    return XTokenTrainer(
        model, [teacher], TrainingArguments(**settings), data(), student_vocab_size=STUDENT.size, **options
    )


class AtStep(TrainerCallback):
    """The gradient of W, and the learning rates, as each optimizer step is given them."""

    def __init__(self, teacher: OnlineTeacher) -> None:
        self.weights = log_weights(teacher)
        self.gradients: list[torch.Tensor] = []
        self.rates: list[list[float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        assert self.weights.grad is not None
        self.gradients.append(self.weights.grad.clone())
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def test_its_gradient_does_not_depend_on_how_a_batch_is_cut_up(tmp_path: Path) -> None:
    found = {}
    for micro, way in ((4, "hidden"), (2, "hidden"), (1, "hidden"), (2, "logits")):
        teacher = learner()
        seen = AtStep(teacher)
        cut = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro}
        trainer = trainer_of(tmp_path, teacher, callbacks=[seen], **cut)
        assert trainer._reader is not None
        if way == "logits":
            trainer._reader = None
        trainer.train()
        found[micro, way] = seen.gradients[0]
    whole = found[4, "hidden"]
    assert whole.abs().max() > 1e-5
    for gradient in found.values():
        torch.testing.assert_close(gradient, whole, rtol=1e-9, atol=1e-14)


def test_each_step_has_its_own_gradient_and_the_students_clipping_is_not_its(tmp_path: Path) -> None:
    """Neither moves, so every step sees the same gradient; left-overs of the step before would double it."""
    seen = {}
    for norm in (1e-4, 0.0):
        teacher = learner(1e-12)
        seen[norm] = AtStep(teacher)
        trainer_of(
            tmp_path, teacher, callbacks=[seen[norm]], max_steps=3, learning_rate=1e-12, max_grad_norm=norm
        ).train()
        for gradient in seen[norm].gradients[1:]:
            torch.testing.assert_close(gradient, seen[norm].gradients[0], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(seen[1e-4].gradients[0], seen[0.0].gradients[0])


def test_it_has_a_group_of_its_own_with_the_students_schedule(tmp_path: Path) -> None:
    teacher = learner()
    seen = AtStep(teacher)
    trainer = trainer_of(
        tmp_path, teacher, callbacks=[seen], max_steps=8, warmup_steps=2, lr_scheduler_type="cosine", weight_decay=0.1
    )
    trainer.train()
    *_, own = trainer.optimizer.param_groups
    assert own["weight_decay"] == 0
    assert [id(p) for p in own["params"]] == [id(log_weights(teacher))]
    assert own["initial_lr"] == 1e-2
    for student_rate, _, rate in seen.rates:
        assert rate == pytest.approx(10 * student_rate)
    assert {rate[0] for rate in seen.rates} != {1e-3}


def test_w_moves_to_the_one_that_explains_the_teacher() -> None:
    """The student stands still; the teacher is what a known W makes of it, at the first positions of its tokens."""
    start = projection_for(STUDENT, TEACHER, None)
    rng = np.random.default_rng(0)
    rows, cols, values = start.to_coo()
    mixed = values * rng.uniform(0.05, 1.0, len(values)).astype(np.float32)
    sums = np.bincount(rows, mixed, start.shape[0])
    known = Projection.from_coo(rows, cols, mixed / sums[rows], start.shape)

    loss, target = PKL(start, "first", learnable=True), PKL(known, "first").projection.values
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(400, start.shape[0], generator=generator)
    taught = torch.zeros(400, start.shape[1])
    taught.index_add_(1, torch.from_numpy(cols), logits.softmax(1)[:, rows] * torch.from_numpy(known.values))
    at = np.arange(399)
    chunks = np.stack([at, at + 1, at, at + 1], axis=1)
    index = ChunkIndex.from_chunks(chunks, np.zeros(400, int), np.zeros(400, int))
    signal = DenseSignal(taught.log())
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    before = float((loss.projection.values - target).abs().sum())
    first = loss(logits, signal, index).total.item()
    for _ in range(60):
        optimizer.zero_grad()
        total = loss(logits, signal, index).total
        total.backward()
        optimizer.step()
    assert total.item() < 0.1 * first
    assert float((loss.projection.values - target).abs().sum()) < 0.2 * before
    assert float(loss.row_weights.drift().mean()) > 0.05  # type: ignore[union-attr]


def settings(folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "teachers": [{"name": "org/t", "loss": "p-kl", "projection": {"learnable": True}}],
        "optim": {"steps": 6, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3},
        "output": {"save_every": 2, "keep_checkpoints": 9},
    }
    if folder is not None:
        raw["output"]["folder"] = str(folder)
    for section, values in changes.items():
        raw[section] = {**raw[section], **values} if isinstance(values, dict) else values
    return raw


def run(config: dict[str, Any], **options: Any) -> Any:
    texts = tiny.documents(60)
    return distil(config, student=tiny.student(), teachers=[tiny.teacher()], texts=texts, quiet=True, **options)


FILE = projection_file("org/t")


def test_a_run_that_goes_on_has_the_w_of_the_unbroken_one_to_the_bit(tmp_path: Path) -> None:
    run(settings(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "b" / f"checkpoint-{step}")
    for name in (FILE, "model.safetensors"):
        (tmp_path / "b" / name).unlink()
    resolved = settings(tmp_path / "b")
    result = run(resolved, resume=True)
    for name in (FILE, "model.safetensors", "checkpoint-6/projection_weights.safetensors"):
        a, b = load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    lines = [(tmp_path / folder / "metrics.jsonl").read_text().splitlines() for folder in "ab"]
    drifts = [[json.loads(line)["w_drift/org/t"] for line in each] for each in lines]
    assert drifts[0] == drifts[1]
    assert drifts[0][0] == 0 < drifts[0][-1] < 1  # the first step warms up from a learning rate of 0
    assert result.projections[0].drift == pytest.approx(drifts[0][-1])
    again = run(resolved, resume=True)  # it is at its end: only the files are written again
    assert again.projections == result.projections


def test_a_checkpoint_without_its_w_is_refused(tmp_path: Path) -> None:
    run(settings(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a" / "checkpoint-6")
    (tmp_path / "a" / "checkpoint-4" / "projection_weights.safetensors").unlink()
    with pytest.raises(XTokenError, match="holds no weights of org/t's learnable projection"):
        run(settings(tmp_path / "a"), resume=True)


def test_the_learnt_w_is_saved_and_starts_another_run(tmp_path: Path) -> None:
    result = run(settings(tmp_path / "a"))
    (found,) = result.projections
    assert found.file == tmp_path / "a" / FILE
    learnt, start = Projection.load(found.file, STUDENT, TEACHER), projection_for(STUDENT, TEACHER, None)
    assert learnt.recipe["learnt"] is True
    assert learnt.recipe["steps"] == 6
    assert learnt.recipe["from"] == start.recipe
    assert np.array_equal(learnt.cols, start.cols)
    assert np.abs(learnt.values - start.values).max() > 0
    with pytest.raises(FingerprintMismatchError):
        Projection.load(found.file, TEACHER, STUDENT)
    moved = found.moved[0]
    assert " -> " in moved
    assert moved.startswith('"')

    teacher = {"name": "t", "loss": "p-kl", "projection": {"file": str(found.file)}}
    fixed = run(settings(tmp_path / "b", teachers=[teacher]))
    assert fixed.projections == ()
    assert not (tmp_path / "b" / projection_file("t")).exists()
    assert "w_drift/t" not in fixed.log[-1]
    plain = run(settings(tmp_path / "c", teachers=[{"name": "t", "loss": "p-kl"}]))
    assert fixed.log[0]["kd"] != plain.log[0]["kd"]
    run(settings(tmp_path / "a", teachers=[teacher]), overwrite=True)  # which removes what the run before saved
    assert not (tmp_path / "a" / FILE).exists()


def test_the_rows_that_moved_most_come_first() -> None:
    start = projection_for(STUDENT, TEACHER, None)
    loss = PKL(start, learnable=True)
    assert moved_rows(loss, start, STUDENT, TEACHER) == []
    row = int(loss.row_weights.rows[3])  # type: ignore[union-attr]
    at = loss.rows[loss.row_weights.at] == row  # type: ignore[union-attr]
    with torch.no_grad():
        loss.row_weights.log_weights[at] = torch.arange(int(at.sum())).float()  # type: ignore[union-attr]
    (line,) = moved_rows(loss, start, STUDENT, TEACHER)
    assert line.startswith(json.dumps(STUDENT.tokens[row].decode()))
    learnt = learnt_projection(loss, start, {})
    at_row = slice(int(start.indptr[row]), int(start.indptr[row + 1]))
    for col, old, new in zip(start.cols[at_row], start.values[at_row], learnt.values[at_row], strict=True):
        assert f"{json.dumps(TEACHER.tokens[col].decode())} {old:.2f} -> {new:.2f}" in line


def test_processes_average_their_gradients() -> None:
    teacher = learner()
    ws = LearnableProjections([teacher])
    sent: list[torch.Tensor] = []

    def reduce(tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "mean"
        sent.append(tensor)
        return (tensor + 1) / 2

    ws.reduce(SimpleNamespace(reduce=reduce))  # a process without chunks takes part, with zeros
    assert torch.equal(sent[0], torch.zeros_like(log_weights(teacher)))
    assert torch.equal(log_weights(teacher).grad, torch.full_like(log_weights(teacher), 0.5))
    ws.on_step_begin(None, None, None)
    assert log_weights(teacher).grad is None


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    teacher = learner()
    optimizer = torch.optim.AdamW(tiny.llama(STUDENT.size).parameters())
    with pytest.raises(XTokenError, match="optimizer that was passed does not hold the learnable projection of t"):
        trainer_of(tmp_path, teacher, optimizers=(optimizer, None))
    ws = LearnableProjections([teacher])
    with pytest.raises(XTokenError, match="under FSDP or DeepSpeed"):
        ws.check(is_sharded=True, optimizer=None, loads_best=False)
    with pytest.raises(XTokenError, match="load_best_model_at_end"):
        ws.check(is_sharded=False, optimizer=None, loads_best=True)
    optimizer.add_param_group({"params": [log_weights(teacher)], "lr": 1e-2, "weight_decay": 0.0})
    trainer_of(tmp_path, teacher, optimizers=(optimizer, None)).train()
    assert log_weights(teacher).grad is not None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"loss": "gold", "projection": {"learnable": True}}, "projection.learnable has no effect on the loss 'gold'"),
        ({"loss": "h-kl", "projection": {"learnable": True}}, "projection.learnable has no effect on the loss 'h-kl'"),
        ({"loss": "uld", "projection": {"file": "w"}}, "projection.file has no effect on the loss 'uld'"),
        ({"loss": "p-kl", "projection": {"file": "nowhere"}}, "no projection at 'nowhere'"),
    ],
)
def test_a_projection_setting_without_effect_is_an_error(section: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        make_objective(TeacherConfig(**section), STUDENT, TEACHER, None)


def test_a_gradient_of_w_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    teacher = learner()
    log_weights(teacher).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DivergedError, match="step 1: gradient of a projection is not finite"):
        trainer_of(tmp_path, teacher).train()
