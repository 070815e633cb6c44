"""A W that is learnt: one log-weight for each entry of a row that has several, and a softmax within the row.

The support and the sum of every row stay what they were, so a row can only move its mass among the pieces it had. A row
of one entry is constant under the softmax and has no parameter. Law: before the first step W is the given one to
rounding, and the gradient of a row's log-weights sums to 0.
Source: Sreenivas et al., "X-Token", https://arxiv.org/abs/2605.21699, the learnable projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xtoken.errors import XTokenError
from xtoken.losses.logspace import NEG_INF

__all__ = ["LearnableEntries", "RowWeights", "learnable_entries"]

Array = NDArray[Any]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LearnableEntries:
    """Where the L learnable entries stand in the list of all; row by row, and by rising column within a row.

    Attributes:
        at: int64 [L], places in the list of entries.
        row: int64 [L], which of the N learnable rows each one belongs to, rising.
        slot: int64 [L], which of its row's entries it is, from 0.
        rows: int64 [N], the student tokens of these rows, rising.
    """

    at: Ints
    row: Ints
    slot: Ints
    rows: Ints


def learnable_entries(rows: Ints, cols: Ints) -> LearnableEntries:
    """The entries that share their row with another.

    Args:
        rows, cols: int [nnz], entries of W in any order, no cell twice.
    """
    order = np.lexsort((cols, rows))
    at = order[np.bincount(rows, minlength=1)[rows[order]] > 1]
    found, first, row = np.unique(rows[at], return_index=True, return_inverse=True)
    row = row.reshape(-1).astype(np.int64)
    return LearnableEntries(at.astype(np.int64), row, np.arange(len(at)) - first[row], found.astype(np.int64))


class RowWeights(nn.Module):
    """The log-weights of W's learnable entries, and what W is with them.

    Args:
        entries: which they are.
        values: [nnz], the weights of all entries at the start, positive.

    Attributes:
        log_weights: parameter [L], in the order of `entries`.

    Raises:
        XTokenError: no row has two entries, so there is nothing to learn.
    """

    at: Tensor
    rows: Tensor
    _place: Tensor
    _log_sums: Tensor
    _start: Tensor

    def __init__(self, entries: LearnableEntries, values: Tensor) -> None:
        super().__init__()
        if not len(entries.at):
            raise XTokenError(
                "no row of this projection has two entries, so there is nothing to learn; leave it fixed."
            )
        row, at = torch.from_numpy(entries.row), torch.from_numpy(entries.at)
        start = values[at]
        sums = torch.zeros(len(entries.rows), dtype=torch.float64).index_add(0, row, start.double())
        # Rows as a rectangle, those with fewer entries padded: a softmax of it sums in a fixed order on every device.
        self._width = int(entries.slot.max()) + 1
        buffers = {
            "at": at,
            "rows": torch.from_numpy(entries.rows),
            "_place": row * self._width + torch.from_numpy(entries.slot),
            "_log_sums": sums.log().to(values.dtype)[row],
            "_start": start.log(),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)
        self.log_weights = nn.Parameter(start.log())

    def log_values(self) -> Tensor:
        """log W of the learnable entries [L], with gradient."""
        return self._normalised(self.log_weights)

    def drift(self) -> Tensor:
        """How far each learnable row is from its start [N]: total variation, the share of its mass that has moved."""
        with torch.no_grad():
            sums = self._by_row(self._log_sums, NEG_INF)[:, 0].exp()
            moved = (self.log_values().exp() - self._normalised(self._start).exp()).abs()
            return self._by_row(moved, 0.0).sum(dim=1) / (2 * sums)

    def _normalised(self, log_weights: Tensor) -> Tensor:
        logs = torch.log_softmax(self._by_row(log_weights, NEG_INF), dim=1)
        return logs.view(-1).gather(0, self._place) + self._log_sums

    def _by_row(self, numbers: Tensor, padding: float) -> Tensor:
        """[N, width]."""
        flat = numbers.new_full((len(self.rows) * self._width,), padding)
        return flat.scatter(0, self._place, numbers).view(len(self.rows), self._width)
