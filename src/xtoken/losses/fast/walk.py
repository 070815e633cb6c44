"""From a model's logits to a loss and its gradient, a block of chunks at a time.

Every chunk needs its first row of logits on both sides and, under `chain`, one number of each later row: the
probability of the token that follows. So the walk is: (1) the later rows of both sides, for the factors; (2) the first
rows through the kernel, block by block; (3) the student's later rows again, whose gradient is
d value / d log F_S * (onehot - p). All sizes follow from shapes, so nothing is read back from the device.

The gradient is made on the way and multiplied by `grad_output` afterwards. Memory: one tensor of the logits' shape and
type, and some blocks. Differentiable once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtoken.losses.fast.handover import hand_out, keep_for_backward
from xtoken.losses.fast.kernel import ChunkKernel, Rows, Scratch
from xtoken.losses.index import ChunkIndex
from xtoken.losses.merge import realised_log_prob
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import HeadSignal, LogitSignal, TeacherSignal, TopKSignal, WholeSignal

__all__ = [
    "add_sums",
    "block_rows",
    "blocks",
    "chain_factors",
    "compute_dtype",
    "from_logits",
    "later_entries",
    "read_logits",
    "read_rows",
]

# Rows times columns of one buffer. A CPU is quickest while the few buffers of a block stay in its caches; a GPU wants
# enough work to fill it. The first is measured (2**20 to 2**22 lie within 10 %), the second is a guess.
_CPU_ELEMENTS = 2**21
_OTHER_ELEMENTS = 2**23


def from_logits(kernel: ChunkKernel, logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
    """The kernel's loss over all chunks, times tau^2.

    Args:
        kernel: the loss.
        logits: [..., W], the student's; leading dimensions are flattened to the rows the index counts.
        teacher: its signal.
        index: the chunks, at least one; no row of the student's stands in it twice.
    """
    names: list[str] = []
    logits = logits if torch.is_grad_enabled() else logits.detach()  # a Function is not told
    total, *metrics = _Walk.apply(logits.reshape(-1, logits.shape[-1]), kernel, teacher, index, names)
    count = torch.full((), index.n_chunks, dtype=torch.int64, device=logits.device)
    return LossTerm(total, count, dict(zip(names, metrics, strict=True)))


class _Walk(torch.autograd.Function):
    """The sum over the chunks; see the module for its gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, kernel: ChunkKernel, teacher: WholeSignal, index: ChunkIndex, names: list[str]
    ) -> tuple[Tensor, ...]:
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        sums = _walk(kernel, logits, teacher, index, gradient)
        keep_for_backward(ctx, [gradient])
        total = sums.pop("total")
        names.extend(sums)
        ctx.mark_non_differentiable(*sums.values())
        return total, *sums.values()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Any, ...]:
        return (*hand_out(ctx, grad_output), None, None, None, None)


