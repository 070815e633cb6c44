"""A text as two tokenizers cut it, as a report shows it: chunks and gaps as text, with what two models made of them.

Types: `AlignedText`, `Piece`, `Measured`, plain values only. `xtoken.report.reading` measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from xtoken.alignment import Alignment
from xtoken.alignment.segments import segments
from xtoken.shown import token_text
from xtoken.tokens import Vocabulary
from xtoken.tokens.classes import class_of

__all__ = ["AlignedText", "Expected", "Measured", "Piece", "aligned_text", "bits_per_byte"]

Expected = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Measured:
    """What both models made of a chunk.

    Attributes:
        kl: nats, by root at its first position.
        student_log_prob, teacher_log_prob: nats, of the chunk as the text has it.
        student_expected, teacher_expected: the likeliest tokens at its first position, with their probabilities.
    """

    kl: float
    student_log_prob: float
    teacher_log_prob: float
    student_expected: Expected
    teacher_expected: Expected


@dataclass(frozen=True)
class Piece:
    """A chunk or a gap of an aligned text.

    Attributes:
        student, teacher: its tokens on each side, as text.
        text: the text that a chunk's tokens spell; empty for a gap.
        kind: the class of that text; empty for a gap, and for special tokens.
        n_bytes: its length in bytes.
        is_gap: whether it takes no part in a loss.
        measured: None without models, for a gap, and where nothing predicts a first token.
    """

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    text: str
    kind: str
    n_bytes: int
    is_gap: bool
    measured: Measured | None = None


@dataclass(frozen=True)
class AlignedText:
    """A text as two rows of tokens.

    Attributes:
        pieces: chunks and gaps, in order.
        is_cut: whether the text goes on after them.
    """

    pieces: tuple[Piece, ...]
    is_cut: bool = False


def aligned_text(
    alignment: Alignment,
    student: Vocabulary,
    teacher: Vocabulary,
    measured: Mapping[int, Measured] | None = None,
    *,
    is_cut: bool = False,
) -> AlignedText:
    """An alignment as text.

    Args:
        alignment: of one text.
        student, teacher: the vocabularies.
        measured: by number of chunk.
        is_cut: whether the text goes on after it.
    """
    pieces = []
    for segment in segments(alignment):
        ids_s, ids_t = alignment.student_ids[slice(*segment.student)], alignment.teacher_ids[slice(*segment.teacher)]
        spelled = b"" if segment.chunk is None else b"".join(student.tokens[i] for i in ids_s.tolist())
        pieces.append(
            Piece(
                tuple(token_text(student, i) for i in ids_s.tolist()),
                tuple(token_text(teacher, i) for i in ids_t.tolist()),
                spelled.decode("utf-8", "backslashreplace"),
                class_of(spelled) if spelled else "",
                len(spelled),
                segment.chunk is None,
                None if measured is None or segment.chunk is None else measured.get(segment.chunk),
            )
        )
    return AlignedText(tuple(pieces), is_cut)


def bits_per_byte(texts: Sequence[AlignedText], side: Literal["student", "teacher"]) -> float | None:
    """What one side's model needs for the chunks that were measured, gaps and first tokens left out; None for none."""
    chunks = [(p.measured, p.n_bytes) for text in texts for p in text.pieces if p.measured is not None and p.n_bytes]
    n_bytes = sum(n for _, n in chunks)
    nats = math.fsum(m.student_log_prob if side == "student" else m.teacher_log_prob for m, _ in chunks)
    return -nats / math.log(2) / n_bytes if n_bytes else None
