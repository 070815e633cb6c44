"""Log-probabilities that stay exact where they are nearly 0, so that what is missing from 1 stays exact too.

A binary KL needs log P and log(1 - P). In float32 a softmax's log P is 0 from P = 1 - 1e-7 on, and 1 - P with it: a
student surer than that would get no gradient back from a teacher that is not. Here 1 - P is summed from the other
outcomes, and log P is taken from that sum where P is above one half. Law: log(1 - P) keeps float32's relative error
while 1 - P is above 1e-38, for a product of several P's as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xtoken.losses.logspace import NEG_INF, log_sum, segment_ids

__all__ = ["binary", "chunk_sum", "log1mexp", "log_prob_of", "token_log_probs"]

_LOG_HALF = -math.log(2)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x).

    Args:
        x: nats, at most 0.

    Returns:
        the same shape; -inf with gradient 0 where x is 0, and 0 with gradient 0 where it is -inf.

    Source: Machler, "Accurately Computing log(1 - exp(-|a|))", 2012: which of the two forms is exact where.
    """
    is_near, is_one = x > _LOG_HALF, x >= 0
    # Both branches of a `where` are differentiated, so each is given only what it is finite for.
    near = torch.log(-torch.expm1(torch.where(is_near & ~is_one, x, -1)))
    far = torch.log1p(-torch.exp(torch.where(is_near, -1, x)))
    return torch.where(is_one, NEG_INF, torch.where(is_near, near, far))


def log_prob_of(log_inside: Tensor, log_outside: Tensor) -> Tensor:
    """log P of an event, by whichever of its own sum and the other outcomes' is the exact one.

    Args:
        log_inside: nats, the event's outcomes summed.
        log_outside: nats, all the others; with the former they sum to 1.
    """
    is_likely = log_outside < _LOG_HALF
    return torch.where(is_likely, torch.log1p(-torch.exp(torch.where(is_likely, log_outside, NEG_INF))), log_inside)


def token_log_probs(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """log P [N] of one token a row, exact near 0.

    Args:
        log_probs: [N, V], nats; rows sum to 1.
        tokens: int64 [N].
    """
    at = tokens.unsqueeze(1)
    others = log_sum(log_probs.scatter(1, at, NEG_INF))
    return log_prob_of(log_probs.gather(1, at).squeeze(1), others)


def chunk_sum(values: Tensor, starts: Tensor) -> Tensor:
    """[K], the sum of `values` [N] over the entries of each chunk; `starts` is int64 [K+1]."""
    return values.new_zeros(starts.shape[0] - 1).index_add(0, segment_ids(starts, values.shape[0]), values)


def binary(log_probs: Tensor) -> Tensor:
    """log P and log(1 - P) as the last dimension: [...] to [..., 2]."""
    return torch.stack([log_probs, log1mexp(log_probs)], dim=-1)
