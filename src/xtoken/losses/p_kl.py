"""P-KL: the student's distribution carried into the teacher's vocabulary by W, and compared there by KL.

For each chunk KL( p_T / R || W^T p_S ). R is the teacher's mass on the columns that W can reach: the rest could be
moved by no gradient and would only be a floor under the loss, so the teacher is renormalised on the reachable set and
the mass outside is reported as `uncovered_mass`. W^T p_S stands as it is: mass of student tokens with a zero row of W
is lost, and its loss is penalised. Law: 0 where the student's projection is the teacher; with W a permutation of 1:1
chunks, the same-tokenizer KL.

Reverse KL and Jensen-Shannon compare the same two vectors, generalised to vectors of any sums: what W loses of the
student, and under `chain` what the later tokens take of either side, counts as the mass that it is. They are at least
0 for every merge, `chain` on long chunks included.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.divergence import FORWARD, Divergence
from xtoken.losses.fast.kernel import ChunkKernel
from xtoken.losses.fast.p_kl import (
    LearntPlaces,
    PKLKernel,
    SplitProjection,
    learn,
    learnt_places,
    split_projection,
)
from xtoken.losses.index import ChunkIndex
from xtoken.losses.learnable import RowWeights, learnable_entries
from xtoken.losses.logspace import NEG_INF, log_normalise, log_sum, segment_log_sum
from xtoken.losses.merge import (
    ChunkDistributions,
    Merge,
    check_merge,
    student_chunks,
    teacher_chunks,
)
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import TeacherSignal, TopKSignal

__all__ = ["PKL", "ProjectionLike", "ProjectionTensors", "p_kl", "project"]

Array = NDArray[Any]

# Rows of W sum to 1 or 0; the same slack as `Projection` allows for float32 rounding of four entries.
_ROW_SUM_TOLERANCE = 1e-5


class ProjectionLike(Protocol):
    """What P-KL needs of a projection; `xtoken.projection.Projection` has it."""

    @property
    def shape(self) -> tuple[int, int]:
        """(V_S, V_T)."""

    def to_coo(self) -> tuple[Array, Array, Array]:
        """(rows, cols, values), each [nnz]."""


@dataclass(frozen=True)
class ProjectionTensors:
    """W as tensors, with what follows from it.

    Attributes:
        rows: int64 [nnz], student tokens.
        cols: int64 [nnz], teacher tokens.
        values: [nnz], the weights, positive.
        reachable: bool [V_T], the columns that have an entry.
        log_lost: [V_S], log of the share of each student token's mass that W does not carry; -inf where it carries all.
        log_values: [nnz], of a W that is learnt, with gradient; None takes those of `values`.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    reachable: Tensor
    log_lost: Tensor
    log_values: Tensor | None = None


def project(log_probs: Tensor, w: ProjectionTensors) -> Tensor:
    """log( W^T p ), summed in log space.

    Args:
        log_probs: [K, V_S], nats.
        w: the projection.

    Returns:
        [K, V_T], nats; -inf in a column that gets no mass. Rows sum to less than 1 where W has zero rows.
    """
    log_values = w.values.to(log_probs.dtype).log() if w.log_values is None else w.log_values.to(log_probs.dtype)
    carried = log_probs.index_select(1, w.rows) + log_values
    return segment_log_sum(carried, w.cols, w.reachable.shape[0], dim=1)


def _within(log_projected: Tensor, log_probs: Tensor, subset: Tensor, w: ProjectionTensors) -> Tensor:
    """The projected student divided by 1 - (its mass on reachable columns outside `subset`).

    Without zero rows this renormalises inside the subset; with the whole reachable set as the subset it changes
    nothing, to the bit. 1 - x rounds to zero for a student that is still sure of something else, so past one half the
    divisor is summed as (mass inside) + (mass lost on zero rows), which is the same but for the rounding of W's rows.
    """
    outside = torch.where(subset, 0, log_projected.exp()).sum(dim=-1, keepdim=True)
    inside = torch.where(subset, log_projected, NEG_INF)
    lost = log_probs + w.log_lost.to(log_probs.dtype)
    summed = log_sum(torch.cat([inside, lost], dim=-1)).unsqueeze(-1)
    divisor = torch.where(outside < 0.5, torch.log1p(-outside.clamp(max=0.5)), summed)
    return log_projected - torch.where(divisor == NEG_INF, 0, divisor)


