"""Dynamic scaling and the sum over teachers."""

from __future__ import annotations

import pytest
import torch

from xtoken.errors import XTokenError
from xtoken.losses import dynamic_scale, weighted_sum


@pytest.mark.parametrize("distillation", [1e-6, 0.3, 40.0])
def test_the_total_is_twice_the_cross_entropy(distillation: float) -> None:
    ce, kd = torch.tensor(2.0), torch.tensor(distillation)
    assert (dynamic_scale(ce, kd) * kd + ce).item() == pytest.approx(4.0)


def test_the_factor_has_no_gradient() -> None:
    ce, kd = torch.tensor(2.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    (dynamic_scale(ce, kd) * kd + ce).backward()
    assert ce.grad == 1
    assert kd.grad == 4


def test_no_distillation_loss_gives_factor_one() -> None:
    ce, kd = torch.tensor(2.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    factor = dynamic_scale(ce, kd)
    (factor * kd + ce).backward()
    assert factor == 1
    assert kd.grad == 1


def test_a_negative_chained_loss_is_still_descended() -> None:
    assert dynamic_scale(torch.tensor(2.0), torch.tensor(-0.5)) == 4


def test_weighted_sum() -> None:
    means = [torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)]
    total = weighted_sum(means, [0.8, 0.2])
    total.backward()
    assert total.item() == pytest.approx(0.8 * 2 + 0.2 * 3)
    assert [mean.grad.item() for mean in means] == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize(
    ("n", "weights", "message"),
    [
        (2, [1.0], "2 teachers have 1 weights"),
        (0, [], "0 teachers"),
        (1, [-0.1], "at least 0"),
        (1, [float("nan")], "finite"),
        (1, [float("inf")], "finite"),
    ],
)
def test_weights_that_make_no_sense_are_refused(n: int, weights: list[float], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        weighted_sum([torch.tensor(1.0)] * n, weights)
