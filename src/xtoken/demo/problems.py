"""The demo's text: short word problems whose answer is a number of two or three digits.

A problem introduces a person, says what is sold by the box and how much a box holds, and then tells of two orders of a
box and some more: how many in all? A person always has the same trade and town, and a box of pencils always holds 128.
What there is to learn is a table of people, a table of boxes, and to add one of five steps to each of its numbers.
Training text is noisy: a share of the answers written down are wrong, while `Problem.answer` stays right.

Law: a seed gives the same problems on every machine; each text is its prompt, the written answer and a full stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

__all__ = ["BOXES", "PEOPLE", "Life", "Problem", "problems"]

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A word problem.

    Attributes:
        prompt: all of it up to the last order's answer; it ends in a space.
        text: the prompt, the answer as written down (right or wrong), and a full stop.
        answer: the right answer to the last order, in digits.
    """

    prompt: str
    text: str
    answer: str


@dataclass(frozen=True)
class Life:
    """What is known of a person."""

    trade: str
    town: str


FIRST_NAMES = (
    "Ana", "Ben", "Carla", "Dario", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kemal", "Lucia",
    "Mateo", "Nadia", "Oskar", "Priya", "Rosa", "Samir", "Tilda", "Umar", "Vera", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip
SURNAMES = (
    "Adler", "Baker", "Costa", "Demir", "Evans", "Fischer", "Garcia", "Hansen",
    "Ivanov", "Jensen", "Kaya", "Lopez", "Moreau", "Novak", "Okafor", "Silva",
)  # fmt: skip
TRADES = (
    "baker", "cook", "dancer", "driver", "farmer", "guard", "judge", "lawyer",
    "nurse", "painter", "pilot", "plumber", "potter", "singer", "tailor", "teacher",
)  # fmt: skip
TOWNS = (
    "Boston", "Cairo", "Delhi", "Dublin", "Havana", "Jakarta", "Kyoto", "Lagos",
    "Lima", "Milan", "Oslo", "Quito", "Seoul", "Tunis", "Vienna", "Zurich",
)  # fmt: skip

# How many a box holds: invented, of two and three digits, and a step more stays below 1,000.
BOXES = {
    "apples": 84, "beads": 518, "buttons": 286, "candles": 36, "cards": 52, "coins": 297, "lemons": 163,
    "marbles": 347, "nails": 444, "onions": 41, "pencils": 128, "plums": 179, "screws": 406, "shells": 73,
    "stamps": 265, "walnuts": 532,
}  # fmt: skip
# Steps that mostly change the leading digit, since what P-KL sees of a number is mostly its first digit.
STEPS = (50, 100, 200, 300, 400)

# A thing is named before its number, so that a good model is sure of every number but the step.
OPENINGS = (
    "{person}, a {trade} from {town}, sells {things} by the box of {box}.",
    "{person} is a {trade} in {town} and has {things} in boxes of {box}.",
    "{person} works as a {trade} in {town}, where a box of {things} holds {box}.",
    "In {town} the {trade} {person} packs {things} into boxes of {box}.",
)
ORDERS = (
    "{friend} buys a box and {step} more, in all ",
    "{friend} orders a box and {step} more, in all ",
    "Then {friend} needs a box and {step} more, in all ",
    "A box and {step} more go to {friend}, in all ",
)

ORDERS_IN_A_PROBLEM = 2  # more numbers in a text of one length, so more to be learnt from it
WRONG_ANSWERS = range(10, 1000)


def problems(seed: int, n: int, noise: float = 0.0) -> list[Problem]:
    """Word problems, the same for the same seed.

    Args:
        seed: of the choice of people, things, steps and wordings.
        n: how many.
        noise: the probability that an answer is wrong, in [0, 1]; a wrong one is drawn evenly from 10 to 999.
    """
    rng = Random(seed)
    return [_problem(rng, noise) for _ in range(n)]


def _pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options. Python promises the same `random()` for a seed in every release, and nothing of `choice`."""
    return options[int(rng.random() * len(options))]


def _lives() -> dict[str, Life]:
    rng = Random(0)
    names = [f"{first} {last}" for first in FIRST_NAMES for last in SURNAMES]
    return {name: Life(_pick(rng, TRADES), _pick(rng, TOWNS)) for name in names}


PEOPLE = _lives()
_NAMES, _THINGS = tuple(PEOPLE), tuple(BOXES)


def _problem(rng: Random, noise: float) -> Problem:
    person, things = _pick(rng, _NAMES), _pick(rng, _THINGS)
    life, box = PEOPLE[person], BOXES[things]
    prompt = _pick(rng, OPENINGS).format(person=person, trade=life.trade, town=life.town, things=things, box=box)
    text = prompt
    for _ in range(ORDERS_IN_A_PROBLEM):
        friend, step = _pick(rng, FIRST_NAMES), _pick(rng, STEPS)
        prompt = text + " " + _pick(rng, ORDERS).format(friend=friend, step=step)
        answer = box + step
        wrong = _pick(rng, [number for number in WRONG_ANSWERS if number != answer])
        text = f"{prompt}{wrong if rng.random() < noise else answer}."
    return Problem(prompt, text, str(answer))