def p_kl(
    student: ChunkDistributions,
    teacher: ChunkDistributions,
    w: ProjectionTensors,
    subset: Tensor | None = None,
    divergence: Divergence = FORWARD,
) -> tuple[Tensor, Tensor]:
    """P-KL of each chunk.

    Args:
        student: over V_S.
        teacher: over V_T.
        w: V_S x V_T.
        subset: bool [K, V_T], the reachable columns to compare on; None for all of them.
        divergence: how they are compared.

    Returns:
        The loss [K] in nats, 0 for a chunk whose teacher has no mass on the columns compared; and the teacher's mass
        [K] on the columns W cannot reach, at the chunk's first position (for `mean`, of the mean distribution).
    """
    compared = w.reachable if subset is None else subset
    log_q = project(student.log_probs, w)
    if subset is not None:
        log_q = _within(log_q, student.log_probs, subset, w)
    log_p = log_normalise(torch.where(compared, teacher.log_probs, NEG_INF))
    # -inf for a chain of probability zero: the chunk then contributes 0, as every 0 log 0 does.
    log_p = log_p + teacher.log_factor.unsqueeze(-1)
    if divergence.name != "forward":  # which passes over columns without a teacher by itself
        log_q = torch.where(compared, log_q, NEG_INF)
    values = divergence(log_p, log_q + student.log_factor.unsqueeze(-1))
    uncovered = torch.where(w.reachable, 0, teacher.log_probs.exp()).sum(dim=-1)
    return values, uncovered


def _largest(log_probs: Tensor, candidates: Tensor, k: int) -> Tensor:
    """bool [K, V_T], the k most probable of the candidates (fewer where there are fewer)."""
    chosen = torch.where(candidates, log_probs, NEG_INF).topk(k, dim=-1).indices
    return torch.zeros_like(log_probs, dtype=torch.bool).scatter(1, chosen, True) & candidates


