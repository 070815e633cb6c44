"""How a student computes (bfloat16, recomputed activations, torch.compile) changes speed and memory, not its loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from training import tiny
from xtoken.config import LoraConfig, RunConfig, parse_config
from xtoken.errors import XTokenError
from xtoken.losses import SameTokenizerKL
from xtoken.losses.fast import hidden as fast
from xtoken.teachers.causal import HiddenReader
from xtoken.teachers.online import OnlineTeacher
from xtoken.training import XTokenTrainer, distil
from xtoken.training.adapters import add_lora
from xtoken.training.arguments import check_arguments, trainer_arguments
from xtoken.training.compiling import compiled
from xtoken.training.inputs import sources_of, training_data
from xtoken.training.participants import gather

TEXTS = tiny.documents(8)


def config(**optim: Any) -> RunConfig:
    settings = {"steps": 1, "batch_size": 4, "micro_batch_size": 2, **optim}
    return parse_config({"teachers": [{}], "optim": settings, "loss": {"kd_weight": 0.5}})


class Gradients(TrainerCallback):
    """Keeps the gradients that the first optimizer step is given."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.found = self.found or {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def one_step(folder: Path, settings: RunConfig, *, by_hidden: bool = True, lora: bool = False) -> Any:
    """The log's line and the gradients of a run's only step."""
    learner = tiny.student()
    members = gather(settings, learner, [tiny.teacher()], None)
    model = add_lora(learner.model, LoraConfig(rank=4), seed=0) if lora else learner.model
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.02)
    kept = Gradients()
    trainer = XTokenTrainer(
        model,
        [member.online() for member in members.teachers],
        trainer_arguments(settings, folder, saves=False, quiet=True),
        training_data(sources_of(settings.data, TEXTS), members, folder / "cache", progress=False),
        student_vocab_size=learner.vocabulary.size,
        kd_weight=0.5,
        callbacks=[kept],
    )
    if not by_hidden:
        trainer._reader = None
    trainer.train()
    assert (trainer._reader is not None) is by_hidden  # the fast way is taken wherever it is not forbidden
    return trainer.state.log_history[0], kept.found


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("by_hidden", [False, True])
def test_recomputed_activations_give_the_same_gradients(tmp_path: Path, by_hidden: bool, lora: bool) -> None:
    plain_line, plain = one_step(tmp_path, config(), by_hidden=by_hidden, lora=lora)
    settings = config(gradient_checkpointing=True)
    line, recomputed = one_step(tmp_path, settings, by_hidden=by_hidden, lora=lora)
    assert line["loss"] == plain_line["loss"]
    assert plain.keys() == recomputed.keys() != set()
    for name, gradient in plain.items():
        assert gradient.any(), name
        assert torch.allclose(recomputed[name], gradient, rtol=1e-5, atol=1e-8), name


def test_activations_are_recomputed_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls: list[bool] = []
    own = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: calls.append(torch.is_grad_enabled()) or own(self, x))
    counts = []
    for on in (False, True):
        calls.clear()
        one_step(tmp_path, config(gradient_checkpointing=on), lora=True)
        counts.append(sum(calls))
    assert counts[1] == 2 * counts[0]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("by_hidden", [False, True])
