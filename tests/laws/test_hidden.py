"""Losses from hidden states are the losses from the logits that the head makes of them, whatever the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses import (
    ChunkIndex,
    ChunkLoss,
    Lesson,
    LossTerm,
    Multipliers,
    cross_entropy,
    dynamic_scale,
    losses_from_hidden,
)
from xtoken.losses.cross_entropy import targets_of
from xtoken.losses.fast import hidden as module
from xtoken.losses.fast import walk
from xtoken.teachers import DenseSignal, Head, HeadSignal, LogitSignal, TeacherSignal

from .cases import LOSSES, WITHOUT_KERNEL, Case, random_case

WIDTH = 5
ON_HIDDEN = sorted(set(LOSSES) - WITHOUT_KERNEL)


@dataclass(frozen=True)
class Models:
    """Hidden states and heads of a student and a teacher, in the shapes of a case."""

    hidden_s: Tensor
    head_s: Head
    hidden_t: Tensor
    head_t: Head

    @classmethod
    def of(cls, case: Case, seed: int = 0, softcap: float | None = None, bias: bool = False) -> Models:
        generator = torch.Generator().manual_seed(seed)

        def side(logits: Tensor) -> tuple[Tensor, Head]:
            *shape, width = logits.shape
            hidden = torch.randn(*shape, WIDTH, dtype=torch.float64, generator=generator)
            weight = torch.randn(width, WIDTH, dtype=torch.float64, generator=generator)
            vector = torch.randn(width, dtype=torch.float64, generator=generator) if bias else None
            return hidden, Head(weight, vector, softcap)

        return cls(*side(case.student_logits), *side(case.teacher_logits))


def logits_of(hidden: Tensor, head: Head) -> Tensor:
    """The head, written out."""
    logits = hidden @ head.weight.T
    logits = logits if head.bias is None else logits + head.bias
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def signals(models: Models, case: Case, tau: float) -> dict[str, TeacherSignal]:
    flat, size = models.hidden_t.flatten(0, 1), case.sizes[1]
    logits = logits_of(flat, models.head_t)
    log_probs = (logits[:, :size] / tau).log_softmax(-1)
    return {
        "head": HeadSignal(flat, models.head_t, size, tau),
        "logits": LogitSignal(logits, size, tau),
        "dense": DenseSignal(log_probs, tau),
    }


def labels_of(case: Case) -> Tensor:
    """A sequence that only the teachers speak of, and some tokens of another that nobody is to learn."""
    labels = torch.from_numpy(case.student_ids).clone()
    labels[0] = labels[-1, -2:] = -100
    return labels


Lessons = Sequence[tuple[ChunkLoss, TeacherSignal]]


def leaves(models: Models) -> list[Tensor]:
    own = [models.hidden_s, models.head_s.weight, models.head_s.bias]
    return [x.clone().requires_grad_() for x in own if x is not None]


def plainly(
    models: Models, case: Case, lessons: Lessons, scales: Sequence[float] | None
) -> tuple[list[LossTerm], list[Tensor]]:
    """The terms, and the gradients of their weighted sum (dynamically scaled for None), through whole logits."""
    inputs = leaves(models)
    logits = logits_of(inputs[0], Head(inputs[1], inputs[2] if len(inputs) > 2 else None, models.head_s.softcap))
    text = cross_entropy(logits, labels_of(case), case.sizes[0])
    terms = [text, *(loss.reference(logits, signal, case.index()) for loss, signal in lessons)]
    if scales is None:
        scales = [1.0, *(float(dynamic_scale(text.total, term.total)) for term in terms[1:])]
    loss = sum(scale * term.total for scale, term in zip(scales, terms, strict=True))
    return terms, list(torch.autograd.grad(3 * loss, inputs))


def from_hidden(
    models: Models, case: Case, lessons: Lessons, scales: Sequence[float] | None
) -> tuple[list[LossTerm], list[Tensor], Tensor]:
    inputs = leaves(models)
    head = Head(inputs[1], inputs[2] if len(inputs) > 2 else None, models.head_s.softcap)
    taught = [Lesson(loss.kernel(), signal, case.index()) for loss, signal in lessons]

    def fixed(values: Sequence[float]) -> Multipliers:
        first, *others = torch.tensor(values, dtype=torch.float64)
        return Multipliers(first, others)

    def dynamic(text: LossTerm, terms: Sequence[LossTerm]) -> Multipliers:
        return Multipliers(torch.tensor(1.0), [dynamic_scale(text.total, term.total) for term in terms])

    multipliers = dynamic if scales is None else fixed(scales)
    found = losses_from_hidden(inputs[0], head, targets_of(labels_of(case)), case.sizes[0], taught, multipliers)
    gradients = torch.autograd.grad(3 * found.loss, inputs)
    return [found.cross_entropy, *found.lessons], list(gradients), found.loss


def small_blocks(monkeypatch: pytest.MonkeyPatch, steps: int, step_rows: int) -> None:
    """Blocks of some steps, steps of some rows, for cases of about 10 columns."""
    monkeypatch.setattr(walk, "_CPU_ELEMENTS", step_rows * 10)
    monkeypatch.setattr(module, "_HEAD_ELEMENTS", steps * step_rows * 25)


def assert_same(ours: list[LossTerm], theirs: list[LossTerm]) -> None:
    for own, term in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.total, term.total.detach(), rtol=1e-12, atol=1e-12)
        assert int(own.count) == int(term.count)
        torch.testing.assert_close(dict(own.metrics), dict(term.metrics), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("steps", "step_rows"), [(1, 1), (2, 1), (2, 2), (3, 4), (100, 100)])
@pytest.mark.parametrize("scales", [(0.5, 2.0), None], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", ON_HIDDEN)
def test_it_is_the_loss_of_the_heads_logits(
    name: str, scales: tuple[float, float] | None, steps: int, step_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, steps, step_rows)
    case = random_case(longest=4)
    models, loss = Models.of(case), LOSSES[name](case)
    lessons = [(loss, signals(models, case, 1.0)["head"])]
    expected, gradients = plainly(models, case, lessons, scales)
    terms, own, _ = from_hidden(models, case, lessons, scales)
    assert_same(terms, expected)
    torch.testing.assert_close(own, gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scales", [(0.5, 2.0, 0.3, 1.1), None], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("bias", [False, True])
def test_several_teachers_of_every_kind_of_signal_at_their_own_temperatures(
    bias: bool, softcap: float | None, scales: tuple[float, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, 2, 2)
    case = random_case(3, longest=3)
    models = Models.of(case, softcap=softcap, bias=bias)
    lessons = [
        (LOSSES["p-kl-chain"](case), signals(models, case, 1.0)["head"]),
        (LOSSES["gold-chain"](case), signals(models, case, 2.0)["logits"]),
        (LOSSES["p-kl-first"](case), signals(models, case, 0.5)["head"]),
    ]
    lessons[2] = (lessons[2][0], signals(models, case, 0.5)["dense"]) if bias else lessons[2]
    expected, gradients = plainly(models, case, lessons, scales)
    terms, own, _ = from_hidden(models, case, lessons, scales)
    assert_same(terms, expected)
    torch.testing.assert_close(own, gradients, rtol=1e-10, atol=1e-12)


def test_cross_entropy_alone() -> None:
    case = random_case()
    models = Models.of(case)
    expected, gradients = plainly(models, case, [], [2.0])
    terms, own, loss = from_hidden(models, case, [], [2.0])
    assert_same(terms, expected)
    torch.testing.assert_close(own, gradients, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss.detach(), 2 * terms[0].total)


def test_chunks_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    small_blocks(monkeypatch, 2, 2)
    case = random_case(10, longest=3)
    models, loss = Models.of(case), LOSSES["p-kl-chain"](case)
    reordered = replace(case, chunks=tuple(chunks[::-1] for chunks in case.chunks))
    lessons = [(loss, signals(models, case, 1.0)["head"])]
    (terms, own, _), (other, others, _) = (from_hidden(models, c, lessons, None) for c in (case, reordered))
    assert_same(terms, other)
    torch.testing.assert_close(own, others, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ON_HIDDEN)
def test_a_batch_without_chunks_has_every_metric(name: str) -> None:
    """Else the log would add up different things in different processes."""
    case = random_case()
    models, loss = Models.of(case), LOSSES[name](case)
    one = Multipliers(torch.tensor(1.0), [torch.tensor(1.0)])
    found = {}
    for index in (ChunkIndex.from_chunks([], [], []), case.index()):
        lesson = Lesson(loss.kernel(), signals(models, case, 1.0)["head"], index)
        targets = targets_of(labels_of(case))
        found[index.n_chunks] = losses_from_hidden(models.hidden_s, models.head_s, targets, 7, [lesson], one).lessons[0]
    empty = found.pop(0)
    assert empty.total == 0
    assert empty.metrics.keys() == next(iter(found.values())).metrics.keys()
    assert all(value == 0 for value in empty.metrics.values())


def test_without_grad_no_gradient_is_made() -> None:
    case = random_case()
    models = Models.of(case)
    inputs = leaves(models)
    one = Multipliers(torch.tensor(1.0), [])
    with torch.no_grad():
        found = losses_from_hidden(inputs[0], Head(inputs[1]), targets_of(labels_of(case)), 7, [], one)
    assert not found.loss.requires_grad


def test_what_does_not_fit_is_refused() -> None:
    case = random_case()
    models = Models.of(case)
    whole, one = signals(models, case, 1.0)["head"], Multipliers(torch.tensor(1.0), [torch.tensor(1.0)])
    p_kl, uld = LOSSES["p-kl-chain"](case), LOSSES["uld-chain"](case)
    for loss, signal, multipliers, size, message in (
        (LOSSES["p-kl-mean"](case), whole, one, 7, "lesson 0: its loss has no kernel"),
        (uld, case.signal(top_k=3), one, 7, "lesson 0: its loss takes no top-k signal"),
        (p_kl, whole, one, 6, r"lesson 0: its loss is for vocabularies of \(7, 9\), not of \(6, 9\)"),
        (p_kl, HeadSignal(whole.hidden, whole.head, 9, -1.0), one, 7, "lesson 0: the temperature is -1.0"),
        (p_kl, whole, Multipliers(torch.tensor(1.0), []), 7, "1 lessons have 0 multipliers"),
    ):
        lesson = Lesson(loss.kernel(), signal, case.index())
        with pytest.raises(XTokenError, match=message):
            losses_from_hidden(models.hidden_s, models.head_s, targets_of(labels_of(case)), size, [lesson], multipliers)


def test_a_batch_with_nothing_to_learn() -> None:
    case = random_case()
    models = Models.of(case)
    inputs = leaves(models)
    nothing = torch.full((inputs[0][..., 0].numel(),), -100)
    one = Multipliers(torch.tensor(1.0), [])
    found = losses_from_hidden(inputs[0], Head(inputs[1]), nothing, case.sizes[0], [], one)
    assert found.loss == 0
    assert all(g.eq(0).all() for g in torch.autograd.grad(found.loss, inputs))


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_keep_theirs() -> None:
    case = random_case()
    models = Models.of(case)
    lessons = [(LOSSES["p-kl-chain"](case), signals(models, case, 1.0)["head"])]
    _, gradients = plainly(models, case, lessons, [1.0, 1.0])
    hidden = models.hidden_s.clone().requires_grad_()
    taught = [Lesson(loss.kernel(), signal, case.index()) for loss, signal in lessons]
    one = Multipliers(torch.tensor(1.0), [torch.tensor(1.0)])
    found = losses_from_hidden(hidden, models.head_s, targets_of(labels_of(case)), case.sizes[0], taught, one)
    torch.testing.assert_close(torch.autograd.grad(3 * found.loss, hidden)[0], gradients[0], rtol=1e-10, atol=1e-12)


def test_a_second_backward_needs_the_graph_kept_and_then_gets_the_same() -> None:
    """Both ways: from hidden states and from logits. What the first one gave is not touched by the second."""
    case = random_case()
    inputs = leaves(Models.of(case))
    one = Multipliers(torch.tensor(1.0), [])

    def from_states() -> Tensor:
        return losses_from_hidden(inputs[0], Head(inputs[1]), targets_of(labels_of(case)), case.sizes[0], [], one).loss

    logits = case.student_logits.clone().requires_grad_()

    def from_logits() -> Tensor:
        return LOSSES["p-kl-chain"](case)(logits, case.signal(), case.index()).total

    def text() -> Tensor:
        return cross_entropy(logits, labels_of(case), case.sizes[0]).total

    for make, leaf in ((from_states, inputs[0]), (from_logits, logits), (text, logits)):
        (expected,) = torch.autograd.grad(make(), leaf)
        loss = make()
        (first,) = torch.autograd.grad(2 * loss, leaf, retain_graph=True)
        (second,) = torch.autograd.grad(3 * loss, leaf)
        torch.testing.assert_close(first, 2 * expected)
        torch.testing.assert_close(second, 3 * expected)
        with pytest.raises(RuntimeError, match="second backward through it needs retain_graph=True"):
            torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_have_the_parameters_types_and_sums_are_wide(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64 on the same rounded numbers, in several blocks."""
    small_blocks(monkeypatch, 2, 2)
    case = random_case(5, longest=2)
    models = Models.of(case)
    rounded = [x.to(dtype) for x in (models.hidden_s, models.head_s.weight, models.hidden_t, models.head_t.weight)]
    exact = [x.double() for x in rounded]
    lessons = [(LOSSES["p-kl-chain"](case), None)]
    found = []
    for hidden_s, weight_s, hidden_t, weight_t in (rounded, exact):
        signal = HeadSignal(hidden_t.flatten(0, 1), Head(weight_t), case.sizes[1])
        each = Models(hidden_s, Head(weight_s), hidden_t, Head(weight_t))
        found.append(from_hidden(each, case, [(lessons[0][0], signal)], [1.0, 1.0]))
    (terms, own, _), (expected, gradients, _) = found
    assert terms[0].total.dtype == torch.float32
    assert [g.dtype for g in own] == [dtype, dtype]
    # bf16 logits are rounded by the product itself, as in any bf16 model.
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    for term, exactly in zip(terms, expected, strict=True):
        torch.testing.assert_close(term.total.double(), exactly.total, rtol=tolerance, atol=tolerance)
    for gradient, exactly in zip(own, gradients, strict=True):
        assert (gradient.double() - exactly).norm() < 2 * tolerance * exactly.norm()
