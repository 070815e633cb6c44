"""X-Token's aligner: Needleman-Wunsch over canonical tokens, kept for faithful comparison.

D(i, j) is the best score of the first i student and j teacher tokens. An equal pair earns 3, one token equal to k
joined ones earns 1.5 k, a mismatched pair loses 3, a token left out loses 1.5. Only equal pairs and equal groups become
chunks; NVIDIA's code also trains on the mismatched pairs, the paper does not.
Source: Sreenivas et al., X-Token, https://arxiv.org/abs/2605.21699, section 3.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken.alignment.bytes import special_key
from xtoken.errors import XTokenError
from xtoken.tokens import Role, TokenSpans, Vocabulary

__all__ = ["dp_chunks"]

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

# X-Token, section 3.
MATCH = 3.0
MISMATCH = -3.0
GROUP = 1.5  # for each token of the joined side
GAP = -1.5
GROUP_SIZES = (2, 3, 4)

# One byte a cell for the traceback: 2**29 cells are 512 MB, two texts of 23,000 tokens.
MAX_CELLS = 2**29

_DIAGONAL, _SKIP_STUDENT, _SKIP_TEACHER = 1, 2, 3
_TEACHER_GROUP, _STUDENT_GROUP = 10, 20  # plus k


def dp_chunks(student: Vocabulary, teacher: Vocabulary, spans_s: TokenSpans, spans_t: TokenSpans) -> Ints:
    """Aligns two tokenizations by dynamic programming on their canonical tokens. O(n m) time and bytes.

    Args:
        student, teacher: the vocabularies.
        spans_s, spans_t: the same text in both.

    Returns:
        int64 [C, 4], rows (s0, s1, t0, t1).

    Raises:
        XTokenError: the table would exceed `MAX_CELLS`.
    """
    n, m = len(spans_s), len(spans_t)
    if (n + 1) * (m + 1) > MAX_CELLS:
        raise XTokenError(
            f"dp alignment of {n:,} with {m:,} tokens needs {(n + 1) * (m + 1):,} cells, over the {MAX_CELLS:,} "
            "allowed: cut the text into documents, or use method='bytes', which is linear and finer"
        )
    canonical_s = [_canonical(student, i) for i in spans_s.ids.tolist()]
    canonical_t = [_canonical(teacher, i) for i in spans_t.ids.tolist()]
    return _traceback(_table(canonical_s, canonical_t), canonical_s, canonical_t)


def _canonical(vocabulary: Vocabulary, token: int) -> Hashable:
    """A token's canonical form: its bytes, in which every family's space and newline are already one; or its event.

    An unknown token equals nothing, not even another one: it hides what it stands for.
    """
    if vocabulary.roles.get(token) is Role.UNK:
        return object()
    return special_key(vocabulary, token) if token in vocabulary.roles else vocabulary.tokens[token]


class _Codes:
    """Numbers for canonical tokens and for runs of them, so that whole rows compare at once."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def of(self, forms: Sequence[Hashable]) -> Ints:
        return np.array([self._numbers.setdefault(form, len(self._numbers)) for form in forms], np.int64)

    def of_runs(self, forms: Sequence[Hashable], k: int) -> Ints:
        """The number of every run of k forms joined, at the place of its last; -1 where there is none."""
        codes = np.full(len(forms), -1, np.int64)
        for end in range(k, len(forms) + 1):
            run = [form for form in forms[end - k : end] if isinstance(form, bytes)]
            if len(run) == k:
                codes[end - 1] = self._numbers.get(b"".join(run), -1)
        return codes


def _table(forms_s: Sequence[Hashable], forms_t: Sequence[Hashable]) -> NDArray[np.int8]:
    """The best move into every cell, int8 [n + 1, m + 1], filled a row at a time."""
    codes = _Codes()
    single_s, single_t = codes.of(forms_s), codes.of(forms_t)
    runs_s = {k: codes.of_runs(forms_s, k) for k in GROUP_SIZES}
    runs_t = {k: codes.of_runs(forms_t, k) for k in GROUP_SIZES}
    n, m = len(forms_s), len(forms_t)
    moves = np.zeros((n + 1, m + 1), np.int8)
    moves[0, 1:] = _SKIP_TEACHER
    slope = -GAP * np.arange(m + 1)
    rows = [-slope]  # the last rows of D, newest last; groups look back as far as their size
    for i in range(1, n + 1):
        above = rows[-1]
        best, move = above + GAP, np.full(m + 1, _SKIP_STUDENT, np.int8)
        same = single_t == single_s[i - 1]
        _improve(best, move, 1, above[:-1] + np.where(same, MATCH, MISMATCH), _DIAGONAL)
        for k in GROUP_SIZES:
            if k <= m:
                fits = runs_t[k][k - 1 :] == single_s[i - 1]
                _improve(best, move, k, np.where(fits, above[:-k] + GROUP * k, -np.inf), _TEACHER_GROUP + k)
            if k <= i and runs_s[k][i - 1] >= 0:
                fits = single_t == runs_s[k][i - 1]
                _improve(best, move, 1, np.where(fits, rows[-k][:-1] + GROUP * k, -np.inf), _STUDENT_GROUP + k)
        # Leaving out teacher tokens runs along the row: D(i, j) = max over j' <= j of best(j') - 1.5 (j - j').
        reached = np.maximum.accumulate(best + slope) - slope
        move[reached > best + 1e-9] = _SKIP_TEACHER  # scores are multiples of 1.5; the slack is for their sums
        moves[i] = move
        rows = [*rows[-(max(GROUP_SIZES) - 1) :], reached]
    return moves


def _improve(best: Floats, move: NDArray[np.int8], first: int, score: Floats, code: int) -> None:
    """Takes a move where it scores better, in cells `first` and on."""
    better = score > best[first:]
    best[first:][better] = score[better]
    move[first:][better] = code


def _traceback(moves: NDArray[np.int8], forms_s: Sequence[Hashable], forms_t: Sequence[Hashable]) -> Ints:
    rows = []
    i, j = len(forms_s), len(forms_t)
    while i or j:
        move = int(moves[i, j])
        di, dj = _step(move)
        if move > _SKIP_TEACHER or (move == _DIAGONAL and forms_s[i - 1] == forms_t[j - 1]):
            rows.append((i - di, i, j - dj, j))
        i, j = i - di, j - dj
    return np.array(rows[::-1], np.int64).reshape(-1, 4)


def _step(move: int) -> tuple[int, int]:
    """How many student and teacher tokens a move takes."""
    if move > _STUDENT_GROUP:
        return move - _STUDENT_GROUP, 1
    if move > _TEACHER_GROUP:
        return 1, move - _TEACHER_GROUP
    return {_DIAGONAL: (1, 1), _SKIP_STUDENT: (1, 0), _SKIP_TEACHER: (0, 1)}[move]
