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
from xtoken.losses import (
    ChunkIndex,
    ChunkLoss,
    Lesson,
    LossTerm,
    Multipliers,
    Weigh,
    cross_entropy,
    dynamic_scale,
    in_blocks,
    losses_from_hidden,
    weighted_sum,
)
from xtoken.losses.cross_entropy import IGNORED_LABEL, targets_of
from xtoken.teachers.head import Head
from xtoken.teachers.online import OnlineTeacher

__all__ = ["Counts", "Distiller", "Outcome", "Terms"]

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


@dataclass(frozen=True)
class Outcome:
    """A micro-batch's loss.

    Attributes:
        loss: scalar to differentiate.
        factor: scalar on the teachers' sum, without gradient; 0 without teachers.
        terms: what it was made of.
    """

    loss: Tensor
    factor: Tensor
    terms: Terms


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

    def outcome(self, student_logits: Tensor, batch: Mapping[str, Any], counts: Counts | None) -> Outcome:
        """The loss of one micro-batch by its logits.

        Args:
            student_logits: [B, L_s, V_S or wider].
            batch: as a `Collator` makes it, on the student's device.
            counts: of its whole window; None where it is all there is.
        """
        terms = self.terms(student_logits, batch)
        return Outcome(*self.combine(terms, terms.counts() if counts is None else counts), terms)

    def outcome_from_hidden(
        self, hidden: Tensor, head: Head, batch: Mapping[str, Any], counts: Counts | None
    ) -> Outcome:
        """The same by hidden states: no logits of a whole batch are made; see `xtoken.losses.losses_from_hidden`.

        Args:
            hidden: [B, L_s, H], what the student's head is given.
            head: the student's.
            batch, counts: as for `outcome`.

        Raises:
            XTokenError: some teacher's loss has no fast version (`can_read_hidden` tells).
        """
        lessons = [_lesson(teacher, batch) for teacher in self.teachers]
        targets = targets_of(batch["labels"])
        if counts is None:
            chunks = {t.name: targets.new_tensor(x.index.n_chunks) for t, x in zip(self.teachers, lessons, strict=True)}
            counts = Counts((targets != IGNORED_LABEL).sum(), chunks)
        factors: list[Tensor] = []

        def weigh(text: LossTerm, terms: Sequence[LossTerm]) -> Multipliers:
            named = dict(zip([teacher.name for teacher in self.teachers], terms, strict=True))
            _, factor = self.combine(Terms(text, named), counts)
            factors.append(factor)
            return self._multipliers(factor, counts)

        multipliers: Multipliers | Weigh = weigh
        if self.kd_weight != "dynamic" or not self.teachers:
            fixed = 0.0 if self.kd_weight == "dynamic" else self.kd_weight
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            factors.append(torch.full((), fixed, dtype=dtype, device=hidden.device))
            multipliers = self._multipliers(factors[0], counts)
        found = losses_from_hidden(hidden, head, targets, self.vocab_size, lessons, multipliers)
        terms = {
            teacher.name: LossTerm(term.total, term.count, {**term.metrics, DROPPED: lesson.index.dropped})
            for teacher, lesson, term in zip(self.teachers, lessons, found.lessons, strict=True)
        }
        return Outcome(found.loss, factors[0], Terms(found.cross_entropy, terms))

    @property
    def can_read_hidden(self) -> bool:
        """Whether every teacher's loss has a fast version, and no two teachers' logits would be held at once."""
        kernels = [t.loss.kernel() if isinstance(t.loss, ChunkLoss) else None for t in self.teachers]
        return None not in kernels and sum(teacher.reader is None for teacher in self.teachers) <= 1

    def _multipliers(self, factor: Tensor, counts: Counts) -> Multipliers:
        """What `combine` multiplies each term's total by, in the type of the factor."""
        shares = [t.weight * factor / counts.chunks[t.name].clamp(min=1) for t in self.teachers]
        return Multipliers(torch.full_like(factor, self.ce_weight) / counts.tokens.clamp(min=1), shares)

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


def _lesson(teacher: OnlineTeacher, batch: Mapping[str, Any]) -> Lesson:
    side, loss = batch["teachers"][teacher.side], teacher.loss
    kernel = loss.kernel() if isinstance(loss, ChunkLoss) else None
    if kernel is None or not isinstance(loss, ChunkLoss):
        raise XTokenError(f"teacher {teacher.name!r}: its loss has no fast version, so it needs the student's logits")
    signal, index = teacher.signal(side["input_ids"], side["attention_mask"]), ChunkIndex.from_tensors(side["index"])
    loss.check(signal, index)
    return Lesson(kernel, signal, index)


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
