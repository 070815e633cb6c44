"""Llama-3 as student and Qwen3 as teacher: their real W and partitions, and random logits in their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scripts.fetch_tokenizers import fetch
from torch import Tensor

from xtoken.losses import ChunkIndex
from xtoken.projection import Partition, Projection, build_projection, relaxed_partition, strict_partition
from xtoken.tokens import Vocabulary

__all__ = ["Pair", "logits", "one_to_one", "real_pair"]

# The spread of a language model's logits is a few nats; random ones say nothing else of the time or memory.
_SPREAD = 3.0


@dataclass(frozen=True)
class Pair:
    """What the losses take of the two tokenizers."""

    projection: Projection
    strict: Partition
    relaxed: Partition

    @property
    def sizes(self) -> tuple[int, int]:
        return self.projection.shape


@cache
def real_pair() -> Pair:
    student, teacher = (Vocabulary.from_pretrained(fetch(name)) for name in ("llama-3", "qwen3"))
    projection = build_projection(student, teacher)
    relaxed = relaxed_partition(student, teacher, projection)
    return Pair(projection, strict_partition(student, teacher), relaxed)


def logits(rows: int, width: int, seed: int) -> Tensor:
    """float32 [rows, width]."""
    return _SPREAD * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def one_to_one(tokens: int, sizes: tuple[int, int]) -> ChunkIndex:
    """The chunks of a text of so many tokens that both sides cut alike; the first has no row that predicts it."""
    rng, starts = np.random.default_rng(0), np.arange(tokens)
    chunks = np.stack([starts, starts + 1, starts, starts + 1], axis=1)
    return ChunkIndex.from_chunks(chunks, rng.integers(0, sizes[0], tokens), rng.integers(0, sizes[1], tokens))
