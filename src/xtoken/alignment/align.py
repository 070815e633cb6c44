"""Aligning texts: one entry point for three methods, for one text or many."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from xtoken.alignment.batch import byte_chunks_batch
from xtoken.alignment.chunks import Alignment
from xtoken.alignment.dp import dp_chunks
from xtoken.alignment.surface import surface_chunks
from xtoken.errors import XTokenError
from xtoken.tokens import TokenSpans, Vocabulary

__all__ = ["METHODS", "align", "align_batch", "align_spans", "align_spans_batch"]

Ints = NDArray[np.int64]
OneAligner = Callable[[Vocabulary, Vocabulary, TokenSpans, TokenSpans], Ints]
Aligner = Callable[[Vocabulary, Vocabulary, Sequence[TokenSpans], Sequence[TokenSpans]], list[Ints]]


def _one_by_one(chunks_of: OneAligner) -> Aligner:
    def chunks_of_all(
        student: Vocabulary, teacher: Vocabulary, spans_s: Sequence[TokenSpans], spans_t: Sequence[TokenSpans]
    ) -> list[Ints]:
        return [chunks_of(student, teacher, s, t) for s, t in zip(spans_s, spans_t, strict=True)]

    return chunks_of_all


METHODS: dict[str, Aligner] = {
    "bytes": byte_chunks_batch,
    "dp": _one_by_one(dp_chunks),
    "surface": _one_by_one(surface_chunks),
}


def align(
    student: Vocabulary, teacher: Vocabulary, text: str, method: str = "bytes", *, add_special_tokens: bool = False
) -> Alignment:
    """Aligns the student's and the teacher's tokens of one text.

    Args:
        student, teacher: the vocabularies.
        text: any Unicode text; a special token's name inside it is text.
        method: `bytes` (the default: exact, linear), `dp` (as in the X-Token paper) or `surface` (as GOLD first did).
        add_special_tokens: put around the text what each tokenizer adds by itself (a bos, say).

    Returns:
        The alignment; see `Alignment` for its law.

    Raises:
        XTokenError: an unknown method; a lone surrogate in the text; a text too long for `dp`.
    """
    return align_batch(student, teacher, [text], method, add_special_tokens=add_special_tokens)[0]


def align_batch(
    student: Vocabulary,
    teacher: Vocabulary,
    texts: Sequence[str],
    method: str = "bytes",
    *,
    add_special_tokens: bool = False,
) -> list[Alignment]:
    """`align` for many texts, which are tokenised on all cores."""
    spans_s, spans_t = student.encode_batch(texts), teacher.encode_batch(texts)
    if add_special_tokens:
        spans_s = [spans.with_specials(student.prefix_ids, student.suffix_ids) for spans in spans_s]
        spans_t = [spans.with_specials(teacher.prefix_ids, teacher.suffix_ids) for spans in spans_t]
    return align_spans_batch(student, teacher, spans_s, spans_t, method)


def align_spans(
    student: Vocabulary, teacher: Vocabulary, spans_s: TokenSpans, spans_t: TokenSpans, method: str = "bytes"
) -> Alignment:
    """Aligns two tokenizations that are at hand.

    Args:
        student, teacher: the vocabularies.
        spans_s, spans_t: one text as each of them cut it.
        method: as for `align`.

    Raises:
        XTokenError: an unknown method, or spans of two different texts.
    """
    return align_spans_batch(student, teacher, [spans_s], [spans_t], method)[0]


def align_spans_batch(
    student: Vocabulary,
    teacher: Vocabulary,
    spans_s: Sequence[TokenSpans],
    spans_t: Sequence[TokenSpans],
    method: str = "bytes",
) -> list[Alignment]:
    """`align_spans` for many texts; quicker than one by one, above all where they are short.

    Args:
        student, teacher: the vocabularies.
        spans_s, spans_t: the same texts in the same order, as each of them cut them.
        method: as for `align`.

    Raises:
        XTokenError: an unknown method, or spans of different texts.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise XTokenError(f"unknown alignment method {method!r}: there are {', '.join(METHODS)}{hint}")
    if len(spans_s) != len(spans_t) or any(s.raw != t.raw for s, t in zip(spans_s, spans_t, strict=True)):
        raise XTokenError("the student's and the teacher's spans are of two different texts")
    found = METHODS[method](student, teacher, spans_s, spans_t)
    return [
        Alignment(method, chunks, s.ids, t.ids, s.ends, t.ends)
        for chunks, s, t in zip(found, spans_s, spans_t, strict=True)
    ]
