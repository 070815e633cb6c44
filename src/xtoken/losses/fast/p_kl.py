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
float64, where a probability is 0 only below e^-708; the permutation stays in log space throughout.

Where W is learnt, the logarithm of an entry of the remainder has

    d value / d log W_ij = - F_T / R * p_i W_ij P_j / q_j,

the summand of G_i; what the rows' softmax makes of it is autograd's. Its memory: two tables of learnable entries by
chunks of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from xtoken.losses.divergence import LOG_OF_ZERO
from xtoken.losses.fast.kernel import KernelResult, Rows, Scratch
from xtoken.losses.fast.largest import largest
from xtoken.losses.logspace import NEG_INF

__all__ = [
    "Learnt",
    "LearntPlaces",
    "PKLKernel",
    "SplitProjection",
    "dot_and_spoil",
    "learn",
    "learnt_places",
    "split_projection",
    "starts_of",
    "table",
    "weighted_sums",
]

_NAN, _INF = float("nan"), float("inf")

Ints = NDArray[np.int64]

# Rows of W sum to 1 but for the float32 rounding of up to four entries.
_ROW_SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class SplitProjection:
    """W as tensors: the permutation, the remainder from both sides, and the columns out of reach.

    Attributes:
        partner: int64 [V_S], the teacher column of each student token of the permutation; any for the others.
        is_renamed: float32 [V_S], 1 on the permutation and 0 elsewhere.
        student_ids: int64 [U], rows of the remainder, rising.
        teacher_ids: int64 [C], columns of the remainder, rising.
        by_teacher: int64 [E], the place in `student_ids` of each entry, column by column.
        by_teacher_starts: int64 [C], where each column's entries begin.
        by_teacher_weights: [E], in the projection's own type.
        by_student, by_student_starts, by_student_weights: the same, row by row, places in `teacher_ids`.
        unreachable: int64, the teacher columns without an entry, rising.
        is_reachable: float32 [V_T], 1 on those with one and 0 elsewhere.
        barrier: float32 [V_T], its logarithm.
        source: int64 [V_T], where each teacher column's probability is found: below V_S its one student token, then the
            remainder's columns in the order of `teacher_ids`, then V_S + C for a column out of reach.
        lossy: int64, student tokens whose row sums to less than 1, rising.
        lost: the share of each of them that W does not carry.
    """

    partner: Tensor
    is_renamed: Tensor
    student_ids: Tensor
    teacher_ids: Tensor
    by_teacher: Tensor
    by_teacher_starts: Tensor
    by_teacher_weights: Tensor
    by_student: Tensor
    by_student_starts: Tensor
    by_student_weights: Tensor
    unreachable: Tensor
    is_reachable: Tensor
    barrier: Tensor
    source: Tensor
    lossy: Tensor
    lost: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class LearntPlaces:
    """Where each of the L learnable entries stands in the remainder.

    Attributes:
        in_by_student, in_by_teacher: int64 [L], among the entries row by row, and column by column.
        row, column: int64 [L], places in `student_ids` and in `teacher_ids`.
    """

    in_by_student: Tensor
    in_by_teacher: Tensor
    row: Tensor
    column: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Learnt:
    """The entries of W that are learnt.

    Attributes:
        places: where they are.
        log_weights: [L], with their graph.
        weights: [L], without, in the remainder's type.
    """

    places: LearntPlaces
    log_weights: Tensor
    weights: Tensor

    def slopes(self, p: Tensor, pushed: Tensor) -> Tensor:
        """sum over the chunks of p_i W_ij pushed_j [L], from tables p [U, K] and pushed [C, K]."""
        found = p.index_select(0, self.places.row).mul_(pushed.index_select(0, self.places.column))
        return found.sum(dim=1).mul_(self.weights)


def learnt_places(rows: Ints, cols: Ints, split: SplitProjection) -> LearntPlaces:
    """The places of learnable entries; each must be in the remainder, as all are whose row has several.

    Args:
        rows, cols: int [L], their student and teacher tokens.
        split: W.
    """
    ids_s, ids_t = split.student_ids.numpy(), split.teacher_ids.numpy()
    row, column = np.searchsorted(ids_s, rows), np.searchsorted(ids_t, cols)
    n_entries = len(split.by_student)
    row_of = _segments(split.by_student_starts.numpy(), n_entries)
    column_of = _segments(split.by_teacher_starts.numpy(), n_entries)
    by_student = np.searchsorted(row_of * len(ids_t) + split.by_student.numpy(), row * len(ids_t) + column)
    by_teacher = np.searchsorted(column_of * len(ids_s) + split.by_teacher.numpy(), column * len(ids_s) + row)
    return LearntPlaces(*(torch.from_numpy(x.astype(np.int64)) for x in (by_student, by_teacher, row, column)))


