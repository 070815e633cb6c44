"""Means and differences over seeds, with 95 % intervals of Student's t.

Types: `Interval`, `Comparison`. Laws: a difference is paired by seed, so what a seed does to both sides is not in it;
seeds that one side alone has are left out and named; better or worse is said only where the interval leaves out 0.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Literal

from xtoken.errors import XTokenError
from xtoken.study.measures import Measure

__all__ = ["CONFIDENCE", "Comparison", "Interval", "Verdict", "check_scipy", "compare", "mean_interval"]

CONFIDENCE = 0.95
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    Attributes:
        mean: of the values.
        low, high: the ends of the 95 % interval; None with one value, which says nothing of the spread.
        n: how many values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """One method against another, by one measure.

    Attributes:
        seeds: those that both have, in order.
        left_out: those that one alone has.
        difference: of the first from the second, in units of the measure; None without a common seed.
        verdict: on the first.
    """

    measure: Measure
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    difference: Interval | None
    verdict: Verdict

    @property
    def improvement(self) -> tuple[float, float | None, float | None]:
        """The difference so turned that positive is better: its mean, and the lower and upper end of its interval.

        Raises:
            ValueError: there is no difference.
        """
        if self.difference is None:
            raise ValueError("no common seed")
        low, high, sign = self.difference.low, self.difference.high, self.measure.sign
        ends = [None if end is None else sign * end for end in ((low, high) if sign > 0 else (high, low))]
        return sign * self.difference.mean, ends[0], ends[1]


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean and its 95 % interval: mean -+ t(0.975, n - 1) s / sqrt(n), s the standard deviation with n - 1.

    Args:
        values: at least one.
    """
    n, mean = len(values), fmean(values)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = _t_quantile(n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def compare(measure: Measure, one: Mapping[int, float], other: Mapping[int, float]) -> Comparison:
    """One method against another over the seeds that both have.

    Args:
        measure: what the values are.
        one, other: values by seed.
    """
    common = tuple(sorted(one.keys() & other.keys()))
    left_out = tuple(sorted(one.keys() ^ other.keys()))
    if not common:
        return Comparison(measure, (), left_out, None, "undecided")
    difference = mean_interval([one[seed] - other[seed] for seed in common])
    return Comparison(measure, common, left_out, difference, _verdict(difference, measure.sign))


def _verdict(difference: Interval, sign: int) -> Verdict:
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "undecided"
    return "better" if sign * difference.mean > 0 else "worse"


def check_scipy() -> None:
    """Looks for the package that intervals need, before a study is run that would end without them.

    Raises:
        XTokenError: it is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise XTokenError("a study's intervals need scipy, which is not installed: pip install 'scipy>=1.11'")


@cache
def _t_quantile(degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))
