"""Strict KL: the student's and the teacher's distributions over the tokens that both vocabularies have, and no others.

The plainest answer to two tokenizers: where both wrote one and the same token, compare what either expected there of
the teacher's k most probable common tokens, both sides renormalised among these; say nothing anywhere else. Law: never
negative; 0 where the two agree in proportion on these k, whatever else they expect.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.divergence import kl_divergence
from xtoken.losses.hybrid import PartitionLike, paired_ids
from xtoken.losses.index import ChunkIndex
from xtoken.losses.logspace import NEG_INF, log_normalise
from xtoken.losses.merge import student_chunks, teacher_chunks
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import TeacherSignal, TopKSignal

__all__ = ["STRICT_TOP_K", "StrictKL"]

# A guess at what top-k distillation usually keeps; the source's own number was not at hand.
STRICT_TOP_K = 100

_UNPAIRED = -1


class StrictKL(ChunkLoss):
    """KL over the teacher's k most probable common tokens, on the chunks of one common token.

    A chunk takes part where it is one token on each side and the two are a pair of the partition; the others are not
    counted, so `term.mean()` is over those that take part. The student is read at the signal's temperature tau, and the
    loss is multiplied by tau^2. Of a top-k signal the common tokens that it keeps at the position are compared, k of
    them at most. The metric `uncovered_mass` is the teacher's mass outside the common set (of a top-k signal, what is
    not seen inside it), summed over the chunks that take part.

    Args:
        partition: the pairs; see `xtoken.projection.strict_partition`.
        top_k: k; all pairs are compared where there are fewer.

    Raises:
        XTokenError: the pairs are not one-to-one within the shape, or there are none; `top_k` is below 1.

    Source: the baseline of arXiv 2610.08448, which finds it hard to beat on-policy. That k counts common tokens and not
    all of the teacher's, and that both tokens of a chunk must be a pair, is settled here.
    """

    student_ids: Tensor
    teacher_ids: Tensor
    partner: Tensor

    def __init__(self, partition: PartitionLike, top_k: int = STRICT_TOP_K) -> None:
        super().__init__()
        if top_k < 1:
            raise XTokenError(f"top_k is {top_k}; it must be at least 1, the most probable common token.")
        self.student_vocab_size, self.teacher_vocab_size = partition.shape
        ids_s, ids_t = paired_ids(partition)
        if not len(ids_s):
            raise XTokenError("the two vocabularies have no token in common, so nothing can be compared: use P-KL.")
        self.top_k = min(top_k, len(ids_s))
        partner = torch.full((self.student_vocab_size,), _UNPAIRED)
        partner[ids_s] = ids_t
        for name, tensor in {"student_ids": ids_s, "teacher_ids": ids_t, "partner": partner}.items():
            self.register_buffer(name, tensor, persistent=False)

    def kernel(self) -> None:
        return None

    def takes_part(self, index: ChunkIndex) -> Tensor:
        sides = (index.student_tokens, index.student_starts), (index.teacher_tokens, index.teacher_starts)
        firsts = (tokens.index_select(0, starts[:-1]).to(self.partner.device) for tokens, starts in sides)
        first_s, first_t = firsts
        is_single = (index.student_starts.diff() == 1) & (index.teacher_starts.diff() == 1)
        return is_single.to(self.partner.device) & (self.partner[first_s] == first_t)

    def reference(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        tau = teacher.temperature
        log_q = student_chunks(student_logits, self.student_vocab_size, index, tau, "first").log_probs
        log_p = teacher_chunks(teacher, self.teacher_vocab_size, index, "first").log_probs
        common = log_p.index_select(1, self.teacher_ids)
        kept, place = common.topk(self.top_k, dim=-1)
        log_q = log_q.gather(1, self.student_ids[place])
        if isinstance(teacher, TopKSignal):  # what it leaves out is unknown, and not impossible
            log_q = torch.where(kept == NEG_INF, NEG_INF, log_q)
        values = tau**2 * kl_divergence(log_normalise(kept), log_normalise(log_q))
        uncovered = (1 - common.exp().sum(dim=-1)).clamp(min=0)
        return LossTerm.of_some(values, self.takes_part(index), uncovered_mass=uncovered)
