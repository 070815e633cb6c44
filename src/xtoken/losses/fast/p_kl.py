"""P-KL by hand: W as a renaming of columns plus a small remainder.

Most student tokens have one teacher token of the same bytes that no other student token leads to: there W is a
permutation, and for the rest (tokens cut in pieces, and the pieces) it is a small sparse matrix. For Llama-3 with Qwen3
that is 104,065 columns against 47,785 entries on 23,494 rows and 5,761 columns.

With P the teacher restricted to the reachable columns, R its sum, q = W^T p, and m the share of P / R where q is not 0:

    value = F_T * ( sum_j P_j (log P_j - log q_j) / R - log R + log F_T - m log F_S )
    p_i * d value / d p_i = - F_T / R * G_i,   G_i = p_i sum_j W_ij P_j / q_j,   which is P_j on the permutation
    sum_i G_i = R m,   so   d value / d logits = F_T ( m p - G / R )   and   d value / d log F_S = - F_T m

so the permutation needs the teacher's probabilities in the student's order and nothing else, in value and gradient. A
column with q_j = 0 counts P_j (log P_j + 100) and has no gradient, as in `kl_divergence`. The remainder is summed in
float64, where a probability is 0 only below e^-745; the permutation stays in log space throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from xtoken.losses.divergence import LOG_OF_ZERO
from xtoken.losses.fast.kernel import KernelResult, Rows, Scratch
from xtoken.losses.logspace import NEG_INF

__all__ = ["PKLKernel", "SplitProjection", "dot_and_spoil", "split_projection"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SplitProjection:
    """W as tensors: the permutation, the remainder from both sides, and the columns out of reach.

    Attributes:
        partner: int64 [V_S], the teacher column of each student token of the permutation; any for the others.
        others: int64, the student tokens outside the permutation, rising: `student_ids` and those with an empty row.
        student_ids: int64 [U], rows of the remainder, rising.
        teacher_ids: int64 [C], columns of the remainder, rising.
        by_teacher: int64 [E], the place in `student_ids` of each entry, column by column.
        by_teacher_starts: int64 [C], where each column's entries begin.
        by_teacher_weights: float64 [E].
        by_student, by_student_starts, by_student_weights: the same, row by row, places in `teacher_ids`.
        unreachable: int64, the teacher columns without an entry, rising.
    """

    partner: Tensor
    others: Tensor
    student_ids: Tensor
    teacher_ids: Tensor
    by_teacher: Tensor
    by_teacher_starts: Tensor
    by_teacher_weights: Tensor
    by_student: Tensor
    by_student_starts: Tensor
    by_student_weights: Tensor
    unreachable: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def split_projection(rows: Ints, cols: Ints, values: NDArray[np.floating], shape: tuple[int, int]) -> SplitProjection:
    """Splits W.

    Args:
        rows, cols: int [nnz], entries of W, no cell twice.
        values: float [nnz], positive.
        shape: (V_S, V_T).
    """
    size_s, size_t = shape
    row_entries, col_entries = np.bincount(rows, minlength=size_s), np.bincount(cols, minlength=size_t)
    renamed = (row_entries[rows] == 1) & (col_entries[cols] == 1) & (values == 1)
    partner = np.full(size_s, -1, np.int64)
    partner[rows[renamed]] = cols[renamed]
    rows, cols, values = rows[~renamed], cols[~renamed], values[~renamed].astype(np.float64)
    student_ids, row_of = np.unique(rows, return_inverse=True)
    teacher_ids, col_of = np.unique(cols, return_inverse=True)
    by_col, by_row = np.lexsort((row_of, col_of)), np.lexsort((col_of, row_of))
    arrays = {
        "partner": np.maximum(partner, 0),
        "others": np.flatnonzero(partner < 0),
        "student_ids": student_ids,
        "teacher_ids": teacher_ids,
        "by_teacher": row_of[by_col],
        "by_teacher_starts": _starts(col_of, len(teacher_ids)),
        "by_teacher_weights": values[by_col],
        "by_student": col_of[by_row],
        "by_student_starts": _starts(row_of, len(student_ids)),
        "by_student_weights": values[by_row],
        "unreachable": np.flatnonzero(col_entries == 0),
    }
    return SplitProjection(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


def _starts(segment: Ints, n_segments: int) -> Ints:
    return np.concatenate([[0], np.cumsum(np.bincount(segment, minlength=n_segments))])[:n_segments].astype(np.int64)


@dataclass(frozen=True)
class PKLKernel:
    """P-KL of K chunks; see the module.

    Attributes:
        w: the projection.
        student_vocab_size, teacher_vocab_size: V_S and V_T.
        uses_later_tokens: `chain` rather than `first`.
    """

    w: SplitProjection
    student_vocab_size: int
    teacher_vocab_size: int
    uses_later_tokens: bool

    def __call__(self, student: Rows, teacher: Rows, scratch: Scratch, with_gradient: bool) -> KernelResult:
        w, k = self.w, len(student.log_factor)
        uncovered = teacher.probs.gather(1, w.unreachable.expand(k, -1)).sum(dim=1)
        probs_t = teacher.probs.scatter_(1, w.unreachable.expand(k, -1), 0.0)
        reached = probs_t.sum(dim=1)
        own = dot_and_spoil(teacher.log_probs, probs_t, log_of_zero=0.0)
        moved = torch.gather(probs_t, 1, w.partner.expand(k, -1), out=scratch.take("moved", k, self.student_vocab_size))
        moved.scatter_(1, w.others.expand(k, -1), 0.0)
        cross, pull = self._remainder(student, probs_t)
        alive = torch.gt(student.log_probs, NEG_INF, out=scratch.take("alive", *moved.shape, dtype=torch.bool))
        cross = cross + dot_and_spoil(student.log_probs, moved, log_of_zero=LOG_OF_ZERO)
        moved.mul_(alive).scatter_(1, w.student_ids.expand(k, -1), pull)
        return _assemble(student, teacher, moved, (reached, own, cross, uncovered))

    def _remainder(self, student: Rows, probs_t: Tensor) -> tuple[Tensor, Tensor]:
        """sum_j P_j log q_j over the remainder's columns [K], and G on its rows [K, U].

        Tables are [U, K] and [C, K], so that each entry of W reads K neighbouring numbers.
        """
        w, k, dtype = self.w, len(student.log_factor), student.log_probs.dtype
        p = _table(student.log_probs, w.student_ids).exp_()
        q = _weighted_sums(p, w.by_teacher, w.by_teacher_starts, w.by_teacher_weights)
        target = _table(probs_t, w.teacher_ids)
        log_q = q.log().nan_to_num_(nan=float("nan"), posinf=float("inf"), neginf=LOG_OF_ZERO)
        cross = log_q.mul_(target).sum(dim=0)
        pushed = target.div_(q).masked_fill_(q == 0, 0)
        pull = p.mul_(_weighted_sums(pushed, w.by_student, w.by_student_starts, w.by_student_weights))
        return cross.to(dtype), pull.t().to(dtype).reshape(k, -1)


def _table(rows: Tensor, columns: Tensor) -> Tensor:
    """float64 [columns, K]."""
    return rows.gather(1, columns.expand(len(rows), -1)).t().to(torch.float64, memory_format=torch.contiguous_format)


def _weighted_sums(table: Tensor, entries: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Each segment's weighted sum of rows of the table: a sparse product whose order of summation is fixed."""
    return embedding_bag(entries, table, starts, mode="sum", per_sample_weights=weights)


