"""The default aligner on many texts at once: the chunks of `byte_chunks`, with no Python per token.

`byte_chunks` is the plain reference and says what a chunk is. Here the same is found for all texts that neither side
rewrote, laid end to end. Each byte has a slot in a bitmap for each side, set where a token of text ends there; a token
closes a chunk exactly where its slot is set on the other side too. So the k-th that closes one on one side belongs
to the k-th on the other, and nothing has to be searched for: O(bytes), whatever the text repeats.

What does not fit this picture goes to the reference, text by text: a text that a tokenizer rewrote, tokens of text
without bytes, special tokens inside a text, or several at one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, pairwise

import numpy as np
from numpy.typing import NDArray

from xtoken.alignment.bytes import byte_chunks, special_key
from xtoken.tokens import TokenSpans, Vocabulary
from xtoken.tokens.blocks import blocks

__all__ = ["byte_chunks_batch"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def byte_chunks_batch(
    student: Vocabulary, teacher: Vocabulary, spans_s: Sequence[TokenSpans], spans_t: Sequence[TokenSpans]
) -> list[Ints]:
    """Aligns many pairs of tokenizations on their common byte boundaries.

    O(bytes) time. While it runs, about 100 bytes a token and 2 a byte of text, for a block of texts at a time; the
    chunks of the texts in a block are slices of a common array.

    Args:
        student, teacher: the vocabularies.
        spans_s, spans_t: the same texts in both.

    Returns:
        for each text what `byte_chunks` returns: int64 [C, 4], rows (s0, s1, t0, t1).
    """
    sizes = [len(one) + len(other) for one, other in zip(spans_s, spans_t, strict=True)]
    return [rows for run in blocks(sizes) for rows in _chunks_of_block(student, teacher, spans_s[run], spans_t[run])]


def _chunks_of_block(
    student: Vocabulary, teacher: Vocabulary, spans_s: Sequence[TokenSpans], spans_t: Sequence[TokenSpans]
) -> list[Ints]:
    easy = [one.verbatim is None and other.verbatim is None for one, other in zip(spans_s, spans_t, strict=True)]
    side_s, side_t = _side(student, [*compress(spans_s, easy)]), _side(teacher, [*compress(spans_t, easy)])
    regular = side_s.regular & side_t.regular
    if not regular.all():
        left = iter(regular.tolist())
        easy = [is_easy and next(left) for is_easy in easy]
        side_s, side_t = _side(student, [*compress(spans_s, easy)]), _side(teacher, [*compress(spans_t, easy)])
    found = iter(_chunks(student, teacher, side_s, side_t))
    return [
        next(found) if is_easy else byte_chunks(student, teacher, one, other)
        for is_easy, one, other in zip(easy, spans_s, spans_t, strict=True)
    ]


@dataclass(frozen=True)
class _Side:
    """One side of D texts laid end to end.

    Attributes:
        ids: int64 [n].
        starts: int64 [D + 1], where the tokens of each text begin.
        slots: int64 [n], the slot of the byte where each token ends; a text of L bytes has slots for the bytes 0 to L.
        size: the number of slots.
        narrow: int64, the positions of tokens that cover no bytes.
        front, back: int64 [D], the position of the special token in front and behind; -1 where there is none.
        regular: bool [D], whether these are the only tokens that cover no bytes.
    """

    ids: Ints
    starts: Ints
    slots: Ints
    size: int
    narrow: Ints
    front: Ints
    back: Ints
    regular: Bools


def _side(vocabulary: Vocabulary, spans: Sequence[TokenSpans]) -> _Side:
    none = np.empty(0, np.int64)
    counts = np.array([len(one) for one in spans], np.int64)
    lengths = np.array([one.length for one in spans], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    zero = np.cumsum(lengths + 1) - (lengths + 1)
    ids = np.concatenate([none, *(one.ids for one in spans)])
    slots = np.concatenate([none, *(one.ends for one in spans)]) + np.repeat(zero, counts)
    before = np.concatenate([[0], slots[:-1]])[: len(slots)]
    some = counts > 0
    before[starts[:-1][some]] = zero[some]
    narrow = np.flatnonzero(slots == before)
    text = np.searchsorted(starts, narrow, side="right") - 1
    at_zero, at_end = slots[narrow] == zero[text], slots[narrow] == (zero + lengths)[text]
    front, back = np.full(len(spans), -1), np.full(len(spans), -1)
    front[text[at_zero]], back[text[at_end]] = narrow[at_zero], narrow[at_end]
    crowd_front, crowd_back = (np.bincount(text[at], minlength=len(spans)) > 1 for at in (at_zero, at_end))
    regular = ~(crowd_front | crowd_back)
    # Both at once is a text without bytes, in which front and back cannot be told apart.
    regular[text[~vocabulary.is_event[ids[narrow]] | (at_zero == at_end)]] = False
    return _Side(ids, starts, slots, int((lengths + 1).sum()), narrow, front, back, regular)


def _chunks(student: Vocabulary, teacher: Vocabulary, side_s: _Side, side_t: _Side) -> list[Ints]:
    """The chunks of each text, all of them regular."""
    front = _same_event(student, teacher, side_s, side_t, side_s.front, side_t.front)
    back = _same_event(student, teacher, side_s, side_t, side_s.back, side_t.back)
    starts_s, stops_s, bounds = _runs(side_s, _ends(side_t), front, back)
    starts_t, stops_t, _ = _runs(side_t, _ends(side_s), front, back)
    rows = np.empty((len(stops_s), 4), np.int64)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] = starts_s, stops_s, starts_t, stops_t
    return [rows[a:b] for a, b in pairwise(bounds.tolist())]


def _ends(side: _Side) -> Bools:
    """bool [slots]: where a token ends.

    Special tokens are in it and change nothing: no text ends at byte 0, and at the last byte some does, since a token
    without bytes stands where the one before it ends.
    """
    bitmap = np.zeros(side.size, bool)
    bitmap[side.slots] = True
    return bitmap


def _same_event(
    student: Vocabulary, teacher: Vocabulary, side_s: _Side, side_t: _Side, places_s: Ints, places_t: Ints
) -> Bools:
    """bool [D]: whether both sides have a special token at these places, and the two stand for one event."""
    same = np.zeros(len(places_s), bool)
    both = np.flatnonzero((places_s >= 0) & (places_t >= 0))
    codes = side_s.ids[places_s[both]] * teacher.size + side_t.ids[places_t[both]]
    kinds, which = np.unique(codes, return_inverse=True)  # a handful, however many texts
    pairs = [divmod(kind, teacher.size) for kind in kinds.tolist()]
    alike = [special_key(student, one) == special_key(teacher, other) for one, other in pairs]
    same[both] = np.array(alike, bool)[which]
    return same


def _runs(side: _Side, other_ends: Bools, front: Bools, back: Bools) -> tuple[Ints, Ints, Ints]:
    """One side's half of the chunks.

    Args:
        side: the side.
        other_ends: bool [slots], where a token ends on the other side.
        front, back: bool [D], whether the special token there is paired.

    Returns:
        int64 [C] and [C], the tokens where each chunk begins and ends, counted from the first of its text; int64
        [D + 1], where the chunks of each text begin.
    """
    closes = other_ends[side.slots]
    closes[side.narrow] = False
    closes[side.front[front]] = closes[side.back[back]] = True
    stops = np.flatnonzero(closes) + 1
    bounds = np.searchsorted(stops, side.starts, side="right")
    stops -= np.repeat(side.starts[:-1], np.diff(bounds))
    starts = np.concatenate([[0], stops[:-1]])[: len(stops)]
    some = np.diff(bounds) > 0
    starts[bounds[:-1][some]] = ((side.front >= 0) & ~front)[some]  # text begins behind an unpaired special token
    return starts, stops, bounds
