"""GOLD and H-KL by hand: KL on the pairs, in the student's order, and the ranked distance of what is in no pair.

With F the chain factors, C the pairs, M the teacher's mass on those of them that the student gives some probability,

    common = F_T sum over C of p_T (log F_T p_T - log F_S p_S),
    d common / d logits = F_T ( M p_S - p_T on the pairs ),      d common / d log F_S = - F_T M,

where M p_S is Proposition 1 of X-Token, the push on every logit outside C. The remainder is `ranked_l1` of the two
vectors of unpaired probabilities, each times its factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xtoken.losses.divergence import LOG_OF_ZERO
from xtoken.losses.fast.kernel import KernelResult, Rows, Scratch
from xtoken.losses.fast.p_kl import dot_and_spoil
from xtoken.losses.fast.ranked import ranked_l1
from xtoken.losses.logspace import NEG_INF

__all__ = ["HybridKernel"]


@dataclass(frozen=True)
class HybridKernel:
    """GOLD's formula on K chunks; see the module.

    Attributes:
        partner: int64 [V_S], the teacher token paired with each student token; any for those in no pair.
        student_rest, teacher_rest: int64, the ids in no pair.
        student_vocab_size, teacher_vocab_size: V_S and V_T.
        uses_later_tokens: `chain` rather than `first`.
        common_weight, remainder_weight: of the two terms.
        top: how many ranks of the remainder are compared one by one; None for all.
    """

    partner: Tensor
    student_rest: Tensor
    teacher_rest: Tensor
    student_vocab_size: int
    teacher_vocab_size: int
    uses_later_tokens: bool
    common_weight: float
    remainder_weight: float
    top: int | None

    takes_top_k: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = ("common", "remainder", "rank_error")

    def __call__(self, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
        k, log_s, log_t = len(student.log_factor), student.log_factor, teacher.log_factor
        rest_s, rest_t = self.student_rest.expand(k, -1), self.teacher_rest.expand(k, -1)
        vectors_s = student.probs.gather(1, rest_s).mul_(log_s.exp().unsqueeze(1))
        vectors_t = teacher.probs.gather(1, rest_t).mul_(log_t.exp().unsqueeze(1))

        paired = teacher.probs.scatter_(1, rest_t, 0.0)
        mass, own = paired.sum(dim=1), dot_and_spoil(teacher.log_probs, paired, log_of_zero=0.0)
        moved = torch.gather(paired, 1, self.partner.expand(k, -1), out=scratch.take("moved", *student.probs.shape))
        moved.scatter_(1, rest_s, 0.0)
        alive = torch.gt(student.log_probs, NEG_INF, out=scratch.take("alive", *moved.shape, dtype=torch.bool))
        cross = dot_and_spoil(student.log_probs, moved, log_of_zero=LOG_OF_ZERO)
        possible = log_s != NEG_INF
        held = torch.where(possible, moved.mul_(alive).sum(dim=1), 0)
        cross = torch.where(possible, cross + held * torch.where(possible, log_s, 0), mass * LOG_OF_ZERO)
        common = torch.where(log_t == NEG_INF, 0, log_t.exp() * (own + mass * log_t - cross))

        ranked = ranked_l1(vectors_s, vectors_t, self.top, scratch)
        slopes = vectors_s.mul_(ranked.signs).mul_(self.remainder_weight)
        slope, pressed = slopes.sum(dim=1), self.common_weight * log_t.exp() * held
        direct = moved.mul_(torch.where(possible, -self.common_weight * log_t.exp(), 0).unsqueeze(1))
        direct.scatter_(1, rest_s, slopes)
        values = self.common_weight * common + self.remainder_weight * ranked.values
        parts = {"common": common, "remainder": ranked.values, "rank_error": self.remainder_weight * ranked.bound}
        return KernelResult(values, direct, pressed - slope, slope - pressed, parts)
