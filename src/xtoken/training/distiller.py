"""The student's logits and the teachers' signals become one loss, and the raw terms it was made of.

Types: `Terms`, the sums of one micro-batch; `Counts`, what they are divided by. Law: the loss of a micro-batch is its
sums over the counts of the whole accumulation window (and of all processes), so with fixed weights the gradients do not
depend on how a batch is cut up.

That holds for dynamic scaling and adaptive teacher weights as well where their `Weighing` is given: the Trainer takes
it from the step before. Without one, a batch is weighed by its own terms. Memory: one teacher's signal at a time, and
beside it one gradient of the student's logits for all teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
)
from xtoken.losses.cross_entropy import IGNORED_LABEL, targets_of
from xtoken.losses.fast.handover import hand_out, keep_for_backward
from xtoken.teachers.confidence import Adaptive, total_score
from xtoken.teachers.head import Head
from xtoken.teachers.online import OnlineTeacher
from xtoken.teachers.signal import WholeSignal

__all__ = ["Counts", "Distiller", "Outcome", "Terms", "Weighing", "chunk_count"]

DROPPED = "dropped_chunks"  # the metric by which a term tells how many chunks it says nothing of
SCORE, SCORED = "score", "scored_tokens"  # those of a teacher's score: its sum and over how many tokens

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
        chunks: int64 scalars by teacher, those that take part in its loss.
    """

    tokens: Tensor
    chunks: Mapping[str, Tensor]


