"""Distances between non-negative vectors: KL both ways, Jensen-Shannon, and the L1 distance of sorted vectors.

All take vectors that need not sum to 1 (a chunk's chained probabilities do not). The forward KL and the L1 apply the
formula to them as it stands; the others are generalised to such vectors so that they stay divergences: at least 0, and
0 only where the vectors are equal. Law: finite value and gradient whatever entries are zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from xtoken.errors import XTokenError
from xtoken.losses.logspace import NEG_INF, log_sum

__all__ = [
    "FORWARD",
    "JSD_BETA",
    "LOG_OF_ZERO",
    "Divergence",
    "DivergenceName",
    "jensen_shannon",
    "kl_divergence",
    "reverse_kl",
    "sorted_l1",
]

DivergenceName = Literal["forward", "reverse", "jsd"]

JSD_BETA = 0.5  # the symmetric one

# What log q counts as where q is exactly 0 and p is not. The KL is infinite there and the entry has no gradient to give
# (its logit is -inf), so an honest inf would end a run over one masked token. 100 nats is what torch's BCELoss takes.
# It replaces exact zeros only: a log-probability of -200 stays -200.
LOG_OF_ZERO = -100.0


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum of p log(p / q) over the last dimension.

    p = 0 contributes 0, with gradient 0. q = 0 under p > 0 contributes p (log p + 100): large, finite, with gradient 0
    for that entry of log q. Not negative where p sums to at least what q sums to (equal sums: a divergence).

    Args:
        log_p: [..., V], nats, in [-inf, 0].
        log_q: [..., V], nats, in [-inf, 0].

    Returns:
        [...], nats.
    """
    p_is_zero, q_is_zero = log_p == NEG_INF, log_q == NEG_INF
    # Both branches of a `where` are differentiated, so the -inf is taken out before the product and not after it.
    log_p = torch.where(p_is_zero, 0, log_p)
    log_q = torch.where(p_is_zero, 0, torch.where(q_is_zero, LOG_OF_ZERO, log_q))
    return torch.where(p_is_zero, 0, torch.exp(log_p) * (log_p - log_q)).sum(dim=-1)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum of q log(q / p) - q + p over the last dimension, the KL of q from p generalised to any sums.

    The last two terms cancel for vectors of equal sums. Without them a student would gain by losing mass: sum q log(q /
    p) falls below 0 as q shrinks. log 0 counts as -100 where p is 0 and q is not; a q of 0 contributes p.

    Args:
        log_p: [..., V], nats, in [-inf, 0]; the teacher's.
        log_q: [..., V], nats, in [-inf, 0]; the student's.

    Returns:
        [...], nats, at least 0 up to rounding.
    """
    return kl_divergence(log_q, log_p) + log_p.exp().sum(dim=-1) - log_q.exp().sum(dim=-1)


def jensen_shannon(log_p: Tensor, log_q: Tensor, beta: float = JSD_BETA) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) over the last dimension, with m = beta p + (1 - beta) q.

    For vectors of any sums this is the generalised divergence too: what `reverse_kl` adds cancels. It is at most
    log 2 at beta 0.5 for probabilities, so no entry can dominate it; near beta 0 or 1 its gradient goes to 0.

    Args:
        log_p: [..., V], nats, in [-inf, 0]; the teacher's.
        log_q: [..., V], nats, in [-inf, 0]; the student's.
        beta: the weight of p in the mixture, between 0 and 1.

    Returns:
        [...], nats, at least 0 up to rounding.

    Source: Agarwal et al., "On-Policy Distillation of Language Models", https://arxiv.org/abs/2306.13649, equation 1.
    """
    log_m = log_sum(torch.stack([log_p + math.log(beta), log_q + math.log1p(-beta)], dim=-1))
    return beta * kl_divergence(log_p, log_m) + (1 - beta) * kl_divergence(log_q, log_m)


@dataclass(frozen=True)
class Divergence:
    """Which way two vectors are compared.

    Attributes:
        name: `forward`, KL(teacher || student), covers all that the teacher does; `reverse`, KL(student || teacher),
            keeps to what it holds likely; `jsd` lies between, and is bounded.
        beta: of `jsd`; None is `JSD_BETA`.

    Raises:
        XTokenError: no such name; a beta that is not between 0 and 1, or without effect.
    """

    name: DivergenceName = "forward"
    beta: float | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(DivergenceName):
            known = ", ".join(get_args(DivergenceName))
            raise XTokenError(f"divergence is {self.name!r}; it must be one of {known}.")
        if self.beta is not None and self.name != "jsd":
            raise XTokenError(f"beta has no effect on the divergence {self.name!r}: it belongs to jsd. Leave it out.")
        if self.beta is not None and not 0 < self.beta < 1:
            raise XTokenError(f"beta is {self.beta}; it must be above 0 and below 1 (0 and 1 compare nothing).")

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """[...], nats, from the teacher's and the student's vectors [..., V].

        A teacher without any mass says nothing: 0, whatever the student.
        """
        if self.name == "forward":
            return kl_divergence(log_p, log_q)
        values = reverse_kl(log_p, log_q) if self.name == "reverse" else jensen_shannon(log_p, log_q, self.mixture)
        return torch.where((log_p == NEG_INF).all(dim=-1), 0, values)

    @property
    def mixture(self) -> float:
        """The weight of the teacher in `jsd`'s mixture."""
        return JSD_BETA if self.beta is None else self.beta


FORWARD = Divergence()


def sorted_l1(p: Tensor, q: Tensor, ranks: int | None = None) -> tuple[Tensor, Tensor]:
    """sum of |p_(i) - q_(i)|, the i-th largest entries compared; the shorter vector is padded with zeros.

    It compares how probability is spread and not where it lies: any permutation of either vector leaves it unchanged.
    Where the two agree its gradient is 0. With `ranks` only so many entries are compared one by one, and the mass of
    all others as one number.

    Args:
        p: [..., V], at least 0.
        q: [..., U], at least 0.
        ranks: at least 1; None for all.

    Returns:
        [...], in units of probability (no nats); and by how much the sum over all ranks may exceed it, twice the
        smaller of the two masses left out (triangle inequality), without gradient.

    Source: Boizard et al., "Towards Cross-Tokenizer Distillation", https://arxiv.org/abs/2402.12030, closed form of the
    1-Wasserstein distance under a uniform cost.
    """
    width = max(p.shape[-1], q.shape[-1])
    ranked = (x.sort(dim=-1, descending=True).values for x in (p, q))
    ranked_p, ranked_q = (nn.functional.pad(x, (0, width - x.shape[-1])) for x in ranked)
    rest_p, rest_q = (x[..., ranks or width :].sum(dim=-1) for x in (ranked_p, ranked_q))
    gaps = (ranked_p - ranked_q)[..., : ranks or width].abs().sum(dim=-1)
    return gaps + (rest_p - rest_q).abs(), 2 * torch.minimum(rest_p, rest_q).detach()
