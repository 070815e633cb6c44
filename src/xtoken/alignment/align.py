"""Aligning texts: one entry point for three methods, for one text or many."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from xtoken.alignment.bytes import byte_chunks
from xtoken.alignment.chunks import Alignment
from xtoken.alignment.dp import dp_chunks
from xtoken.alignment.surface import surface_chunks
from xtoken.errors import XTokenError
from xtoken.tokens import TokenSpans, Vocabulary

__all__ = ["METHODS", "align", "align_batch", "align_spans"]

METHODS: dict[str, Callable[[Vocabulary, Vocabulary, TokenSpans, TokenSpans], Any]] = {
    "bytes": byte_chunks,
    "dp": dp_chunks,
    "surface": surface_chunks,
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
    return [align_spans(student, teacher, s, t, method) for s, t in zip(spans_s, spans_t, strict=True)]


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
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise XTokenError(f"unknown alignment method {method!r}: there are {', '.join(METHODS)}{hint}")
    if spans_s.raw != spans_t.raw:
        raise XTokenError("the student's and the teacher's spans are of two different texts")
    chunks = METHODS[method](student, teacher, spans_s, spans_t)
    return Alignment(method, chunks, spans_s.ids, spans_t.ids, spans_s.ends, spans_t.ends)
