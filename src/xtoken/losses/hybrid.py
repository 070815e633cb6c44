"""GOLD and H-KL: KL on the tokens that both vocabularies have, and the distance of sorted probabilities on the rest.

One formula, two partitions: GOLD pairs the tokens whose strings are equal, H-KL also those that W pairs best. Types: a
partition gives P pairs, one-to-one; what is in no pair is the remainder, of different size on each side. Law: 0 where
the paired probabilities agree and the remainders hold the same values, in whatever order.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.divergence import kl_divergence, sorted_l1
from xtoken.losses.fast.hybrid import HybridKernel
from xtoken.losses.fast.kernel import ChunkKernel
from xtoken.losses.fast.ranked import RANKS, check_ranks
from xtoken.losses.index import ChunkIndex
from xtoken.losses.merge import (
    ChunkDistributions,
    Merge,
    check_merge,
    check_whole,
    student_chunks,
    teacher_chunks,
)
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import TeacherSignal

__all__ = ["GOLD", "HKL", "PartitionLike", "common_kl", "paired_ids", "remainder_l1"]

# X-Token gives both terms weight 1 when it restates GOLD.
COMMON_WEIGHT = 1.0
REMAINDER_WEIGHT = 1.0

_SIDES = ("student", "teacher")


class PartitionLike(Protocol):
    """What GOLD and H-KL need of a partition; `xtoken.projection.Partition` has it."""

    @property
    def student_ids(self) -> NDArray[Any]:
        """int [P], the paired student tokens."""

    @property
    def teacher_ids(self) -> NDArray[Any]:
        """int [P], their partners."""

    @property
    def shape(self) -> tuple[int, int]:
        """(V_S, V_T)."""


def common_kl(student: ChunkDistributions, teacher: ChunkDistributions, ids_s: Tensor, ids_t: Tensor) -> Tensor:
    """sum over the pairs of p_T log(p_T / p_S), with softmaxes over the full vocabularies; [K], nats.

    Neither side sums to 1 over the pairs, so this part alone may be negative; and it pushes every unpaired logit down,
    whatever the text says: d / d z_j = p_S[j] * (the teacher's mass on the pairs), Proposition 1 of X-Token.
    """
    return kl_divergence(teacher.log_vectors.index_select(1, ids_t), student.log_vectors.index_select(1, ids_s))


def remainder_l1(
    student: ChunkDistributions, teacher: ChunkDistributions, rest_s: Tensor, rest_t: Tensor, ranks: int | None = None
) -> tuple[Tensor, Tensor]:
    """L1 distance of the two sorted remainders, the shorter padded with zeros; [K], probability; see `sorted_l1`."""
    remainders = (side.log_vectors.index_select(1, rest).exp() for side, rest in ((student, rest_s), (teacher, rest_t)))
    remainder_s, remainder_t = remainders
    return sorted_l1(remainder_s, remainder_t, ranks)


class GOLD(ChunkLoss):
    """GOLD: KL over the strict common set plus sorted L1 over the remainders.

    The student is read at the signal's temperature tau, and the loss is multiplied by tau^2. The KL part may be
    negative, and so may the sum: it is no divergence unless the two sides put equal mass on the pairs. It needs a dense
    signal. Metrics: `common` and `remainder`, the two parts before their weights, tau^2 included; and `rank_error`, how
    far the total over all ranks may lie above the one over `ranks`.

    Args:
        partition: the pairs; only `student_ids`, `teacher_ids` and `shape` are used.
        merge: "chain", "mean" or "first"; see `xtoken.losses.merge`.
        common_weight: weight of the KL.
        remainder_weight: weight of the L1.
        ranks: how many of the largest entries of the remainders are compared one by one, the mass of the others as one
            number; None sorts and compares all.

    Raises:
        XTokenError: the pairs are not one-to-one within the shape; `ranks` is below 1.

    Source: "Unlocking On-Policy Distillation for Any Model Family", Hugging Face, October 2025, in the form restated by
    Sreenivas et al., "X-Token", https://arxiv.org/abs/2605.21699.
    """

    student_ids: Tensor
    teacher_ids: Tensor
    student_rest: Tensor
    teacher_rest: Tensor

    def __init__(
        self,
        partition: PartitionLike,
        merge: Merge = "chain",
        common_weight: float = COMMON_WEIGHT,
        remainder_weight: float = REMAINDER_WEIGHT,
        ranks: int | None = RANKS,
    ) -> None:
        super().__init__()
        check_merge(merge)
        check_ranks(ranks)
        self.student_vocab_size, self.teacher_vocab_size = partition.shape
        self.merge: Merge = merge
        self.common_weight, self.remainder_weight, self.ranks = common_weight, remainder_weight, ranks
        for side, paired, size in zip(_SIDES, paired_ids(partition), partition.shape, strict=True):
            self.register_buffer(f"{side}_ids", paired, persistent=False)
            self.register_buffer(f"{side}_rest", _rest(paired, size, side), persistent=False)

        partner = torch.zeros(self.student_vocab_size, dtype=torch.int64)
        partner[self.student_ids] = self.teacher_ids
        self.register_buffer("partner", partner, persistent=False)

    def check(self, teacher: TeacherSignal, index: ChunkIndex) -> None:
        check_whole(teacher, type(self).__name__)
        super().check(teacher, index)

    def kernel(self) -> ChunkKernel | None:
        if self.merge == "mean":  # it compares other rows than a chunk's first
            return None
        sizes = self.student_vocab_size, self.teacher_vocab_size
        weights = self.common_weight, self.remainder_weight
        uses_later_tokens = self.merge == "chain"
        return HybridKernel(
            self.partner, self.student_rest, self.teacher_rest, *sizes, uses_later_tokens, *weights, self.ranks
        )

    def reference(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        tau = teacher.temperature
        chunks_s = student_chunks(student_logits, self.student_vocab_size, index, tau, self.merge)
        chunks_t = teacher_chunks(teacher, self.teacher_vocab_size, index, self.merge)
        common = tau**2 * common_kl(chunks_s, chunks_t, self.student_ids, self.teacher_ids)
        distance, error = remainder_l1(chunks_s, chunks_t, self.student_rest, self.teacher_rest, self.ranks)
        remainder, error = tau**2 * distance, self.remainder_weight * tau**2 * error
        values = self.common_weight * common + self.remainder_weight * remainder
        return LossTerm.of(values, common=common, remainder=remainder, rank_error=error)


class HKL(GOLD):
    """H-KL: GOLD's formula on a relaxed partition, whose pairs also hold each student token's best match under W.

    Build it with `xtoken.projection.relaxed_partition`; everything else is as in `GOLD`.

    Source: Sreenivas et al., "X-Token", https://arxiv.org/abs/2605.21699.
    """


def paired_ids(partition: PartitionLike) -> tuple[Tensor, Tensor]:
    """The pairs as tensors, int64 [P] each.

    Raises:
        XTokenError: they are not one-to-one within the shape.
    """
    paired = [torch.from_numpy(np.array(ids)).long() for ids in (partition.student_ids, partition.teacher_ids)]
    for side, ids, size in zip(_SIDES, paired, partition.shape, strict=True):
        _rest(ids, size, side)
    if len(paired[0]) != len(paired[1]):
        raise XTokenError(
            f"a partition pairs ids one-to-one; this one has {len(paired[0])} student ids and {len(paired[1])} "
            "teacher ids."
        )
    return paired[0], paired[1]


def _rest(paired: Tensor, size: int, side: str) -> Tensor:
    """int64, the ids below `size` that are in no pair."""
    if paired.numel() and not 0 <= int(paired.min()) <= int(paired.max()) < size:
        raise XTokenError(f"the partition pairs a {side} id outside its vocabulary of {size}.")
    is_paired = torch.zeros(size, dtype=torch.bool)
    is_paired[paired] = True
    if int(is_paired.sum()) != len(paired):
        raise XTokenError(f"a partition pairs ids one-to-one; this one pairs a {side} id twice.")
    return torch.nonzero(~is_paired).squeeze(1)