def test_bfloat16_is_near_float32(tmp_path: Path, by_hidden: bool, lora: bool) -> None:
    exact_line, exact = one_step(tmp_path, config(precision="float32"), by_hidden=by_hidden, lora=lora)
    line, rounded = one_step(tmp_path, config(precision="bfloat16"), by_hidden=by_hidden, lora=lora)
    assert line["ce"] == pytest.approx(exact_line["ce"], rel=1e-2)
    assert line["kd"] == pytest.approx(exact_line["kd"], rel=5e-2)
    assert line["ce"] != exact_line["ce"]  # or it was float32
    assert line["kd"] != exact_line["kd"]
    assert rounded.keys() == exact.keys()
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(rounded[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.99, name
        assert rounded[name].norm() == pytest.approx(gradient.norm().item(), rel=5e-2)


def test_under_bfloat16_the_head_computes_so_and_the_teacher_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    own = fast._HiddenWalk.__init__

    def look(self: Any, hidden: torch.Tensor, head: Any, targets: Any, size: Any, lessons: Any) -> None:
        seen.append((head.weight.dtype, lessons[0].teacher.hidden.dtype))
        own(self, hidden, head, targets, size, lessons)

    monkeypatch.setattr(fast._HiddenWalk, "__init__", look)
    one_step(tmp_path, config(precision="bfloat16"))
    one_step(tmp_path, config(precision="float32"))
    assert seen == [(torch.bfloat16, torch.float32)] * 2 + [(torch.float32, torch.float32)] * 2


def test_a_teacher_computes_in_its_own_dtype_whatever_surrounds_it() -> None:
    ids = torch.tensor([[0, 5, 6, 7]])
    teacher = OnlineTeacher("t", tiny.llama(30), 30, SameTokenizerKL(30), side="t")
    expected = teacher.signal(ids, torch.ones_like(ids)).log_probs
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher.signal(ids, torch.ones_like(ids)).log_probs, expected)


def test_precision_is_by_default_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def uses_bf16(settings: RunConfig) -> bool:
        return bool(trainer_arguments(settings, tmp_path, saves=False, quiet=True).bf16)

    assert [uses_bf16(config(precision=name)) for name in ("auto", "float32", "bfloat16")] == [False, False, True]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pytest.raises(XTokenError, match=r"optim.precision is bfloat16, which this GPU does not compute in"):
        check_arguments(config(precision="bfloat16"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_has_no_effect_on_half_precision_weights(precision: str) -> None:
    with pytest.raises(XTokenError, match=r"optim.precision has no effect on a student of dtype bfloat16"):
        parse_config({"student": {"model": "a", "dtype": "bfloat16"}, "optim": {"precision": precision}})


@pytest.fixture
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traces the graph and runs it as it is: inductor writes C++, which takes a compiler and a minute."""
    monkeypatch.setattr("xtoken.training.compiling.BACKEND", "eager")
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would format every line of it
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_backend")
@pytest.mark.parametrize("lora", [False, True])
def test_a_compiled_student_learns_the_same_and_keeps_its_names(tmp_path: Path, lora: bool) -> None:
    results = []
    for on in (False, True):
        settings = {
            "student": {"lora": {"rank": 4}} if lora else {},
            "teachers": [{}],
            "optim": {"steps": 3, "batch_size": 4, "micro_batch_size": 2, "compile": on},
            "output": {"folder": str(tmp_path / str(on)), "save_every": 2},
        }
        torch._dynamo.utils.counters.clear()
        results.append(
            distil(
                settings, student=tiny.student(num_hidden_layers=1), teachers=[tiny.teacher()], texts=TEXTS, quiet=True
            )
        )
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert 1 <= graphs <= 2 if on else graphs == 0  # one for the first length, one for all
        assert not torch._dynamo.utils.counters["graph_break"]
    for plain, quick in zip(results[0].log, results[1].log, strict=True):
        assert (quick["ce"], quick["kd"]) == (
            pytest.approx(plain["ce"], rel=1e-5),
            pytest.approx(plain["kd"], rel=1e-5),
        )
    for file in (
        "model.safetensors",
        "checkpoint-3/adapter_model.safetensors" if lora else "checkpoint-3/model.safetensors",
    ):
        plain, quick = (load_file(tmp_path / on / file) for on in ("False", "True"))
        assert plain.keys() == quick.keys()
        assert all(torch.allclose(plain[name], quick[name], atol=1e-4) for name in plain)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_backend")
@pytest.mark.parametrize("recomputes", [False, True])
def test_hidden_states_of_a_compiled_student_are_read(recomputes: bool) -> None:
    model, plain = (tiny.llama(440, num_hidden_layers=1).train() for _ in range(2))
    if recomputes:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    mask = torch.tensor([[1] * 9, [1] * 7 + [0] * 2])
    with compiled(model):
        reader = HiddenReader.of(model)
        assert reader is not None
        for length in (9, 8):
            ids = torch.arange(2 * length).reshape(2, length)
            hidden = reader.read(model, ids, mask[:, :length])
            expected = plain.model(ids, mask[:, :length])[0]
            assert torch.allclose(hidden, expected, atol=1e-6)
            for one, loss in ((model, hidden), (plain, expected)):
                one.zero_grad()
                loss.square().sum().backward()
            for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
                assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5), name
    assert "forward" not in model.model.__dict__


@pytest.mark.usefixtures("quick_backend")
def test_a_pass_without_gradient_is_not_compiled() -> None:
    model = tiny.llama(440)
    torch._dynamo.utils.counters.clear()
    with compiled(model), torch.no_grad():
        model(torch.tensor([[0, 1]]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


def test_what_cannot_be_compiled_here_is_told() -> None:
    def fails(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("there is no compiler")

    model = tiny.llama(440)
    with compiled(model, fails), pytest.raises(XTokenError, match=r"optim.compile: .*there is no compiler. Leave"):
        model(torch.tensor([[0, 1]]))
    torch._dynamo.reset()
