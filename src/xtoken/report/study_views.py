"""What the page of a study and its figures both show, worked out once: trade-offs, the sweep, time."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from xtoken.report.study_folder import (
    Comparison,
    Measure,
    Method,
    StudyFolder,
    Summary,
    SweptValue,
    variant_series,
)
from xtoken.study.questions import Claim

__all__ = [
    "TRADE_OFFS",
    "ClaimRow",
    "Joint",
    "Point",
    "Swept",
    "Time",
    "Weighed",
    "claim_rows",
    "ends",
    "joints",
    "swept",
    "swept_values",
    "times",
    "trade_off",
    "weighed",
    "weighings",
    "within",
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


class Weighed(NamedTuple):
    """A method by each KD weight it was run at.

    `own` is the weight that it has without a variant; `means` are by variant, "" for none, over the `seeds` that all of
    them have, so that they compare; `best` is the best of them, its own where several are.
    """

    method: Method
    own: str
    seeds: int
    means: dict[str, float]
    best: str


def trade_off(study: StudyFolder, pair: str, x: str, y: str) -> dict[Method, Point]:
    """The methods that have both measures."""
    across, up = study.summary(pair, x), study.summary(pair, y)
    return {method: Point(across[method], up[method]) for method in across if method in up}


def within(means: Iterable[float]) -> tuple[float, float]:
    """The ends of a trade-off's axis: the means and a quarter of their span to each side.

    Intervals do not count, and are cut at the edge: those of two seeds would leave the means in one spot.
    """
    there = list(means)
    low, high = min(there), max(there)
    more = (high - low) / 4 or abs(high) / 10 or 1.0
    return low - more, high + more


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


def weighings(study: StudyFolder) -> dict[str, str]:
    """The variants that change what the teachers' sum is multiplied by, with what they make of it."""
    variants = study.settings.get("variants") or ()
    found = {str(v.get("name")): _kd_weight(v.get("set")) for v in variants}
    return {name: weight for name, weight in found.items() if weight is not None}


def weighed(study: StudyFolder, pair: str, measure: Measure) -> list[Weighed]:
    """The methods that were run at several KD weights on a pair, in the study's order."""
    values = _by_seed(study, pair, measure.name)
    changing = weighings(study)
    found = []
    for method in study.methods:
        variants = [m.variant for m in study.methods if m.base == method.base and m.variant in changing]
        there = [name for name in ("", *variants) if Method(method.base, name) in values]
        if method.variant or len(there) < 2:
            continue
        rows = {name: values[Method(method.base, name)] for name in there}
        seeds = set.intersection(*(set(row) for row in rows.values()))
        if seeds:
            means = {name: statistics.fmean(row[seed] for seed in sorted(seeds)) for name, row in rows.items()}
            best = max(means, key=lambda name: measure.improvement(means[name]))
            found.append(Weighed(method, _own_weight(study, pair, method), len(seeds), means, best))
    return found


def _by_seed(study: StudyFolder, pair: str, measure: str) -> dict[Method, dict[str, float]]:
    """A measure of the main stage, by method and seed."""
    found: dict[Method, dict[str, float]] = {}
    for r in study.results:
        if (r.pair, r.measure, r.stage) == (pair, measure, "main"):
            found.setdefault(r.method, {})[r.seed] = r.value
    return found


def _own_weight(study: StudyFolder, pair: str, method: Method) -> str:
    """The weight that a method has on a pair: the study's settings, under the pair's, under its own."""
    here = (study.settings.get("pairs") or {}).get(pair) or {}
    own = (study.settings.get("methods") or {}).get(method.base) or {}
    for settings in (own, here.get("set"), study.settings.get("base")):
        if (weight := _kd_weight(settings)) is not None:
            return weight
    return "auto"


def _kd_weight(settings: object) -> str | None:
    """`loss.kd_weight` among settings as study.yaml has them; None where they do not say."""
    loss: Any = settings.get("loss") if isinstance(settings, Mapping) else None
    weight = loss.get("kd_weight") if isinstance(loss, Mapping) else None
    return None if weight is None else str(weight)


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
