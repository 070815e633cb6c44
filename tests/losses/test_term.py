"""A term is a sum and a count, and adds."""

from __future__ import annotations

import torch

from xtoken.losses import LossTerm


def test_of_sums_values_and_metrics() -> None:
    values = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    term = LossTerm.of(values, mass=values / 2)
    assert (term.total, term.count, term.metrics["mass"]) == (7, 3, 3.5)
    assert term.count.dtype == torch.int64
    assert not term.metrics["mass"].requires_grad


def test_adding_keeps_metrics_of_either_side() -> None:
    a = LossTerm.of(torch.ones(2), x=torch.ones(2), y=torch.ones(2))
    b = LossTerm.of(torch.ones(3), y=torch.ones(3), z=torch.ones(3))
    both = a + b
    assert (both.total, both.count) == (5, 5)
    assert {name: value.item() for name, value in both.metrics.items()} == {"x": 2, "y": 5, "z": 3}


def test_mean_divides_by_the_count() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    LossTerm.of(values).mean().backward()
    assert values.grad.tolist() == [0.5, 0.5]


def test_mean_of_nothing_is_zero_with_a_gradient() -> None:
    values = torch.zeros(0, requires_grad=True)
    mean = LossTerm.of(values).mean()
    mean.backward()
    assert mean == 0
    assert values.grad.shape == (0,)
