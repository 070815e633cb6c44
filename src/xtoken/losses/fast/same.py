"""The same-tokenizer KL by hand: d KL(p_T || p_S) / d logits = M p_S - p_T, M the teacher's mass where p_S is not 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from xtoken.losses.divergence import LOG_OF_ZERO
from xtoken.losses.fast.kernel import KernelResult, Rows, Scratch
from xtoken.losses.fast.p_kl import dot_and_spoil
from xtoken.losses.logspace import NEG_INF

__all__ = ["SameTokenizerKernel"]


@dataclass(frozen=True)
class SameTokenizerKernel:
    """KL( p_T || p_S ) of K tokens.

    Attributes:
        student_vocab_size, teacher_vocab_size: V, both.
    """

    student_vocab_size: int
    teacher_vocab_size: int
    uses_later_tokens: bool = False

    takes_top_k: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = ()

    def __call__(self, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
        probs_t = teacher.probs
        alive = torch.gt(student.log_probs, NEG_INF, out=scratch.take("alive", *probs_t.shape, dtype=torch.bool))
        own = dot_and_spoil(teacher.log_probs, probs_t, log_of_zero=0.0)
        values = own - dot_and_spoil(student.log_probs, probs_t, log_of_zero=LOG_OF_ZERO)
        held = probs_t.mul_(alive).sum(dim=1)
        return KernelResult(values, probs_t.neg_(), held, -held)
