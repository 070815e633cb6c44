"""Distances between non-negative vectors: KL, and the L1 distance of sorted vectors.

Both take vectors that need not sum to 1 (a chunk's chained probabilities do not), and apply the formula to them as it
stands. Law: finite value and gradient whatever entries are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xtoken.losses.logspace import NEG_INF

__all__ = ["LOG_OF_ZERO", "kl_divergence", "sorted_l1"]

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
