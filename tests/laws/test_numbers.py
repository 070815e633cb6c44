"""Gradients, precisions, zeros and infinities, heads wider than the tokenizer, and no waiting for a device."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from xtoken.losses import PKL, ChunkIndex
from xtoken.teachers import TeacherSignal

from .cases import LOSSES, SAME_TOKENIZER, Case, Loss, random_case, same_tokenizer_case, value_and_grad


def case_for(name: str, seed: int) -> Case:
    return same_tokenizer_case(seed) if name == "same" else random_case(seed)


@pytest.mark.parametrize("name", sorted(SAME_TOKENIZER))
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_is_the_slope(name: str, temperature: float) -> None:
    case = case_for(name, 1).part(slice(0, 2))
    loss, signal, index = SAME_TOKENIZER[name](case), case.signal(temperature), case.index()
    leaf = case.student_logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: loss(logits, signal, index).total, leaf)


@pytest.mark.parametrize("name", sorted(SAME_TOKENIZER))
def test_float32_is_near_float64(name: str) -> None:
    case = case_for(name, 2)
    loss = SAME_TOKENIZER[name](case)
    exact, exact_grad = value_and_grad(loss, case.student_logits, case.signal(), case.index())
    single = case.to(torch.float32)
    term, grad = value_and_grad(loss, single.student_logits, single.signal(), single.index())
    assert term.total.dtype == torch.float32
    torch.testing.assert_close(term.total.double(), exact.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SAME_TOKENIZER))
def test_bfloat16_logits_are_summed_in_float32(name: str) -> None:
    """Against float64 on the same rounded logits: what is left is float32's error, and bf16's in the gradient alone."""
    half = case_for(name, 3).to(torch.bfloat16)
    loss = SAME_TOKENIZER[name](half)
    double = half.to(torch.float64)
    exact, exact_grad = value_and_grad(loss, double.student_logits, double.signal(), double.index())
    term, grad = value_and_grad(loss, half.student_logits, half.signal(), half.index())
    assert term.total.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(term.total.double(), exact.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SAME_TOKENIZER))
def test_columns_past_the_tokenizer_change_nothing(name: str) -> None:
    case = case_for(name, 4)
    loss = SAME_TOKENIZER[name](case)
    bare = replace(
        case,
        student_logits=case.student_logits[..., : case.sizes[0]],
        teacher_logits=case.teacher_logits[..., : case.sizes[1]],
    )
    loud = replace(
        bare,
        student_logits=torch.cat([bare.student_logits, torch.full_like(bare.student_logits, 50)], -1),
        teacher_logits=torch.cat([bare.teacher_logits, torch.full_like(bare.teacher_logits, 50)], -1),
    )
    term, grad = value_and_grad(loss, bare.student_logits, bare.signal(), bare.index())
    wide, wide_grad = value_and_grad(loss, loud.student_logits, loud.signal(), loud.index())
    assert torch.equal(wide.total, term.total)
    assert torch.equal(wide_grad[..., : case.sizes[0]], grad)
    assert wide_grad[..., case.sizes[0] :].eq(0).all()


@pytest.mark.parametrize("name", sorted(SAME_TOKENIZER))
def test_rows_outside_the_index_change_nothing(name: str) -> None:
    """The prompt, gaps and padding are not read: they may even be NaN."""
    case = case_for(name, 5)
    loss, index = SAME_TOKENIZER[name](case), case.index()
    unread = torch.ones(case.student_logits.shape[:2], dtype=torch.bool).flatten()
    unread[index.student_rows] = False
    assert unread.any()
    logits = case.student_logits.clone()
    logits.flatten(0, 1)[unread] = float("nan")
    term, _ = value_and_grad(loss, case.student_logits, case.signal(), index)
    other, grad = value_and_grad(loss, logits, case.signal(), index)
    assert torch.equal(other.total, term.total)
    assert grad.flatten(0, 1)[unread].eq(0).all()


def forbid(logits: torch.Tensor, columns: list[int]) -> torch.Tensor:
    return logits.index_fill(-1, torch.tensor(columns), float("-inf"))


WITH_TOP_K_SIGNAL = ("p-kl-chain", "p-kl-first", "p-kl-top-3", "same", "strict", "strict-top-2", "alm")


@pytest.mark.parametrize("sides", ["student", "teacher", "both"])
@pytest.mark.parametrize(
    ("name", "top_k"), [*((name, None) for name in sorted(SAME_TOKENIZER)), *((name, 4) for name in WITH_TOP_K_SIGNAL)]
)
def test_minus_infinity_gives_a_finite_loss_and_gradient(name: str, sides: str, top_k: int | None) -> None:
    for seed in range(5):
        case = case_for(name, seed)
        if sides != "teacher":
            case = replace(case, student_logits=forbid(case.student_logits, [1, 3]))
        if sides != "student":
            case = replace(case, teacher_logits=forbid(case.teacher_logits, [1, 2, 3]))
        loss = SAME_TOKENIZER[name](case)
        term, grad = value_and_grad(loss, case.student_logits, case.signal(top_k=top_k), case.index())
        assert term.total.isfinite()
        assert grad.isfinite().all()
        # Of two or three common tokens a forbidden one may leave a single one, from which nothing is learnt.
        assert grad.abs().max() > 0 or name.startswith("strict")
        if sides != "teacher":
            assert grad[..., [1, 3]].eq(0).all()


def test_a_forbidden_token_leaves_the_gradient_of_the_others() -> None:
    """d/dz of -sum p log q, with q the softmax over what is left: (mass of p that q can hold) * q - p."""
    case = same_tokenizer_case(1)
    logits = forbid(case.student_logits, [2])
    index = case.index()
    _, grad = value_and_grad(PKL(case.projection), logits, case.signal(), index)
    q = logits[..., :7].softmax(-1).flatten(0, 1)[index.student_rows]
    p = case.teacher_logits[..., :7].softmax(-1).flatten(0, 1)[index.teacher_rows]
    held = 1 - p[:, 2:3]
    expected = (held * q - p).index_fill(1, torch.tensor([2]), 0.0)
    torch.testing.assert_close(grad.flatten(0, 1)[index.student_rows][:, :7], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("merge", ["chain", "first"])
def test_a_probability_below_the_smallest_float_keeps_its_value_and_gradient(merge: str) -> None:
    """e^-300 is 0 in float32, its logarithm is not; projecting in probabilities would lose both."""
    case = same_tokenizer_case(1).to(torch.float32)
    logits = case.student_logits.clone()
    logits[..., 0] -= 300
    index, signal = case.index(), case.signal()
    term, grad = value_and_grad(PKL(case.projection, merge), logits, signal, index)
    double = case.to(torch.float64)
    exact, exact_grad = value_and_grad(PKL(case.projection, merge), logits.double(), double.signal(), index)
    assert exact.total > 100
    torch.testing.assert_close(term.total.double(), exact.total, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-4, atol=1e-6)
    assert grad.flatten(0, 1)[index.student_rows, 0].lt(0).all()


def test_a_chunk_whose_teacher_sees_nothing_reachable_counts_but_weighs_nothing() -> None:
    case = random_case(6)
    logits = torch.full_like(case.teacher_logits, float("-inf"))
    logits[..., case.sizes[1] - 1] = 0.0  # the token W does not reach
    term, grad = value_and_grad(
        PKL(case.projection, "first"), case.student_logits, replace(case, teacher_logits=logits).signal(), case.index()
    )
    assert term.total == 0
    assert grad.eq(0).all()
    assert term.metrics["uncovered_mass"] == term.count == case.index().n_chunks


# Path-KL plans on the host: with the index left there, it reads nothing back either.
@pytest.mark.parametrize("name", [*sorted(SAME_TOKENIZER), "p-kl-top-k-signal"])
def test_no_loss_reads_a_value_back_from_the_device(name: str) -> None:
    """Meta tensors have shapes and no values: an .item(), or a shape that depends on one, raises there."""
    case = case_for(name, 7)
    is_top_k = name == "p-kl-top-k-signal"
    loss = PKL(case.projection) if is_top_k else SAME_TOKENIZER[name](case)
    signal = case.signal(top_k=4 if is_top_k else None)
    leaf = case.student_logits.to("meta").requires_grad_()
    index = case.index() if name == "path-kl" else case.index().to("meta")
    term = loss.to("meta")(leaf, on_meta(signal), index)
    term.mean().backward()
    assert leaf.grad.shape == leaf.shape


def on_meta(signal: TeacherSignal) -> TeacherSignal:
    held = {f.name: getattr(signal, f.name) for f in fields(signal)}
    return replace(signal, **{name: x.to("meta") for name, x in held.items() if isinstance(x, torch.Tensor)})


def test_metrics_carry_no_gradient() -> None:
    case = random_case(8)
    for name in LOSSES:
        loss: Loss = LOSSES[name](case)
        term = loss(case.student_logits.clone().requires_grad_(), case.signal(), case.index())
        assert term.total.requires_grad
        assert not any(metric.requires_grad for metric in term.metrics.values())


def test_the_teacher_gets_no_gradient() -> None:
    case = random_case(9)
    leaf = case.teacher_logits.clone().requires_grad_()
    for top_k in (None, 3):
        assert not replace(case, teacher_logits=leaf).signal(top_k=top_k).log_probs.requires_grad


def test_the_index_may_come_in_any_chunk_order() -> None:
    case = random_case(10)
    reordered = replace(case, chunks=tuple(chunks[::-1] for chunks in case.chunks))
    for name in LOSSES:
        loss = LOSSES[name](case)
        totals = [loss(case.student_logits, case.signal(), c.index()).total for c in (case, reordered)]
        torch.testing.assert_close(*totals, rtol=1e-12, atol=1e-12)
    assert isinstance(reordered.index(), ChunkIndex)
