"""ULD: the L1 distance of the two whole sorted distributions.

It needs no correspondence between the vocabularies, and uses none: it compares how sure the two models are, not of
what. Law: permuting either vocabulary changes nothing, not even one side alone.
"""

from __future__ import annotations

from torch import Tensor

from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.divergence import sorted_l1
from xtoken.losses.fast.kernel import ChunkKernel
from xtoken.losses.fast.ranked import RANKS, ULDKernel, check_ranks
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

__all__ = ["ULD", "uld"]


def uld(student: ChunkDistributions, teacher: ChunkDistributions, ranks: int | None = None) -> tuple[Tensor, Tensor]:
    """L1 distance of the sorted vectors of each chunk; [K], probability, 0 to 2; and its `sorted_l1` error."""
    return sorted_l1(student.log_vectors.exp(), teacher.log_vectors.exp(), ranks)


class ULD(ChunkLoss):
    """Universal Logit Distillation, on chunks.

    The student is read at the signal's temperature tau, and the loss is multiplied by tau^2. The paper pairs positions
    by number and cuts the longer sequence; here, as in X-Token, chunks are paired. It needs a dense signal. The metric
    `rank_error` says how far the total over all ranks may lie above the one over `ranks`.

    Args:
        student_vocab_size: V_S.
        teacher_vocab_size: V_T.
        merge: "chain", "mean" or "first"; see `xtoken.losses.merge`.
        ranks: how many of the largest entries are compared one by one, the mass of the others as one number; None
            sorts and compares all, which takes several times as long.

    Raises:
        XTokenError: `merge` is none of the three; `ranks` is below 1.

    Source: Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    https://arxiv.org/abs/2402.12030.
    """

    def __init__(
        self,
        student_vocab_size: int,
        teacher_vocab_size: int,
        merge: Merge = "chain",
        ranks: int | None = RANKS,
    ) -> None:
        super().__init__()
        check_merge(merge)
        check_ranks(ranks)
        self.student_vocab_size, self.teacher_vocab_size = student_vocab_size, teacher_vocab_size
        self.merge: Merge = merge
        self.ranks = ranks

    def check(self, teacher: TeacherSignal, index: ChunkIndex) -> None:
        check_whole(teacher, type(self).__name__)
        super().check(teacher, index)

    def kernel(self) -> ChunkKernel | None:
        if self.merge == "mean":  # it compares other rows than a chunk's first
            return None
        return ULDKernel(self.student_vocab_size, self.teacher_vocab_size, self.merge == "chain", self.ranks)

    def reference(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        tau = teacher.temperature
        chunks_s = student_chunks(student_logits, self.student_vocab_size, index, tau, self.merge)
        chunks_t = teacher_chunks(teacher, self.teacher_vocab_size, index, self.merge)
        values, error = uld(chunks_s, chunks_t, self.ranks)
        return LossTerm.of(tau**2 * values, rank_error=tau**2 * error)
