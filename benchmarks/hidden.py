"""What P-KL and cross-entropy cost from hidden states: against the products of the two heads alone, at real sizes.

    python -m benchmarks.hidden

4,096 tokens, hidden 2,048 on both sides, 128,256 x 151,669, float32: the student's logits, the teacher's, and the
gradients for the student's hidden states and head. The yardstick makes the same four products of all rows at once and
does nothing else: 9 TFLOP, a minute on two cores. Multipliers are fixed; under dynamic scaling a batch of more than
one block makes the two forward products twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import Figure, alternate, ratio
from benchmarks.memory import resident_peak
from benchmarks.pair import one_to_one, real_pair
from xtoken.losses import PKL, Lesson, Multipliers, losses_from_hidden
from xtoken.teachers import Head, HeadSignal

__all__ = ["figures"]

_TOKENS, _HIDDEN = 4096, 2048
_TURNS = 2  # of a minute each
_MEGABYTES, _TIME = 700.0, 1.15


class Heads:
    """Random hidden states and heads in real sizes."""

    def __init__(self) -> None:
        pair, generator = real_pair(), torch.Generator().manual_seed(0)
        (self.size_s, self.size_t), self.index = pair.sizes, one_to_one(_TOKENS, pair.sizes)
        self.kernel = PKL(pair.projection).kernel()

        def random(rows: int, scale: float) -> Tensor:
            return scale * torch.randn(rows, _HIDDEN, generator=generator)

        # Weights such that logits spread by about 2 nats.
        self.hidden, self.weight = random(_TOKENS, 1.0).requires_grad_(), random(self.size_s, 0.05).requires_grad_()
        self.teacher = HeadSignal(random(_TOKENS, 1.0), Head(random(self.size_t, 0.05)), self.size_t)
        self.targets = torch.randint(self.size_s, (_TOKENS,), generator=generator)

    @property
    def returned(self) -> float:
        """MiB of the gradients."""
        return (self.hidden.numel() + self.weight.numel()) * 4 / 2**20

    def loss(self) -> tuple[Tensor, ...]:
        """The gradients of cross-entropy and P-KL, both as means."""
        mean = torch.tensor(1 / _TOKENS)
        lessons = [Lesson(self.kernel, self.teacher, self.index)]
        found = losses_from_hidden(
            self.hidden, Head(self.weight), self.targets, self.size_s, lessons, Multipliers(mean, [mean])
        )
        gradients: tuple[Tensor, ...] = torch.autograd.grad(found.loss, [self.hidden, self.weight])
        return gradients

    @torch.no_grad()
    def products(self) -> tuple[Tensor, ...]:
        """What any way to these gradients has to multiply."""
        student = self.hidden @ self.weight.t()
        self.teacher.hidden @ self.teacher.head.weight.t()
        return student @ self.weight, student.t() @ self.hidden


def figures() -> list[Figure]:
    """The figures, in about four minutes."""
    heads, peaks = Heads(), []
    measured = lambda: peaks.append(resident_peak(heads.loss) - heads.returned)  # noqa: E731
    ours, alone = alternate([measured, heads.products], _TURNS, warm_up=0)
    extra = max(peaks)
    note = f"{ours.median:.1f} s against {alone.median:.1f} s"
    return [
        Figure(
            f"P-KL and cross-entropy from hidden states, memory, {_TOKENS} tokens",
            extra,
            _MEGABYTES,
            unit="MB",
            note=f"beyond inputs and the {heads.returned:.0f} MiB of gradients",
        ),
        Figure(
            "P-KL and cross-entropy from hidden states over the products alone", ratio(ours, alone), _TIME, note=note
        ),
    ]


if __name__ == "__main__":
    for figure in figures():
        print(figure)
