"""Vocabularies of short strings, small enough to enumerate: greedy longest match cuts them, and texts, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from xtoken.losses import ChunkIndex
from xtoken.projection.tries import PathTries, tries_from_pieces

# Every leading run of a token of the longer vocabularies is a token of theirs.
DIGITS = ("0", "1", "$")
PAIRS = (*DIGITS, "00", "01", "10", "11")
TRIPLES = (*PAIRS, "000", "001", "010", "011", "100", "101", "110", "111")


def cut(text: str, vocabulary: Sequence[str]) -> list[str]:
    """A text's tokens, each the longest that fits."""
    found: list[str] = []
    while text:
        found.append(max((token for token in vocabulary if text.startswith(token)), key=len))
        text = text[len(found[-1]) :]
    return found


def tries(student: Sequence[str], teacher: Sequence[str]) -> PathTries:
    return tries_from_pieces(
        _cuts(student, teacher), _cuts(teacher, student), np.arange(len(student)), np.arange(len(teacher))
    )


def _cuts(tokens: Sequence[str], others: Sequence[str]) -> list[list[int]]:
    return [[others.index(piece) for piece in ([t] if t in others else cut(t, others))] for t in tokens]


def chunks_of(tokens_s: Sequence[str], tokens_t: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """The finest common chunks; both sides have one more token in front, a beginning of the text."""
    ends_s, ends_t = (np.cumsum([0, *map(len, tokens)]).tolist() for tokens in (tokens_s, tokens_t))
    shared = sorted(set(ends_s) & set(ends_t))
    found = []
    for begin, end in pairwise(shared):
        bounds = (ends.index(x) + 1 for ends in (ends_s, ends_t) for x in (begin, end))
        found.append(tuple(bounds))
    return found


def batch(
    student: Sequence[str], teacher: Sequence[str], texts: Sequence[str], seed: int = 0, padding: int = 2
) -> tuple[Tensor, Tensor, ChunkIndex]:
    """Random logits of both sides [B, L, V + padding], float64, and the index of these texts."""
    cuts = [(cut(text, student), cut(text, teacher)) for text in texts]
    length_s, length_t = (2 + max(len(pair[side]) for pair in cuts) for side in (0, 1))
    indices = []
    for b, (tokens_s, tokens_t) in enumerate(cuts):
        ids_s, ids_t = ([0, *map(v.index, t)] for v, t in ((student, tokens_s), (teacher, tokens_t)))
        indices.append(ChunkIndex.from_chunks(chunks_of(tokens_s, tokens_t), ids_s, ids_t, b * length_s, b * length_t))
    generator = torch.Generator().manual_seed(seed)
    logits = (
        2 * torch.randn(len(texts), n, len(v) + padding, dtype=torch.float64, generator=generator)
        for n, v in ((length_s, student), (length_t, teacher))
    )
    return *logits, ChunkIndex.cat(indices)


def induced(texts: dict[str, float], vocabulary: Sequence[str]) -> dict[tuple[str, ...], Tensor]:
    """For every beginning of a text in tokens, the chances [V] of the next token; they sum to that of the beginning."""
    found: dict[tuple[str, ...], Tensor] = {}
    for text, chance in texts.items():
        tokens = cut(text, vocabulary)
        for n, token in enumerate(tokens):
            row = found.setdefault(tuple(tokens[:n]), torch.zeros(len(vocabulary), dtype=torch.float64))
            row[vocabulary.index(token)] += chance
    return found


def process(seed: int, longest: int = 4, alphabet: Sequence[str] = DIGITS) -> dict[str, float]:
    """All texts of a random process over single characters, each with its chance; the last character ends a text."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, float] = {}

    def grow(text: str, chance: float) -> None:
        if text.endswith(alphabet[-1]):
            found[text] = chance
            return
        weights = torch.rand(len(alphabet), generator=generator, dtype=torch.float64) + 0.05
        weights[-1] *= bool(text)
        if len(text) == longest:
            weights[:-1] = 0
        for character, share in zip(alphabet, (weights / weights.sum()).tolist(), strict=True):
            if share > 0:
                grow(text + character, chance * share)

    grow("", 1.0)
    return found
