"""-inf as a value, in sums and their gradients."""

from __future__ import annotations

import pytest
import torch

from xtoken.losses.logspace import log_normalise, log_sum, segment_ids, segment_log_sum

INF = float("inf")
LOG_PROBS = torch.tensor([[-1.0, -INF, -200.0], [-INF, -INF, -INF], [-300.0, -301.0, -INF]], dtype=torch.float64)


def gradient(function, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    torch.where(out.isneginf(), 0, out).sum().backward()
    return leaf.grad


def test_log_sum_agrees_with_torch_where_there_is_mass() -> None:
    torch.testing.assert_close(log_sum(LOG_PROBS), LOG_PROBS.logsumexp(-1))


@pytest.mark.parametrize("function", [log_sum, log_normalise])
def test_no_mass_is_minus_infinity_with_gradient_zero(function) -> None:
    assert function(LOG_PROBS)[1].isneginf().all()
    grad = gradient(function, LOG_PROBS)
    assert grad.isfinite().all()
    assert grad[1].eq(0).all()


def test_normalised_rows_sum_to_one() -> None:
    assert log_normalise(LOG_PROBS)[[0, 2]].exp().sum(-1).tolist() == pytest.approx([1, 1])


def test_segment_ids() -> None:
    assert segment_ids(torch.tensor([0, 2, 2, 5]), 5).tolist() == [0, 0, 2, 2, 2]


@pytest.mark.parametrize("dim", [0, 1])
def test_segment_log_sum_is_the_log_of_the_summed_probabilities(dim: int) -> None:
    segments = torch.tensor([2, 0, 2])
    got = segment_log_sum(LOG_PROBS, segments, 4, dim)
    for segment in range(4):
        members = LOG_PROBS.index_select(dim, torch.nonzero(segments == segment).squeeze(1))
        expected = members.exp().sum(dim).log()  # float64 holds e^-301
        torch.testing.assert_close(got.select(dim, segment), expected)
    assert gradient(lambda x: segment_log_sum(x, segments, 4, dim), LOG_PROBS).isfinite().all()


def test_segment_log_sum_does_not_underflow() -> None:
    rows = torch.tensor([[-500.0], [-501.0]])
    got = segment_log_sum(rows, torch.tensor([0, 0]), 1, 0)
    torch.testing.assert_close(got, rows.logsumexp(0, keepdim=True))
    grad = gradient(lambda x: segment_log_sum(x, torch.tensor([0, 0]), 1, 0), rows)
    torch.testing.assert_close(grad, rows.softmax(0))
