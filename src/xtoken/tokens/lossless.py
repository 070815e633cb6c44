"""The spans of texts that a tokenizer did not rewrite: a whole batch at once, each byte checked, no token in Python.

`TokenBytes` holds a vocabulary's bytes as 64-bit words; `lossless_spans` cuts texts by them. Law: a text gets spans
exactly where the bytes of its tokens joined are the text. The lengths place the tokens; then the first eight bytes of
every token are compared with the text's eight bytes at its place, as one number, then the next eight of those that are
longer, and so on. Numbers of eight bytes are compared whole, not hashed, so nothing is left to chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from xtoken.tokens.blocks import blocks
from xtoken.tokens.spans import TokenSpans

__all__ = ["TokenBytes", "lossless_spans"]

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

# Little-endian wherever it runs, so that the first byte is the lowest and a mask of n bytes is 2^(8n) - 1.
_WORD = np.dtype("<u8")
_WIDTH = _WORD.itemsize
_MASKS = np.array([2 ** (8 * n) - 1 for n in range(_WIDTH + 1)], _WORD)


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of every token of a vocabulary, in words that can be gathered.

    Attributes:
        lengths: int64 [V], the bytes of each token.
        words: uint64, the tokens' bytes one after the other, each token filled with zeros to whole words; at least one
            word a token.
        first: int64 [V], the place in `words` where each token begins.
        heads: uint64 [V], the first word of each token.
        masks: uint64 [V], ones over the bytes of the head that are the token's.
    """

    lengths: Ints
    words: Words
    first: Ints
    heads: Words
    masks: Words

    @classmethod
    def of(cls, tokens: Sequence[bytes]) -> TokenBytes:
        """The table of a vocabulary.

        Args:
            tokens: [V], the bytes of every id.
        """
        lengths = np.fromiter(map(len, tokens), np.int64, count=len(tokens))
        sizes = np.maximum(-(-lengths // _WIDTH), 1)
        first = np.cumsum(sizes) - sizes
        filled = np.zeros(int(sizes.sum()) * _WIDTH, np.uint8)
        shift = _WIDTH * first - (np.cumsum(lengths) - lengths)
        joined = np.frombuffer(b"".join(tokens), np.uint8)
        filled[np.arange(len(joined)) + np.repeat(shift, lengths)] = joined
        words = filled.view(_WORD)
        return cls(lengths, words, first, words[first], _MASKS[np.minimum(lengths, _WIDTH)])


def lossless_spans(table: TokenBytes, ids: Sequence[Ints], raws: Sequence[bytes]) -> list[TokenSpans | None]:
    """The spans of the texts whose tokens joined are the text itself; None for each text of which they are not.

    O(bytes) time. While it runs, about 60 bytes a token and 2 a byte of text, for a block of texts at a time; the
    arrays of the texts in a block are slices of common ones.

    Args:
        table: of the vocabulary.
        ids: for each text, int64 [n], its tokens.
        raws: the texts.
    """
    counts = [len(row) for row in ids]
    return [
        spans for run in blocks(counts) for spans in _spans_of_block(table, ids[run], np.array(counts[run]), raws[run])
    ]


def _spans_of_block(
    table: TokenBytes, ids: Sequence[Ints], counts: Ints, raws: Sequence[bytes]
) -> Iterator[TokenSpans | None]:
    flat = np.concatenate(ids)
    stops = np.concatenate([[0], np.cumsum(counts)])
    widths = table.lengths[flat]
    ends = np.concatenate([[0], np.cumsum(widths)])
    base = ends[stops]  # where each text begins, once all are joined
    spelled = np.diff(base)
    fits = spelled == np.array([len(raw) for raw in raws])
    # A text of another length is out already; filler in its place leaves those after it where they are.
    parts = [raw if fit else bytes(n) for raw, fit, n in zip(raws, fits.tolist(), spelled.tolist(), strict=True)]
    differing = _differing(table, flat, widths, ends[:-1], b"".join(parts))
    fits[np.searchsorted(stops, differing, side="right") - 1] = False
    local = ends[1:] - np.repeat(base[:-1], counts)
    for (a, b), raw, fit in zip(pairwise(stops.tolist()), raws, fits.tolist(), strict=True):
        yield TokenSpans(flat[a:b], local[a:b], None, raw) if fit else None


def _differing(table: TokenBytes, ids: Ints, widths: Ints, begins: Ints, text: bytes) -> Ints:
    """The positions of tokens whose bytes are not the text's there.

    Args:
        table: of the vocabulary.
        ids, widths, begins: int64 [n], the tokens, their lengths, and where in the text each begins.
        text: as long as all of them together.
    """
    # The eight bytes from every byte on: words that overlap, without a copy.
    windows = np.ndarray(len(text) + 1, _WORD, text + bytes(_WIDTH), strides=(1,))
    differ = (windows[begins] ^ table.heads[ids]) & table.masks[ids]
    found = [np.flatnonzero(differ)]
    place, longer = _WIDTH, np.flatnonzero(widths > _WIDTH)
    while len(longer):
        words = table.words[table.first[ids[longer]] + place // _WIDTH]
        differ = (windows[begins[longer] + place] ^ words) & _MASKS[np.minimum(widths[longer] - place, _WIDTH)]
        found.append(longer[np.flatnonzero(differ)])
        place += _WIDTH
        longer = longer[widths[longer] > place]
    return np.concatenate(found)
