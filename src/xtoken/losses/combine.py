"""How cross-entropy and the distillation losses of several teachers become one number.

Takes means that are already divided by the global counts; knows nothing of batches or processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xtoken.errors import XTokenError

__all__ = ["dynamic_scale", "weighted_sum"]


def dynamic_scale(cross_entropy: Tensor, distillation: Tensor) -> Tensor:
    """The factor that gives the distillation loss the size of the cross-entropy: sg(L_CE / |L_KD|).

    L = factor * L_KD + L_CE is then 2 L_CE in value while L_KD is positive, and 0 where it is negative, whatever its
    size: a distillation term that teaches nothing is invisible in L. Log both raw terms. It equalises values and not
    gradients: a term with a floor is turned down by it, one that can reach 0 is turned up.

    The size |L_KD| and not L_KD, because a chained loss may be negative, and a negative factor would climb it.

    Args:
        cross_entropy: scalar, nats.
        distillation: scalar.

    Returns:
        scalar without gradient; 1 where the distillation loss is exactly 0.

    Source: Sreenivas et al., "X-Token", https://arxiv.org/abs/2605.21699, dynamic scaling.
    """
    size = distillation.detach().abs()
    is_zero = size == 0
    return torch.where(is_zero, 1, cross_entropy.detach() / torch.where(is_zero, 1, size))


def weighted_sum(means: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """L_KD = sum over the teachers m of alpha_m * (mean of teacher m's loss over its own chunks).

    Args:
        means: scalars, one a teacher.
        weights: alpha_m, at least 0; they need not sum to 1.

    Raises:
        XTokenError: no teacher, a weight too many or too few, or a weight that is negative or not finite.
    """
    if not means or len(means) != len(weights):
        raise XTokenError(f"{len(means)} teachers have {len(weights)} weights; give one weight a teacher.")
    if not all(0 <= weight < float("inf") for weight in weights):
        raise XTokenError(f"the teachers' weights are {list(weights)}; each must be finite and at least 0.")
    return torch.stack([weight * mean for mean, weight in zip(means, weights, strict=True)]).sum()