def dot_and_spoil(log_probs: Tensor, probs: Tensor, log_of_zero: float) -> Tensor:
    """sum of p log q over the columns, with a number for log 0; `log_probs` is overwritten."""
    log_probs.nan_to_num_(nan=float("nan"), posinf=float("inf"), neginf=log_of_zero)
    return log_probs.mul_(probs).sum(dim=1)


def _assemble(student: Rows, teacher: Rows, moved: Tensor, sums: tuple[Tensor, Tensor, Tensor, Tensor]) -> KernelResult:
    """The formulas of the module from its sums; `moved` holds G and becomes the gradient."""
    reached, own, cross, uncovered = sums
    log_s, log_t = student.log_factor, teacher.log_factor
    counts = (reached != 0) & (log_t != NEG_INF)
    possible = log_s != NEG_INF  # else the student gives the chain no probability at all: every q is 0
    held = torch.where(possible, moved.sum(dim=1), 0)
    cross = torch.where(possible, cross + held * torch.where(possible, log_s, 0), reached * LOG_OF_ZERO)
    reached, log_t = torch.where(counts, reached, 1), torch.where(counts, log_t, 0)
    scale = torch.where(counts, log_t.exp() / reached, 0)
    values = torch.where(counts, scale * (own - cross + reached * (log_t - reached.log())), 0)
    direct = moved.mul_(torch.where(possible, -scale, 0).unsqueeze(1))
    return KernelResult(values, direct, scale * held, -scale * held, metrics={"uncovered_mass": uncovered})
