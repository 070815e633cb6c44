"""The L1 distance of sorted probabilities, of the largest alone, and its gradient.

Sorting 150,000 numbers a chunk costs more than everything else in a loss together, and nearly all of a model's
probability lies on a few hundred. So the `top` largest of each side are sorted and compared one by one, and the rest as
one number, |rest of p - rest of q|. By the triangle inequality, with the rests of mass a and b,

    |a - b|  <=  sum over the rest of |p_(i) - q_(i)|  <=  a + b,

so the result is never above the exact one and at most 2 min(a, b) below it: the bound that is handed back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from xtoken.errors import XTokenError
from xtoken.losses.fast.kernel import KernelResult, Rows, Scratch

__all__ = ["RANKS", "RankedL1", "ULDKernel", "check_ranks", "ranked_l1"]

# Ranks compared one by one unless a loss is told otherwise: what lies past them is small, and is reported.
RANKS = 1024


def check_ranks(ranks: int | None) -> None:
    """Refuses a number of ranks below 1.

    Raises:
        XTokenError: with what it may be.
    """
    if ranks is not None and ranks < 1:
        raise XTokenError(f"ranks is {ranks}; it must be at least 1, or None to sort and compare everything.")


@dataclass(frozen=True)
class RankedL1:
    """The distance of K pairs.

    Attributes:
        values: [K], probability.
        signs: [K, n], d value / d p, one of -1, 0, 1; a scratch buffer.
        bound: [K], how far the exact distance may lie above `values`.
    """

    values: Tensor
    signs: Tensor
    bound: Tensor


def ranked_l1(p: Tensor, q: Tensor, top: int | None, scratch: Scratch) -> RankedL1:
    """Compares the largest entries rank by rank and the rest as a whole.

    Args:
        p: [K, n], at least 0, the side with the gradient.
        q: [K, m], at least 0.
        top: how many ranks; None for all.
    """
    n, m = p.shape[1], q.shape[1]
    ranks = max(n, m) if top is None else min(top, max(n, m))
    (largest_p, places), (largest_q, _) = _in_order(p, min(ranks, n)), _in_order(q, min(ranks, m))
    gaps = _padded(largest_p, ranks) - _padded(largest_q, ranks)
    rest_p, rest_q = _rest(p, largest_p), _rest(q, largest_q)
    signs = scratch.take("signs", *p.shape).copy_((rest_p - rest_q).sign().unsqueeze(1).expand(p.shape))
    signs.scatter_(1, places, gaps.sign()[:, : min(ranks, n)])
    return RankedL1(gaps.abs().sum(dim=1) + (rest_p - rest_q).abs(), signs, 2 * torch.minimum(rest_p, rest_q))


def _in_order(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, falling, and their places; of a short row, sorting it all is the quicker way."""
    if 4 * k < values.shape[1]:
        largest = values.topk(k, dim=1)
        return largest.values, largest.indices
    ordered, places = values.sort(dim=1, descending=True)
    return ordered[:, :k], places[:, :k]


def _padded(values: Tensor, width: int) -> Tensor:
    return nn.functional.pad(values, (0, width - values.shape[1]))


def _rest(values: Tensor, largest: Tensor) -> Tensor:
    """[K], the mass outside the largest, exactly 0 where there is nothing outside."""
    if largest.shape[1] == values.shape[1]:
        return values.new_zeros(len(values))
    return (values.sum(dim=1) - largest.sum(dim=1)).clamp(min=0)


@dataclass(frozen=True)
class ULDKernel:
    """ULD of K chunks: the distance of the two whole vectors F p.

    With g the signs, d value / d logits = F_S (p g - p (p . g)) and d value / d log F_S = F_S (p . g).

    Attributes:
        student_vocab_size, teacher_vocab_size: V_S and V_T.
        uses_later_tokens: `chain` rather than `first`.
        top: how many ranks are compared one by one; None for all.
    """

    student_vocab_size: int
    teacher_vocab_size: int
    uses_later_tokens: bool
    top: int | None

    takes_top_k: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = ("rank_error",)

    def __call__(self, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
        factor = student.log_factor.exp().unsqueeze(1)
        vectors_s = torch.mul(student.probs, factor, out=scratch.take("vectors", *student.probs.shape))
        vectors_t = teacher.probs.mul_(teacher.log_factor.exp().unsqueeze(1))
        found = ranked_l1(vectors_s, vectors_t, self.top, scratch)
        direct = vectors_s.mul_(found.signs)
        slope = direct.sum(dim=1)
        return KernelResult(found.values, direct, -slope, slope, parts={"rank_error": found.bound})
