"""ULD: the L1 distance of the two whole sorted distributions.

It needs no correspondence between the vocabularies, and uses none: it compares how sure the two models are, not of
what. Law: permuting either vocabulary changes nothing, not even one side alone.
"""

from __future__ import annotations

from torch import Tensor, nn

from xtoken.losses.divergence import sorted_l1
from xtoken.losses.index import ChunkIndex
from xtoken.losses.merge import ChunkDistributions, Merge, check_merge, dense_chunks, student_chunks
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import TeacherSignal

__all__ = ["ULD", "uld"]


def uld(student: ChunkDistributions, teacher: ChunkDistributions) -> Tensor:
    """L1 distance of the sorted vectors of each chunk; [K], probability, 0 to 2."""
    return sorted_l1(student.log_vectors.exp(), teacher.log_vectors.exp())


class ULD(nn.Module):
    """Universal Logit Distillation, on chunks.

    The student is read at the signal's temperature tau, and the loss is multiplied by tau^2. The paper pairs positions
    by number and cuts the longer sequence; here, as in X-Token, chunks are paired.

    Args:
        student_vocab_size: V_S.
        teacher_vocab_size: V_T.
        merge: "chain", "mean" or "first"; see `xtoken.losses.merge`.

    Raises:
        XTokenError: `merge` is none of the three.

    Source: Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    https://arxiv.org/abs/2402.12030.
    """

    def __init__(self, student_vocab_size: int, teacher_vocab_size: int, merge: Merge = "chain") -> None:
        super().__init__()
        check_merge(merge)
        self.student_vocab_size, self.teacher_vocab_size = student_vocab_size, teacher_vocab_size
        self.merge: Merge = merge

    def forward(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        """The sum over the chunks.

        Args:
            student_logits: [..., V_S or wider]; leading dimensions are flattened to the rows the index counts.
            teacher: its dense signal.
            index: the chunks.

        Returns:
            total, count in chunks, no metrics.

        Raises:
            XTokenError: logits or signal do not fit the vocabularies, or the signal is a top-k one.
        """
        tau = teacher.temperature
        chunks_s = student_chunks(student_logits, self.student_vocab_size, index, tau, self.merge)
        chunks_t = dense_chunks(teacher, self.teacher_vocab_size, index, self.merge, "ULD")
        return LossTerm.of(tau**2 * uld(chunks_s, chunks_t))
