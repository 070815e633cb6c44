"""The k largest of each row, on a CPU without selecting among all of them.

torch's topk takes longer on a CPU than all else in a loss together (8,192 of 151,669: 0.9 ms a row on two cores). A
threshold from every 32nd column, set so that it passes a little more than k, leaves some 10,000 candidates, and
topk chooses among those. Law: the result is topk's but for the order, and for which of several equal entries at the
k-th place it holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["largest"]

_SAMPLE_STEP = 32


def largest(values: Tensor, k: int) -> Tensor:
    """The places of the k largest entries of each row.

    Args:
        values: [n, V], without gradient.
        k: 1 to V.

    Returns:
        int64 [n, k].
    """
    expected = k / _SAMPLE_STEP
    rank = int(expected + 4 * expected**0.5) + 1  # four standard deviations of the count in a random sample
    is_worth_it = values.device.type == "cpu" and len(values) and 4 * rank * _SAMPLE_STEP <= values.shape[1]
    found = _by_threshold(values.contiguous(), k, rank) if is_worth_it else None
    return values.topk(k, dim=1, sorted=False).indices if found is None else found


def _by_threshold(values: Tensor, k: int, rank: int) -> Tensor | None:
    """The same by a sampled threshold; None where the sample misled and fewer than k entries of some row pass."""
    n, width = values.shape
    threshold = values[:, ::_SAMPLE_STEP].topk(rank, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    passed = (values >= threshold).view(-1).nonzero().squeeze(1)
    bounds = torch.searchsorted(passed, torch.arange(n + 1) * width)
    counts = bounds.diff()
    if int(counts.min()) < k:
        return None
    # The candidates of each row side by side, in a table as wide as the longest.
    table = values.new_full((n, int(counts.max())), float("-inf"))
    shift = torch.arange(n) * table.shape[1] - bounds[:-1]
    place = torch.arange(len(passed)) + torch.repeat_interleave(shift, counts, output_size=len(passed))
    table.view(-1).scatter_(0, place, values.view(-1).index_select(0, passed))
    chosen = table.topk(k, dim=1, sorted=False).indices + bounds[:-1, None]
    return passed.index_select(0, chosen.view(-1)).view(n, k) - width * torch.arange(n)[:, None]
