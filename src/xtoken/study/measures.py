"""The measures of a study: what each is called, its unit, and which way is better.

Type: `Measure`. A share is told in points (hundredths) in sentences and kept in [0, 1] in files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MEASURES", "OF_TEXT", "Measure"]


@dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes:
        name: its name in files.
        direction: which way is better.
        unit: of the values in files.
        said: what follows a number in a sentence: `points of exact answers`.
        scale: what a value is multiplied by to be said so.
        digits: after the point, in a sentence.
    """

    name: str
    direction: Literal["lower", "higher"]
    unit: str
    said: str
    scale: float = 1.0
    digits: int = 3

    @property
    def sign(self) -> int:
        """What a difference is multiplied by so that positive is better."""
        return 1 if self.direction == "higher" else -1

    def number(self, value: float) -> str:
        """A value as sentences have it, without its unit."""
        return f"{value * self.scale:.{self.digits}f}"


_ALL = (
    Measure("bits_per_byte", "lower", "bits per byte", "bits per byte"),
    Measure("bits_per_byte/numerals", "lower", "bits per byte", "bits per byte on numerals"),
    Measure("bits_per_byte/words", "lower", "bits per byte", "bits per byte on words"),
    Measure("teacher_kl", "lower", "nats", "nats of KL to the teacher"),
    Measure("teacher_kl/numerals", "lower", "nats", "nats of KL to the teacher on numerals"),
    Measure("exact_answers", "higher", "share", "points of exact answers", scale=100, digits=1),
    Measure("answer_kl", "lower", "nats", "nats of KL to the teacher on answers"),
)
MEASURES = {measure.name: measure for measure in _ALL}
OF_TEXT = tuple(name for name in MEASURES if name.startswith(("bits_per_byte", "teacher_kl")))
