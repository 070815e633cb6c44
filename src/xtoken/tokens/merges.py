"""All the ways to cut tokens in two tokens: the merges of a byte pair encoding that is given by ranks alone.

Every token has its prefixes and suffixes looked up among the tokens. A prefix is known by a number of its own, made
from the number of the prefix a byte shorter and that byte; so all tokens take one byte more at a time, as arrays, and
equal numbers are equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["merges_by_rank"]

Ints = NDArray[np.int64]


def merges_by_rank(tokens: Sequence[bytes]) -> tuple[Ints, Ints]:
    """Every pair of tokens that joined are a token, ordered by the places of the result, the first and the second.

    O(bytes of all tokens), times a logarithm; 16 bytes of memory for each of their bytes.

    Args:
        tokens: in the order of their ranks, none twice.

    Returns:
        int64 [M] and [M], the places in `tokens` of the first and the second of each pair.
    """
    lengths = np.fromiter(map(len, tokens), np.int64, count=len(tokens))
    stops = np.cumsum(lengths)
    starts = stops - lengths
    raw = np.frombuffer(b"".join(tokens), np.uint8).astype(np.int64)
    # The suffix that begins at a byte is the prefix of the token read backwards that ends there.
    prefixes, backwards = _prefixes(raw, starts, lengths), _prefixes(raw[::-1], len(raw) - stops, lengths)
    suffixes = backwards[::-1]
    inner = np.ones(len(raw), bool)  # cuts are named by the byte behind them; in front of a token is none
    inner[starts[lengths > 0]] = False
    cuts = np.flatnonzero(inner & (suffixes >= 0))
    cuts = cuts[prefixes[cuts - 1] >= 0]
    firsts, seconds = prefixes[cuts - 1], suffixes[cuts]
    results = np.searchsorted(stops, cuts, side="right")
    # Three places as one number, exact up to two million tokens; a third of the time of sorting by three.
    order = np.argsort((results * len(tokens) + firsts) * len(tokens) + seconds)
    return firsts[order], seconds[order]


def _prefixes(raw: Ints, starts: Ints, lengths: Ints) -> Ints:
    """int64, for every byte of every token: the token that the bytes up to it are, -1 where they are none.

    Args:
        raw: the tokens' bytes.
        starts, lengths: int64 [V], where the bytes of each token begin, and how many they are.
    """
    found = np.full(len(raw), -1, np.int64)
    numbers, longer, n = np.zeros(len(starts), np.int64), np.flatnonzero(lengths > 0), 0
    while len(longer):
        codes = numbers[longer] * 256 + raw[starts[longer] + n]
        kinds, numbers[longer] = np.unique(codes, return_inverse=True)
        n += 1
        token_of = np.full(len(kinds), -1, np.int64)
        ends_here = longer[lengths[longer] == n]
        token_of[numbers[ends_here]] = ends_here
        found[starts[longer] + n - 1] = token_of[numbers[longer]]
        longer = longer[lengths[longer] > n]
    return found
