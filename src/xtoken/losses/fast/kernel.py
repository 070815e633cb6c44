"""What a fast loss is: a formula on K pairs of distributions that hands back its own gradient.

All losses here compare a chunk's first student row with its first teacher row, each times the probability of the
chunk's later tokens (`chain`) or alone (`first`). So a kernel sees [K, V_S] and [K, V_T] and two factors, and knows
nothing of rows, logits, heads or blocks; the walkers know nothing of formulas. With p the student's distribution,

    d value / d logits = direct + on_probs * p,      d value / d log_factor = on_factor,

for every one of them, because a softmax passes back v as p * v - p * (p . v). Law: values, gradients and metrics are
those of the reference beside the loss. Memory: what `Scratch` holds, a few tensors of [K, V_S] and [K, V_T].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ChunkKernel", "KernelResult", "Rows", "Scratch", "log_weights_of"]


class Scratch:
    """Buffers by name, kept from block to block.

    Fresh memory costs the CPU a page fault every 4 KiB, which is more than most passes over it take.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of this shape with unspecified content; the last one of this name is gone."""
        dtype = dtype or self.dtype
        size = prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != dtype:
            self._flat.pop(name, None)
            flat = self._flat[name] = torch.empty(size, dtype=dtype, device=self.device)
        return flat[:size].view(shape)


class Rows:
    """One side of K chunks: its distributions, made when they are asked for, and its factors.

    A kernel may overwrite the teacher's tensors and the student's `log_probs`, but not the student's `probs`.

    Attributes:
        logits: [K, V], whose softmax is the distribution; of a top-k signal [K, k] log-probabilities. A copy, to be
            changed before a distribution is asked for, and not afterwards.
        log_factor: [K], nats, at most 0: the later tokens; 0 for `first`. Set by the pass.
        token_ids: int64 [K, k], what the columns stand for in a top-k signal; None where they are the vocabulary.
        log_tail: [K], log of what such a signal leaves out; None where it is whole.
    """

    log_factor: Tensor

    def __init__(
        self,
        logits: Tensor,
        scratch: Scratch,
        side: str,
        token_ids: Tensor | None = None,
        log_tail: Tensor | None = None,
    ) -> None:
        """Takes logits [K, V], or the log-probabilities [K, k] of a top-k signal."""
        self.logits, self._scratch, self._side = logits, scratch, side
        self.token_ids, self.log_tail = token_ids, log_tail

    @cached_property
    def log_probs(self) -> Tensor:
        """[K, V], nats."""
        if self.token_ids is not None:
            return self.logits
        out = self._scratch.take(f"{self._side} log_probs", *self.logits.shape)
        return torch.log_softmax(self.logits, -1, out=out)

    @cached_property
    def probs(self) -> Tensor:
        """[K, V]. A second softmax and no exponential: on the CPU torch's fused softmax is the quicker of the two."""
        if self.token_ids is not None:
            return self.logits.exp()
        out = self._scratch.take(f"{self._side} probs", *self.logits.shape)
        return torch.softmax(self.logits, -1, out=out)


@dataclass(frozen=True)
class KernelResult:
    """What a kernel found, by the logits that the softmax was taken of (divided by tau already).

    Attributes:
        values: [K], the loss of each chunk.
        direct: [K, V_S], may be a scratch buffer.
        on_probs: [K], or None where it is 0 throughout.
        on_factor: [K]; None for a loss without factors.
        parts: [K] each, what the value is made of or off by; they take its factor tau^2.
        metrics: [K] each, of other kinds.
        by_log_weights: [L], d (sum of the values) / d log of the kernel's learnable weights; None where it has none.
    """

    values: Tensor
    direct: Tensor
    on_probs: Tensor | None
    on_factor: Tensor | None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    by_log_weights: Tensor | None = None

    def by_logits(self, student: Rows, scale: float | Tensor) -> Tensor:
        """scale * d value / d logits [K, V_S]; it overwrites `direct`."""
        if self.on_probs is not None:
            self.direct.addcmul_(student.probs, self.on_probs.unsqueeze(1))
        return self.direct if isinstance(scale, float) and scale == 1 else self.direct.mul_(scale)

    def sums(self, tau: float) -> dict[str, Tensor]:
        """`total`, the parts and the metrics, summed over the chunks."""
        scaled = {"total": self.values, **self.parts}
        return {name: tau**2 * values.sum() for name, values in scaled.items()} | {
            name: values.sum() for name, values in self.metrics.items()
        }


def log_weights_of(kernel: object) -> Tensor | None:
    """The logarithms [L] of the weights that a kernel learns, with their graph; None for a loss without any."""
    found = getattr(kernel, "log_weights", None)
    return found if isinstance(found, Tensor) and found.requires_grad else None


class ChunkKernel(Protocol):
    """A loss as the walkers call it; one that learns weights has `log_weights` besides (`log_weights_of`)."""

    @property
    def student_vocab_size(self) -> int:
        """V_S."""

    @property
    def teacher_vocab_size(self) -> int:
        """V_T."""

    @property
    def uses_later_tokens(self) -> bool:
        """Whether `log_factor` counts (`chain`)."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The parts and metrics it gives, so that a batch without chunks has them too."""

    @property
    def takes_top_k(self) -> bool:
        """Whether the teacher's side may be a top-k signal."""

    def __call__(self, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
        """The loss of K chunks and its gradient."""
