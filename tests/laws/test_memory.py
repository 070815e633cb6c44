"""What the losses hold at once: blocks, and never a [tokens, vocabulary] matrix but the gradient that is handed out.

Measured on torch's allocator, by the profiler's record of every allocation; sizes are small and blocks in proportion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from xtoken.losses import (
    GOLD,
    HKL,
    PKL,
    ULD,
    ChunkIndex,
    ChunkLoss,
    Lesson,
    Multipliers,
    SameTokenizerKL,
    cross_entropy,
    dynamic_scale,
    losses_from_hidden,
)
from xtoken.losses.divergence import Divergence
from xtoken.losses.fast import hidden as hidden_module
from xtoken.losses.fast import walk
from xtoken.projection import Partition, Projection
from xtoken.teachers import Head, HeadSignal, signal_from_logits

TOKENS, SIZE_S, SIZE_T, HIDDEN = 256, 1500, 1700, 16
STEP_ROWS = 4


@dataclass(frozen=True)
class Record:
    """What was allocated, in bytes: the most held at once over what was held before, and the size of each piece."""

    peak: int
    sizes: list[int]

    def at_least(self, size: int) -> int:
        """How many allocations were as large as this."""
        return sum(1 for n in self.sizes if n >= size)


def record(work: Callable[[], object]) -> Record:
    work()  # what is made once and kept is not the loss's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        work()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    assert changes
    return Record(int(np.cumsum(changes).max()), [n for n in changes if n > 0])


def projection() -> Projection:
    """Mostly one to one, some tokens in two pieces, some in none, some columns out of reach."""
    rows = np.arange(1400)
    pieces = np.arange(1400, 1490)
    return Projection.from_coo(
        np.concatenate([rows, pieces, pieces]),
        np.concatenate([rows, pieces - 1400, pieces - 1300]),
        np.concatenate([np.ones(1400), np.full(90, 0.75), np.full(90, 0.25)]),
        (SIZE_S, SIZE_T),
    )


def in_two_pieces() -> Projection:
    """Every third token is, so that there are many entries to learn."""
    rows, pieces = np.arange(SIZE_S), np.arange(0, SIZE_S, 3)
    values = np.where(rows % 3, 1, 0.75)
    cols = np.concatenate([rows, pieces + 100])
    entries = np.concatenate([rows, pieces]), cols, np.concatenate([values, np.full(len(pieces), 0.25)])
    return Projection.from_coo(*entries, (SIZE_S, SIZE_T))


def one_to_one(tokens: int) -> ChunkIndex:
    starts = np.arange(tokens)
    chunks = np.stack([starts, starts + 1, starts, starts + 1], axis=1)
    return ChunkIndex.from_chunks(chunks, starts % SIZE_S, starts % SIZE_T)


PAIRS = Partition(np.arange(1300), np.arange(1300), (SIZE_S, SIZE_T))
LOSSES: dict[str, ChunkLoss] = {
    "p-kl": PKL(projection()),
    "p-kl-top-100": PKL(projection(), teacher_topk=100),
    "p-kl-learnable": PKL(in_two_pieces(), learnable=True),
    "gold": GOLD(PAIRS, ranks=64),
    "h-kl": HKL(PAIRS, ranks=64),
    "uld": ULD(SIZE_S, SIZE_T, ranks=64),
    "same": SameTokenizerKL(SIZE_S),
    "same-reverse": SameTokenizerKL(SIZE_S, Divergence("reverse")),
    "same-jsd": SameTokenizerKL(SIZE_S, Divergence("jsd")),
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In proportion: a step holds a sixty-fourth of the tokens, a block of the heads an eighth."""
    monkeypatch.setattr(walk, "_CPU_ELEMENTS", STEP_ROWS * SIZE_T)
    monkeypatch.setattr(hidden_module, "_HEAD_ELEMENTS", TOKENS // 8 * (2 * SIZE_S + SIZE_T))


def step(
    run: Callable[[Tensor, Tensor, ChunkIndex], Tensor], tokens: int = TOKENS, dtype: torch.dtype = torch.float32
) -> Callable[[], Tensor]:
    """Forward and backward from logits of both sides."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(tokens, SIZE_S, generator=generator).to(dtype)
    teacher = torch.randn(tokens, SIZE_T, generator=generator).to(dtype)
    index = one_to_one(tokens)

    def work() -> Tensor:
        leaf = student.detach().requires_grad_()
        return torch.autograd.grad(run(leaf, teacher, index), leaf)[0]

    return work


def fast(name: str) -> Callable[[Tensor, Tensor, ChunkIndex], Tensor]:
    loss = LOSSES[name]
    size = loss.teacher_vocab_size
    return lambda z, teacher, index: loss(z, signal_from_logits(teacher[:, :size], size), index).total


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_an_eighth_of_what_the_reference_needs_beyond_the_gradient(name: str) -> None:
    loss = LOSSES[name]
    size, gradient = loss.teacher_vocab_size, TOKENS * SIZE_S * 4

    def reference(z: Tensor, teacher: Tensor, index: ChunkIndex) -> Tensor:
        return loss.reference(z, signal_from_logits(teacher[:, :size], size), index).total

    ours, plain = record(step(fast(name))), record(step(reference))
    assert ours.peak >= gradient  # it is counted, so the record sees what it should
    assert 8 * (ours.peak - gradient) <= plain.peak - gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_gradient_is_the_one_matrix_of_the_logits_size(name: str, dtype: torch.dtype) -> None:
    """So no float32 copy of bf16 logits is made either: that would be twice as large."""
    size = TOKENS * min(SIZE_S, LOSSES[name].teacher_vocab_size) * dtype.itemsize
    assert record(step(fast(name), dtype=dtype)).at_least(size) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_makes_its_gradient_and_no_other_matrix(dtype: torch.dtype) -> None:
    labels = torch.arange(TOKENS) % SIZE_S

    def run(z: Tensor, teacher: Tensor, index: ChunkIndex) -> Tensor:
        return cross_entropy(z, labels, SIZE_S).total

    assert record(step(run, dtype=dtype)).at_least(TOKENS * SIZE_S * dtype.itemsize) == 1


@pytest.mark.parametrize("name", ["p-kl", "gold"])
def test_beyond_the_gradient_memory_does_not_grow_with_the_tokens(name: str) -> None:
    extra = [record(step(fast(name), n)).peak - n * SIZE_S * 4 for n in (TOKENS, 4 * TOKENS)]
    assert extra[1] < 1.2 * extra[0]


def from_hidden(name: str, dynamic: bool, tokens: int = TOKENS) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden, weight = random(tokens, HIDDEN), random(SIZE_S, HIDDEN)
    loss = LOSSES[name]
    signal = HeadSignal(random(tokens, HIDDEN), Head(random(loss.teacher_vocab_size, HIDDEN)), loss.teacher_vocab_size)
    lesson, targets, one = Lesson(loss.kernel(), signal, one_to_one(tokens)), torch.arange(tokens), torch.tensor(1.0)

    def work() -> object:
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        weigh = lambda text, terms: Multipliers(one, [dynamic_scale(text.total, terms[0].total)])  # noqa: E731
        multipliers = weigh if dynamic else Multipliers(one, [one])
        found = losses_from_hidden(leaves[0], Head(leaves[1]), targets, SIZE_S, [lesson], multipliers)
        return torch.autograd.grad(found.loss, leaves)

    return work


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_from_hidden_states_no_matrix_of_the_logits_size_is_made(name: str, dynamic: bool) -> None:
    found = record(from_hidden(name, dynamic))
    logits = TOKENS * min(SIZE_S, LOSSES[name].teacher_vocab_size) * 4
    assert found.at_least(logits // 4) == 0
    # A block of an eighth holds two matrices of the student's and one of the teacher's; the plain way holds at least
    # six of the whole: both logits, both log-softmaxes, their gradient and one term's.
    assert found.peak < 6 * logits / 4


@pytest.mark.parametrize("dynamic", [False, True])
def test_from_hidden_states_memory_grows_with_them_and_not_with_the_logits(dynamic: bool) -> None:
    peaks = [record(from_hidden("p-kl", dynamic, n)).peak for n in (TOKENS, 4 * TOKENS)]
    hidden = 3 * TOKENS * HIDDEN * 4
    assert peaks[1] - peaks[0] < 8 * hidden < 3 * TOKENS * SIZE_S * 4 / 10
