"""What the data say, in plain sentences: of every comparison, and of the study's questions.

Types: `Claim`, `Answer`. Laws: a question holds where all of its claims do, and fails where one does; a claim that the
interval does not settle is undecided, never failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from xtoken.study.config import ClaimConfig, QuestionConfig
from xtoken.study.measures import MEASURES
from xtoken.study.statistics import Comparison, compare

__all__ = ["Answer", "Audit", "Claim", "answer", "sentence"]

Verdict = Literal["holds", "fails", "undecided"]
# The values by seed of a method on a pair, by a measure.
Values = Callable[[str, str, str], Mapping[int, float]]


@dataclass(frozen=True)
class Audit:
    """What the audit says of a pair.

    Attributes:
        recommended_loss: p-kl, h-kl or same.
        reason: why.
    """

    recommended_loss: str
    reason: str


@dataclass(frozen=True)
class Claim:
    """A claim and what became of it; it says of the method `left` that it is, or is not, better than `right`."""

    sentence: str
    verdict: Verdict
    pair: str
    measure: str
    left: str
    right: str
    difference: float | None
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Answer:
    """A question's answer."""

    id: str
    asks: str
    verdict: Verdict
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class _Known:
    """What claims are judged by; see `answer`."""

    values: Values
    label: Callable[[str], str]
    audits: Mapping[str, Audit]
    loss_of: Callable[[str], str]


def sentence(pair: str, left: str, right: str, found: Comparison) -> str:
    """One comparison in words.

    Args:
        pair: where.
        left, right: what the two methods are called.
        found: the first against the second.
    """
    measure = found.measure
    if found.difference is None:
        return f"On {pair} {left} and {right} have no seed in common for {measure.said}{_missing(found)}."
    mean, low, high = found.improvement
    if low is None or high is None:
        way = "better" if mean > 0 else "worse" if mean < 0 else "neither better nor worse"
        size = f" by {measure.number(abs(mean))} {measure.said}" if mean else f" by {measure.said}"
        return (
            f"On {pair} {left} is {way} than {right}{size} with the one seed they have in common, which gives no "
            f"interval{_missing(found)}."
        )
    n = len(found.seeds)
    size = f"{measure.number(abs(mean))} {measure.said}"
    if found.verdict == "undecided":
        way = f"behind by {size}" if mean < 0 else f"ahead by {size}" if mean > 0 else f"level in {measure.said}"
        return (
            f"On {pair} it is undecided whether {left} is better than {right}: it is {way} (95 % interval of "
            f"its lead {measure.number(low)} to {measure.number(high)}, {n} seeds){_missing(found)}."
        )
    ends = (low, high) if found.verdict == "better" else (-high, -low)
    interval = f"95 % interval {measure.number(ends[0])} to {measure.number(ends[1])}, {n} seeds"
    return f"On {pair} {left} is {found.verdict} than {right} by {size} ({interval}){_missing(found)}."


def _missing(found: Comparison) -> str:
    if not found.left_out:
        return ""
    plural = "s" if len(found.left_out) > 1 else ""
    return f"; seed{plural} {', '.join(map(str, found.left_out))} left out, which one side alone has"


def answer(
    question: QuestionConfig,
    values: Values,
    label: Callable[[str], str],
    audits: Mapping[str, Audit],
    loss_of: Callable[[str], str],
) -> Answer:
    """What the data say to a question.

    Args:
        question: from the study.
        values: `values(pair, full method name, measure)`, by seed.
        label: what a method is called.
        audits: by pair; a pair may be missing.
        loss_of: the loss of a method's first teacher.
    """
    known = _Known(values, label, audits, loss_of)
    claims = tuple(_claim(claim, known) for claim in question.claims)
    return Answer(question.id, question.asks, _of_all([claim.verdict for claim in claims]), claims)


def _of_all(verdicts: Sequence[Verdict]) -> Verdict:
    if "fails" in verdicts:
        return "fails"
    return "undecided" if "undecided" in verdicts else "holds"


def _claim(asked: ClaimConfig, known: _Known) -> Claim:
    if asked.audit_picks is not None:
        return _audited(asked, asked.audit_picks, known)
    left, right = asked.methods
    label, found = known.label, _compared(asked, left, right, known.values)
    said = sentence(asked.pair, label(left), label(right), found)
    if asked.no_better is None:
        return _made(asked, left, right, found, _better(found), said)
    margin, measure = asked.margin or 0.0, found.measure
    verdict = _no_better(found, margin)
    by = f" by {measure.number(margin)} {measure.said} or more" if margin else f" by {measure.said}"
    rest = f"better than {label(right)}{by}"
    judged = {
        "holds": f"{label(left)} is not {rest}.",
        "fails": f"{label(left)} is {rest}.",
        "undecided": f"Whether {label(left)} is {rest} is undecided.",
    }
    return _made(asked, left, right, found, verdict, f"{judged[verdict]} {said}")


def _compared(asked: ClaimConfig, left: str, right: str, values: Values) -> Comparison:
    one, other = (values(asked.pair, name, asked.measure) for name in (left, right))
    return compare(MEASURES[asked.measure], one, other)


def _better(found: Comparison) -> Verdict:
    verdicts: dict[str, Verdict] = {"better": "holds", "worse": "fails"}
    return verdicts.get(found.verdict, "undecided")


def _no_better(found: Comparison, margin: float) -> Verdict:
    if found.difference is None:
        return "undecided"
    _, low, high = found.improvement
    if low is None or high is None:
        return "undecided"
    return "holds" if high < margin else "fails" if low > margin else "undecided"


def _audited(asked: ClaimConfig, methods: Sequence[str], known: _Known) -> Claim:
    values, label, audit = known.values, known.label, known.audits.get(asked.pair)
    picked = [] if audit is None else [name for name in methods if known.loss_of(name) == audit.recommended_loss]
    if audit is None or len(picked) != 1:
        found = _compared(asked, methods[0], methods[1], values)
        why = "is not known yet" if audit is None else f"is {audit.recommended_loss}, the loss of not just one of them"
        verdict: Verdict = "undecided" if audit is None else "fails"
        return _made(
            asked, methods[0], methods[1], found, verdict, f"What the audit recommends for {asked.pair} {why}."
        )
    left = picked[0]
    right = methods[1] if left == methods[0] else methods[0]
    found = _compared(asked, left, right, values)
    said = sentence(asked.pair, label(left), label(right), found)
    return _made(asked, left, right, found, _better(found), f"The audit picks {label(left)} ({audit.reason}). {said}")


def _made(asked: ClaimConfig, left: str, right: str, found: Comparison, verdict: Verdict, said: str) -> Claim:
    difference = found.difference
    mean, low, high = (None, None, None) if difference is None else (difference.mean, difference.low, difference.high)
    return Claim(said, verdict, asked.pair, asked.measure, left, right, mean, low, high, len(found.seeds))
