"""The default aligner: the common byte boundaries of two tokenizations, O(n + m).

Between two neighbouring boundaries that both sides share lies one group, and no finer cut exists. A group is a chunk
where both sides spell the same bytes; that is certain where both are verbatim and is compared where a tokenizer
rewrote the text, so a composed character on one side costs that one group and nothing after it. Special tokens cover
no bytes and are paired by role at the same place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xtoken.tokens import Role, TokenSpans, Vocabulary

__all__ = ["byte_chunks"]

Ints = NDArray[np.int64]
Key = tuple[Role, str]


def byte_chunks(student: Vocabulary, teacher: Vocabulary, spans_s: TokenSpans, spans_t: TokenSpans) -> Ints:
    """Aligns two tokenizations of one text on their common byte boundaries.

    Args:
        student, teacher: the vocabularies.
        spans_s, spans_t: the same text in both.

    Returns:
        int64 [C, 4], rows (s0, s1, t0, t1).
    """
    content_s, content_t = _content(student, spans_s), _content(teacher, spans_t)
    rows = _groups(spans_s.ends[content_s], spans_t.ends[content_t])
    rows = np.stack([*_whole(content_s, rows[:, 0], rows[:, 1]), *_whole(content_t, rows[:, 2], rows[:, 3])], axis=1)
    # A run that a special token interrupts is no chunk: its length in tokens then exceeds its count.
    kept = (rows[:, 1] > rows[:, 0]) & (rows[:, 3] > rows[:, 2])
    rows = rows[kept]
    if spans_s.verbatim is not None or spans_t.verbatim is not None:
        rows = _same_bytes(student, teacher, spans_s, spans_t, rows)
    return _with_specials(rows, _special_pairs(student, teacher, spans_s, spans_t))


def _content(vocabulary: Vocabulary, spans: TokenSpans) -> Ints:
    """The positions of tokens that stand for text: all but the events."""
    return np.flatnonzero(~_is_event(vocabulary, spans))


def _is_event(vocabulary: Vocabulary, spans: TokenSpans) -> NDArray[np.bool_]:
    """bool [n]: special tokens of zero width. An unknown token stands for text even where it shares its character."""
    widths = np.diff(spans.ends, prepend=0)
    event: NDArray[np.bool_] = vocabulary.is_event[spans.ids] & (widths == 0)
    return event


def _groups(ends_s: Ints, ends_t: Ints) -> Ints:
    """Rows of content tokens between neighbouring common boundaries; byte 0 is one, for tokens that end there."""
    last = int(max(ends_s[-1] if len(ends_s) else 0, ends_t[-1] if len(ends_t) else 0))
    in_s, in_t = np.zeros(last + 1, bool), np.zeros(last + 1, bool)
    in_s[ends_s] = True
    in_t[ends_t] = True
    in_s[0] = in_t[0] = True
    boundaries = np.flatnonzero(in_s & in_t)
    stops_s = np.searchsorted(ends_s, boundaries, side="right")
    stops_t = np.searchsorted(ends_t, boundaries, side="right")
    starts_s, starts_t = np.concatenate([[0], stops_s[:-1]]), np.concatenate([[0], stops_t[:-1]])
    rows = np.stack([starts_s, stops_s, starts_t, stops_t], axis=1).astype(np.int64)
    return rows[(stops_s > starts_s) & (stops_t > starts_t)]


def _whole(content: Ints, starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """Runs of content tokens as runs of all tokens; an interrupted one comes back empty."""
    if not len(starts):
        return starts, stops
    first, last = content[starts], content[stops - 1]
    return first, np.where(last - first == stops - 1 - starts, last + 1, first)


def _same_bytes(student: Vocabulary, teacher: Vocabulary, spans_s: TokenSpans, spans_t: TokenSpans, rows: Ints) -> Ints:
    """The groups that spell the same bytes on both sides; read out only where a token is not verbatim.

    A special token inside a group (an unknown character) spells nothing known, so such a group never matches. Tokens of
    white space that lead a group are left out where the other side drops white space, as WordPiece does.
    """
    doubt_s, doubt_t = _doubtful(student, spans_s), _doubtful(teacher, spans_t)
    doubtful = (doubt_s[rows[:, 1]] > doubt_s[rows[:, 0]]) | (doubt_t[rows[:, 3]] > doubt_t[rows[:, 2]])
    same = ~doubtful
    for c in np.flatnonzero(doubtful):
        s0, s1, t0, t1 = rows[c]
        ids_s, ids_t = spans_s.ids[s0:s1], spans_t.ids[t0:t1]
        if student.is_special[ids_s].any() or teacher.is_special[ids_t].any():
            continue
        pieces_s, pieces_t = [student.tokens[i] for i in ids_s.tolist()], [teacher.tokens[i] for i in ids_t.tolist()]
        skip_s, skip_t = _leading_space(pieces_s, pieces_t), _leading_space(pieces_t, pieces_s)
        same[c] = b"".join(pieces_s[skip_s:]) == b"".join(pieces_t[skip_t:])
        rows[c] += (skip_s, 0, skip_t, 0)
    return rows[same]


def _leading_space(pieces: list[bytes], others: list[bytes]) -> int:
    """How many leading tokens of white space the other side lacks, all of them or none."""
    if others[0][:1].isspace():
        return 0
    return next((n for n, piece in enumerate(pieces) if not piece.isspace()), 0)


def _doubtful(vocabulary: Vocabulary, spans: TokenSpans) -> Ints:
    """int64 [n + 1]: how many of the tokens before each position are not certain to spell what they cover."""
    if spans.verbatim is None:
        return np.zeros(len(spans) + 1, np.int64)
    return np.concatenate([[0], np.cumsum(~spans.verbatim | vocabulary.is_special[spans.ids])]).astype(np.int64)


def _special_pairs(student: Vocabulary, teacher: Vocabulary, spans_s: TokenSpans, spans_t: TokenSpans) -> Ints:
    """Zero-width special tokens that stand for the same event at the same byte, in order, as chunks of one and one."""
    by_place: dict[int, list[tuple[int, Key]]] = {}
    for j, key in _zero_width_specials(teacher, spans_t):
        by_place.setdefault(int(spans_t.ends[j]), []).append((j, key))
    rows = []
    for i, key in _zero_width_specials(student, spans_s):
        waiting = by_place.get(int(spans_s.ends[i]), [])
        found = next((n for n, (_, other) in enumerate(waiting) if other == key), None)
        if found is not None:
            j = waiting[found][0]
            del waiting[: found + 1]  # what was passed over would cross this pair
            rows.append((i, i + 1, j, j + 1))
    return np.array(rows, np.int64).reshape(-1, 4)


def _zero_width_specials(vocabulary: Vocabulary, spans: TokenSpans) -> list[tuple[int, Key]]:
    places = np.flatnonzero(_is_event(vocabulary, spans))
    return [(int(i), special_key(vocabulary, int(spans.ids[i]))) for i in places]


def special_key(vocabulary: Vocabulary, token: int) -> Key:
    """What two special tokens must share to be the same event: the role, and the text too where the role is unknown."""
    role = vocabulary.roles[token]
    return role, vocabulary.contents[token] if role is Role.OTHER else ""


def _with_specials(rows: Ints, pairs: Ints) -> Ints:
    """Chunks in order, with the special pairs that cross none of them."""
    if not len(pairs):
        return rows
    merged = np.concatenate([rows, pairs])
    merged = merged[np.lexsort((merged[:, 2], merged[:, 0]))]
    monotone = np.ones(len(merged), bool)
    monotone[1:] = merged[1:, 2] >= np.maximum.accumulate(merged[:, 3])[:-1]
    if monotone.all():
        return merged
    return rows  # specials in the middle of a rewritten text, out of order: leave them gaps
