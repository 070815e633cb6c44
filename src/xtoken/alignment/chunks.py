"""Which student tokens stand for the same bytes as which teacher tokens.

A chunk is a run of student tokens and a run of teacher tokens; an `Alignment` is the chunks of one text. Law: chunks
are monotone, do not overlap, hold at least one token on each side, and both sides spell the same bytes. Tokens outside
every chunk are gaps: they take no part in a loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Alignment"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Alignment:
    """The chunks of one text in two tokenizations.

    Attributes:
        method: the aligner, `bytes`, `dp` or `surface`.
        chunks: int64 [C, 4], rows (s0, s1, t0, t1): student tokens [s0, s1) with teacher tokens [t0, t1).
        student_ids, teacher_ids: int64 [n] and [m], the token ids the chunks speak of.
        student_ends, teacher_ends: int64 [n] and [m], the byte of the text where each token ends.
    """

    method: str
    chunks: Ints
    student_ids: Ints
    teacher_ids: Ints
    student_ends: Ints
    teacher_ends: Ints

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def student_gaps(self) -> Ints:
        """int64, the positions of student tokens in no chunk, rising."""
        return _outside(len(self.student_ids), self.chunks[:, 0], self.chunks[:, 1])

    @property
    def teacher_gaps(self) -> Ints:
        """int64, the positions of teacher tokens in no chunk, rising."""
        return _outside(len(self.teacher_ids), self.chunks[:, 2], self.chunks[:, 3])


def _outside(n: int, starts: Ints, stops: Ints) -> Ints:
    depth = np.zeros(n + 1, np.int64)
    np.add.at(depth, starts, 1)
    np.add.at(depth, stops, -1)
    return np.flatnonzero(np.cumsum(depth[:-1]) == 0)