def learn(split: SplitProjection, places: LearntPlaces, log_weights: Tensor) -> tuple[SplitProjection, Learnt | None]:
    """W with its learnable entries as they are at the moment; and these, where a gradient by them is wanted.

    Args:
        split: W at the start.
        places: of the learnable entries.
        log_weights: [L], with their graph.
    """
    weights = log_weights.detach().to(wide_dtype(log_weights.device)).exp()
    by_student = split.by_student_weights.to(weights.dtype).index_copy(0, places.in_by_student, weights)
    by_teacher = split.by_teacher_weights.to(weights.dtype).index_copy(0, places.in_by_teacher, weights)
    current = replace(split, by_student_weights=by_student, by_teacher_weights=by_teacher)
    return current, Learnt(places, log_weights, weights) if log_weights.requires_grad else None


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
    lost = 1 - np.bincount(rows, weights=values, minlength=size_s)
    lossy = np.flatnonzero(lost > _ROW_SUM_TOLERANCE)
    permuted = rows[renamed], cols[renamed]
    rows, cols, values = rows[~renamed], cols[~renamed], values[~renamed]
    student_ids, row_of = np.unique(rows, return_inverse=True)
    teacher_ids, col_of = np.unique(cols, return_inverse=True)
    source = np.full(size_t, size_s + len(teacher_ids), np.int64)
    source[permuted[1]] = permuted[0]
    source[teacher_ids] = size_s + np.arange(len(teacher_ids))
    by_col, by_row = np.lexsort((row_of, col_of)), np.lexsort((col_of, row_of))
    arrays = {
        "partner": np.maximum(partner, 0),
        "is_renamed": (partner >= 0).astype(np.float32),
        "student_ids": student_ids,
        "teacher_ids": teacher_ids,
        "by_teacher": row_of[by_col],
        "by_teacher_starts": starts_of(col_of, len(teacher_ids)),
        "by_teacher_weights": values[by_col],
        "by_student": col_of[by_row],
        "by_student_starts": starts_of(row_of, len(student_ids)),
        "by_student_weights": values[by_row],
        "unreachable": np.flatnonzero(col_entries == 0),
        "is_reachable": (col_entries > 0).astype(np.float32),
        "barrier": np.where(col_entries > 0, 0, -np.inf).astype(np.float32),
        "source": source,
        "lossy": lossy,
        "lost": lost[lossy].astype(np.promote_types(values.dtype, np.float32)),
    }
    return SplitProjection(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


def _segments(starts: Ints, n_entries: int) -> Ints:
    """The segment of each entry."""
    return np.repeat(np.arange(len(starts)), np.diff(np.append(starts, n_entries)))


def starts_of(segment: Ints, n_segments: int) -> Ints:
    return np.concatenate([[0], np.cumsum(np.bincount(segment, minlength=n_segments))])[:n_segments].astype(np.int64)


@dataclass(frozen=True)
class PKLKernel:
    """P-KL of K chunks: on all reachable columns (see the module), or on the most probable of them (`_on_subset`).

    Attributes:
        w: the projection.
        student_vocab_size, teacher_vocab_size: V_S and V_T.
        uses_later_tokens: `chain` rather than `first`.
        top: how many of a chunk's most probable reachable columns to compare on; None for all, or for all that a top-k
            signal has.
        learnt: what of W is learnt; None where it is fixed.
    """

    w: SplitProjection
    student_vocab_size: int
    teacher_vocab_size: int
    uses_later_tokens: bool
    top: int | None
    learnt: Learnt | None = None
    takes_top_k: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ("uncovered_mass",)

    @property
    def log_weights(self) -> Tensor | None:
        """What is learnt [L], with its graph."""
        return None if self.learnt is None else self.learnt.log_weights

    def __call__(self, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
        if self.top is None and teacher.token_ids is None:
            return _on_all(self.w, self.learnt, student, teacher, scratch)
        return _on_subset(self.w, self.learnt, self.top, student, teacher, scratch)


def _on_all(w: SplitProjection, learnt: Learnt | None, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
    k, v_s = len(student.log_factor), len(w.partner)
    uncovered = teacher.probs.gather(1, w.unreachable.expand(k, -1)).sum(dim=1)
    probs_t = teacher.probs.mul_(w.is_reachable)
    reached = probs_t.sum(dim=1)
    own = dot_and_spoil(teacher.log_probs, probs_t, log_of_zero=0.0)
    moved = torch.gather(probs_t, 1, w.partner.expand(k, -1), out=scratch.take("moved", k, v_s))
    moved.mul_(w.is_renamed)

    p, q = remainder_tables(student.log_probs, w)
    target = table(probs_t, w.teacher_ids)
    cross = (target * q.log().nan_to_num_(nan=_NAN, posinf=_INF, neginf=LOG_OF_ZERO)).sum(dim=0).to(moved.dtype)
    pushed = target.div_(q).masked_fill_(q == 0, 0)
    own_p = None if learnt is None else p.clone()
    pull = remainder_pull(p, pushed, w)

    alive = torch.gt(student.log_probs, NEG_INF, out=scratch.take("alive", *moved.shape, dtype=torch.bool))
    cross = cross + dot_and_spoil(student.log_probs, moved, log_of_zero=LOG_OF_ZERO)
    moved.mul_(alive).scatter_(1, w.student_ids.expand(k, -1), pull.to(moved.dtype))
    values, scale, held = _values(student, teacher, reached, own, cross, moved.sum(dim=1))
    moved.mul_(-scale.unsqueeze(1))
    slopes = None if learnt is None or own_p is None else learnt.slopes(own_p, pushed.mul_(-scale.to(pushed.dtype)))
    metrics = {"uncovered_mass": uncovered}
    return KernelResult(values, moved, scale * held, -scale * held, metrics=metrics, by_log_weights=slopes)


def remainder_tables(log_probs: Tensor, w: SplitProjection, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """p [U, K] on the remainder's rows and q = W^T p [C, K] on its columns, float64; both over e^shift.

    Tables of columns by chunks, so that each entry of W reads K neighbouring numbers.
    """
    p = table(log_probs, w.student_ids)
    p = (p if shift is None else p.sub_(shift)).exp_()
    q = weighted_sums(p, w.by_teacher, w.by_teacher_starts, w.by_teacher_weights)
    # Below the smallest normal number 1 / q is none: such a column counts as one without probability.
    return p, q.masked_fill_(q < torch.finfo(q.dtype).tiny, 0)


def remainder_pull(p: Tensor, pushed: Tensor, w: SplitProjection) -> Tensor:
    """p_i sum_j W_ij pushed_j of the remainder's rows [K, U]; overwrites p."""
    return p.mul_(weighted_sums(pushed, w.by_student, w.by_student_starts, w.by_student_weights)).t()


def table(rows: Tensor, columns: Tensor) -> Tensor:
    """[columns, K], in float64 where the device has it."""
    dtype = wide_dtype(rows.device)
    return rows.gather(1, columns.expand(len(rows), -1)).t().to(dtype, memory_format=torch.contiguous_format)


def wide_dtype(device: torch.device) -> torch.dtype:
    """What the remainder is summed in: float64 where the device has it (Apple's has not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def weighted_sums(numbers: Tensor, entries: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Each segment's weighted sum of rows of a table: a sparse product whose order of summation is fixed."""
    if not len(entries):
        return numbers.new_zeros(len(starts), numbers.shape[1])
    return embedding_bag(entries, numbers, starts, mode="sum", per_sample_weights=weights.to(numbers.dtype))


def _mass(log_probs: Tensor) -> Tensor:
    """sum of p over the columns [K], by a softmax: on the CPU torch's is four times as quick as its exponential."""
    if not log_probs.shape[1]:
        return log_probs.new_zeros(len(log_probs))
    peak = log_probs.amax(dim=1)
    return torch.where(peak == NEG_INF, 0, peak.exp() / log_probs.softmax(dim=1).amax(dim=1))


def dot_and_spoil(log_probs: Tensor, probs: Tensor, log_of_zero: float) -> Tensor:
    """sum of p log q over the columns, with a number for log 0; `log_probs` is overwritten."""
    return log_probs.nan_to_num_(nan=_NAN, posinf=_INF, neginf=log_of_zero).mul_(probs).sum(dim=1)


def _values(
    student: Rows, teacher: Rows, reached: Tensor, own: Tensor, cross: Tensor, held: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The value of the module's formula, F_T / R, and R m; the last two are 0 where nothing can be learnt."""
    log_s, log_t = student.log_factor, teacher.log_factor
    counts = (reached != 0) & (log_t != NEG_INF)
    possible = log_s != NEG_INF  # else the student gives the chain no probability at all: every q is 0
    held = torch.where(possible, held, 0)
    cross = torch.where(possible, cross + held * torch.where(possible, log_s, 0), reached * LOG_OF_ZERO)
    reached, log_t = torch.where(counts, reached, 1), torch.where(counts, log_t, 0)
    scale = torch.where(counts, log_t.exp() / reached, 0)
    values = torch.where(counts, scale * (own - cross + reached * (log_t - reached.log())), 0)
    return values, torch.where(possible, scale, 0), held


def _on_subset(
    w: SplitProjection, learnt: Learnt | None, top: int | None, student: Rows, teacher: Rows, scratch: Scratch
) -> KernelResult:
    """P-KL on each chunk's subset S of columns, both sides renormalised there.

    With D = sum over S of q + the mass that W loses, the student is q / D on S, so that

        value = F_T * ( sum over S of P_j (log P_j - log q_j) / R - log R + log F_T - m (log F_S - log D) )
        d value / d logits = F_T ( m a - G / R ),   a_i = p_i ( sum over S of W_ij + lost_i ) / D,

    whose entries are 0 but on the sources of S and on tokens that W loses: the term m p is gone, since a sums to 1 as p
    does. Nothing is done over whole vocabularies but the teacher's softmax and the choice of S. By log W_ij it is
    p_i W_ij times the derivative by q_j, as it is for p_i; D is taken as the sum it is here and not as 1 - (mass
    outside S), which comes to the same for rows that keep their sums.
    """
    k, width, logits = len(student.log_factor), len(w.partner), student.logits
    log_p, source, uncovered = _subset(w, top, teacher)
    probs = log_p.exp()
    reached, own = probs.sum(dim=1), (probs * log_p.nan_to_num(nan=_NAN, posinf=_INF, neginf=0.0)).sum(dim=1)

    # The student's normaliser is in q and in D, and cancels: any shift does that keeps the numbers in range.
    shift = logits.amax(dim=1)
    shift = torch.where(shift == NEG_INF, 0, shift)
    p, q = remainder_tables(logits, w, shift)
    log_q = logits.gather(1, source.clamp(max=width - 1)) - shift.unsqueeze(1)
    columns = torch.cat([q.log().t().to(log_q.dtype), log_q.new_full((k, 1), NEG_INF)], dim=1)
    log_q = torch.where(source < width, log_q, columns.gather(1, (source - width).clamp(min=0)))
    lost = logits.gather(1, w.lossy.expand(k, -1)) - shift.unsqueeze(1) + w.lost.log().to(log_q.dtype)
    log_d = torch.cat([log_q, lost], dim=1).logsumexp(dim=1)
    log_d = torch.where(log_d == NEG_INF, 0, log_d)

    alive = probs * (log_q != NEG_INF)
    held = alive.sum(dim=1)
    cross = (probs * log_q.nan_to_num(nan=_NAN, posinf=_INF, neginf=LOG_OF_ZERO)).sum(dim=1) - held * log_d
    values, scale, held = _values(student, teacher, reached, own, cross, held)

    # By log q_j: on the permutation that is the gradient, and the remainder's share is carried back by W. The last
    # columns of the buffer are the remainder's, and one for what is no column at all.
    share = (held * scale).unsqueeze(1)
    by_log_q = share * (log_q - log_d.unsqueeze(1)).exp() - scale.unsqueeze(1) * alive
    gradient = scratch.take("by subset", k, width + len(q) + 1).zero_().scatter_(1, source, by_log_q)
    pushed = (
        gradient[:, width : width + len(q)]
        .t()
        .to(q.dtype, memory_format=torch.contiguous_format)
        .div_(q)
        .masked_fill_(q == 0, 0)
    )
    slopes = None if learnt is None else learnt.slopes(p, pushed)
    direct = gradient[:, :width]
    direct.scatter_add_(1, w.student_ids.expand(k, -1), remainder_pull(p, pushed, w).to(direct.dtype))
    direct.scatter_add_(1, w.lossy.expand(k, -1), share * (lost - log_d.unsqueeze(1)).exp())
    metrics = {"uncovered_mass": uncovered}
    return KernelResult(values, direct, None, -scale * held, metrics=metrics, by_log_weights=slopes)


def _subset(w: SplitProjection, top: int | None, teacher: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """log P on S [K, k], where the student's probability of each column is found [K, k], and the mass out of reach.

    A column out of reach, or without any probability, is none of S: it keeps its place with log P = -inf.
    """
    k, nowhere = len(teacher.log_factor), len(w.partner) + len(w.teacher_ids)
    log_p, ids = teacher.log_probs, teacher.token_ids
    if ids is None:
        uncovered = _mass(log_p.gather(1, w.unreachable.expand(k, -1)))
        log_p.add_(w.barrier)
        assert top is not None
        ids = largest(log_p, top)
        log_p = log_p.gather(1, ids)
    else:
        reachable = w.source.index_select(0, ids.view(-1)).view_as(ids) < nowhere
        uncovered = torch.where(reachable, 0, log_p.exp()).sum(dim=1)
        log_p = torch.where(reachable, log_p, NEG_INF)
        if top is not None and top < ids.shape[1]:
            log_p, kept = log_p.topk(top, dim=1)
            ids = ids.gather(1, kept)
    return log_p, torch.where(log_p == NEG_INF, nowhere, w.source.index_select(0, ids.view(-1)).view_as(ids)), uncovered
