"""From hidden states to losses: neither model's logits are ever held whole, and cross-entropy comes in the same pass.

At 4,096 tokens and vocabularies of 128k and 152k the logits of both models, their gradient and a few copies take over
11 GB, while the hidden states they are made of take 70 MB. So a head is run on a few hundred rows at a time. On such a
block, with D = d loss / d logits summed over cross-entropy and all teachers,

    d hidden = (D * cap') W,      d W = sum over blocks of (D * cap')^T hidden,      cap' = 1 - (logits / softcap)^2,

and D is dropped with the block. The gradient is made on the way forward, so what each term is multiplied by must be
known then. Where that depends on the terms themselves (dynamic scaling), a batch that fits one block keeps the terms'
gradients apart until it is; a larger one is walked twice, for the values first, and pays the forward products twice.

Within a block the rows are walked a few at a time, as many as fit the caches. Chunks are met in the order of their
first row; how many fall in each step is read from the device, once for each lesson, and which rows count once. Memory
beyond inputs and gradients: a block of the student's logits, one of each teacher's, and the steps' buffers.
Differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtoken.errors import XTokenError
from xtoken.losses.cross_entropy import IGNORED_LABEL
from xtoken.losses.fast.handover import hand_out, keep_for_backward
from xtoken.losses.fast.kernel import Scratch, log_weights_of
from xtoken.losses.fast.passes import Kernel, Pass, plan, read_logits, read_rows
from xtoken.losses.fast.walk import add_sums, block_rows, compute_dtype, no_sums
from xtoken.losses.index import ChunkIndex
from xtoken.losses.term import LossTerm
from xtoken.teachers.head import Head
from xtoken.teachers.signal import HeadSignal, LogitSignal, TeacherSignal, TopKSignal

__all__ = ["HiddenLosses", "Lesson", "Multipliers", "Weigh", "losses_from_hidden"]

# Numbers in the blocks of logits together: 2**27 float32 are 537 MB. Each block passes once over the head's weight and
# its gradient, so fewer are quicker: 403 MB took 1 to 5 % longer at hidden 2,048 (measured on two cores).
_HEAD_ELEMENTS = 2**27


@dataclass(frozen=True)
class Lesson:
    """What one teacher says of a batch.

    Attributes:
        kernel: the loss.
        teacher: its signal.
        index: the chunks; no row of the student's stands in it twice.
    """

    kernel: Kernel
    teacher: TeacherSignal
    index: ChunkIndex


@dataclass(frozen=True)
class Multipliers:
    """What the totals are multiplied by in the loss, divisions by counts included.

    Attributes:
        cross_entropy: scalar, without gradient.
        lessons: scalars, one a lesson.
    """

    cross_entropy: Tensor
    lessons: Sequence[Tensor]


Weigh = Callable[[LossTerm, Sequence[LossTerm]], Multipliers]


@dataclass(frozen=True)
class HiddenLosses:
    """The loss, and the raw terms it was made of.

    Attributes:
        loss: scalar with gradient, the sum of the totals times their multipliers.
        cross_entropy: without gradient; nats and tokens.
        lessons: without gradient, one a lesson.
    """

    loss: Tensor
    cross_entropy: LossTerm
    lessons: list[LossTerm]


def losses_from_hidden(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    vocab_size: int,
    lessons: Sequence[Lesson],
    multipliers: Multipliers | Weigh,
) -> HiddenLosses:
    """Cross-entropy and any number of lessons from the student's hidden states.

    Args:
        hidden: [..., H], what the student's head is given; leading dimensions are flattened to the rows that `targets`
            and the indices count.
        head: the student's.
        targets: int64 [R], the token that each row predicts, -100 where there is none to learn.
        vocab_size: V_S, the student's tokenizer's size, at most the head's.
        lessons: the teachers' parts.
        multipliers: of the totals; or a function of the terms, which costs a pass for their values.

    Raises:
        XTokenError: shapes or vocabularies do not fit, or a lesson's loss cannot use its signal.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    if targets.shape != flat.shape[:1]:
        raise XTokenError(f"{len(flat)} rows of hidden states need as many targets, not {tuple(targets.shape)}.")
    if head.weight.shape[0] < vocab_size:
        raise XTokenError(f"the head has {head.weight.shape[0]} rows, but its tokenizer has {vocab_size} tokens.")
    for number, lesson in enumerate(lessons):
        _check(lesson, vocab_size, f"lesson {number}")
    if isinstance(multipliers, Multipliers) and len(multipliers.lessons) != len(lessons):
        raise XTokenError(f"{len(lessons)} lessons have {len(multipliers.lessons)} multipliers; give one a lesson.")
    if not torch.is_grad_enabled():  # a Function is not told
        flat, head = (
            flat.detach(),
            Head(head.weight.detach(), None if head.bias is None else head.bias.detach(), head.softcap),
        )
    found: list[LossTerm] = []
    learnt = [log_weights_of(lesson.kernel) if torch.is_grad_enabled() else None for lesson in lessons]
    loss = _FromHidden.apply(
        flat, head.weight, head.bias, head.softcap, targets, vocab_size, lessons, multipliers, found, *learnt
    )
    return HiddenLosses(loss, found[0], found[1:])


