"""What is said of comparisons, and when a question holds, fails or is undecided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from xtoken.study.config import QuestionConfig
from xtoken.study.measures import MEASURES
from xtoken.study.questions import Answer, Audit, answer, sentence
from xtoken.study.statistics import compare

# By method, exact answers for three seeds: `good` is better than `bad`, `like-good` like `good`.
VALUES = {
    "good": {0: 0.50, 1: 0.61, 2: 0.55},
    "like-good": {0: 0.51, 1: 0.60, 2: 0.55},
    "bad": {0: 0.20, 1: 0.30, 2: 0.24},
    "lone": {0: 0.9},
}
PICKS_GOOD = {"p": Audit("good", "it is sound")}


def asked(*claims: dict[str, Any], audits: Mapping[str, Audit] = PICKS_GOOD) -> Answer:
    question = {"id": "a", "claims": [{"pair": "p", "measure": "exact_answers"} | claim for claim in claims]}
    return answer(
        QuestionConfig.model_validate(question),
        lambda pair, name, measure: VALUES.get(name, {}),
        str.upper,
        audits,
        lambda name: name,
    )


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ({"better": "good", "than": "bad"}, "holds"),
        ({"better": "bad", "than": "good"}, "fails"),
        ({"better": "good", "than": "like-good"}, "undecided"),
        ({"better": "good", "than": "lone"}, "undecided"),
        ({"better": "good", "than": "never run"}, "undecided"),
        ({"no_better": "good", "than": "like-good", "margin": 0.05}, "holds"),
        ({"no_better": "bad", "than": "good"}, "holds"),
        ({"no_better": "good", "than": "bad", "margin": 0.05}, "fails"),
        ({"no_better": "good", "than": "like-good", "margin": 0.001}, "undecided"),
        ({"no_better": "good", "than": "bad", "margin": 0.308}, "undecided"),
        ({"no_better": "good", "than": "lone"}, "undecided"),
        ({"no_better": "good", "than": "never run"}, "undecided"),
        ({"audit_picks": ["bad", "good"]}, "holds"),
        ({"audit_picks": ["good", "like-good"]}, "undecided"),
        ({"audit_picks": ["bad", "like-good"]}, "fails"),
    ],
)
def test_each_verdict(claim: dict[str, Any], verdict: str) -> None:
    found = asked(claim)
    assert [each.verdict for each in found.claims] == [verdict]
    assert found.verdict == verdict


def test_what_the_audit_picks_may_be_the_worse() -> None:
    assert asked({"audit_picks": ["bad", "good"]}, audits={"p": Audit("bad", "so")}).verdict == "fails"
    assert asked({"audit_picks": ["bad", "good"]}, audits={}).verdict == "undecided"


def test_a_question_holds_where_all_claims_do_and_fails_where_one_does() -> None:
    holds, fails = {"better": "good", "than": "bad"}, {"better": "bad", "than": "good"}
    undecided = {"better": "good", "than": "like-good"}
    assert asked(holds, holds).verdict == "holds"
    assert asked(holds, undecided).verdict == "undecided"
    assert asked(undecided, fails, holds).verdict == "fails"


def said(measure: str, one: str, other: str, values: dict[str, dict[int, float]] = VALUES) -> str:
    return sentence("p", one, other, compare(MEASURES[measure], values[one], values[other]))


def test_sentences() -> None:
    assert said("exact_answers", "good", "bad") == (
        "On p good is better than bad by 30.7 points of exact answers (95 % interval 29.2 to 32.1, 3 seeds)."
    )
    assert said("exact_answers", "bad", "good") == (
        "On p bad is worse than good by 30.7 points of exact answers (95 % interval 29.2 to 32.1, 3 seeds)."
    )
    assert said("bits_per_byte", "bad", "good").startswith("On p bad is better than good by 0.307 bits per byte (95 %")
    same = {"a": {0: 0.0, 1: 0.0}, "b": {0: 0.0, 1: 0.0}}
    assert "it is level in points of exact answers (95 % interval of its lead 0.0 to 0.0" in said(
        "exact_answers", "a", "b", same
    )
    low = {"a": {0: 1.0, 1: 1.3}, "b": {0: 1.1, 1: 1.1}}
    assert said("bits_per_byte", "a", "b", low) == (
        "On p it is undecided whether a is better than b: it is behind by 0.050 bits per byte (95 % interval of its "
        "lead -1.956 to 1.856, 2 seeds)."
    )


def test_what_is_missing_is_said() -> None:
    assert "gives no interval; seeds 1, 2 left out, which one side alone has." in said("exact_answers", "lone", "good")
    assert "have no seed in common" in sentence("p", "x", "y", compare(MEASURES["teacher_kl"], {0: 1.0}, {1: 1.0}))


def test_a_margin_is_told_in_the_units_of_the_sentence() -> None:
    (claim,) = asked({"no_better": "good", "than": "like-good", "margin": 0.05}).claims
    assert claim.sentence.startswith("GOOD is not better than LIKE-GOOD by 5.0 points of exact answers or more. On p")
    assert (claim.left, claim.right, claim.seeds) == ("good", "like-good", 3)
    (claim,) = asked({"no_better": "good", "than": "like-good", "margin": 0.001}).claims
    assert claim.sentence.startswith(
        "Whether GOOD is better than LIKE-GOOD by 0.1 points of exact answers or more is u"
    )
