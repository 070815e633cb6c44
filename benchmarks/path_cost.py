"""What path-KL costs beside P-KL: on real text, whose chunks it reads more rows of, from logits and from hidden states.

    python -m benchmarks.path_cost

512 tokens of word problems with numbers and of the language reference, Llama-3 with Qwen3; and of the problems with
Mistral's first tokenizer, where nine chunks in ten have a node to read. Random logits, float32, forward and backward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from scripts.fetch_tokenizers import fetch
from torch import Tensor

from benchmarks.alignment import prose
from benchmarks.common import Figure, alternate, ratio
from benchmarks.losses import step
from benchmarks.memory import resident_peak
from benchmarks.pair import logits
from xtoken.alignment.align import align_spans
from xtoken.demo.problems import problems
from xtoken.losses import PKL, ChunkIndex, ChunkLoss, Lesson, Multipliers, PathKL, losses_from_hidden
from xtoken.projection import PathTries, build_projection, build_tries
from xtoken.teachers import Head, HeadSignal
from xtoken.tokens import Vocabulary

__all__ = ["figures"]

_TOKENS, _HIDDEN = 513, 576
_TURNS, _HIDDEN_TURNS = 9, 3
_TIME, _SECONDS, _MEGABYTES, _MEMORY = 1.5, 5.0, 100.0, 1.25

_TEXTS: dict[str, Callable[[], str]] = {
    "problems": lambda: " ".join(p.text for p in problems(3, 200)),
    "English": lambda: "".join(prose()[3:40]),
}
_PAIRS = (("llama-3", "qwen3", "problems"), ("llama-3", "qwen3", "English"), ("llama-3", "mistral-v1", "problems"))


@cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary.from_pretrained(fetch(name))


class Batch:
    """A text as two tokenizers cut it, and both losses of the pair."""

    def __init__(self, student: Vocabulary, teacher: Vocabulary, tries: PathTries, text: str) -> None:
        one, other = student.encode(text), teacher.encode(text)
        chunks = np.asarray(align_spans(student, teacher, one, other).chunks)
        chunks = chunks[chunks[:, 1] < _TOKENS]
        self.rows = int(chunks[-1, 1]) + 1, int(chunks[-1, 3]) + 1
        self.sizes = student.size, teacher.size
        self.index = ChunkIndex.from_chunks(chunks, one.ids[: self.rows[0]], other.ids[: self.rows[1]])
        self.targets = torch.from_numpy(np.append(one.ids[1 : self.rows[0]], -100))
        self.losses: tuple[ChunkLoss, ChunkLoss] = PKL(build_projection(student, teacher)), PathKL(tries)

    def from_logits(self) -> list[Callable[[], Tensor]]:
        """Forward and backward of either loss."""
        one, other = (logits(n, size, seed) for seed, (n, size) in enumerate(zip(self.rows, self.sizes, strict=True)))
        return [
            step(lambda z, signal, own=own: own(z, signal, self.index), one, other, self.sizes[1])
            for own in self.losses
        ]

    def from_hidden(self) -> list[Callable[[], object]]:
        """The same with cross-entropy, from hidden states."""
        generator = torch.Generator().manual_seed(0)
        one, other, weight, head = (
            scale * torch.randn(n, _HIDDEN, generator=generator)
            for n, scale in ((self.rows[0], 1), (self.rows[1], 1), (self.sizes[0], 0.1), (self.sizes[1], 0.1))
        )
        signal = HeadSignal(other, Head(head), self.sizes[1])
        leaves = one.requires_grad_(), weight.requires_grad_()
        unit = torch.tensor(1 / self.rows[0])

        def work(own: ChunkLoss) -> tuple[Tensor, ...]:
            lessons = [Lesson(own.kernel(), signal, self.index)]
            found = losses_from_hidden(
                leaves[0], Head(leaves[1]), self.targets, self.sizes[0], lessons, Multipliers(unit, [unit])
            )
            gradients: tuple[Tensor, ...] = torch.autograd.grad(found.loss, leaves)
            return gradients

        return [partial(work, own) for own in self.losses]


def figures() -> list[Figure]:
    """The figures, in about two minutes."""
    found = []
    for name_s, name_t, text in _PAIRS:
        student, teacher = vocabulary(name_s), vocabulary(name_t)
        begin = time.perf_counter()
        tries = build_tries(student, teacher)
        seconds = time.perf_counter() - begin
        batch, what = Batch(student, teacher, tries, _TEXTS[text]()), f"{name_s} x {name_t}, {text}"
        if not found:
            tables = [tries.student_roots, tries.teacher_roots]
            for trie in (tries.student, tries.teacher):
                tables += [x for x in vars(trie).values() if isinstance(x, np.ndarray)]
            found.append(Figure("tries, Llama-3 x Qwen3", seconds, _SECONDS, unit="s"))
            found.append(Figure("tries in memory", sum(x.nbytes for x in tables) / 1e6, _MEGABYTES, unit="MB"))
        works = batch.from_logits()
        p_kl, path = alternate(works, _TURNS)
        note = f"{1e3 * path.median:.0f} ms against {1e3 * p_kl.median:.0f}"
        found.append(Figure(f"path-KL over P-KL, {what}", ratio(path, p_kl), _TIME, note=note))
        if len(found) == 3:
            peaks = [resident_peak(work) for work in works]
            note = f"{peaks[1]:.0f} MiB against {peaks[0]:.0f}, the gradient included"
            found.append(Figure("path-KL's memory over P-KL's", peaks[1] / peaks[0], _MEMORY, note=note))
        p_kl, path = alternate(batch.from_hidden(), _HIDDEN_TURNS)
        note = f"{path.median:.1f} s against {p_kl.median:.1f}, hidden {_HIDDEN}, with cross-entropy"
        found.append(Figure(f"path-KL over P-KL from hidden states, {what}", ratio(path, p_kl), _TIME, note=note))
    return found


if __name__ == "__main__":
    for figure in figures():
        print(figure)
