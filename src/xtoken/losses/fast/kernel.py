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
from math import prod
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ChunkKernel", "KernelResult", "Rows", "Scratch"]


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


@dataclass(frozen=True)
class Rows:
    """One side of K chunks. A kernel may overwrite all of the teacher's and the student's `log_probs`, not its `probs`.

    Attributes:
        log_probs: [K, V], nats.
        probs: [K, V], its exponential.
        log_factor: [K], nats, at most 0: the later tokens; 0 for `first`.
    """

    log_probs: Tensor
    probs: Tensor
    log_factor: Tensor


@dataclass(frozen=True)
class KernelResult:
    """What a kernel found, by the logits that the softmax was taken of (divided by tau already).

    Attributes:
        values: [K], the loss of each chunk.
        direct: [K, V_S], may be a scratch buffer; None where no gradient was asked for.
        on_probs: [K].
        on_factor: [K].
        parts: [K] each, what the value is made of or off by; they take its factor tau^2.
        metrics: [K] each, of other kinds.
    """

    values: Tensor
    direct: Tensor | None
    on_probs: Tensor
    on_factor: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def sums(self, tau: float) -> dict[str, Tensor]:
        """`total`, the parts and the metrics, summed over the chunks."""
        scaled = {"total": self.values, **self.parts}
        return {name: tau**2 * values.sum() for name, values in scaled.items()} | {
            name: values.sum() for name, values in self.metrics.items()
        }


class ChunkKernel(Protocol):
    """A loss as the walkers call it."""

    @property
    def student_vocab_size(self) -> int:
        """V_S."""

    @property
    def teacher_vocab_size(self) -> int:
        """V_T."""

    @property
    def uses_later_tokens(self) -> bool:
        """Whether `log_factor` counts (`chain`)."""

    def __call__(self, student: Rows, teacher: Rows, scratch: Scratch, with_gradient: bool) -> KernelResult:
        """The loss of K chunks and, where asked for, its gradient."""
