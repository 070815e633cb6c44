"""From a model's logits to a loss and its gradient, a block of chunks at a time.

Every chunk needs its first row of logits on both sides and, under `chain`, one number of each later row: the
probability of the token that follows. So the walk is: (1) the later rows of both sides, for these numbers; (2) the
first rows through the kernel, block by block; (3) the student's later rows again, for their gradient. What is read off
a later row is the loss's own business (`Pass`). For all but path-KL, which plans on the host, sizes follow from shapes
and nothing is read back from the device.

The gradient is made on the way and multiplied by `grad_output` afterwards, the one by weights that the loss itself
learns as well. Memory: one tensor of the logits' shape and type, and some blocks. Differentiable once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtoken.losses.fast.handover import hand_out, keep_for_backward
from xtoken.losses.fast.kernel import Scratch, log_weights_of
from xtoken.losses.fast.passes import Kernel, blocks, plan, read_logits, read_rows
from xtoken.losses.index import ChunkIndex
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import HeadSignal, LogitSignal, TeacherSignal, WholeSignal

__all__ = ["add_sums", "block_rows", "compute_dtype", "from_logits", "no_sums"]

# Rows times columns of one buffer. A CPU is quickest while the few buffers of a block stay in its caches; a GPU wants
# enough work to fill it. The first is measured (2**20 to 2**22 lie within 10 %), the second is a guess.
_CPU_ELEMENTS = 2**21
_OTHER_ELEMENTS = 2**23


def from_logits(kernel: Kernel, logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
    """The kernel's loss over all chunks, times tau^2.

    Args:
        kernel: the loss.
        logits: [..., W], the student's; leading dimensions are flattened to the rows the index counts.
        teacher: its signal.
        index: the chunks, at least one; no row of the student's stands in it twice.
    """
    names: list[str] = []
    logits = logits if torch.is_grad_enabled() else logits.detach()  # a Function is not told
    weights = log_weights_of(kernel) if torch.is_grad_enabled() else None
    total, *metrics = _Walk.apply(logits.reshape(-1, logits.shape[-1]), weights, kernel, teacher, index, names)
    count = torch.full((), index.n_chunks, dtype=torch.int64, device=logits.device)
    return LossTerm(total, count, dict(zip(names, metrics, strict=True)))


class _Walk(torch.autograd.Function):
    """The sum over the chunks; see the module for its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        weights: Tensor | None,
        kernel: Kernel,
        teacher: WholeSignal,
        index: ChunkIndex,
        names: list[str],
    ) -> tuple[Tensor, ...]:
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        by_weights = torch.zeros_like(weights) if weights is not None else None
        sums = _walk(kernel, logits, teacher, index, gradient, by_weights)
        keep_for_backward(ctx, [gradient, by_weights])
        total = sums.pop("total")
        names.extend(sums)
        ctx.mark_non_differentiable(*sums.values())
        return total, *sums.values()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Any, ...]:
        return (*hand_out(ctx, grad_output), None, None, None, None)  # by logits and by weights


def _walk(
    kernel: Kernel,
    logits: Tensor,
    teacher: TeacherSignal,
    index: ChunkIndex,
    gradient: Tensor | None,
    by_weights: Tensor | None,
) -> dict[str, Tensor]:
    """`total` and the metrics, summed over the chunks.

    `gradient` [R, W] is filled in row by row; to `by_weights` [L] the gradient by the kernel's log-weights is added.
    """
    tau = teacher.temperature
    student = LogitSignal(logits, kernel.student_vocab_size, tau)
    scratch = Scratch(logits.device, compute_dtype(logits.dtype, teacher.dtype))
    width = max(kernel.student_vocab_size, kernel.teacher_vocab_size)
    # A head's product over a few rows takes as long as one over a few hundred.
    size = max(1, _OTHER_ELEMENTS // width) if isinstance(teacher, HeadSignal) else block_rows(logits.device, width)
    lesson = plan(kernel, index)
    lesson.prepare(student, teacher, scratch, size)
    sums = no_sums(kernel, scratch)
    for at in blocks(len(lesson.first_s), size):
        side_s = read_rows(student, lesson.first_s[at], scratch, "student")
        side_t = read_rows(teacher, lesson.first_t[at], scratch, "teacher")
        found = lesson.evaluate(at, side_s, side_t, scratch)
        add_sums(sums, found.sums(tau))
        if gradient is not None:
            _add(gradient, lesson.first_s[at], found.by_logits(side_s, tau))
        if by_weights is not None and found.by_log_weights is not None:
            by_weights.add_(found.by_log_weights, alpha=tau**2)
    if gradient is not None:
        for at in blocks(len(lesson.later), size):
            read = read_logits(student, lesson.later[at], scratch, "later")
            probs = torch.softmax(read, -1, out=scratch.take("later probs", *read.shape))
            lesson.later_gradient(at, probs, tau)
            _add(gradient, lesson.later[at], probs)
    return sums


def no_sums(kernel: Kernel, scratch: Scratch) -> dict[str, Tensor]:
    """The terms of no chunks."""
    zero = torch.zeros((), dtype=scratch.dtype, device=scratch.device)
    return dict.fromkeys(("total", *kernel.metric_names), zero)


def _add(gradient: Tensor, rows: Tensor, values: Tensor) -> None:
    """Rows are distinct within a call; a row may be one chunk's first and another one's later row."""
    gradient[:, : values.shape[1]].index_add_(0, rows, values.to(gradient.dtype))


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The type a walk over tensors of these types computes in, at least float32."""
    found = torch.float32
    for dtype in dtypes:
        found = torch.promote_types(found, dtype)
    return found


def block_rows(device: torch.device, width: int) -> int:
    """How many rows of this width a block has, at least one."""
    return max(1, (_CPU_ELEMENTS if device.type == "cpu" else _OTHER_ELEMENTS) // width)


def add_sums(sums: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Adds each scalar to the one of its name."""
    for name, value in found.items():
        sums[name] = sums[name] + value
