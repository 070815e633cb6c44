"""Texts in groups that array code works through at once: enough to be quick, few enough to stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["BLOCK_TOKENS", "blocks"]

# Measured on Llama-3 and Qwen3: from 2^15 to 2^17 alike. Below, numpy's cost for each call shows; above, every step
# asks the system for fresh pages, and took up to three times as long.
BLOCK_TOKENS = 2**16


def blocks(sizes: Sequence[int], limit: int = BLOCK_TOKENS) -> Iterator[slice]:
    """Neighbouring items in runs, each as long as its sizes add up to the limit at most; never an empty run.

    Args:
        sizes: of each item, in tokens; one above the limit is a run of its own.
        limit: in tokens.
    """
    first = total = 0
    for n, size in enumerate(sizes):
        if n > first and total + size > limit:
            yield slice(first, n)
            first, total = n, 0
        total += size
    if first < len(sizes):
        yield slice(first, len(sizes))
