"""An alignment read from its start to its end: chunks, and between them the gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xtoken.alignment.chunks import Alignment

__all__ = ["Segment", "segments"]

Span = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """A chunk or a gap.

    Attributes:
        student, teacher: the tokens [begin, end) of each side; of a gap one of them may be empty.
        chunk: the chunk's number in its alignment; None for a gap.
    """

    student: Span
    teacher: Span
    chunk: int | None


def segments(alignment: Alignment) -> Iterator[Segment]:
    """All tokens of both sides, each in one segment, in order."""
    s, t = 0, 0
    for number, (s0, s1, t0, t1) in enumerate(alignment.chunks.tolist()):
        if s0 > s or t0 > t:
            yield Segment((s, s0), (t, t0), None)
        yield Segment((s0, s1), (t0, t1), number)
        s, t = s1, t1
    ends = len(alignment.student_ids), len(alignment.teacher_ids)
    if ends > (s, t) or ends[1] > t:
        yield Segment((s, ends[0]), (t, ends[1]), None)
