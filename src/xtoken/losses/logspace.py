"""Arithmetic on log-probabilities in which -inf is a value: an outcome of probability zero.

Sums of probabilities are taken without leaving log space, so that a probability of e^-200 keeps its value and its
gradient; exp alone would turn it into zero in float32. Law: no function here returns NaN, or passes a NaN back, for
inputs in [-inf, 0].
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["log_normalise", "log_sum", "segment_ids", "segment_log_sum"]

NEG_INF = float("-inf")


def _log(x: Tensor) -> Tensor:
    """log x with log 0 = -inf and gradient 0 there (the plain log passes back 0 * inf, a NaN)."""
    positive = x > 0
    return torch.where(positive, torch.log(torch.where(positive, x, 1)), NEG_INF)


def _finite_peak(peak: Tensor) -> Tensor:
    """The largest entry, used as a shift; 0 where everything is -inf, as -inf - (-inf) is a NaN."""
    return torch.where(peak == NEG_INF, 0, peak)


def log_sum(log_probs: Tensor) -> Tensor:
    """log of the total probability over the last dimension.

    Args:
        log_probs: [..., V], nats, each in [-inf, 0]; V at least 1.

    Returns:
        [...]; -inf with gradient 0 where every entry is -inf.
    """
    peak = _finite_peak(log_probs.detach().amax(dim=-1, keepdim=True))
    return _log(torch.exp(log_probs - peak).sum(dim=-1)) + peak.squeeze(-1)


def log_normalise(log_probs: Tensor) -> Tensor:
    """Scales each row to total probability 1.

    Args:
        log_probs: [..., V], nats.

    Returns:
        [..., V]; a row without any mass stays -inf throughout.
    """
    return log_probs - _finite_peak(log_sum(log_probs)).unsqueeze(-1)


def segment_ids(starts: Tensor, n_rows: int) -> Tensor:
    """The segment each row belongs to.

    Args:
        starts: int64 [K+1]; segment k owns rows starts[k] : starts[k+1].
        n_rows: starts[K], given as a number so that nothing has to be read back from the device.

    Returns:
        int64 [n_rows].
    """
    segments = torch.arange(starts.shape[0] - 1, device=starts.device)
    return torch.repeat_interleave(segments, starts.diff(), output_size=n_rows)


def segment_log_sum(log_probs: Tensor, segments: Tensor, n_segments: int, dim: int) -> Tensor:
    """log of the total probability of each segment.

    Memory: three tensors of the input's size and two of the output's are kept for the backward.

    Args:
        log_probs: [N, V], nats, each in [-inf, 0].
        segments: int64, the segment of every index along `dim`, in any order.
        n_segments: number of segments.
        dim: 0 sums rows, 1 sums columns.

    Returns:
        [n_segments, V] or [N, n_segments]; -inf with gradient 0 for a segment without entries or without mass.
    """
    shape = list(log_probs.shape)
    shape[dim] = n_segments
    index = segments.unsqueeze(1 - dim).expand_as(log_probs)
    peak = log_probs.new_full(shape, NEG_INF).scatter_reduce(dim, index, log_probs.detach(), "amax")
    peak = _finite_peak(peak)
    shifted = torch.exp(log_probs - peak.gather(dim, index))
    return _log(log_probs.new_zeros(shape).index_add(dim, segments, shifted)) + peak
