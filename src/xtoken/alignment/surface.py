"""GOLD's first aligner, kept to show how it fails: grow two buffers of text and flush when they are equal.

A special token counts as its text here. So one bos on one side alone makes the buffers unequal for ever, and all that
follows lands in one group; `bytes` and `dp` lose a single gap on the same input. As first shipped it decoded the whole
prefix again at each step, which is quadratic and breaks characters; here the buffers are bytes and grow in place.
Source: Hugging Face, Unlocking On-Policy Distillation for Any Model Family (GOLD), October 2025.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xtoken.tokens import TokenSpans, Vocabulary

__all__ = ["surface_chunks"]

Ints = NDArray[np.int64]


def surface_chunks(student: Vocabulary, teacher: Vocabulary, spans_s: TokenSpans, spans_t: TokenSpans) -> Ints:
    """Aligns two tokenizations by growing their surface strings.

    Args:
        student, teacher: the vocabularies.
        spans_s, spans_t: the same text in both.

    Returns:
        int64 [C, 4], rows (s0, s1, t0, t1); the last may hold everything from the first difference on.
    """
    ends_s = np.cumsum([len(piece) for piece in _surface(student, spans_s)])
    ends_t = np.cumsum([len(piece) for piece in _surface(teacher, spans_t)])
    text_s, text_t = b"".join(_surface(student, spans_s)), b"".join(_surface(teacher, spans_t))
    rows, s0, t0 = [], 0, 0
    # Equal buffers since the last flush are equal prefixes of what is left, so both grow to the same length first.
    agree = _common_prefix(text_s, text_t)
    for end in np.intersect1d(ends_s, ends_t).tolist():
        if end > agree:
            break
        s1, t1 = (int(np.searchsorted(ends, end, side="right")) for ends in (ends_s, ends_t))
        rows.append((s0, s1, t0, t1))
        s0, t0 = s1, t1
    if s0 < len(spans_s) and t0 < len(spans_t):
        rows.append((s0, len(spans_s), t0, len(spans_t)))
    return np.array(rows, np.int64).reshape(-1, 4)


def _surface(vocabulary: Vocabulary, spans: TokenSpans) -> list[bytes]:
    """What each token prints as, a special token its own name."""
    contents = vocabulary.contents
    return [contents[i].encode() if i in contents else vocabulary.tokens[i] for i in spans.ids.tolist()]


def _common_prefix(a: bytes, b: bytes) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.frombuffer(a[:n], np.uint8) != np.frombuffer(b[:n], np.uint8))
    return int(differ[0]) if len(differ) else n
