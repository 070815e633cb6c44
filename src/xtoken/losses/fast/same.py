"""The same-tokenizer divergences by hand.

Forward: d KL(p_T || p_S) / d logits = M p_S - p_T, M the teacher's mass where p_S is not 0. Of the others, with g_i the
derivative by p_S[i], the softmax makes p_S[i] g_i - p_S[i] sum_j p_S[j] g_j:

    reverse:           g = log p_S - log p_T
    Jensen-Shannon:    g = (1 - beta) (log p_S - log m),   m = beta p_T + (1 - beta) p_S

(the constants cancel). log 0 counts as -100 where the teacher's is 0; the student's zeros have no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xtoken.losses.divergence import FORWARD, LOG_OF_ZERO, Divergence
from xtoken.losses.fast.kernel import KernelResult, Rows, Scratch
from xtoken.losses.fast.p_kl import dot_and_spoil
from xtoken.losses.logspace import NEG_INF

__all__ = ["SameTokenizerKernel"]


@dataclass(frozen=True)
class SameTokenizerKernel:
    """The divergence of K tokens.

    Attributes:
        student_vocab_size, teacher_vocab_size: V, both.
        divergence: which one.
    """

    student_vocab_size: int
    teacher_vocab_size: int
    divergence: Divergence = FORWARD
    uses_later_tokens: bool = False

    takes_top_k: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = ()

    def __call__(self, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
        if self.divergence.name == "reverse":
            return _reverse(student, teacher)
        if self.divergence.name == "jsd":
            return _jensen_shannon(student, teacher, self.divergence.mixture, scratch)
        return _forward(student, teacher, scratch)


def _forward(student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
    probs_t = teacher.probs
    alive = torch.gt(student.log_probs, NEG_INF, out=scratch.take("alive", *probs_t.shape, dtype=torch.bool))
    own = dot_and_spoil(teacher.log_probs, probs_t, log_of_zero=0.0)
    values = own - dot_and_spoil(student.log_probs, probs_t, log_of_zero=LOG_OF_ZERO)
    held = probs_t.mul_(alive).sum(dim=1)
    return KernelResult(values, probs_t.neg_(), held, -held)


def _reverse(student: Rows, teacher: Rows) -> KernelResult:
    ratio = _without_zeros(student.log_probs, 0.0).sub_(_without_zeros(teacher.log_probs, LOG_OF_ZERO))
    direct = ratio.mul_(student.probs)
    values = direct.sum(dim=1)
    return KernelResult(values, direct, -values, values)


def _jensen_shannon(student: Rows, teacher: Rows, beta: float, scratch: Scratch) -> KernelResult:
    """With the logarithm of the mixture taken from its larger part, so that it is exact where both are tiny."""
    log_p, log_q = _without_zeros(teacher.log_probs, _LOWEST), _without_zeros(student.log_probs, _LOWEST)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta), out=scratch.take("mix", *log_q.shape))
    own = log_p.sub_(log_m).mul_(teacher.probs).sum(dim=1)
    direct = log_q.sub_(log_m).mul_(student.probs).mul_(1 - beta)
    slope = direct.sum(dim=1)
    return KernelResult(beta * own + slope, direct, -slope, slope)


# Low enough to be no part of a mixture, high enough for differences to stay finite.
_LOWEST = -1e30


def _without_zeros(log_probs: Tensor, log_of_zero: float) -> Tensor:
    """The same tensor with a number for log 0; a NaN stays one."""
    return log_probs.nan_to_num_(nan=float("nan"), posinf=float("inf"), neginf=log_of_zero)