def _check(lesson: Lesson, vocab_size: int, who: str) -> None:
    kernel, teacher = lesson.kernel, lesson.teacher
    if kernel is None:
        raise XTokenError(f"{who}: its loss has no kernel (merge 'mean' has none); use the student's logits.")
    if isinstance(teacher, TopKSignal) and not kernel.takes_top_k:
        raise XTokenError(f"{who}: its loss takes no top-k signal here; give it a whole one, or use P-KL.")
    found, expected = (vocab_size, teacher.vocab_size), (kernel.student_vocab_size, kernel.teacher_vocab_size)
    if found != expected:
        raise XTokenError(f"{who}: its loss is for vocabularies of {expected}, not of {found}.")
    if not teacher.temperature > 0:
        raise XTokenError(f"{who}: the temperature is {teacher.temperature}; it must be above 0.")


class _FromHidden(torch.autograd.Function):
    """The loss with its gradient by hidden states, weight and bias, and by what the lessons learn; see the module."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        targets: Tensor,
        vocab_size: int,
        lessons: Sequence[Lesson],
        multipliers: Multipliers | Weigh,
        found: list[LossTerm],
        *learnt: Tensor | None,
    ) -> Tensor:
        device, master = hidden.device.type, weight.dtype
        if torch.is_autocast_enabled(device):
            hidden, weight = (x.to(torch.get_autocast_dtype(device)) for x in (hidden, weight))
        needs = ctx.needs_input_grad[:3]
        with torch.autocast(device, enabled=False):
            walk = _HiddenWalk(hidden, Head(weight, bias, softcap), targets, vocab_size, lessons)
            gradients = _Gradients(hidden, weight, bias, needs, learnt)
            if callable(multipliers) and gradients.any:
                multipliers = walk.run_weighed(multipliers, gradients)
            else:
                walk.run(None if callable(multipliers) else multipliers, gradients)
                multipliers = multipliers(walk.terms[0], walk.terms[1:]) if callable(multipliers) else multipliers
        found.extend(walk.terms)
        keep_for_backward(ctx, [*gradients.tensors(master), *gradients.learnt])
        weights = [multipliers.cross_entropy, *multipliers.lessons]
        return torch.stack([m * term.total for m, term in zip(weights, walk.terms, strict=True)]).sum()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        by_hidden, by_weight, by_bias, *by_learnt = hand_out(ctx, grad_output)
        return (by_hidden, by_weight, by_bias, None, None, None, None, None, None, *by_learnt)


class _Gradients:
    """By hidden states, weight and bias, where asked for; the last two are summed in at least float32.

    `learnt` is that by each lesson's own log-weights, None for a lesson without any.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needs: Sequence[bool],
        learnt: Sequence[Tensor | None],
    ) -> None:
        wide = compute_dtype(weight.dtype)
        self.hidden = torch.zeros_like(hidden) if needs[0] else None
        self.weight = torch.empty_like(weight, dtype=wide) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if needs[2] and bias is not None else None
        self.learnt = [None if w is None else torch.zeros_like(w) for w in learnt]
        self.any = any(needs) or any(w is not None for w in learnt)
        self._is_new = True

    def add(self, rows: Tensor, hidden: Tensor, weight: Tensor, by_logits: Tensor) -> None:
        """A block's part.

        Args:
            rows: int64 [n], where the block's rows lie.
            hidden: [n, H], them.
            weight: [V, H].
            by_logits: [n, V], D * cap'.
        """
        width = by_logits.shape[1]
        if self.bias is not None:
            self.bias[:width] += by_logits.sum(dim=0)
        by_logits = by_logits.to(weight.dtype)
        if self.hidden is not None:
            self.hidden.index_copy_(0, rows, by_logits @ weight)
        if self.weight is not None:
            self._add_to_weight(self.weight, by_logits, hidden.to(weight.dtype))

    def add_learnt(self, number: int, by_log_weights: Tensor | None, scale: Tensor) -> None:
        """A step's part of the gradient by a lesson's log-weights [L]."""
        total = self.learnt[number]
        if total is not None and by_log_weights is not None:
            total.addcmul_(by_log_weights.to(total.dtype), scale.to(total.dtype))

    def _add_to_weight(self, total: Tensor, by_logits: Tensor, hidden: Tensor) -> None:
        width, is_new, self._is_new = by_logits.shape[1], self._is_new, False
        if is_new:  # the first block writes what it would add to zeros: a pass over the head's size saved
            total[width:] = 0
        if total.dtype == hidden.dtype and is_new:
            torch.mm(by_logits.t(), hidden, out=total[:width])
        elif total.dtype == hidden.dtype:
            total[:width].addmm_(by_logits.t(), hidden)
        else:  # a half-precision product is added in float32, some rows of W at a time
            for part, columns in zip(total[:width].split(_SLICE), by_logits.split(_SLICE, dim=1), strict=True):
                product = columns.t() @ hidden
                part.copy_(product) if is_new else part.add_(product)

    def tensors(self, master: torch.dtype) -> list[Tensor | None]:
        """In the types of the parameters; `master` is that of weight and bias."""
        if self.weight is not None and self._is_new:
            self.weight.zero_()
        return [self.hidden, *(None if g is None else g.to(master) for g in (self.weight, self.bias))]


