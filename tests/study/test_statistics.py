"""Intervals and verdicts, against scipy and against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xtoken.errors import XTokenError
from xtoken.study.measures import MEASURES
from xtoken.study.statistics import check_scipy, compare, mean_interval

LOWER, HIGHER = MEASURES["bits_per_byte"], MEASURES["exact_answers"]


def test_an_interval_by_hand() -> None:
    """Of 1, 2, 3, 4, 5: mean 3, s = sqrt(2.5), t(0.975, 4) = 2.7764451, so 3 -+ 2.7764451 * sqrt(2.5 / 5)."""
    found = mean_interval([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.low == pytest.approx(3 - 2.7764451 * 0.70710678, abs=1e-6)
    assert found.high == pytest.approx(3 + 2.7764451 * 0.70710678, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_an_interval_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n).tolist()
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.n == n


def test_one_value_has_no_interval() -> None:
    found = mean_interval([2.5])
    assert (found.mean, found.low, found.high, found.n) == (2.5, None, None, 1)


def test_a_difference_is_paired_by_seed() -> None:
    """Seeds apart by far more than the methods are: paired, the difference is certain all the same."""
    other = {0: 1.0, 1: 5.0, 2: 9.0}
    one = {2: 9.11, 0: 1.1, 1: 5.09}
    found = compare(LOWER, one, other)
    expected = stats.ttest_rel([1.1, 5.09, 9.11], [1.0, 5.0, 9.0]).confidence_interval()
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(0.1)
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))
    assert found.verdict == "worse"


@pytest.mark.parametrize(
    ("measure", "shift", "verdict"),
    [(LOWER, -1.0, "better"), (LOWER, 1.0, "worse"), (HIGHER, 1.0, "better"), (HIGHER, -1.0, "worse")],
)
def test_which_way_is_better_is_the_measures(measure: object, shift: float, verdict: str) -> None:
    other = {0: 0.0, 1: 1.0, 2: 2.0}
    one = {seed: value + shift + 0.01 * seed for seed, value in other.items()}
    found = compare(measure, one, other)  # type: ignore[arg-type]
    assert found.verdict == verdict
    mean, low, high = found.improvement
    assert low is not None
    assert high is not None
    assert low < mean < high
    assert (low > 0) == (verdict == "better")


def test_an_interval_with_0_in_it_decides_nothing() -> None:
    assert compare(LOWER, {0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 1.0, 2: 3.1}).verdict == "undecided"
    assert compare(LOWER, {0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).verdict == "undecided"  # equal: [0, 0]


def test_one_seed_decides_nothing() -> None:
    assert compare(LOWER, {0: 1.0}, {0: 9.0}).verdict == "undecided"


def test_seeds_of_one_side_are_left_out_and_named() -> None:
    found = compare(LOWER, {0: 1.0, 1: 2.0, 5: 100.0}, {0: 2.0, 1: 3.0, 7: -100.0})
    assert (found.seeds, found.left_out) == ((0, 1), (5, 7))
    assert found.difference is not None
    assert found.difference.mean == -1.0


def test_no_common_seed_is_no_difference() -> None:
    found = compare(LOWER, {0: 1.0}, {1: 1.0})
    assert (found.difference, found.seeds, found.left_out, found.verdict) == (None, (), (0, 1), "undecided")


def test_without_scipy_a_study_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    check_scipy()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(XTokenError, match="need scipy, which is not installed: pip install"):
        check_scipy()
