"""Which student and teacher tokens a loss may compare one to one.

`Partition` pairs common tokens; what is unpaired on either side is the remainder. Strict: tokens of equal bytes, and
special tokens of equal role (GOLD's common set). Relaxed: strict grown by W's best match for each other student token
(H-KL). Law: one-to-one, and the relaxed one holds every strict pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xtoken.errors import FingerprintMismatchError, XTokenError
from xtoken.projection.build import Fate, RowFates, row_fates
from xtoken.projection.matrix import Projection
from xtoken.tokens import Vocabulary

__all__ = ["Partition", "partition_of", "relaxed_partition", "strict_partition"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """Pairs of common tokens.

    Attributes:
        student_ids, teacher_ids: int64 [P], the pairs, by rising student id.
        shape: (V_S, V_T).
    """

    student_ids: Ints
    teacher_ids: Ints
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if len(self.student_ids) != len(self.teacher_ids):
            raise XTokenError(f"a partition of {len(self.student_ids)} student and {len(self.teacher_ids)} teacher ids")
        for side, ids, size in zip(
            ("student", "teacher"), (self.student_ids, self.teacher_ids), self.shape, strict=True
        ):
            if len(np.unique(ids)) != len(ids):
                raise XTokenError(f"a partition must be one-to-one, but names a {side} id twice")
            if len(ids) and (ids.min() < 0 or ids.max() >= size):
                raise XTokenError(f"a partition names a {side} id outside the vocabulary of {size}")

    def __len__(self) -> int:
        return len(self.student_ids)


def strict_partition(student: Vocabulary, teacher: Vocabulary) -> Partition:
    """The common set C: tokens whose bytes are equal, and special tokens of equal role.

    Args:
        student, teacher: the vocabularies. Where several tokens of one side share their bytes, the lowest id is paired,
            byte-fallback pieces last.
    """
    return partition_of(row_fates(student, teacher), student, teacher)


def partition_of(rows: RowFates, student: Vocabulary, teacher: Vocabulary) -> Partition:
    """The common set, from what became of W's rows."""
    written = student.ids_by_bytes
    exact = [
        (i, pieces[0])
        for i, (fate, pieces) in enumerate(zip(rows.fates, rows.pieces, strict=True))
        if fate == Fate.SPECIAL or (fate == Fate.EXACT and written[student.tokens[i]] == i)
    ]
    pairs = np.array(exact, np.int64).reshape(-1, 2)
    _, first = np.unique(pairs[:, 1], return_index=True)
    pairs = pairs[np.sort(first)]
    return Partition(pairs[:, 0], pairs[:, 1], (student.size, teacher.size))


def relaxed_partition(student: Vocabulary, teacher: Vocabulary, projection: Projection) -> Partition:
    """The common set grown by W's largest entry for each student token outside it.

    Where several claim one teacher token the larger weight wins, then the lower student id; strict pairs stay.

    Args:
        student, teacher: the vocabularies.
        projection: W of this pair.

    Raises:
        FingerprintMismatchError: W was built for other tokenizers.
    """
    made_for = projection.student_fingerprint, projection.teacher_fingerprint
    if made_for != (student.fingerprint, teacher.fingerprint):
        raise FingerprintMismatchError("this W was built for another pair of tokenizers than the partition is for")
    strict = strict_partition(student, teacher)
    rows, cols, values = projection.to_coo()
    free = ~np.isin(rows, strict.student_ids)
    rows, cols, values = rows[free], cols[free], values[free]
    # Best entry of a row: largest value, then lowest column; then best claimant of a column: largest value, lowest row.
    best = np.lexsort((cols, -values, rows))
    best = best[np.unique(rows[best], return_index=True)[1]]
    best = best[~np.isin(cols[best], strict.teacher_ids)]
    claim = best[np.lexsort((rows[best], -values[best], cols[best]))]
    claim = claim[np.unique(cols[claim], return_index=True)[1]]
    ids_s = np.concatenate([strict.student_ids, rows[claim]])
    ids_t = np.concatenate([strict.teacher_ids, cols[claim]])
    order = np.argsort(ids_s)
    return Partition(ids_s[order], ids_t[order], (student.size, teacher.size))
