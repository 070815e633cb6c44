"""How sure a teacher is of a text: what adaptive teacher weights are made of.

A score is a mean over the tokens that the teacher's chunks hold, at temperature 1: `ce` is minus its cross-entropy on
the text's own tokens, `entropy` minus its entropy, `max_prob` its largest probability. The higher, the more it counts.
Read in blocks, so no [tokens, vocabulary] matrix is made of hidden states.

Source: Sreenivas et al., "X-Token", https://arxiv.org/abs/2605.21699, adaptive weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses.fast.passes import blocks
from xtoken.losses.fast.walk import block_rows
from xtoken.losses.index import ChunkIndex
from xtoken.teachers.signal import DenseSignal, WholeSignal

__all__ = ["Adaptive", "Score", "total_score"]

Score = Literal["ce", "entropy", "max_prob"]


@dataclass(frozen=True)
class Adaptive:
    """Teacher weights softmax(alpha * score) over the teachers.

    Attributes:
        score: by what a teacher is judged.
        alpha: how much it counts; 0 gives equal weights.

    Raises:
        XTokenError: an unknown score, or an alpha that is negative or not finite.
    """

    score: Score
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.score not in get_args(Score):
            raise XTokenError(f"there is no score {self.score!r}; there are {', '.join(get_args(Score))}")
        if not 0 <= self.alpha < float("inf"):
            raise XTokenError(f"alpha is {self.alpha}; it must be finite and at least 0")

    def weights(self, scores: Tensor) -> Tensor:
        """[M], which sum to 1, from the mean score [M] of each teacher."""
        return torch.softmax(self.alpha * scores, 0)


def total_score(score: Score, signal: WholeSignal, index: ChunkIndex) -> Tensor:
    """A teacher's score summed over the tokens of its chunks, a scalar without gradient.

    Args:
        score: which.
        signal: the teacher's.
        index: the chunks.
    """
    signal = signal if isinstance(signal, DenseSignal) else replace(signal, temperature=1.0)
    rows, tokens = index.teacher_rows, index.teacher_tokens
    dtype = torch.promote_types(signal.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=rows.device)
    with torch.no_grad():
        for part in blocks(len(rows), block_rows(rows.device, signal.vocab_size)):
            log_probs = signal.log_probs_at(rows[part])
            if score == "ce":
                total += log_probs.gather(1, tokens[part].unsqueeze(1)).sum()
            elif score == "entropy":
                probs = log_probs.exp()
                total += torch.where(probs > 0, probs * log_probs, 0).sum()
            else:
                total += log_probs.amax(dim=1).exp().sum()
    return total