def _walk(
    kernel: ChunkKernel, logits: Tensor, teacher: TeacherSignal, index: ChunkIndex, gradient: Tensor | None
) -> dict[str, Tensor]:
    """`total` and the metrics, summed over the chunks; `gradient` [R, W] is filled in row by row."""
    tau = teacher.temperature
    student = LogitSignal(logits, kernel.student_vocab_size, tau)
    scratch = Scratch(logits.device, compute_dtype(logits.dtype, teacher.dtype))
    width = max(kernel.student_vocab_size, kernel.teacher_vocab_size)
    # A head's product over a few rows takes as long as one over a few hundred.
    size = max(1, _OTHER_ELEMENTS // width) if isinstance(teacher, HeadSignal) else block_rows(logits.device, width)
    log_s, log_t = chain_factors(kernel, student, teacher, index, scratch, size)
    on_factor = torch.zeros_like(log_s)
    first_s = index.student_rows[index.student_starts[:-1]]
    first_t = index.teacher_rows[index.teacher_starts[:-1]]
    sums: dict[str, Tensor] = {}
    for chunks in blocks(index.n_chunks, size):
        side_s = read_rows(student, first_s[chunks], log_s[chunks], scratch, "student")
        side_t = read_rows(teacher, first_t[chunks], log_t[chunks], scratch, "teacher")
        found = kernel(side_s, side_t, scratch)
        on_factor[chunks] = found.on_factor
        add_sums(sums, found.sums(tau))
        if gradient is not None:
            _write(gradient, first_s[chunks], found.by_logits(side_s, tau))
    if gradient is not None and kernel.uses_later_tokens:
        _later_gradient(student, index, on_factor, scratch, size, gradient)
    return sums


def _later_gradient(
    student: LogitSignal, index: ChunkIndex, on_factor: Tensor, scratch: Scratch, size: int, gradient: Tensor
) -> None:
    """The rows of the later tokens: d log F_S / d logits = onehot - p."""
    entries, chunk = later_entries(index.student_starts, len(index.student_rows))
    rows, tokens = index.student_rows[entries], index.student_tokens[entries]
    weight = student.temperature * on_factor[chunk].unsqueeze(1)
    for part in blocks(len(entries), size):
        logits = read_logits(student, rows[part], scratch, "later")
        probs = torch.softmax(logits, -1, out=scratch.take("later probs", *logits.shape))
        probs.mul_(-weight[part]).scatter_add_(1, tokens[part].unsqueeze(1), weight[part])
        _write(gradient, rows[part], probs)


def _write(gradient: Tensor, rows: Tensor, values: Tensor) -> None:
    gradient[:, : values.shape[1]].index_copy_(0, rows, values.to(gradient.dtype))


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The type a walk over tensors of these types computes in, at least float32."""
    found = torch.float32
    for dtype in dtypes:
        found = torch.promote_types(found, dtype)
    return found


def block_rows(device: torch.device, width: int) -> int:
    """How many rows of this width a block has, at least one."""
    return max(1, (_CPU_ELEMENTS if device.type == "cpu" else _OTHER_ELEMENTS) // width)


def blocks(n: int, size: int) -> Iterator[slice]:
    """0 .. n in slices of at most `size`."""
    return (slice(begin, min(begin + size, n)) for begin in range(0, n, size))


def add_sums(sums: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Adds each scalar to what is there under its name."""
    for name, value in found.items():
        sums[name] = sums[name] + value if name in sums else value


def read_rows(signal: TeacherSignal, rows: Tensor, log_factor: Tensor, scratch: Scratch, side: str) -> Rows:
    """One side of the chunks whose first rows these are, in the buffers of a side."""
    if isinstance(signal, TopKSignal):
        kept = signal.log_probs.index_select(0, rows).to(scratch.dtype)
        return Rows(kept, log_factor, scratch, side, signal.token_ids.index_select(0, rows))
    return Rows(read_logits(signal, rows, scratch, side), log_factor, scratch, side)


def read_logits(signal: WholeSignal, rows: Tensor, scratch: Scratch, side: str) -> Tensor:
    """[n, V], the rows before the softmax, in a buffer of a side."""
    logits = scratch.take(f"{side} logits", len(rows), signal.vocab_size)
    signal.read(rows, logits)
    return logits


def later_entries(starts: Tensor, n_entries: int) -> tuple[Tensor, Tensor]:
    """The entries of a side that are not the first of their chunk, and the chunk of each; both int64 [N - K]."""
    n_chunks = starts.shape[0] - 1
    n_later = n_entries - n_chunks
    chunks = torch.arange(n_chunks, device=starts.device)
    chunk = torch.repeat_interleave(chunks, starts.diff() - 1, output_size=n_later)
    # Each chunk up to this one has one first entry.
    return torch.arange(n_later, device=starts.device) + chunk + 1, chunk


def chain_factors(
    kernel: ChunkKernel, student: WholeSignal, teacher: TeacherSignal, index: ChunkIndex, scratch: Scratch, size: int
) -> tuple[Tensor, Tensor]:
    """log F of both sides, [K] each: the log-probability of each chunk's later tokens, 0 where none counts."""
    sides = (
        (student, index.student_rows, index.student_tokens, index.student_starts),
        (teacher, index.teacher_rows, index.teacher_tokens, index.teacher_starts),
    )
    factors = []
    for signal, rows, tokens, starts in sides:
        factor = torch.zeros(index.n_chunks, dtype=scratch.dtype, device=scratch.device)
        if kernel.uses_later_tokens:
            entries, chunk = later_entries(starts, len(rows))
            for part in blocks(len(entries), size):
                at = entries[part]
                factor.index_add_(0, chunk[part], _realised(signal, rows[at], tokens[at], scratch))
        factors.append(factor)
    return factors[0], factors[1]


def _realised(signal: TeacherSignal, rows: Tensor, tokens: Tensor, scratch: Scratch) -> Tensor:
    """log p of the text's own tokens [n]."""
    if isinstance(signal, TopKSignal):
        return realised_log_prob(signal, rows, tokens).to(scratch.dtype)
    logits = read_logits(signal, rows, scratch, "later")
    log_probs = torch.log_softmax(logits, -1, out=scratch.take("later log_probs", *logits.shape))
    return log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
