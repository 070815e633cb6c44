"""`LossTerm`: what every loss returns, a sum and a count, so that whoever owns the global batch divides.

A loss that returned a mean could not be accumulated: the mean of two micro-batches' means weighs a short one like a
long one. Law: the term of a batch is the sum of the terms of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["LossTerm"]


@dataclass(frozen=True)
class LossTerm:
    """A loss summed over its units (chunks; tokens for cross-entropy).

    Attributes:
        total: scalar with gradient, the sum over the units.
        count: int64 scalar on the same device, the number of units.
        metrics: detached scalars by name, sums over the same units, so that they add as the total does.
    """

    total: Tensor
    count: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Tensor, **metrics: Tensor) -> LossTerm:
        """The term of one value a unit.

        Args:
            values: [K], the loss of each unit.
            metrics: [K] each.
        """
        count = torch.full((), values.shape[0], dtype=torch.int64, device=values.device)
        return cls(values.sum(), count, {name: metric.detach().sum() for name, metric in metrics.items()})

    @classmethod
    def of_some(cls, values: Tensor, takes_part: Tensor, **metrics: Tensor) -> LossTerm:
        """The term of those units that take part; the others are neither summed nor counted.

        Args:
            values: [K], the loss of each unit, finite for the others too.
            takes_part: bool [K].
            metrics: [K] each.
        """
        kept = {name: torch.where(takes_part, metric.detach(), 0).sum() for name, metric in metrics.items()}
        return cls(torch.where(takes_part, values, 0).sum(), takes_part.sum(), kept)

    def __add__(self, other: LossTerm) -> LossTerm:
        """Both sets of units together; a metric that only one of them has is kept as it is."""
        names = {**self.metrics, **other.metrics}
        both = self.metrics.keys() & other.metrics.keys()
        metrics = {n: self.metrics[n] + other.metrics[n] if n in both else value for n, value in names.items()}
        return LossTerm(self.total + other.total, self.count + other.count, metrics)

    def mean(self) -> Tensor:
        """The total per unit, with gradient; 0 for no units."""
        return self.total / self.count.clamp(min=1)