class PKL(ChunkLoss):
    """P-KL between a student and a teacher with different tokenizers.

    With `first` and `mean`, and on 1:1 chunks with `chain`, it is a divergence: never negative, but for student mass
    that W carries nowhere it is 0 only where that mass is 0. On longer chunks `chain` compares two vectors of different
    sums, and the value may be negative; its gradient is that of the formula all the same.

    The student is read at the signal's temperature tau, and the loss is multiplied by tau^2. A top-k signal is compared
    on its own tokens at each chunk's first position. The metric `uncovered_mass` is the sum over the chunks of the
    teacher's mass on tokens that W cannot reach (of a top-k signal, what is seen of it).

    Args:
        projection: W; only its `shape` and `to_coo()` are used.
        merge: "chain", "mean" or "first"; see `xtoken.losses.merge`.
        teacher_topk: compare on the teacher's k most probable reachable tokens of each chunk, 1 to V_T, both sides
            renormalised there (the X-Token paper takes 8192); None compares on all. The tail is then free: the student
            is not told off for its mass on tokens the teacher thinks unlikely.
        divergence: which way the teacher and the projected student are compared; other than `forward` it runs as the
            reference, in blocks of chunks, from logits alone.
        learnable: whether W is learnt with the student, on its support (see `xtoken.losses.learnable`): the parameter
            is `row_weights.log_weights`.

    Raises:
        XTokenError: an argument is outside its range, or W is no projection, or has nothing to learn.

    Source: Sreenivas et al., "X-Token", https://arxiv.org/abs/2605.21699.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    reachable: Tensor
    log_lost: Tensor

    def __init__(
        self,
        projection: ProjectionLike,
        merge: Merge = "chain",
        teacher_topk: int | None = None,
        learnable: bool = False,
        divergence: Divergence = FORWARD,
    ) -> None:
        super().__init__()
        check_merge(merge)
        self.student_vocab_size, self.teacher_vocab_size = projection.shape
        if teacher_topk is not None and not 1 <= teacher_topk <= self.teacher_vocab_size:
            raise XTokenError(
                f"teacher_topk is {teacher_topk}; it must be between 1 and the teacher's {self.teacher_vocab_size} "
                "tokens, or None for all."
            )
        self.merge: Merge = merge
        self.teacher_topk = teacher_topk
        self.divergence = divergence
        entries = _coo(projection)
        split = split_projection(*entries, projection.shape)
        for name, tensor in split.tensors().items():
            self.register_buffer(f"split_{name}", tensor, persistent=False)
        # W lives in its own file, with fingerprints; a model's checkpoint that happens to hold the loss should not
        # repeat it.
        for name, tensor in _tensors(*entries, shape=projection.shape).items():
            self.register_buffer(name, tensor, persistent=False)
        self.row_weights: RowWeights | None = None
        if learnable:
            learnt = learnable_entries(entries[0], entries[1])
            self.row_weights = RowWeights(learnt, self.values)
            places = learnt_places(entries[0][learnt.at], entries[1][learnt.at], split)
            for name, tensor in places.tensors().items():
                self.register_buffer(f"learnt_{name}", tensor, persistent=False)

    @property
    def projection(self) -> ProjectionTensors:
        """W on the module's device, as it is at the moment."""
        fixed = ProjectionTensors(self.rows, self.cols, self.values, self.reachable, self.log_lost)
        if self.row_weights is None:
            return fixed
        log_values = self.values.log().scatter(0, self.row_weights.at, self.row_weights.log_values())
        return replace(fixed, values=log_values.detach().exp(), log_values=log_values)

    def kernel(self) -> ChunkKernel | None:
        if self.merge == "mean" or self.divergence.name != "forward":  # `mean` compares more rows than a chunk's first
            return None
        split = SplitProjection(**{f.name: getattr(self, f"split_{f.name}") for f in fields(SplitProjection)})
        top = None if self.teacher_topk == self.teacher_vocab_size else self.teacher_topk
        learnt = None
        if self.row_weights is not None:
            places = LearntPlaces(**{f.name: getattr(self, f"learnt_{f.name}") for f in fields(LearntPlaces)})
            split, learnt = learn(split, places, self.row_weights.log_values())
        sizes = self.student_vocab_size, self.teacher_vocab_size
        return PKLKernel(split, *sizes, self.merge == "chain", top, learnt)

    def reference(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        tau = teacher.temperature
        chunks_s = student_chunks(student_logits, self.student_vocab_size, index, tau, self.merge)
        chunks_t = teacher_chunks(teacher, self.teacher_vocab_size, index, self.merge)
        subset = self._subset(chunks_t.log_probs, isinstance(teacher, TopKSignal))
        values, uncovered = p_kl(chunks_s, chunks_t, self.projection, subset, self.divergence)
        return LossTerm.of(tau**2 * values, uncovered_mass=uncovered)

    def _subset(self, log_probs: Tensor, is_top_k: bool) -> Tensor | None:
        if self.teacher_topk is None and not is_top_k:
            return None
        candidates = self.reachable & (log_probs > NEG_INF) if is_top_k else self.reachable.expand_as(log_probs)
        return candidates if self.teacher_topk is None else _largest(log_probs, candidates, self.teacher_topk)


def _coo(projection: ProjectionLike) -> tuple[Array, Array, Array]:
    """Entries of W but those of weight 0, which are no entries.

    Raises:
        XTokenError: an entry is negative or outside the shape, or a row sums to more than 1.
    """
    size_s, size_t = projection.shape
    rows, cols, values = (np.asarray(array) for array in projection.to_coo())
    inside = ((rows >= 0) & (rows < size_s) & (cols >= 0) & (cols < size_t)).all()
    if not inside or (values < 0).any():
        raise XTokenError(
            f"a projection has entries of at least 0 within its shape {size_s} x {size_t}; this one has others."
        )
    sums = np.bincount(rows, weights=values, minlength=size_s)
    if (sums > 1 + _ROW_SUM_TOLERANCE).any():
        raise XTokenError(
            f"row {int(sums.argmax())} of the projection sums to {sums.max():.6g}; at most 1 can be carried."
        )
    return rows[values > 0], cols[values > 0], values[values > 0]


def _tensors(*entries: Array, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The buffers of W for the reference."""
    size_s, size_t = shape
    rows, cols, values = (torch.from_numpy(np.array(array)) for array in entries)
    rows, cols, values = rows.long(), cols.long(), values.to(torch.promote_types(values.dtype, torch.float32))
    lost = 1 - torch.zeros(size_s, dtype=torch.float64).index_add(0, rows, values.double())
    log_lost = torch.where(lost > _ROW_SUM_TOLERANCE, lost, 0).log().to(values.dtype)
    reachable = torch.zeros(size_t, dtype=torch.bool)
    reachable[cols] = True
    return {"rows": rows, "cols": cols, "values": values, "reachable": reachable, "log_lost": log_lost}
