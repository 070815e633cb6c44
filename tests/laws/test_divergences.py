"""Reverse KL and Jensen-Shannon: divergences for vectors of any sums, and the mixture's ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from training import tiny
from xtoken.config import TeacherConfig
from xtoken.errors import XTokenError
from xtoken.losses import PKL, SameTokenizerKL, in_blocks
from xtoken.losses.divergence import Divergence, jensen_shannon, kl_divergence, reverse_kl
from xtoken.losses.fast import walk
from xtoken.projection import Projection
from xtoken.teachers import DenseSignal, signal_from_logits
from xtoken.training.objectives import make_objective

from .cases import Case, random_case, same_tokenizer_case, value_and_grad

OTHERS = {"reverse": Divergence("reverse"), "jsd": Divergence("jsd"), "jsd-0.1": Divergence("jsd", 0.1)}


def vectors(seed: int = 0, rows: int = 40, columns: int = 6) -> tuple[Tensor, Tensor]:
    """Logarithms of vectors that sum to anything up to 1."""
    generator = torch.Generator().manual_seed(seed)
    found = (2 * torch.randn(rows, columns + 1, dtype=torch.float64, generator=generator) for _ in "pq")
    log_p, log_q = (x.log_softmax(-1)[:, :columns] for x in found)
    return log_p, log_q


def logs(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def test_reverse_kl_by_hand() -> None:
    # 1/2 log(1/2 : 1/4) + 1/4 log(1/4 : 1/2) = 1/4 log 2; the sums are 3/4 of both.
    assert reverse_kl(logs(0.25, 0.5), logs(0.5, 0.25)).item() == pytest.approx(0.25 * log(2))
    # 1/4 log(1/4 : 1/2) - 1/4 + 1/2: the student has lost half of the teacher's mass.
    assert reverse_kl(logs(0.5), logs(0.25)).item() == pytest.approx(0.25 - 0.25 * log(2))
    # What the teacher rules out counts 100 nats, what the student rules out its mass.
    assert reverse_kl(logs(1.0, 0.0), logs(0.5, 0.5)).item() == pytest.approx(log(0.5) + 0.5 * 100)
    assert reverse_kl(logs(0.5, 0.5), logs(1.0, 0.0)).item() == pytest.approx(log(2))


def test_jensen_shannon_by_hand() -> None:
    # m = (3/4, 1/4): 1/2 log(1 : 3/4) + 1/2 (1/2 log(1/2 : 3/4) + 1/2 log(1/2 : 1/4)) = 3/4 log 4/3.
    assert jensen_shannon(logs(1.0, 0.0), logs(0.5, 0.5)).item() == pytest.approx(0.75 * log(4 / 3))
    # Nothing in common: log 2. With beta 1/4, m = (1/4, 3/4): 1/4 log 4 + 3/4 log 4/3.
    assert jensen_shannon(logs(1.0, 0.0), logs(0.0, 1.0)).item() == pytest.approx(log(2))
    expected = 0.25 * log(4) + 0.75 * log(4 / 3)
    assert jensen_shannon(logs(1.0, 0.0), logs(0.0, 1.0), 0.25).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_0_where_the_vectors_are_equal_and_above_0_elsewhere(name: str) -> None:
    log_p, log_q = vectors()
    assert OTHERS[name](log_p, log_p).abs().max() < 1e-14
    assert OTHERS[name](log_p, log_q).min() > 1e-3
    assert OTHERS[name](log_p, log_p - 0.1).min() > 0  # mass lost, at the same proportions
    assert OTHERS[name](log_p - 0.1, log_p).min() > 0  # and won


def test_the_mixture_goes_from_the_forward_kl_to_the_reverse() -> None:
    log_p, log_q = vectors()
    log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
    small = 1e-6
    torch.testing.assert_close(
        jensen_shannon(log_p, log_q, small) / small, kl_divergence(log_p, log_q), rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(
        jensen_shannon(log_p, log_q, 1 - small) / small, reverse_kl(log_p, log_q), rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(jensen_shannon(log_p, log_q), jensen_shannon(log_q, log_p))
    assert jensen_shannon(log_p, log_q).max() <= log(2)


@pytest.mark.parametrize("name", OTHERS)
def test_its_gradient_is_that_of_finite_differences_and_finite_at_zeros(name: str) -> None:
    log_p, log_q = (x.requires_grad_() for x in vectors(1, 4))
    assert torch.autograd.gradcheck(OTHERS[name], (log_p, log_q))
    zeros_p, zeros_q = (x.detach().clone() for x in vectors(2, 3))
    zeros_p[:, :2] = zeros_q[:, 1:3] = zeros_p[2] = zeros_q[1] = float("-inf")
    zeros_p.requires_grad_()
    zeros_q.requires_grad_()
    values = OTHERS[name](zeros_p, zeros_q)
    values.sum().backward()
    for found in (values, zeros_p.grad, zeros_q.grad):
        assert found.isfinite().all()  # type: ignore[union-attr]
    assert values[2] == 0  # a teacher without mass says nothing
    assert values[1] > 0


# -- one tokenizer -----------------------------------------------------------------------------------------------------


def with_zeros(case: Case) -> Case:
    student, teacher = case.student_logits.clone(), case.teacher_logits.clone()
    student[:, ::3, 1:4] = teacher[:, ::2, 2:5] = float("-inf")
    return replace(case, student_logits=student, teacher_logits=teacher)


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("name", OTHERS)
def test_the_fast_version_is_the_reference(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_CPU_ELEMENTS", rows * 31)
    loss = SameTokenizerKL(31, OTHERS[name])
    for seed, dtype, tolerance in ((0, torch.float64, 1e-10), (1, torch.float32, 1e-4), (2, torch.bfloat16, 1e-2)):
        for case in (same_tokenizer_case(seed, 31), with_zeros(same_tokenizer_case(seed, 31))):
            case = case.to(dtype)
            arguments = case.student_logits, case.signal(1.7), case.index()
            term, gradient = value_and_grad(loss, *arguments)
            expected, by_reference = value_and_grad(loss.reference, *arguments)
            torch.testing.assert_close(term.total, expected.total, rtol=tolerance, atol=tolerance / 100)
            torch.testing.assert_close(gradient, by_reference, rtol=tolerance, atol=tolerance / 100)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("name", OTHERS)
def test_a_nan_is_not_hidden(name: str) -> None:
    case = same_tokenizer_case(0, 7)
    for side in ("student", "teacher"):
        broken = getattr(case, f"{side}_logits").clone()
        broken[0, 2, 1:] = float("nan")
        found = replace(case, **{f"{side}_logits": broken})
        loss = SameTokenizerKL(7, OTHERS[name])
        assert loss(found.student_logits, found.signal(), found.index()).total.isnan()


@pytest.mark.parametrize("name", OTHERS)
def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn(name: str) -> None:
    case = same_tokenizer_case(4, 11)
    same = replace(case, teacher_logits=case.student_logits)
    for loss in (SameTokenizerKL(11, OTHERS[name]), PKL(case.projection, divergence=OTHERS[name])):
        term, gradient = value_and_grad(loss, case.student_logits, same.signal(1.3), same.index())
        assert term.total.abs() < 1e-12
        assert gradient.abs().max() < 1e-12
        other, _ = value_and_grad(loss, case.student_logits, case.signal(1.3), case.index())
        assert other.total > 0.1


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("name", OTHERS)
def test_with_w_the_identity_p_kl_is_that_of_one_tokenizer(name: str, top_k: int | None) -> None:
    case = same_tokenizer_case(5, 9)
    arguments = case.student_logits, case.signal(1.3, top_k), case.index()
    one = value_and_grad(SameTokenizerKL(9, OTHERS[name]), *arguments)
    for merge in ("chain", "first") if top_k else ("chain", "mean", "first"):
        other = value_and_grad(PKL(case.projection, merge, divergence=OTHERS[name]), *arguments)
        torch.testing.assert_close(other[0].total, one[0].total, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(other[1], one[1], rtol=1e-9, atol=1e-11)


# -- two tokenizers ----------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, object]] = {
    "chain": {},
    "first": {"merge": "first"},
    "mean": {"merge": "mean"},
    "top-3": {"teacher_topk": 3},
}


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("name", OTHERS)
def test_p_kl_is_at_least_0_and_its_gradient_finite(name: str, how: str) -> None:
    """Long chunks, whose chained vectors have different sums, and a row of W that carries nothing."""
    for seed in range(3):
        case = random_case(seed, 9, 11, longest=5)
        loss = PKL(case.projection, divergence=OTHERS[name], **SETTINGS[how])  # type: ignore[arg-type]
        for batch in (case, with_zeros(case)):
            term, gradient = value_and_grad(loss, batch.student_logits, batch.signal(1.4), batch.index())
            assert term.total > 0
            assert gradient.isfinite().all()
            assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize("name", OTHERS)
def test_the_students_mass_that_w_loses_is_penalised(name: str) -> None:
    projection = Projection.from_coo(np.array([0, 1]), np.array([0, 1]), np.ones(2), (3, 2))
    case = random_case(0, 3, 2, batch=1, n_chunks=2, longest=1)
    logits = torch.zeros_like(case.student_logits)
    signal = DenseSignal(torch.full((case.teacher_logits.shape[1], 2), 0.5, dtype=torch.float64).log())
    _, gradient = value_and_grad(
        PKL(projection, divergence=OTHERS[name]), logits, signal, case.index()
    )  # the proportions are met; what is lost on the third token is not
    assert gradient.sum(dim=(0, 1))[2] > 1e-3
    assert (gradient.sum(dim=(0, 1))[:2] < 0).all()


@pytest.mark.parametrize("how", ["chain", "first"])
@pytest.mark.parametrize("name", OTHERS)
def test_p_kl_passes_gradcheck_by_logits_and_by_w(name: str, how: str) -> None:
    case = random_case(1, 4, 5, batch=1, n_chunks=3)
    loss = PKL(case.projection, divergence=OTHERS[name], learnable=True, **SETTINGS[how]).double()  # type: ignore[arg-type]
    weights, signal, index = loss.row_weights.log_weights, case.signal(1.3), case.index()  # type: ignore[union-attr]

    def total(logits: Tensor, moved: Tensor) -> Tensor:
        with torch.no_grad():
            weights.copy_(moved)
        return loss(logits, signal, index).total

    case.student_logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: total(logits, weights.detach()), (case.student_logits,))
    start = weights.detach().clone()
    (by_w,) = torch.autograd.grad(total(case.student_logits, start), weights)
    for i in range(len(start)):
        step = torch.zeros_like(start)
        step[i] = 1e-5
        slope = (total(case.student_logits, start + step) - total(case.student_logits, start - step)).item() / 2e-5
        assert by_w[i].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", OTHERS)
def test_p_kl_adds_up_over_blocks(name: str) -> None:
    case = random_case(2)
    loss = PKL(case.projection, divergence=OTHERS[name])
    arguments = case.student_logits, case.signal(), case.index()
    whole = value_and_grad(loss.reference, *arguments)
    parts = value_and_grad(lambda *given: in_blocks(loss.reference, *given, chunks=4), *arguments)
    torch.testing.assert_close(parts[0].total, whole[0].total)
    torch.testing.assert_close(parts[1], whole[1])
    assert loss.kernel() is None


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Divergence("backward"), "divergence is 'backward'; it must be one of forward, reverse, jsd"),
        (lambda: Divergence("reverse", 0.5), "beta has no effect on the divergence 'reverse'"),
        (lambda: Divergence("jsd", 1.0), "beta is 1.0; it must be above 0 and below 1"),
    ],
)
def test_a_divergence_that_makes_no_sense_is_refused(make: Callable[[], Divergence], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        make()


def test_the_config_gives_the_loss_its_divergence() -> None:
    student, teacher = tiny.packed(), tiny.split()
    config = TeacherConfig(loss="p-kl", divergence="jsd", jsd_beta=0.1)
    assert make_objective(config, student, teacher, None).loss.divergence == OTHERS["jsd-0.1"]
    same = make_objective(TeacherConfig(divergence="reverse"), student, student, None)
    assert (same.name, same.loss.divergence) == ("same", OTHERS["reverse"])
    for loss in ("h-kl", "gold", "uld", "path-kl"):
        with pytest.raises(XTokenError, match=f"divergence has no effect on the loss '{loss}'"):
            make_objective(TeacherConfig(loss=loss, divergence="reverse"), student, teacher, None)


def test_forward_is_the_default_and_has_its_kernel() -> None:
    case = same_tokenizer_case(0, 7)
    signal = signal_from_logits(case.teacher_logits, 7, 1.3)
    plain, named = SameTokenizerKL(7), SameTokenizerKL(7, Divergence("forward"))
    found = [value_and_grad(loss, case.student_logits, signal, case.index()) for loss in (plain, named)]
    assert torch.equal(found[0][0].total, found[1][0].total)
    assert torch.equal(found[0][1], found[1][1])
    assert PKL(case.projection, divergence=Divergence("forward")).kernel() is not None
