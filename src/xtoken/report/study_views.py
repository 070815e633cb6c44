"""What the page of a study and its figures both show, worked out once: trade-offs, the sweep, time."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from xtoken.report.study_folder import (
    Claim,
    Comparison,
    Measure,
    Method,
    StudyFolder,
    Summary,
    SweptValue,
    variant_series,
)

__all__ = [
    "TRADE_OFFS",
    "ClaimRow",
    "Joint",
    "Point",
    "Swept",
    "Time",
    "claim_rows",
    "ends",
    "joints",
    "swept",
    "swept_values",
    "times",
    "trade_off",
]

# How close the student comes to its teacher, what it learns of the text, and the task: two by two, since a method may
# gain in one and lose in another.
TRADE_OFFS = (
    ("teacher_kl", "bits_per_byte"),
    ("teacher_kl", "exact_answers"),
    ("bits_per_byte", "exact_answers"),
)


class Point(NamedTuple):
    """A method at two measures."""

    x: Summary
    y: Summary


class Joint(NamedTuple):
    """A line between two variants: along a swept number, or from a method to a variant of another kind."""

    start: Method
    end: Method
    along_a_number: bool


class Swept(NamedTuple):
    """A method's sweep: the measure's mean over the sweep's seeds by value, and the value the study then took."""

    method: Method
    means: dict[str, float]
    chosen: str | None


class Time(NamedTuple):
    """Seconds of a method's cells of the main stage, over all pairs."""

    method: Method
    cells: int
    mean: float
    total: float


class ClaimRow(NamedTuple):
    """A claim with the improvement of its left side over its right: the mean and the ends of its interval."""

    label: str
    claim: Claim
    ends: tuple[float, float, float]


def trade_off(study: StudyFolder, pair: str, x: str, y: str) -> dict[Method, Point]:
    """The methods that have both measures."""
    across, up = study.summary(pair, x), study.summary(pair, y)
    return {method: Point(across[method], up[method]) for method in across if method in up}


def joints(methods: Iterable[Method]) -> list[Joint]:
    """Which points of a trade-off belong together, among `methods`."""
    there = list(methods)
    series = variant_series(there)
    found = [Joint(a, b, True) for line in series for a, b in pairwise(line)]
    in_series = {method for line in series for method in line}
    single = [m for m in there if m.variant and m not in in_series and Method(m.base) in there]
    return found + [Joint(Method(m.base), m, False) for m in single]


def swept(study: StudyFolder, pair: str) -> list[Swept]:
    """Each method's sweep on a pair, in the study's order."""
    found: dict[Method, list[SweptValue]] = {}
    for row in study.sweep:
        if row.pair == pair:
            found.setdefault(row.method, []).append(row)
    order = {method: place for place, method in enumerate(study.methods)}
    return [
        Swept(m, {row.value: row.mean for row in found[m]}, next((row.value for row in found[m] if row.chosen), None))
        for m in sorted(found, key=lambda m: order.get(m, len(order)))
    ]


def swept_values(found: Iterable[Swept]) -> list[str]:
    """All values of a sweep: numbers in their order, other values as met."""
    values = list(dict.fromkeys(value for each in found for value in each.means))
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def times(study: StudyFolder) -> list[Time]:
    """How long each method's trainings took: from the tables, so that it is there where the cells are not kept."""
    seconds: dict[Method, dict[tuple[str, str], float]] = {}
    for r in study.results:
        if r.stage == "main" and r.seconds is not None:
            seconds.setdefault(r.method, {})[r.pair, r.seed] = r.seconds
    found = {m: list(cells.values()) for m, cells in seconds.items()}
    return [Time(m, len(found[m]), statistics.fmean(found[m]), sum(found[m])) for m in study.methods if m in found]


def claim_rows(study: StudyFolder, measure: Measure) -> list[ClaimRow]:
    """The claims on one measure that have a difference, in the questions' order."""
    return [
        ClaimRow(f"({question.id}) {_sides(study, claim)}", claim, ends)
        for question in study.questions
        for claim in question.claims
        if claim.measure == measure.name and (ends := _improvement(claim, measure)) is not None
    ]


def _sides(study: StudyFolder, claim: Claim) -> str:
    return " − ".join(study.label_of(side) for side in (claim.left, claim.right))


def _improvement(claim: Claim, measure: Measure) -> tuple[float, float, float] | None:
    """A claim's difference and the ends of its interval, turned so that more is better for its left side.

    None where nothing was measured; with one seed the ends are the difference itself.
    """
    if claim.difference is None:
        return None
    low = claim.difference if claim.low is None else claim.low
    high = claim.difference if claim.high is None else claim.high
    ends = sorted((measure.improvement(low), measure.improvement(high)))
    return measure.improvement(claim.difference), ends[0], ends[1]


def ends(row: Summary | Comparison) -> tuple[float, float, float]:
    """The mean and its interval, which is the mean itself with one seed.

    Raises:
        ValueError: a comparison without a difference; `StudyFolder.against` gives none.
    """
    mean = row.mean if isinstance(row, Summary) else row.difference
    if mean is None:
        raise ValueError(f"{row.method.name} and its baseline have no seed in common")
    return mean, mean if row.low is None else row.low, mean if row.high is None else row.high
