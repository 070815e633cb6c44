"""Small random batches with every irregularity a loss meets, and every loss built for them.

A case holds two models' logits (heads padded wider than the tokenizers), sequences of unequal chunks with gaps between,
a projection with empty rows and unreachable columns, and a partition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from xtoken.losses import (
    ALM,
    GOLD,
    HKL,
    PKL,
    ULD,
    ChunkIndex,
    LossTerm,
    PartitionKL,
    PathKL,
    SameTokenizerKL,
    StrictKL,
)
from xtoken.projection import Partition, PathTries, Projection
from xtoken.projection.tries import tries_from_pieces
from xtoken.teachers import TeacherSignal, signal_from_logits

Loss = Callable[[Tensor, TeacherSignal, ChunkIndex], LossTerm]

MERGES = ("chain", "mean", "first")


@dataclass(frozen=True)
class Case:
    """A batch of B sequences; `chunks[b]` is [C, 4] within sequence b."""

    student_logits: Tensor
    teacher_logits: Tensor
    student_ids: np.ndarray
    teacher_ids: np.ndarray
    chunks: tuple[np.ndarray, ...]
    projection: Projection
    partition: Partition
    tries: PathTries

    @property
    def sizes(self) -> tuple[int, int]:
        return self.projection.shape

    @property
    def batch(self) -> int:
        return len(self.chunks)

    def index(self) -> ChunkIndex:
        length_s, length_t = self.student_ids.shape[1], self.teacher_ids.shape[1]
        return ChunkIndex.cat(
            [
                ChunkIndex.from_chunks(chunks, self.student_ids[b], self.teacher_ids[b], b * length_s, b * length_t)
                for b, chunks in enumerate(self.chunks)
            ]
        )

    def signal(self, temperature: float = 1.0, top_k: int | None = None) -> TeacherSignal:
        return signal_from_logits(self.teacher_logits, self.sizes[1], temperature, top_k)

    def part(self, sequences: slice) -> Case:
        """Some of the sequences, as a batch of their own."""
        return replace(
            self,
            student_logits=self.student_logits[sequences],
            teacher_logits=self.teacher_logits[sequences],
            student_ids=self.student_ids[sequences],
            teacher_ids=self.teacher_ids[sequences],
            chunks=self.chunks[sequences],
        )

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, student_logits=self.student_logits.to(dtype), teacher_logits=self.teacher_logits.to(dtype))


def random_chunks(rng: np.random.Generator, n_chunks: int, longest: int) -> np.ndarray:
    """Chunks of 1 to `longest` tokens a side, with gaps; the first begins at the first token and is to be dropped."""
    lengths, gaps = rng.integers(1, longest + 1, (n_chunks, 2)), rng.integers(0, 2, (n_chunks, 2))
    if longest == 1:
        gaps[:] = 0
    gaps[0] = 0
    ends = np.cumsum(lengths + gaps, axis=0)
    return np.stack([(ends - lengths)[:, 0], ends[:, 0], (ends - lengths)[:, 1], ends[:, 1]], axis=1)


def random_projection(rng: np.random.Generator, size_s: int, size_t: int) -> Projection:
    """Rows of 1 to 3 entries, the first student token's row empty, the last teacher token unreachable.

    Weights are in eighths, so that rows sum to 1 without rounding and float64 results can be compared to the last
    digit.
    """
    rows, cols, values = [], [], []
    for row in range(1, size_s):
        width = int(rng.integers(1, min(3, size_t - 1) + 1))
        rows += [row] * width
        cols += rng.choice(size_t - 1, width, replace=False).tolist()
        cuts = np.sort(rng.choice(np.arange(1, 8), width - 1, replace=False))
        values += (np.diff(np.concatenate([[0], cuts, [8]])) / 8).tolist()
    return Projection.from_coo(np.array(rows), np.array(cols), np.array(values), (size_s, size_t))


def random_partition(rng: np.random.Generator, size_s: int, size_t: int) -> Partition:
    n_pairs = min(size_s, size_t) // 2
    ids_s, ids_t = np.sort(rng.permutation(size_s)[:n_pairs]), rng.permutation(size_t)[:n_pairs]
    return Partition(ids_s, ids_t, (size_s, size_t))


def random_tries(rng: np.random.Generator, size_s: int, size_t: int) -> PathTries:
    """A third of the smaller vocabulary is common; the other tokens have 2 to 4 pieces of these, but the last, none."""
    common = max(1, min(size_s, size_t) // 3)
    cuts = [
        [[i] if i < common else rng.integers(0, common, rng.integers(2, 5)).tolist() for i in range(size - 1)] + [[]]
        for size in (size_s, size_t)
    ]
    return tries_from_pieces(cuts[0], cuts[1], np.arange(size_s), np.arange(size_t))


def renamed_tries(tries: PathTries, student: np.ndarray, teacher: np.ndarray) -> PathTries:
    """The same tries with token i of a side called `student[i]`, or `teacher[i]`."""
    cuts = []
    for trie, own, other in ((tries.student, student, teacher), (tries.teacher, teacher, student)):
        bounds = trie.piece_starts
        by_name = {int(own[i]): other[trie.pieces[bounds[i] : bounds[i + 1]]].tolist() for i in range(len(own))}
        cuts.append([by_name[i] for i in range(len(own))])
    return tries_from_pieces(*cuts, np.arange(len(student)), np.arange(len(teacher)))


def random_case(
    seed: int = 0,
    size_s: int = 7,
    size_t: int = 9,
    batch: int = 3,
    n_chunks: int = 5,
    longest: int = 3,
    padding: int = 2,
) -> Case:
    """A case in float64; `longest=1` gives one-to-one chunks without gaps."""
    rng = np.random.default_rng(seed)
    chunks = tuple(random_chunks(rng, n_chunks, longest) for _ in range(batch))
    length_s, length_t = max(c[-1, 1] for c in chunks) + 1, max(c[-1, 3] for c in chunks) + 2
    return Case(
        torch.from_numpy(rng.normal(size=(batch, length_s, size_s + padding)) * 2),
        torch.from_numpy(rng.normal(size=(batch, length_t, size_t + padding)) * 2),
        rng.integers(0, size_s, (batch, length_s)),
        rng.integers(0, size_t, (batch, length_t)),
        chunks,
        random_projection(rng, size_s, size_t),
        random_partition(rng, size_s, size_t),
        random_tries(rng, size_s, size_t),
    )


def same_tokenizer_case(seed: int = 0, size: int = 7) -> Case:
    """One-to-one chunks over one vocabulary, W the identity, every token paired."""
    case = random_case(seed, size, size, longest=1)
    every = np.arange(size)
    return replace(
        case,
        teacher_logits=case.teacher_logits[:, : case.student_ids.shape[1]],
        teacher_ids=case.student_ids,
        projection=Projection.from_coo(every, every, np.ones(size), (size, size)),
        partition=Partition(every, every, (size, size)),
        tries=tries_from_pieces(*[[[i] for i in range(size)]] * 2, every, every),
    )


def pairs_of_text(case: Case) -> Partition:
    """The tokens of the 1:1 chunks as the text pairs them, so that some chunks are of common tokens; and the case's own
    pairs as far as they fit beside these."""
    found: dict[int, int] = {}
    own = zip(case.partition.student_ids.tolist(), case.partition.teacher_ids.tolist(), strict=True)
    text = [
        (int(case.student_ids[b, s0]), int(case.teacher_ids[b, t0]))
        for b, chunks in enumerate(case.chunks)
        for s0, s1, t0, t1 in chunks.tolist()
        if s1 - s0 == t1 - t0 == 1 and min(s0, t0) > 0
    ]
    for s, t in (*text, *own):
        if s not in found and t not in found.values():
            found[s] = t
    ids_s = np.sort(np.array(list(found)))
    return Partition(ids_s, np.array([found[s] for s in ids_s.tolist()]), case.sizes)


# The losses without a kernel: what they compute is their reference, in blocks of chunks.
BASELINES: dict[str, Callable[[Case], Loss]] = {
    "strict": lambda case: StrictKL(pairs_of_text(case)),
    "strict-top-2": lambda case: StrictKL(pairs_of_text(case), top_k=2),
    "alm": lambda case: ALM(*case.sizes),
    "alm-as-it-is": lambda case: ALM(*case.sizes, likelihood_temperature=1.0),
    "partition-kl": lambda case: PartitionKL(case.partition, case.tries),
}
# Every loss that takes chunks of any length, by a name for the test's id.
LOSSES: dict[str, Callable[[Case], Loss]] = {
    **{f"p-kl-{merge}": lambda case, merge=merge: PKL(case.projection, merge) for merge in MERGES},
    **{f"gold-{merge}": lambda case, merge=merge: GOLD(case.partition, merge) for merge in MERGES},
    **{f"uld-{merge}": lambda case, merge=merge: ULD(*case.sizes, merge) for merge in MERGES},
    "p-kl-top-3": lambda case: PKL(case.projection, teacher_topk=3),
    "h-kl": lambda case: HKL(case.partition),
    "path-kl": lambda case: PathKL(case.tries),
    **BASELINES,
}
WITHOUT_KERNEL = frozenset(name for name in LOSSES if name.endswith("mean") or name in BASELINES)
SAME_TOKENIZER: dict[str, Callable[[Case], Loss]] = {**LOSSES, "same": lambda case: SameTokenizerKL(case.sizes[0])}


def value_and_grad(loss: Loss, logits: Tensor, signal: TeacherSignal, index: ChunkIndex) -> tuple[LossTerm, Tensor]:
    """The term, and d total / d student logits."""
    leaf = logits.detach().requires_grad_()
    term = loss(leaf, signal, index)
    return term, torch.autograd.grad(term.total, leaf)[0]
