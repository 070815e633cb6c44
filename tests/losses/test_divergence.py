"""KL with its stated answers at zero, and the sorted distance."""

from __future__ import annotations

from math import log

import pytest
import torch

from xtoken.losses.divergence import LOG_OF_ZERO, kl_divergence, sorted_l1


def both(p: list[float], q: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and log q, differentiable."""
    return tuple(torch.tensor(x, dtype=torch.float64).log().requires_grad_() for x in (p, q))


def test_zero_log_zero_is_zero() -> None:
    log_p, log_q = both([0.5, 0.5, 0.0, 0.0], [0.25, 0.5, 0.25, 0.0])
    value = kl_divergence(log_p, log_q)
    value.backward()
    assert value.item() == pytest.approx(0.5 * log(2))
    # d/d log q = -p; d/d log p = p (log p/q + 1).
    torch.testing.assert_close(log_q.grad, torch.tensor([-0.5, -0.5, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(log_p.grad, torch.tensor([0.5 * (log(2) + 1), 0.5, 0, 0], dtype=torch.float64))


def test_an_impossible_token_counts_a_hundred_nats_and_has_no_gradient() -> None:
    log_p, log_q = both([0.5, 0.5], [1.0, 0.0])
    value = kl_divergence(log_p, log_q)
    value.backward()
    assert value.item() == pytest.approx(0.5 * log(0.5) + 0.5 * (log(0.5) - LOG_OF_ZERO))
    assert log_q.grad.tolist() == [-0.5, 0.0]


def test_the_floor_touches_exact_zeros_only() -> None:
    log_p, log_q = torch.zeros(1), torch.tensor([-500.0])
    assert kl_divergence(log_p, log_q) == 500


def test_gradient_of_both_sides() -> None:
    generator = torch.Generator().manual_seed(1)
    log_p, log_q = (
        torch.randn(3, 5, dtype=torch.float64, generator=generator).log_softmax(-1).requires_grad_() for _ in "pq"
    )
    assert torch.autograd.gradcheck(kl_divergence, (log_p, log_q))


def test_sorted_l1_pads_the_shorter_with_zeros() -> None:
    p, q = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.2, 0.2, 0.6]])
    torch.testing.assert_close(sorted_l1(p, q)[0], torch.tensor([0.3 + 0.1 + 0.2]))
    torch.testing.assert_close(sorted_l1(q, p)[0], torch.tensor([0.3 + 0.1 + 0.2]))


def test_sorted_l1_with_an_empty_side() -> None:
    torch.testing.assert_close(sorted_l1(torch.zeros(2, 0), torch.tensor([[0.5], [0.2]]))[0], torch.tensor([0.5, 0.2]))


def test_sorted_l1_ignores_order() -> None:
    p = torch.tensor([0.1, 0.2, 0.7])
    assert sorted_l1(p, p[[2, 0, 1]])[0] == 0