@dataclass(frozen=True)
class Weighing:
    """How the terms become a loss: ce_weight * CE + factor * sum over the teachers of weight * their mean.

    Attributes:
        factor: scalar without gradient; 0 without teachers.
        teachers: scalars by name.
    """

    factor: Tensor
    teachers: Mapping[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """A micro-batch's loss.

    Attributes:
        loss: scalar to differentiate.
        weighing: how its terms were weighed.
        terms: what it was made of.
    """

    loss: Tensor
    weighing: Weighing
    terms: Terms


class Distiller:
    """Several teachers, one student, and how their losses add up.

    Args:
        teachers: with names of their own; none for cross-entropy alone.
        vocab_size: V_S, the size of the student's tokenizer; wider logits are cut.
        kd_weight: of the teachers' weighted sum, or `dynamic`. A number may be set anew between steps.
        ce_weight: of the cross-entropy.
        adaptive: weighs the teachers by how sure each is of the text; None takes their own static weights.

    Raises:
        XTokenError: two teachers share a name; a weight that is negative or not finite; nothing to learn from; adaptive
            weights of fewer than two teachers.
    """

    def __init__(
        self,
        teachers: Sequence[OnlineTeacher],
        vocab_size: int,
        kd_weight: KdWeight = "dynamic",
        ce_weight: float = 1.0,
        adaptive: Adaptive | None = None,
    ) -> None:
        names = [teacher.name for teacher in teachers]
        if adaptive is not None and len(names) < 2:
            raise XTokenError(f"adaptive weights need two teachers or more, and there are {len(names)}")
        if len(set(names)) < len(names):
            raise XTokenError(f"the teachers are called {', '.join(names)}; give each a name of its own")
        if isinstance(kd_weight, str) and kd_weight != "dynamic":
            raise XTokenError(f"kd_weight is {kd_weight!r}; a Distiller takes a number or 'dynamic'")
        for what, weight in (("kd_weight", kd_weight), ("ce_weight", ce_weight)):
            if weight != "dynamic" and not 0 <= weight < float("inf"):
                raise XTokenError(f"{what} is {weight}; it must be finite and at least 0")
        if ce_weight == 0 and (kd_weight == 0 or not teachers):
            raise XTokenError("neither cross-entropy nor a teacher counts: there is nothing to learn from")
        self.teachers, self.vocab_size = tuple(teachers), vocab_size
        self.kd_weight, self.ce_weight, self.adaptive = kd_weight, ce_weight, adaptive

    @property
    def weighs_by_terms(self) -> bool:
        """Whether the weights follow from the terms, so that somebody has to know these first."""
        return bool(self.teachers) and (self.kd_weight == "dynamic" or self.adaptive is not None)

    def terms(self, student_logits: Tensor, batch: Mapping[str, Any]) -> Terms:
        """The sums of one micro-batch, one teacher after the other so that one signal is held at a time.

        Args:
            student_logits: [B, L_s, V_S or wider].
            batch: as a `Collator` makes it, on the student's device.
        """
        learnt = {teacher.name: self._teach(teacher, student_logits, batch) for teacher in self.teachers}
        return Terms(cross_entropy(student_logits, batch["labels"], self.vocab_size), learnt)

    def outcome(
        self,
        student_logits: Tensor,
        batch: Mapping[str, Any],
        counts: Counts | None = None,
        weighing: Weighing | None = None,
    ) -> Outcome:
        """The loss of one micro-batch by its logits.

        Args:
            student_logits: [B, L_s, V_S or wider].
            batch: as a `Collator` makes it, on the student's device.
            counts: of its whole window; None where it is all there is.
            weighing: of the terms; None weighs them by themselves, and holds one gradient of the logits a teacher.
        """
        if weighing is None or not self.teachers:
            terms = self.terms(student_logits, batch)
            return Outcome(*self.combine(terms, counts or terms.counts()), terms)
        counts = counts or self._counts_of(batch)
        text = cross_entropy(student_logits, batch["labels"], self.vocab_size)
        scales = self._multipliers(weighing, counts).lessons
        held, learnt = _Held(student_logits), {}
        for teacher, scale in zip(self.teachers, scales, strict=True):
            own = teacher.loss.parameters() if isinstance(teacher.loss, nn.Module) else ()
            teach = partial(self._teach, teacher)
            learnt[teacher.name] = held.add(teach, batch, scale, [p for p in own if p.requires_grad])
        loss = self.ce_weight * _share(text, counts.tokens) + held.sum()
        return Outcome(loss, weighing, Terms(text, learnt))

    def outcome_from_hidden(
        self,
        hidden: Tensor,
        head: Head,
        batch: Mapping[str, Any],
        counts: Counts | None = None,
        weighing: Weighing | None = None,
    ) -> Outcome:
        """The same by hidden states: no logits of a whole batch are made; see `xtoken.losses.losses_from_hidden`.

        Args:
            hidden: [B, L_s, H], what the student's head is given.
            head: the student's.
            batch, counts, weighing: as for `outcome`.

        Raises:
            XTokenError: some teacher's loss has no fast version (`can_read_hidden` tells).
        """
        lessons = [_lesson(teacher, batch) for teacher in self.teachers]
        more = [self._metrics(lesson.teacher, lesson.index) for lesson in lessons]
        targets, counts = targets_of(batch["labels"]), counts or self._counts_of(batch)
        found: list[Weighing] = []

        def named(text: LossTerm, terms: Sequence[LossTerm]) -> Terms:
            whole = (LossTerm(x.total, x.count, {**x.metrics, **m}) for x, m in zip(terms, more, strict=True))
            return Terms(text, dict(zip([teacher.name for teacher in self.teachers], whole, strict=True)))

        def weigh(text: LossTerm, terms: Sequence[LossTerm]) -> Multipliers:
            found.append(self.weigh(named(text, terms), counts))
            return self._multipliers(found[0], counts)

        if weighing is None and not self.weighs_by_terms:
            wide = torch.promote_types(hidden.dtype, torch.float32)
            weighing = self.static_weighing(hidden.device, wide)
        multipliers: Multipliers | Weigh = weigh if weighing is None else self._multipliers(weighing, counts)
        walked = losses_from_hidden(hidden, head, targets, self.vocab_size, lessons, multipliers)
        terms = named(walked.cross_entropy, walked.lessons)
        return Outcome(walked.loss, found[0] if weighing is None else weighing, terms)

    @property
    def can_read_hidden(self) -> bool:
        """Whether every teacher's loss has a fast version, and no two teachers' logits would be held at once."""
        kernels = [t.loss.kernel() if isinstance(t.loss, ChunkLoss) else None for t in self.teachers]
        return None not in kernels and sum(teacher.reader is None for teacher in self.teachers) <= 1

    def static_weighing(self, device: torch.device, dtype: torch.dtype) -> Weighing:
        """That of fixed weights.

        Args:
            device, dtype: of its scalars.
        """
        assert self.kd_weight != "dynamic" or not self.teachers
        fixed = 0.0 if self.kd_weight == "dynamic" else self.kd_weight
        scalars = {teacher.name: teacher.weight for teacher in self.teachers}
        whole = torch.tensor([fixed, *scalars.values()], dtype=dtype, device=device)
        return Weighing(whole[0], dict(zip(scalars, whole[1:], strict=True)))

    def weigh(self, terms: Terms, counts: Counts) -> Weighing:
        """What the terms themselves say of their weights.

        Args:
            terms: of a batch.
            counts: to divide them by.

        Returns:
            scalars without gradient.
        """
        ce = _share(terms.cross_entropy, counts.tokens).detach()
        weights = [torch.full_like(ce, teacher.weight) for teacher in self.teachers]
        if self.adaptive is not None:
            own = [terms.teachers[teacher.name].metrics for teacher in self.teachers]
            scores = torch.stack([(m[SCORE] / m[SCORED].clamp(min=1)).to(ce.dtype) for m in own])
            judged = torch.stack([m[SCORED] > 0 for m in own])
            # Of a teacher without a token nothing is known: it stands where the judged ones do on average.
            average = torch.where(judged, scores, 0).sum() / judged.sum().clamp(min=1)
            weights = list(self.adaptive.weights(torch.where(judged, scores, average)))
        named = dict(zip([teacher.name for teacher in self.teachers], weights, strict=True))
        if not self.teachers:
            return Weighing(torch.zeros_like(ce), named)
        if self.kd_weight != "dynamic":
            return Weighing(torch.full_like(ce, self.kd_weight), named)
        return Weighing(dynamic_scale(ce, self._teachers_sum(terms, counts, named).detach()), named)

    def combine(self, terms: Terms, counts: Counts) -> tuple[Tensor, Weighing]:
        """The loss to differentiate, its terms weighed by themselves, and how they were.

        Args:
            terms: of one micro-batch.
            counts: of its whole window.
        """
        weighing = self.weigh(terms, counts)
        ce = self.ce_weight * _share(terms.cross_entropy, counts.tokens)
        if not self.teachers:
            return ce, weighing
        return ce + weighing.factor * self._teachers_sum(terms, counts, weighing.teachers), weighing

    def _teachers_sum(self, terms: Terms, counts: Counts, weights: Mapping[str, Tensor]) -> Tensor:
        names = [teacher.name for teacher in self.teachers]
        return torch.stack([weights[n] * _share(terms.teachers[n], counts.chunks[n]) for n in names]).sum()

    def _multipliers(self, weighing: Weighing, counts: Counts) -> Multipliers:
        """What `combine` multiplies each term's total by."""
        factor, names = weighing.factor, [teacher.name for teacher in self.teachers]
        shares = [weighing.teachers[n] * factor / counts.chunks[n].clamp(min=1) for n in names]
        return Multipliers(torch.full_like(factor, self.ce_weight) / counts.tokens.clamp(min=1), shares)

    def _counts_of(self, batch: Mapping[str, Any]) -> Counts:
        """The counts of a batch that is all there is."""
        tokens = (batch["labels"][..., 1:] != IGNORED_LABEL).sum()
        return Counts(tokens, {t.name: chunk_count(t, batch).to(tokens.device) for t in self.teachers})

    def _teach(self, teacher: OnlineTeacher, student_logits: Tensor, batch: Mapping[str, Any]) -> LossTerm:
        index = ChunkIndex.from_tensors(batch["teachers"][teacher.side]["index"])
        signal = _signal(teacher, batch)
        is_own = isinstance(teacher.loss, ChunkLoss)  # walks in blocks by itself
        term = (teacher.loss if is_own else partial(in_blocks, teacher.loss))(student_logits, signal, index)
        found = self._metrics(signal, index)
        found[DROPPED] = found[DROPPED] + index.n_chunks - term.count  # and those that take no part in this loss
        return LossTerm(term.total, term.count, {**term.metrics, **found})

    def _metrics(self, signal: Any, index: ChunkIndex) -> dict[str, Tensor]:
        """What a teacher's term tells beside its loss."""
        found = {DROPPED: index.dropped}
        if self.adaptive is not None:
            found[SCORE] = total_score(self.adaptive.score, signal, index)
            found[SCORED] = torch.full_like(index.dropped, len(index.teacher_rows))
        return found


class _Held:
    """Terms whose gradient by the logits is made at once and added up, so that no two teachers hold one each.

    Args:
        logits: [..., W], the student's.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._needs = torch.is_grad_enabled() and logits.requires_grad
        self._value: Tensor | None = None
        self._gradients: dict[Tensor, Tensor] = {}

    def add(
        self,
        teach: Callable[[Tensor, Mapping[str, Any]], LossTerm],
        batch: Mapping[str, Any],
        scale: Tensor,
        parameters: Sequence[Tensor],
    ) -> LossTerm:
        """One teacher's term, without its graph; `scale` times its total joins the sum.

        Args:
            teach: makes the term.
            batch: what it is made of, beside the logits.
            scale: scalar.
            parameters: of the loss itself.
        """
        read = self.logits.detach().requires_grad_(self._needs)
        with torch.set_grad_enabled(self._needs):
            term = teach(read, batch)
            value = scale * term.total
        if self._needs:
            found = torch.autograd.grad(value, [read, *parameters])
            for owner, gradient in zip([self.logits, *parameters], found, strict=True):
                before = self._gradients.get(owner)
                self._gradients[owner] = gradient if before is None else before.add_(gradient)
        self._value = value.detach() if self._value is None else self._value + value.detach()
        return LossTerm(term.total.detach(), term.count, term.metrics)

    def sum(self) -> Tensor:
        """The sum with its gradient, which it gives away."""
        assert self._value is not None
        if not self._needs:
            return self._value
        return cast(Tensor, _GivenGradients.apply(self._value, list(self._gradients.values()), *self._gradients))


class _GivenGradients(torch.autograd.Function):
    """A value whose gradients by some tensors are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *_: Tensor) -> Tensor:
        keep_for_backward(ctx, gradients)
        return value.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return (None, None, *hand_out(ctx, grad_output))


