"""`ChunkIndex`: which rows of the logits a cross-tokenizer loss reads, chunk by chunk.

An alignment speaks of tokens; a loss needs the rows of logits that *predict* them. Token i is predicted by row i-1:
that shift is made here, in `from_chunks`, and nowhere else. What takes no part in the loss (prompt, padding, gaps, the
first token of a sequence) is simply absent. Types: int64 tensors, flat over the batch. Law: concatenating the indices
of several sequences adds their chunks and changes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from xtoken.errors import XTokenError

__all__ = ["ChunkIndex"]

Ints = NDArray[np.int64]


def _no_drops() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


@dataclass(frozen=True)
class ChunkIndex:
    """The rows that predict the tokens of K chunks, on both sides; every chunk has at least one token on each.

    Attributes:
        student_rows: int64 [N_s], row of the flattened student logits [B * L_s, V] that predicts each chunk token.
        student_tokens: int64 [N_s], the token that the text has there.
        student_starts: int64 [K+1], chunk k owns entries student_starts[k] : student_starts[k+1] of the two above.
        teacher_rows: int64 [N_t], the same for the teacher's rows.
        teacher_tokens: int64 [N_t].
        teacher_starts: int64 [K+1].
        dropped: int64 scalar, chunks left out because a first token has no row that predicts it. K / (K + dropped) is
            the share of chunks kept.
    """

    student_rows: Tensor
    student_tokens: Tensor
    student_starts: Tensor
    teacher_rows: Tensor
    teacher_tokens: Tensor
    teacher_starts: Tensor
    dropped: Tensor = field(default_factory=_no_drops)

    @property
    def n_chunks(self) -> int:
        """K, read off a shape: it waits for no device."""
        return int(self.student_starts.shape[0]) - 1

    @classmethod
    def from_chunks(
        cls,
        chunks: ArrayLike,
        student_ids: ArrayLike,
        teacher_ids: ArrayLike,
        student_offset: int = 0,
        teacher_offset: int = 0,
    ) -> ChunkIndex:
        """The index of one sequence.

        Args:
            chunks: int [C, 4], rows (s0, s1, t0, t1): student tokens [s0, s1) and teacher tokens [t0, t1) over the same
                bytes, as in `Alignment.chunks`.
            student_ids: int [n], the token ids the chunks speak of.
            teacher_ids: int [m].
            student_offset: row of the flattened student logits at which this sequence's first token sits.
            teacher_offset: the same for the teacher.

        Raises:
            XTokenError: a chunk is empty on a side, or reaches past the tokens; two share a student token.
        """
        bounds = np.asarray(chunks, np.int64).reshape(-1, 4)
        ids_s, ids_t = np.asarray(student_ids, np.int64), np.asarray(teacher_ids, np.int64)
        _check("student", bounds[:, :2], len(ids_s))
        _check("teacher", bounds[:, 2:], len(ids_t))
        _check_apart(bounds[:, :2])
        kept = bounds[(bounds[:, 0] > 0) & (bounds[:, 2] > 0)]
        side_s = _side(kept[:, :2], ids_s, student_offset)
        side_t = _side(kept[:, 2:], ids_t, teacher_offset)
        return cls(*side_s, *side_t, dropped=torch.tensor(len(bounds) - len(kept)))

    @classmethod
    def cat(cls, indices: Sequence[ChunkIndex]) -> ChunkIndex:
        """The chunks of several indices that address the same flattened logits, in order; none gives K = 0."""
        if not indices:
            return cls.from_chunks([], [], [])
        joined = {name: torch.cat([getattr(i, name) for i in indices]) for name in _FLAT}
        for side in ("student", "teacher"):
            lengths = torch.cat([getattr(i, f"{side}_starts").diff() for i in indices])
            joined[f"{side}_starts"] = _starts(lengths)
        return cls(**joined, dropped=torch.stack([i.dropped for i in indices]).sum())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for a batch whose mover knows dicts of tensors only."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ChunkIndex:
        """The inverse of `tensors`.

        Raises:
            XTokenError: a tensor is missing.
        """
        names = [f.name for f in fields(cls)]
        if missing := [name for name in names if name not in tensors]:
            raise XTokenError(f"a ChunkIndex needs the tensors {names}; missing: {missing}")
        return cls(**{name: tensors[name] for name in names})

    def to(self, device: torch.device | str) -> ChunkIndex:
        """The same index on `device`."""
        return ChunkIndex(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


_FLAT = ("student_rows", "student_tokens", "teacher_rows", "teacher_tokens")


def _check(side: str, bounds: Ints, n_tokens: int) -> None:
    wrong = (bounds[:, 0] < 0) | (bounds[:, 1] <= bounds[:, 0]) | (bounds[:, 1] > n_tokens)
    if wrong.any():
        chunk = int(wrong.argmax())
        begin, end = bounds[chunk].tolist()
        raise XTokenError(
            f"chunk {chunk} has the {side} tokens [{begin}, {end}) of a sequence of {n_tokens}: a chunk holds at "
            "least one token on each side, within the sequence. Truncate the alignment together with the ids."
        )


def _check_apart(bounds: Ints) -> None:
    """A row of the student's in two chunks would have two gradients, and the losses write one."""
    ordered = bounds[np.argsort(bounds[:, 0], kind="stable")]
    shared = np.flatnonzero(ordered[1:, 0] < ordered[:-1, 1])
    if len(shared):
        token = int(ordered[shared[0] + 1, 0])
        raise XTokenError(f"student token {token} is in two chunks: the chunks of an alignment do not overlap.")


def _side(bounds: Ints, ids: Ints, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, tokens and starts of one side: the one place of the shift."""
    lengths = bounds[:, 1] - bounds[:, 0]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    position = np.arange(starts[-1]) + np.repeat(bounds[:, 0] - starts[:-1], lengths)
    rows, tokens = position - 1 + offset, ids[position]
    return torch.from_numpy(rows), torch.from_numpy(tokens), torch.from_numpy(starts)


def _starts(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
