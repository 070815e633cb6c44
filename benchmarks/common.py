"""What every benchmark shares: a figure with its limit, and ratios measured side by side in one process.

A shared machine drifts by tens of percent within a minute, so no time is compared with one from another run: the
contenders take turns, and what is reported is the median of the ratios of neighbouring turns.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Figure", "Timing", "alternate", "ratio"]

Work = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: what was measured.
        value: the measurement, a ratio unless `unit` says otherwise.
        limit: what it must not pass.
        unit: of both; empty for a ratio.
        at_least: the limit is a floor and not a ceiling.
        note: the times or sizes behind it.
    """

    name: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False
    note: str = ""

    @property
    def passes(self) -> bool:
        """Whether the limit is kept."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Timing:
    """Wall seconds of one contender, a turn each."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def alternate(contenders: Sequence[Work], turns: int, warm_up: int = 1) -> list[Timing]:
    """Runs the contenders in turn, A B A B ..., and times each turn.

    Args:
        contenders: called without arguments; what they return is dropped before the next one starts.
        turns: counted turns of each.
        warm_up: turns before that are not counted.
    """
    seconds: list[list[float]] = [[] for _ in contenders]
    for turn in range(warm_up + turns):
        for work, taken in zip(contenders, seconds, strict=True):
            gc.collect()
            begin = time.perf_counter()
            work()
            if turn >= warm_up:
                taken.append(time.perf_counter() - begin)
    return [Timing(tuple(taken)) for taken in seconds]


def ratio(ours: Timing, theirs: Timing) -> float:
    """Median over the turns of our time over theirs."""
    return statistics.median(a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True))
