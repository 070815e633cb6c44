"""The student's logits and the teachers' signals become one loss, and the raw terms it was made of.

Types: `Terms`, the sums of one micro-batch; `Counts`, what they are divided by. Law: the loss of a micro-batch is its
sums over the counts of the whole accumulation window (and of all processes), so with fixed weights the gradients do not
depend on how a batch is cut up.

Dynamic scaling is the exception, by what it is: each micro-batch's factor is its own share of the window's
cross-entropy over its own share of the teachers' loss, since the window's totals are known only after the last backward
pass. So the gradients do depend on the micro-batch's size there. A micro-batch whose teachers' loss is positive has
(ce_weight + 1) times its cross-entropy for a loss, one where it is negative (ce_weight - 1) times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses import ChunkIndex, ChunkLoss, LossTerm, cross_entropy, dynamic_scale, in_blocks, weighted_sum
from xtoken.teachers.online import OnlineTeacher

__all__ = ["Counts", "Distiller", "Terms"]

DROPPED = "dropped_chunks"  # the metric by which a term tells how many chunks had no row to predict them

KdWeight = float | Literal["dynamic"]


@dataclass(frozen=True)
class Terms:
    """The raw terms of a micro-batch.

    Attributes:
        cross_entropy: nats and tokens.
        teachers: by name; nats (or what the loss is measured in) and chunks.
    """

    cross_entropy: LossTerm
    teachers: Mapping[str, LossTerm]

    def counts(self) -> Counts:
        """What to divide by where this micro-batch is all there is."""
        return Counts(self.cross_entropy.count, {name: term.count for name, term in self.teachers.items()})


@dataclass(frozen=True)
class Counts:
    """The units of a whole accumulation window.

    Attributes:
        tokens: int64 scalar, tokens that cross-entropy scores.
        chunks: int64 scalars by teacher.
    """

    tokens: Tensor
    chunks: Mapping[str, Tensor]


class Distiller:
    """Several teachers, one student, and how their losses add up.

    Args:
        teachers: with names of their own; none for cross-entropy alone.
        vocab_size: V_S, the size of the student's tokenizer; wider logits are cut.
        kd_weight: of the teachers' weighted sum, or `dynamic`.
        ce_weight: of the cross-entropy.

    Raises:
        XTokenError: two teachers share a name; a weight that is negative or not finite; nothing to learn from.
    """

    def __init__(
        self,
        teachers: Sequence[OnlineTeacher],
        vocab_size: int,
        kd_weight: KdWeight = "dynamic",
        ce_weight: float = 1.0,
    ) -> None:
        names = [teacher.name for teacher in teachers]
        if len(set(names)) < len(names):
            raise XTokenError(f"the teachers are called {', '.join(names)}; give each a name of its own")
        for what, weight in (("kd_weight", kd_weight), ("ce_weight", ce_weight)):
            if weight != "dynamic" and not 0 <= weight < float("inf"):
                raise XTokenError(f"{what} is {weight}; it must be finite and at least 0")
        if ce_weight == 0 and (kd_weight == 0 or not teachers):
            raise XTokenError("neither cross-entropy nor a teacher counts: there is nothing to learn from")
        self.teachers, self.vocab_size = tuple(teachers), vocab_size
        self.kd_weight, self.ce_weight = kd_weight, ce_weight

    def terms(self, student_logits: Tensor, batch: Mapping[str, Any]) -> Terms:
        """The sums of one micro-batch, one teacher after the other so that one signal is held at a time.

        Args:
            student_logits: [B, L_s, V_S or wider].
            batch: as a `Collator` makes it, on the student's device.
        """
        learnt = {teacher.name: _teach(teacher, student_logits, batch) for teacher in self.teachers}
        return Terms(cross_entropy(student_logits, batch["labels"], self.vocab_size), learnt)

    def combine(self, terms: Terms, counts: Counts) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, and the factor on the teachers' sum.

        Args:
            terms: of one micro-batch.
            counts: of its whole window.

        Returns:
            two scalars; the factor has no gradient, and is 0 without teachers.
        """
        ce = _share(terms.cross_entropy, counts.tokens)
        if not self.teachers:
            return self.ce_weight * ce, torch.zeros_like(ce.detach())
        kd = weighted_sum(
            [_share(terms.teachers[teacher.name], counts.chunks[teacher.name]) for teacher in self.teachers],
            [teacher.weight for teacher in self.teachers],
        )
        factor = dynamic_scale(ce, kd) if self.kd_weight == "dynamic" else torch.full_like(kd.detach(), self.kd_weight)
        return self.ce_weight * ce + factor * kd, factor


def _teach(teacher: OnlineTeacher, student_logits: Tensor, batch: Mapping[str, Any]) -> LossTerm:
    side = batch["teachers"][teacher.side]
    index = ChunkIndex.from_tensors(side["index"])
    signal = teacher.signal(side["input_ids"], side["attention_mask"])
    is_own = isinstance(teacher.loss, ChunkLoss)  # walks in blocks by itself
    term = (teacher.loss if is_own else partial(in_blocks, teacher.loss))(student_logits, signal, index)
    return LossTerm(term.total, term.count, {**term.metrics, DROPPED: index.dropped})


def _share(term: LossTerm, count: Tensor) -> Tensor:
    """The term's sum over a count that may be larger than its own; 0 where nothing was counted."""
    return term.total / count.clamp(min=1)
