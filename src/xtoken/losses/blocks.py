"""Any loss over chunks, a block of chunks at a time: the memory of a block instead of that of the batch.

A loss over K chunks keeps several [K, V] tensors for its backward; at 4,096 tokens and vocabularies of 128k and 152k
these are tens of gigabytes. A sum over chunks can be cut anywhere, and no row of the logits belongs to two chunks, so
each block is run forward and backward at once and leaves only its rows of the gradient:

    d total / d logits[row] = d total_b / d logits[row],   b the block that reads `row`;   0 for a row that none reads.

The backward then multiplies what is kept by `grad_output`. Law: value, gradient and metrics are those of the loss
itself. Memory: one tensor of the logits' shape and type, and what the loss takes for one block. Differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtoken.losses.fast.handover import hand_out, keep_for_backward
from xtoken.losses.index import ChunkIndex
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import TeacherSignal

__all__ = ["BLOCK_ELEMENTS", "chunks_per_block", "in_blocks"]

ChunkLoss = Callable[[Tensor, TeacherSignal, ChunkIndex], LossTerm]

# Chunks times (V_S + V_T) in a block: 2**25 float32 are 128 MiB a tensor, of which the reference losses keep about ten.
BLOCK_ELEMENTS = 2**25


def chunks_per_block(student_width: int, teacher_width: int, elements: int = BLOCK_ELEMENTS) -> int:
    """How many chunks fit a block, at least one."""
    return max(1, elements // (student_width + teacher_width))


def in_blocks(
    loss: ChunkLoss,
    student_logits: Tensor,
    teacher: TeacherSignal,
    index: ChunkIndex,
    chunks: int | None = None,
    parameters: Sequence[Tensor] = (),
) -> LossTerm:
    """`loss(student_logits, teacher, index)`, a block of chunks at a time.

    Args:
        loss: a sum over chunks.
        student_logits: [..., W]; leading dimensions are flattened to the rows the index counts.
        teacher: its signal.
        index: the chunks; no row of the student's stands in it twice.
        chunks: in a block; by default as many as keep a block's tensors near `BLOCK_ELEMENTS`.
        parameters: the loss's own that need a gradient, leaves of the graph.
    """
    flat = student_logits.reshape(-1, student_logits.shape[-1])
    size = chunks or chunks_per_block(flat.shape[-1], teacher.vocab_size)
    if index.n_chunks <= size:
        return loss(student_logits, teacher, index)
    names: list[str] = []
    total, count, *metrics = _Blocks.apply(flat, loss, teacher, index, size, names, *parameters)
    return LossTerm(total, count, dict(zip(names, metrics, strict=True)))


class _Blocks(torch.autograd.Function):
    """The sum over blocks; see the module for its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        loss: ChunkLoss,
        teacher: TeacherSignal,
        index: ChunkIndex,
        size: int,
        names: list[str],
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits) if needs_gradient else None
        learnt = [p for p, needs in zip(parameters, ctx.needs_input_grad[6:], strict=True) if needs]
        by_learnt = [torch.zeros_like(p) for p in learnt]
        term: LossTerm | None = None
        for block in _split(index, size):
            rows, own = _with_own_rows(block)
            with torch.enable_grad():
                read = logits.detach().index_select(0, rows).requires_grad_(needs_gradient)
                found = loss(read, teacher, own)
            sources = [read, *learnt] if needs_gradient else learnt
            by_sources = list(torch.autograd.grad(found.total, sources) if sources else ())
            if gradient is not None:
                gradient.index_copy_(0, rows, by_sources.pop(0))
            for total, part in zip(by_learnt, by_sources, strict=True):
                total.add_(part)
            found = LossTerm(found.total.detach(), found.count, found.metrics)
            term = found if term is None else term + found
        assert term is not None  # there are more chunks than fit one block
        given = iter(by_learnt)
        keep_for_backward(ctx, [gradient, *(next(given) if needs else None for needs in ctx.needs_input_grad[6:])])
        names.extend(term.metrics)
        ctx.mark_non_differentiable(term.count, *term.metrics.values())
        return term.total, term.count, *term.metrics.values()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Any, ...]:
        by_logits, *by_parameters = hand_out(ctx, grad_output)
        return (by_logits, None, None, None, None, None, *by_parameters)


def _split(index: ChunkIndex, size: int) -> Iterator[ChunkIndex]:
    """The index in pieces of `size` chunks; the bounds of all pieces are read from the device in one go."""
    cuts = [*range(0, index.n_chunks, size), index.n_chunks]
    at = torch.tensor(cuts, device=index.student_starts.device)
    bounds = torch.stack([index.student_starts[at], index.teacher_starts[at]]).tolist()
    for n, (first, last) in enumerate(pairwise(cuts)):
        (s0, s1), (t0, t1) = bounds[0][n : n + 2], bounds[1][n : n + 2]
        yield ChunkIndex(
            index.student_rows[s0:s1],
            index.student_tokens[s0:s1],
            index.student_starts[first : last + 1] - s0,
            index.teacher_rows[t0:t1],
            index.teacher_tokens[t0:t1],
            index.teacher_starts[first : last + 1] - t0,
        )


def _with_own_rows(block: ChunkIndex) -> tuple[Tensor, ChunkIndex]:
    """The student rows a block reads, and the block counted in them."""
    rows = block.student_rows
    own = torch.arange(len(rows), device=rows.device)
    tensors = {**block.tensors(), "student_rows": own}
    return rows, ChunkIndex.from_tensors(tensors)