def chunk_count(teacher: OnlineTeacher, batch: Mapping[str, Any]) -> Tensor:
    """How many chunks of a batch take part in a teacher's loss, int64 scalar; known before any model has run."""
    index = ChunkIndex.from_tensors(batch["teachers"][teacher.side]["index"])
    if isinstance(teacher.loss, ChunkLoss):
        return teacher.loss.count(index)
    return torch.full((), index.n_chunks, dtype=torch.int64, device=index.student_starts.device)


def _signal(teacher: OnlineTeacher, batch: Mapping[str, Any]) -> WholeSignal:
    side = batch["teachers"][teacher.side]
    return teacher.signal(side["input_ids"], side["attention_mask"], side.get("position_ids"))


def _lesson(teacher: OnlineTeacher, batch: Mapping[str, Any]) -> Lesson:
    side, loss = batch["teachers"][teacher.side], teacher.loss
    kernel = loss.kernel() if isinstance(loss, ChunkLoss) else None
    if kernel is None or not isinstance(loss, ChunkLoss):
        raise XTokenError(f"teacher {teacher.name!r}: its loss has no fast version, so it needs the student's logits")
    signal, index = _signal(teacher, batch), ChunkIndex.from_tensors(side["index"])
    loss.check(signal, index)
    return Lesson(kernel, signal, index)


def _share(term: LossTerm, count: Tensor) -> Tensor:
    """The term's sum over a count that may be larger than its own; 0 where nothing was counted."""
    return term.total / count.clamp(min=1)
