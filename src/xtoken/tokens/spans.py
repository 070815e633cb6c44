"""Where each token of a text ends, in bytes of the original text.

`TokenSpans` holds ids and byte ends only, so a gap or an overlap between tokens cannot be written down: token i covers
the bytes from the end of token i-1 to its own. Laws: ends never fall; the last is at most the text's length; where
`verbatim` is true the token's own bytes are exactly those it covers. A tokenizer that rewrites the text (NFC, lower
case, a dummy space in front) leaves tokens that are not verbatim, and only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xtoken.errors import XTokenError

__all__ = ["TokenSpans", "spans_by_offsets", "utf8"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class TokenSpans:
    """The tokens of one text.

    Attributes:
        ids: int64 [n], token ids.
        ends: int64 [n], the byte of the original text where each token ends.
        verbatim: bool [n], whether the token's bytes equal the bytes it covers; None means that all are.
        raw: the original text as UTF-8.
    """

    ids: Ints
    ends: Ints
    verbatim: Bools | None
    raw: bytes

    @property
    def length(self) -> int:
        """The text's length in bytes."""
        return len(self.raw)

    def __len__(self) -> int:
        return len(self.ids)

    def with_specials(self, prefix: Sequence[int] = (), suffix: Sequence[int] = ()) -> TokenSpans:
        """The same text between special tokens, which cover zero bytes.

        Args:
            prefix: ids put in front (a bos, say).
            suffix: ids put behind (an eos, say).
        """
        first, last = len(prefix), len(prefix) + len(self)
        ids, ends = np.empty((2, last + len(suffix)), np.int64)
        ids[:first], ids[first:last], ids[last:] = prefix, self.ids, suffix
        ends[:first], ends[first:last], ends[last:] = 0, self.ends, self.length
        verbatim = self.verbatim
        if verbatim is not None:
            verbatim = np.concatenate([np.ones(len(prefix), bool), verbatim, np.ones(len(suffix), bool)])
        return TokenSpans(ids, ends, verbatim, self.raw)


def utf8(text: str) -> bytes:
    """The text as UTF-8.

    Raises:
        XTokenError: the text holds a lone surrogate, which is no character and has no UTF-8 form.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise XTokenError(
            f"the text holds a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}: it is not a "
            "Unicode character and has no bytes. Read the text with errors='replace', or drop the document."
        ) from None


def spans_by_offsets(
    ids: Ints, offsets: Sequence[tuple[int, int]], tokens: Sequence[bytes], text: str, raw: bytes
) -> TokenSpans:
    """The spans of a text that the tokenizer rewrote, from its character offsets into the original.

    Offsets name characters, so tokens that share one overlap there. Such tokens form a group; inside it their byte
    lengths place the ends where they spell the original, and otherwise all of them end with the group.

    Args:
        ids: int64 [n].
        offsets: for each token, first character and one past the last, in `text`.
        tokens: the bytes of every id.
        text, raw: the original text and its UTF-8 form.
    """
    byte_at = _byte_offsets(text)
    starts, stops = _closed_offsets(offsets, text)
    clean = np.ones(len(ids), bool)  # clean[i]: a character boundary lies between token i and token i + 1
    clean[:-1] = starts[1:] >= stops[:-1]
    ends = byte_at[stops]
    first = 0
    for last in np.flatnonzero(clean):
        if last > first:
            begin = int(ends[first - 1]) if first else 0
            group = [tokens[i] for i in ids[first : last + 1].tolist()]
            spelled, covered = b"".join(group), raw[begin : ends[last]]
            # What a tokenizer puts in front of the whole text (a dummy space) leads the first group and covers nothing.
            extra = len(spelled) - len(covered) if first == 0 and spelled.endswith(covered) else 0
            ends[first : last + 1] = ends[last]
            if spelled[extra:] == covered:
                ends[first : last + 1] = begin + np.maximum(np.cumsum([len(token) for token in group]) - extra, 0)
        first = int(last) + 1
    begins = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    pairs = zip(ids.tolist(), begins.tolist(), ends.tolist(), strict=True)
    verbatim = np.array([tokens[i] == raw[a:b] for i, a, b in pairs], bool)
    return TokenSpans(ids, ends, verbatim, raw)


def _byte_offsets(text: str) -> Ints:
    """int64 [len(text) + 1]: the byte at which each character begins, and the length of the whole."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)


def _closed_offsets(offsets: Sequence[tuple[int, int]], text: str) -> tuple[Ints, Ints]:
    """Offsets with the characters that no token claims given to a neighbour.

    A composed character claims its base alone, so the marks after it belong to the token before; white space that
    a tokenizer drops leads the word that follows, which is where the others put it.
    """
    pairs = np.asarray(offsets, np.int64).reshape(-1, 2)
    starts, stops = pairs[:, 0].copy(), np.maximum.accumulate(pairs[:, 1]) if len(pairs) else pairs[:, 1]
    following = np.concatenate([starts[1:], [len(text)]]) if len(starts) else starts
    for i in np.flatnonzero(following > stops):
        hole = text[stops[i] : following[i]]
        claimed = next((n for n, char in enumerate(hole) if char.isspace()), len(hole))
        old, j = stops[i], i
        while claimed and j >= 0 and stops[j] == old:  # all pieces of one character take its marks with them
            stops[j] += claimed
            j -= 1
    return starts, stops
