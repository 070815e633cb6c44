"""What a walker asks of a loss: a batch planned as first rows, which are compared, and later rows, which are read.

Types: `Pass`, one lesson over one batch; `ChainPass`, that of the losses whose later tokens only make a factor. A pass
is asked in this order: `prepare` once, which reads a number or two off every later row of both sides; `evaluate` over
slices of its chunks; and `later_gradient` over slices of the student's later rows, after the chunks that they belong
to. Its chunks and later rows are in the order of the student's rows, so a walker meets them by slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from xtoken.losses.fast.kernel import ChunkKernel, KernelResult, Rows, Scratch
from xtoken.losses.index import ChunkIndex
from xtoken.losses.merge import realised_log_prob
from xtoken.teachers.signal import TeacherSignal, TopKSignal, WholeSignal

__all__ = ["ChainPass", "Kernel", "Pass", "PlanningKernel", "blocks", "plan", "read_logits", "read_rows"]


class Pass(Protocol):
    """One lesson over one batch.

    Attributes:
        first_s: int64 [A], the student's row of each chunk that is compared, rising.
        first_t: int64 [A], the teacher's.
        later: int64 [L], the student's rows with a gradient from elsewhere, rising; some may be first rows as well.
    """

    first_s: Tensor
    first_t: Tensor
    later: Tensor

    def prepare(self, student: WholeSignal, teacher: TeacherSignal, scratch: Scratch, size: int) -> None:
        """Reads the later rows of both sides, `size` at a time."""

    def evaluate(self, at: slice, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
        """Some of the chunks by their first rows."""

    def later_gradient(self, at: slice, probs: Tensor, scale: float | Tensor) -> None:
        """Turns the student's probabilities at some later rows [n, V_S] into scale * d value / d logits."""


@runtime_checkable
class PlanningKernel(Protocol):
    """A loss that plans a batch by itself."""

    @property
    def student_vocab_size(self) -> int:
        """V_S."""

    @property
    def teacher_vocab_size(self) -> int:
        """V_T."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The parts and metrics it gives, so that a batch without chunks has them too."""

    @property
    def takes_top_k(self) -> bool:
        """Whether the teacher's side may be a top-k signal."""

    def plan(self, index: ChunkIndex) -> Pass:
        """The batch as this loss walks it."""


Kernel = ChunkKernel | PlanningKernel


def plan(kernel: Kernel, index: ChunkIndex) -> Pass:
    """The batch as a loss walks it."""
    return kernel.plan(index) if isinstance(kernel, PlanningKernel) else ChainPass(kernel, index)


class ChainPass:
    """The pass of a formula on pairs of distributions: a chunk's later tokens give its factor, and nothing else."""

    def __init__(self, kernel: ChunkKernel, index: ChunkIndex) -> None:
        self.kernel, self.index = kernel, index
        first, self._order = index.student_rows[index.student_starts[:-1]].sort(stable=True)
        self.first_s, self.first_t = first, index.teacher_rows[index.teacher_starts[:-1]][self._order]
        entries, chunk = later_entries(index.student_starts, len(index.student_rows))
        if not kernel.uses_later_tokens:
            entries, chunk = entries[:0], chunk[:0]
        self.later, by_row = index.student_rows[entries].sort(stable=True)
        self._later_tokens = index.student_tokens[entries][by_row]
        place = torch.empty_like(self._order).scatter_(0, self._order, torch.arange(len(first), device=first.device))
        self._later_chunk = place[chunk[by_row]]

    def prepare(self, student: WholeSignal, teacher: TeacherSignal, scratch: Scratch, size: int) -> None:
        index = self.index
        sides = (
            (student, index.student_rows, index.student_tokens, index.student_starts),
            (teacher, index.teacher_rows, index.teacher_tokens, index.teacher_starts),
        )
        self._log_s, self._log_t = (self._factor(*side, scratch, size)[self._order] for side in sides)
        self._on_factor = torch.zeros_like(self._log_s)

    def evaluate(self, at: slice, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
        student.log_factor, teacher.log_factor = self._log_s[at], self._log_t[at]
        found = self.kernel(student, teacher, scratch)
        assert found.on_factor is not None
        self._on_factor[at] = found.on_factor
        return found

    def later_gradient(self, at: slice, probs: Tensor, scale: float | Tensor) -> None:
        """d log F_S / d logits = onehot - p."""
        weight = (scale * self._on_factor[self._later_chunk[at]]).unsqueeze(1)
        probs.mul_(-weight).scatter_add_(1, self._later_tokens[at].unsqueeze(1), weight)

    def _factor(
        self, signal: TeacherSignal, rows: Tensor, tokens: Tensor, starts: Tensor, scratch: Scratch, size: int
    ) -> Tensor:
        """log F [K]: the log-probability of each chunk's later tokens, 0 where none counts."""
        factor = torch.zeros(self.index.n_chunks, dtype=scratch.dtype, device=scratch.device)
        if self.kernel.uses_later_tokens:
            entries, chunk = later_entries(starts, len(rows))
            for part in blocks(len(entries), size):
                at = entries[part]
                factor.index_add_(0, chunk[part], _realised(signal, rows[at], tokens[at], scratch))
        return factor


def later_entries(starts: Tensor, n_entries: int) -> tuple[Tensor, Tensor]:
    """The entries of a side that are not the first of their chunk, and the chunk of each; both int64 [N - K]."""
    n_chunks = starts.shape[0] - 1
    n_later = n_entries - n_chunks
    chunks = torch.arange(n_chunks, device=starts.device)
    chunk = torch.repeat_interleave(chunks, starts.diff() - 1, output_size=n_later)
    # Each chunk up to this one has one first entry.
    return torch.arange(n_later, device=starts.device) + chunk + 1, chunk


def _realised(signal: TeacherSignal, rows: Tensor, tokens: Tensor, scratch: Scratch) -> Tensor:
    """log p of the text's own tokens [n]."""
    if isinstance(signal, TopKSignal):
        return realised_log_prob(signal, rows, tokens).to(scratch.dtype)
    logits = read_logits(signal, rows, scratch, "later")
    log_probs = torch.log_softmax(logits, -1, out=scratch.take("later log_probs", *logits.shape))
    return log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)


def read_rows(signal: TeacherSignal, rows: Tensor, scratch: Scratch, side: str) -> Rows:
    """One side of the chunks whose first rows these are, in the buffers of a side."""
    if isinstance(signal, TopKSignal):
        kept = signal.log_probs.index_select(0, rows).to(scratch.dtype)
        tail = signal.log_tail.index_select(0, rows).to(scratch.dtype)
        return Rows(kept, scratch, side, signal.token_ids.index_select(0, rows), tail)
    return Rows(read_logits(signal, rows, scratch, side), scratch, side)


def read_logits(signal: WholeSignal, rows: Tensor, scratch: Scratch, side: str) -> Tensor:
    """[n, V], the rows before the softmax, in a buffer of a side."""
    logits = scratch.take(f"{side} logits", len(rows), signal.vocab_size)
    signal.read(rows, logits)
    return logits


def blocks(n: int, size: int) -> Iterator[slice]:
    """0 .. n in slices of at most `size`."""
    return (slice(begin, min(begin + size, n)) for begin in range(0, n, size))
