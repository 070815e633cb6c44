"""The KL of a teacher that shares the student's tokenizer: token by token, no projection, no merge.

Law: it is the expected difference of log-likelihood, so 0 only where the two distributions are equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.divergence import FORWARD, Divergence
from xtoken.losses.fast.kernel import ChunkKernel
from xtoken.losses.fast.same import SameTokenizerKernel
from xtoken.losses.index import ChunkIndex
from xtoken.losses.logspace import log_normalise
from xtoken.losses.merge import student_chunks, teacher_chunks
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import TeacherSignal, TopKSignal

__all__ = ["SameTokenizerKL"]


class SameTokenizerKL(ChunkLoss):
    """KL( p_T || p_S ) of each token, over one vocabulary; or the reverse KL, or Jensen-Shannon.

    Every chunk is one token to one token; another is an error. With a top-k signal both sides are renormalised among
    the teacher's k tokens. The student is read at the signal's temperature tau, and the loss is multiplied by tau^2.

    Args:
        vocab_size: V, of both.
        divergence: which way the two are compared.
    """

    def __init__(self, vocab_size: int, divergence: Divergence = FORWARD) -> None:
        super().__init__()
        self.divergence = divergence
        self.student_vocab_size = self.teacher_vocab_size = vocab_size

    def check(self, teacher: TeacherSignal, index: ChunkIndex) -> None:
        _check_one_to_one(index)
        super().check(teacher, index)

    def kernel(self) -> ChunkKernel | None:
        return SameTokenizerKernel(self.student_vocab_size, self.teacher_vocab_size, self.divergence)

    def reference(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        tau = teacher.temperature
        log_q = student_chunks(student_logits, self.student_vocab_size, index, tau, "first").log_probs
        log_p = teacher_chunks(teacher, self.teacher_vocab_size, index, "first").log_probs
        if isinstance(teacher, TopKSignal):
            log_p, log_q = log_normalise(log_p), log_normalise(torch.where(log_p.isneginf(), log_p, log_q))
        return LossTerm.of(tau**2 * self.divergence(log_p, log_q))


def _check_one_to_one(index: ChunkIndex) -> None:
    """Every chunk has at least one token a side, so as many tokens as chunks means one each.

    Comparing shapes reads no value back from the device.
    """
    n_s, n_t = index.student_rows.shape[0], index.teacher_rows.shape[0]
    if not n_s == n_t == index.n_chunks:
        raise XTokenError(
            f"the same-tokenizer KL takes chunks of one token on each side, and {index.n_chunks} chunks hold {n_s} "
            f"student and {n_t} teacher tokens. The two tokenizers differ: use P-KL or H-KL."
        )
