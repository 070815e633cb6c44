"""What a learnable W costs beside a fixed one, and what the other divergences cost beside the forward KL.

    python -m benchmarks.learnable

512 tokens of word problems with numbers, Llama-3 with Qwen3. Random logits, float32, forward and backward.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor

from benchmarks.common import Figure, alternate, ratio
from benchmarks.losses import step
from benchmarks.memory import resident_peak
from benchmarks.pair import logits
from benchmarks.path_cost import Batch, vocabulary
from xtoken.demo.problems import problems
from xtoken.losses import PKL, ChunkIndex, ChunkLoss, LossTerm, SameTokenizerKL
from xtoken.losses.divergence import Divergence
from xtoken.projection import Projection, build_projection, build_tries
from xtoken.teachers import TeacherSignal

__all__ = ["figures"]

_TURNS, _HIDDEN_TURNS = 5, 2
_TIME, _MEMORY, _SAME, _REFERENCE = 1.25, 1.25, 2.0, 20.0


def figures() -> list[Figure]:
    """The figures, in two and a half minutes."""
    student, teacher = vocabulary("llama-3"), vocabulary("qwen3")
    text = " ".join(p.text for p in problems(3, 200))
    batch, w = Batch(student, teacher, build_tries(student, teacher), text), build_projection(student, teacher)
    learnable = PKL(w, learnable=True)
    assert learnable.row_weights is not None
    batch.losses = PKL(w), learnable
    works = batch.from_logits()
    fixed, learnt = alternate(works, _TURNS)
    n_weights, n_rows = len(learnable.row_weights.log_weights), len(learnable.row_weights.rows)
    note = f"{1e3 * learnt.median:.0f} ms against {1e3 * fixed.median:.0f}; {n_weights:,} weights of {n_rows:,} rows"
    found = [Figure("learnable W over fixed", ratio(learnt, fixed), _TIME, note=note)]
    peaks = [resident_peak(work) for work in works]
    note = f"{peaks[1]:.0f} MiB against {peaks[0]:.0f}, the gradient included"
    found.append(Figure("learnable W's memory over fixed", peaks[1] / peaks[0], _MEMORY, note=note))
    fixed, learnt = alternate(batch.from_hidden(), _HIDDEN_TURNS)
    note = f"{learnt.median:.2f} s against {fixed.median:.2f}, with cross-entropy"
    found.append(Figure("learnable W over fixed from hidden states", ratio(learnt, fixed), _TIME, note=note))
    return [*found, *_divergences(batch, w)]


def _divergences(batch: Batch, w: Projection) -> list[Figure]:
    found = []
    for divergence in (Divergence("reverse"), Divergence("jsd")):
        batch.losses, name = (PKL(w), PKL(w, divergence=divergence)), divergence.name
        works = batch.from_logits()
        forward, other = alternate(works, _HIDDEN_TURNS)
        peaks = [resident_peak(work) for work in works]
        note = f"{other.median:.1f} s against {forward.median:.2f}, {peaks[1]:.0f} MiB against {peaks[0]:.0f}"
        found.append(Figure(f"P-KL {name} over forward", ratio(other, forward), _REFERENCE, note=note))
        size = batch.sizes[0]
        one, other_logits = logits(batch.rows[0], size, 0), logits(batch.rows[0], size, 1)
        index = _one_to_one(batch)
        kls = SameTokenizerKL(size), SameTokenizerKL(size, divergence)
        forward, other = alternate([step(partial(_call, own, index), one, other_logits, size) for own in kls], _TURNS)
        note = f"{1e3 * other.median:.0f} ms against {1e3 * forward.median:.0f}"
        found.append(Figure(f"same {name} over forward", ratio(other, forward), _SAME, note=note))
    return found


def _call(loss: ChunkLoss, index: ChunkIndex, student: Tensor, signal: TeacherSignal) -> LossTerm:
    return loss(student, signal, index)  # type: ignore[no-any-return]


def _one_to_one(batch: Batch) -> ChunkIndex:
    at = np.arange(batch.rows[0] - 1)
    return ChunkIndex.from_chunks(np.stack([at, at + 1, at, at + 1], axis=1), at, at)


if __name__ == "__main__":
    for figure in figures():
        print(figure)
