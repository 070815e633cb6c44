"""What the losses cost from logits: against plain torch's KL of one vocabulary, and against their own references.

    python -m benchmarks.losses

128 tokens, float32, forward and backward, both softmaxes included. The yardstick is `kl_div` of two log_softmaxes over
the smaller of the two vocabularies, 128,256 columns, though the teacher's has 151,669.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import Figure, alternate, ratio
from benchmarks.memory import resident_peak
from benchmarks.pair import logits, one_to_one, real_pair
from xtoken.losses import GOLD, HKL, PKL, ULD, ChunkLoss, LossTerm
from xtoken.teachers import DenseSignal, TeacherSignal, signal_from_logits

__all__ = ["figures"]

_TOKENS, _MEMORY_TOKENS = 128, 512
_TURNS = 9
_P_KL, _SORTING, _MEMORY = 1.3, 1.6, 1 / 8

Loss = Callable[[Tensor, TeacherSignal], LossTerm]


def step(loss: Loss, student: Tensor, teacher: Tensor, vocab_size: int) -> Callable[[], Tensor]:
    """Forward and backward from both models' logits; gives the gradient."""

    def work() -> Tensor:
        leaf = student.detach().requires_grad_()
        loss(leaf, signal_from_logits(teacher, vocab_size)).total.backward()
        assert leaf.grad is not None
        return leaf.grad

    return work


def plain_kl(student: Tensor, teacher: Tensor) -> Callable[[], Tensor]:
    """The same-tokenizer KL as torch's own functions give it."""

    def work() -> Tensor:
        leaf = student.detach().requires_grad_()
        log_q, log_p = leaf.log_softmax(-1), teacher.log_softmax(-1)
        nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True).backward()
        assert leaf.grad is not None
        return leaf.grad

    return work


def times() -> list[Figure]:
    pair = real_pair()
    (size_s, size_t), index = pair.sizes, one_to_one(_TOKENS, pair.sizes)
    student, teacher, twin = (logits(_TOKENS, n, seed) for seed, n in enumerate((size_s, size_t, size_s)))
    losses: dict[str, tuple[ChunkLoss, float]] = {
        "P-KL": (PKL(pair.projection), _P_KL),
        "P-KL, teacher top 8192": (PKL(pair.projection, teacher_topk=8192), _P_KL),
        "P-KL, teacher top 1024": (PKL(pair.projection, teacher_topk=1024), _P_KL),
        "H-KL": (HKL(pair.relaxed), _SORTING),
        "GOLD": (GOLD(pair.strict), _SORTING),
        "ULD": (ULD(size_s, size_t), _SORTING),
    }
    works = [
        step(lambda z, signal, own=own: own(z, signal, index), student, teacher, size_t) for own, _ in losses.values()
    ]
    *ours, plain = alternate([*works, plain_kl(student, twin)], _TURNS)
    found = [
        Figure(f"{name} over plain torch's same-tokenizer KL", ratio(own, plain), limit, note=_milliseconds(own, plain))
        for own, (name, (_, limit)) in zip(ours, losses.items(), strict=True)
    ]
    for own, name in zip(ours[1:3], ("8192", "1024"), strict=True):
        found.append(Figure(f"P-KL on the top {name} over P-KL on all", ratio(own, ours[0]), 1.0))
    return found


def _milliseconds(own: object, plain: object) -> str:
    return " against ".join(f"{1e3 * timing.median:.0f} ms" for timing in (own, plain))  # type: ignore[attr-defined]


def memory() -> list[Figure]:
    """Beyond the inputs and the gradient that is returned, at 512 tokens."""
    pair = real_pair()
    (size_s, size_t), index = pair.sizes, one_to_one(_MEMORY_TOKENS, pair.sizes)
    student, teacher = logits(_MEMORY_TOKENS, size_s, 0), logits(_MEMORY_TOKENS, size_t, 1)
    loss = PKL(pair.projection)
    gradient = student.numel() * 4 / 2**20

    def reference(z: Tensor, signal: TeacherSignal) -> LossTerm:
        return loss.reference(z, DenseSignal(signal.log_probs), index)

    fast = resident_peak(step(lambda z, signal: loss(z, signal, index), student, teacher, size_t)) - gradient
    # The reference's own blocks are left out: it is what the loss would be without any.
    slow = resident_peak(step(reference, student, teacher, size_t)) - gradient
    half = [x.bfloat16() for x in (student, teacher)]
    wide = resident_peak(step(lambda z, signal: loss(z, signal, index), *half, size_t)) - gradient / 2
    sizes = f"{fast:.0f} MiB against {slow:.0f}"
    note = f"{wide:.0f} MiB; such a copy of the student's logits alone takes {gradient:.0f}"
    return [
        Figure("P-KL's memory over its reference's, 512 tokens", fast / slow, _MEMORY, note=sizes),
        Figure("P-KL's memory from bf16 logits over a float32 copy of them", wide / gradient, 1.0, note=note),
    ]


def figures() -> list[Figure]:
    """The figures, in under two minutes."""
    return [*times(), *memory()]


if __name__ == "__main__":
    torch.manual_seed(0)
    for figure in figures():
        print(figure)
