"""Totals, counts and metrics add; so gradients do not depend on how a batch is cut."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch

from .cases import LOSSES, SAME_TOKENIZER, Case, random_case, same_tokenizer_case, value_and_grad


def pieces(case: Case, size: int) -> list[Case]:
    return [case.part(slice(b, b + size)) for b in range(0, case.batch, size)]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_batch_is_the_sum_of_its_parts(name: str, size: int) -> None:
    case = random_case(1, batch=4)
    loss = LOSSES[name](case)
    whole = loss(case.student_logits, case.signal(), case.index())
    parts = reduce(add, [loss(c.student_logits, c.signal(), c.index()) for c in pieces(case, size)])
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dict(parts.metrics), dict(whole.metrics), rtol=1e-12, atol=1e-12)
    assert parts.count == whole.count


@pytest.mark.parametrize("name", sorted(SAME_TOKENIZER))
def test_one_times_eight_and_eight_times_one_give_equal_gradients(name: str) -> None:
    """A model (one weight) under both schedules; each divides by the global count, as the trainer must."""
    case = same_tokenizer_case(2) if name == "same" else random_case(2, batch=8)
    loss = SAME_TOKENIZER[name](case)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*case.student_logits.shape[:2], 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(5, case.student_logits.shape[2], dtype=torch.float64, generator=generator).requires_grad_()
    count = case.index().n_chunks

    def gradient(size: int) -> torch.Tensor:
        grad = torch.zeros_like(weight)
        for part, states in zip(pieces(case, size), hidden.split(size), strict=True):
            total = loss(states @ weight, part.signal(), part.index()).total
            grad += torch.autograd.grad(total / count, weight)[0]
        return grad

    assert gradient(1).abs().max() > 1e-6
    torch.testing.assert_close(gradient(1), gradient(case.batch), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(SAME_TOKENIZER))
def test_scaling_the_loss_scales_the_gradient(name: str) -> None:
    case = same_tokenizer_case(3)
    loss = SAME_TOKENIZER[name](case)
    _, grad = value_and_grad(loss, case.student_logits, case.signal(), case.index())
    leaf = case.student_logits.clone().requires_grad_()
    (-2.5 * loss(leaf, case.signal(), case.index()).total).backward()
    torch.testing.assert_close(leaf.grad, -2.5 * grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(SAME_TOKENIZER))
def test_an_empty_batch_is_zero_and_keeps_its_gradient(name: str) -> None:
    """A rank without chunks still has to take part in the backward pass: a zero gradient, not none."""
    case = same_tokenizer_case(4)
    nothing = case.index().cat([])
    leaf = case.student_logits.clone().requires_grad_()
    term = SAME_TOKENIZER[name](case)(leaf, case.signal(), nothing)
    term.mean().backward()
    assert term.total == 0
    assert term.count == 0
    assert leaf.grad is not None
    assert leaf.grad.eq(0).all()