# Rows of W whose half-precision gradient product is held at a time.
_SLICE = 2**14


@dataclass(frozen=True)
class _Bounds:
    """Where a lesson's rows stand among the walked ones, and the steps they fall in.

    Attributes:
        first: int64 [A], the place of each chunk's first row, rising.
        later: int64 [L], the place of each later row, rising.
        first_bounds, later_bounds: for each step, where its chunks and later rows begin; one more for the end.
    """

    first: Tensor
    later: Tensor
    first_bounds: list[int]
    later_bounds: list[int]


def _bounds(lesson: Pass, place: Tensor, edges: Tensor) -> _Bounds:
    """`place` [R] says where each row stands among the walked ones."""
    first, later = place[lesson.first_s], place[lesson.later]
    found = torch.stack([torch.searchsorted(first, edges), torch.searchsorted(later, edges)]).tolist()
    return _Bounds(first, later, found[0], found[1])


class _HiddenWalk:
    """The walk over one batch; it leaves what it found in `terms`."""

    def __init__(self, hidden: Tensor, head: Head, targets: Tensor, vocab_size: int, lessons: Sequence[Lesson]) -> None:
        self.hidden, self.head, self.targets, self.vocab_size = hidden, head, targets, vocab_size
        self.lessons = lessons
        walked = targets != IGNORED_LABEL
        self.passes = [plan(lesson.kernel, lesson.index) for lesson in lessons]
        for one in self.passes:
            walked[one.first_s] = walked[one.later] = True
        self.rows = walked.nonzero().squeeze(1)
        widths = [lesson.teacher.vocab_size for lesson in lessons if isinstance(lesson.teacher, HeadSignal)]
        self.step = block_rows(hidden.device, max([vocab_size, *(lesson.teacher.vocab_size for lesson in lessons)]))
        self.block = self._block_rows(vocab_size + sum(widths))
        edges = torch.arange(0, len(self.rows) + self.step, self.step, device=hidden.device).clamp(max=len(self.rows))
        place = walked.cumsum(0) - 1
        self.edges = [*range(0, len(self.rows), self.step), len(self.rows)]
        self.bounds = [_bounds(one, place, edges) for one in self.passes]
        dtype = compute_dtype(hidden.dtype, *(lesson.teacher.dtype for lesson in lessons))
        self.scratch, self.wide = Scratch(hidden.device, dtype), Scratch(hidden.device, dtype)
        at_once = (2 + len(lessons)) * vocab_size + sum(widths)
        self.fits_at_once = len(self.rows) * at_once <= _HEAD_ELEMENTS
        buffers = Scratch(hidden.device, dtype)  # of their own: those of the walk are still to come
        for lesson, one in zip(lessons, self.passes, strict=True):
            student = HeadSignal(hidden, head, vocab_size, lesson.teacher.temperature)
            one.prepare(student, lesson.teacher, buffers, self.block)
        self.terms: list[LossTerm] = []

    def _block_rows(self, width: int) -> int:
        """As many steps as a block may hold, but blocks of nearly equal size: a product over few rows is a slow one."""
        steps = -(-len(self.rows) // self.step)
        most = max(1, _HEAD_ELEMENTS // width // self.step)
        n_blocks = max(1, -(-steps // most))
        return max(1, -(-steps // n_blocks)) * self.step

    def run(self, multipliers: Multipliers | None, gradients: _Gradients) -> None:
        """Walks all rows for the terms, and for the gradient where the multipliers are given."""
        sums = self._no_sums()
        scales = None if multipliers is None else [multipliers.cross_entropy, *multipliers.lessons]
        for begin in range(0, len(self.rows), self.block):
            rows = self.rows[begin : begin + self.block]
            hidden, logits = self._logits(rows)
            teachers = self._teachers(begin, len(rows))
            for step, at in self._steps(begin, len(rows)):
                out = None if scales is None else self.scratch.take("by logits", *logits[at].shape)
                self._evaluate(step, logits[at], teachers, sums, scales, [out] * len(sums), gradients)
                if out is not None:
                    logits[at] = self._through_cap(out, logits[at])  # the logits of these rows have had their day
            if scales is not None:
                gradients.add(rows, hidden, self.head.weight[: self.vocab_size], logits)
        self._keep_terms(sums)

    def run_weighed(self, weigh: Weigh, gradients: _Gradients) -> Multipliers:
        """The same for multipliers that depend on the terms.

        A batch that fits is walked once, each term with a buffer of its own for its gradient; a larger one twice.
        """
        if not self.fits_at_once or not len(self.rows):
            self.run(None, gradients)
            multipliers = weigh(self.terms[0], self.terms[1:])
            self.run(multipliers, gradients)
            return multipliers
        sums, one = self._no_sums(), torch.ones((), dtype=self.wide.dtype, device=self.rows.device)
        hidden, logits = self._logits(self.rows)
        teachers = self._teachers(0, len(self.rows))
        outs = [self.wide.take(f"by logits {n}", *logits.shape) for n in range(len(sums))]
        for out in outs[1:]:
            out.zero_()
        for step, at in self._steps(0, len(self.rows)):
            self._evaluate(step, logits[at], teachers, sums, [one] * len(sums), [out[at] for out in outs], gradients)
        self._keep_terms(sums)
        multipliers = weigh(self.terms[0], self.terms[1:])
        total = outs[0].mul_(multipliers.cross_entropy)
        for out, scale in zip(outs[1:], multipliers.lessons, strict=True):
            total.addcmul_(out, scale)
        for by_weights, scale in zip(gradients.learnt, multipliers.lessons, strict=True):
            if by_weights is not None:
                by_weights.mul_(scale)
        gradients.add(self.rows, hidden, self.head.weight[: self.vocab_size], self._through_cap(total, logits))
        return multipliers

    def _steps(self, begin: int, n_rows: int) -> Iterator[tuple[int, slice]]:
        """The steps of a block, and where each one's rows lie in it."""
        for step in range(begin // self.step, -(-(begin + n_rows) // self.step)):
            yield step, slice(self.edges[step] - begin, self.edges[step + 1] - begin)

    def _no_sums(self) -> list[dict[str, Tensor]]:
        zero = torch.zeros((), dtype=self.scratch.dtype, device=self.hidden.device)
        return [{"total": zero}, *(no_sums(lesson.kernel, self.scratch) for lesson in self.lessons)]

    def _keep_terms(self, sums: list[dict[str, Tensor]]) -> None:
        counts = [(self.targets != IGNORED_LABEL).sum()]
        counts += [torch.full_like(counts[0], lesson.index.n_chunks) for lesson in self.lessons]
        self.terms = [LossTerm(s.pop("total"), n, s) for s, n in zip(sums, counts, strict=True)]

    def _logits(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states of some rows, and their logits."""
        hidden = self.hidden.index_select(0, rows)
        logits = self._matrix("logits", len(rows), self.vocab_size)
        self.head.logits(hidden, self.vocab_size, logits)
        return hidden, logits

    def _matrix(self, name: str, rows: int, columns: int) -> Tensor:
        """A buffer [rows, columns] whose rows begin at multiples of 256 bytes.

        A product writes 151,669 columns a fifth quicker so than where every row begins at another place of a line.
        """
        stride = -(-columns // 64) * 64
        return self.wide.take(name, rows, stride)[:, :columns]

    def _evaluate(
        self,
        step: int,
        logits: Tensor,
        teachers: Sequence[tuple[TeacherSignal, int]],
        sums: list[dict[str, Tensor]],
        scales: Sequence[Tensor] | None,
        outs: Sequence[Tensor | None],
        gradients: _Gradients,
    ) -> None:
        """The terms of a step: their sums, and their gradients times `scales` in `outs` (the first is overwritten)."""
        given = [None] * len(outs) if scales is None else scales
        add_sums(sums[0], {"total": self._cross_entropy(step, logits, outs[0], given[0])})
        for number, teacher in enumerate(teachers):
            out, scale = outs[1 + number], given[1 + number]
            add_sums(sums[1 + number], self._lesson(number, step, teacher, logits, out, scale, gradients))
            if out is not None and scale is not None:
                self._later(number, step, logits, out, scale)

    def _through_cap(self, by_logits: Tensor, logits: Tensor) -> Tensor:
        """D * cap'; both are overwritten."""
        if self.head.softcap is None:
            return by_logits
        return by_logits.mul_(logits.div_(self.head.softcap).square_().neg_().add_(1))

    def _cross_entropy(self, step: int, logits: Tensor, by_logits: Tensor | None, scale: Tensor | None) -> Tensor:
        """The sum of -log p(target); `by_logits` becomes scale * (p - onehot), and 0 where there is no target."""
        targets = self.targets[self.rows[self.edges[step] : self.edges[step + 1]]]
        counts = targets != IGNORED_LABEL
        labels = torch.where(counts, targets, 0).unsqueeze(1)
        log_probs = torch.log_softmax(logits, -1, out=self.scratch.take("student log_probs", *logits.shape))
        total = -torch.where(counts, log_probs.gather(1, labels).squeeze(1), 0).sum()
        if by_logits is not None:
            weight = (counts.to(total.dtype) * scale).unsqueeze(1)
            torch.softmax(logits, -1, out=by_logits).mul_(weight).scatter_add_(1, labels, -weight)
        return total

    def _teachers(self, begin: int, n_rows: int) -> list[tuple[TeacherSignal, int]]:
        """For each lesson a signal to read the teacher's first rows from, and the chunk that its row 0 stands for.

        -1 for a signal whose rows are the teacher's own. A head is run on the first rows of all chunks of the block.
        """
        found: list[tuple[TeacherSignal, int]] = []
        a, b = begin // self.step, -(-(begin + n_rows) // self.step)
        for number, (lesson, one) in enumerate(zip(self.lessons, self.passes, strict=True)):
            if not isinstance(lesson.teacher, HeadSignal):
                found.append((lesson.teacher, -1))
                continue
            first, last = self.bounds[number].first_bounds[a], self.bounds[number].first_bounds[b]
            logits = self._matrix(f"teacher {number}", last - first, lesson.teacher.vocab_size)
            lesson.teacher.read(one.first_t[first:last], logits)
            found.append((LogitSignal(logits, lesson.teacher.vocab_size), first))
        return found

    def _lesson(
        self,
        number: int,
        step: int,
        teacher: tuple[TeacherSignal, int],
        logits: Tensor,
        by_logits: Tensor | None,
        scale: Tensor | None,
        gradients: _Gradients,
    ) -> dict[str, Tensor]:
        """A step's chunks of a lesson: sums of its terms; their part of the gradient is added to `by_logits`."""
        one, bounds, tau = self.passes[number], self.bounds[number], self.lessons[number].teacher.temperature
        a, b = bounds.first_bounds[step : step + 2]
        if a == b:
            return {}
        source, origin = teacher
        rows_t = one.first_t[a:b] if origin < 0 else torch.arange(a - origin, b - origin, device=logits.device)
        rows_s = bounds.first[a:b] - self.edges[step]
        side_s = read_rows(LogitSignal(logits, self.vocab_size, tau), rows_s, self.scratch, "student")
        side_t = read_rows(source, rows_t, self.scratch, "teacher")
        found = one.evaluate(slice(a, b), side_s, side_t, self.scratch)
        if by_logits is not None and scale is not None:
            by_logits.index_add_(0, rows_s, found.by_logits(side_s, tau * scale))
            gradients.add_learnt(number, found.by_log_weights, tau**2 * scale)
        return found.sums(tau)

    def _later(self, number: int, step: int, logits: Tensor, by_logits: Tensor, scale: Tensor) -> None:
        """The later rows among a step's; the chunks they belong to begin before them, here or in an earlier step."""
        bounds, tau = self.bounds[number], self.lessons[number].teacher.temperature
        a, b = bounds.later_bounds[step : step + 2]
        if a == b:
            return
        rows = bounds.later[a:b] - self.edges[step]
        probs = torch.softmax(read_logits(LogitSignal(logits, self.vocab_size, tau), rows, self.scratch, "student"), -1)
        self.passes[number].later_gradient(slice(a, b), probs, tau * scale)
        by_logits.index_add_(0, rows, probs)
