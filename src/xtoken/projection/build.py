"""Building W from two vocabularies: one function a rule, applied in order until a rule gives a row.

1. Equal bytes: all of the row on the teacher token of the same bytes (of several the lowest id, byte-fallback pieces
   last); specials by role.
2. Several pieces: the token's text cut by the teacher, the first piece weighted 1, each further one a tenth of it.
3. Bytes that are no text: the same weights on the teacher's own cut of the bytes. The paper leaves these rows empty.
Source: Sreenivas et al., X-Token, https://arxiv.org/abs/2605.21699; rule 3 is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from xtoken.alignment.bytes import special_key
from xtoken.projection.matrix import Projection
from xtoken.tokens import Vocabulary

__all__ = ["DECAY", "FATES", "MAX_PIECES", "RULES", "Fate", "RowFates", "build_projection", "ids_by_event", "row_fates"]

Ints = NDArray[np.int64]

# X-Token: weights 0.9 * 0.1^i before each row is made to sum to 1, so only the ratio matters; at most four pieces.
DECAY = 0.1
MAX_PIECES = 4
# Raised when a rule changes, so that a W built by the old one is not taken from a cache. 2: byte-fallback pieces last.
RULES = 2


class Fate:
    """What became of a student token's row, as reports name it."""

    EXACT = "exact"
    SPECIAL = "special_by_role"
    PIECES = "text_pieces"
    BYTES = "byte_pieces"
    TOO_LONG = "over_4_pieces"
    NOT_UTF8 = "not_utf8"
    UNKNOWN = "unknown_to_teacher"
    SPECIAL_ALONE = "special_alone"
    ABSENT = "unused_id"

    EMPTY = (TOO_LONG, NOT_UTF8, UNKNOWN, SPECIAL_ALONE, ABSENT)


# In words: what a token's row is made of.
FATES = {
    Fate.EXACT: "equal bytes",
    Fate.SPECIAL: "special, same role",
    Fate.PIECES: "the pieces of its text",
    Fate.BYTES: "the pieces of its bytes (not UTF-8 on its own)",
    Fate.TOO_LONG: f"nothing: more than {MAX_PIECES} pieces",
    Fate.NOT_UTF8: f"nothing: not UTF-8, and more than {MAX_PIECES} pieces",
    Fate.UNKNOWN: "nothing: the teacher cannot spell it",
    Fate.SPECIAL_ALONE: "nothing: special, without a counterpart",
    Fate.ABSENT: "nothing: an id not in use",
}


@dataclass(frozen=True)
class RowFates:
    """For every student token, which rule applied and the teacher ids it leads to.

    Attributes:
        fates: [V_S], a `Fate` each.
        pieces: [V_S], the teacher ids in order; empty where the row is.
    """

    fates: tuple[str, ...]
    pieces: tuple[tuple[int, ...], ...]

    def counts(self) -> dict[str, int]:
        """How many rows met each fate, and how many of the second rule's have 2, 3 and 4 pieces."""
        return dict(Counter(self.fates))

    def piece_counts(self) -> dict[int, int]:
        """Rows by the number of pieces of their text, for rule 2 alone."""
        found = Counter(len(p) for fate, p in zip(self.fates, self.pieces, strict=True) if fate == Fate.PIECES)
        return dict(sorted(found.items()))


def row_fates(student: Vocabulary, teacher: Vocabulary, longest: int | None = MAX_PIECES) -> RowFates:
    """Applies the rules to every student token.

    Args:
        student, teacher: the vocabularies.
        longest: rows of more pieces than this stay empty; None leaves none out.
    """
    fates = [Fate.ABSENT] * student.size
    pieces: list[tuple[int, ...]] = [()] * student.size
    by_bytes = teacher.ids_by_bytes
    by_event = ids_by_event(teacher)
    texts: dict[int, str] = {}
    for i, content in enumerate(student.tokens):
        if i in student.roles:
            found = by_event.get(special_key(student, i))
            fates[i], pieces[i] = (Fate.SPECIAL_ALONE, ()) if found is None else (Fate.SPECIAL, (found,))
        elif i in student.absent or not content:
            continue
        elif content in by_bytes:
            fates[i], pieces[i] = Fate.EXACT, (by_bytes[content],)
        elif (text := _as_text(content)) is not None:
            texts[i] = text
        else:
            fates[i], pieces[i] = _by_bytes_of(content, teacher, longest)
    for i, cut in zip(texts, teacher.retokenize(list(texts.values())), strict=True):
        fates[i], pieces[i] = _by_text(cut, teacher, longest)
    return RowFates(tuple(fates), tuple(pieces))


def build_projection(student: Vocabulary, teacher: Vocabulary) -> Projection:
    """Builds W for a pair of tokenizers.

    Args:
        student, teacher: the vocabularies.

    Returns:
        W, V_S x V_T, with the count of rows by rule in `recipe["rows"]`.
    """
    fates = row_fates(student, teacher)
    rows, cols, values = _weighted(fates.pieces, teacher.size)
    recipe = {"decay": DECAY, "max_pieces": MAX_PIECES, "rules": RULES, "rows": fates.counts()}
    return Projection.from_coo(
        rows,
        cols,
        values,
        (student.size, teacher.size),
        student_fingerprint=student.fingerprint,
        teacher_fingerprint=teacher.fingerprint,
        recipe=recipe,
    )


def ids_by_event(vocabulary: Vocabulary) -> dict[object, int]:
    """The lowest id of each kind of special token."""
    return {special_key(vocabulary, i): i for i in sorted(vocabulary.roles, reverse=True)}


def _as_text(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _by_text(cut: Sequence[int], teacher: Vocabulary, longest: int | None) -> tuple[str, tuple[int, ...]]:
    """Rule 2. A cut through the unknown token says nothing, so it gives no row."""
    if not cut or any(i in teacher.roles for i in cut):
        return Fate.UNKNOWN, ()
    return (Fate.PIECES, tuple(cut)) if longest is None or len(cut) <= longest else (Fate.TOO_LONG, ())


def _by_bytes_of(content: bytes, teacher: Vocabulary, longest: int | None) -> tuple[str, tuple[int, ...]]:
    """Rule 3, for bytes that are no text on their own (part of a character)."""
    cut = teacher.segment(content)
    if not cut or (longest is not None and len(cut) > longest):
        return Fate.NOT_UTF8, ()
    return Fate.BYTES, tuple(cut)


def _weighted(pieces: Sequence[Sequence[int]], v_t: int) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Entries (rows, cols, values): geometric weights by place, repeated pieces added up, each row summing to 1."""
    lengths = np.array([len(row) for row in pieces], np.int64)
    rows = np.repeat(np.arange(len(pieces)), lengths)
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    cols = np.fromiter(chain.from_iterable(pieces), np.int64, count=len(rows))
    cells, cell_of = np.unique(rows * v_t + cols, return_inverse=True)
    weights = np.bincount(cell_of, weights=DECAY ** place.astype(np.float64), minlength=len(cells))
    sums = np.bincount(cells // v_t, weights=weights, minlength=len(pieces))
    return cells // v_t, cells % v_t, weights / sums[cells // v_t]
