"""How a student and its teacher read a text, chunk by chunk: where they still differ, and what each expected.

One measure for every loss: the KL, KL(teacher || student) in nats, of the two distributions at a chunk's first
position, each summed by **root** (`xtoken.projection.tries`: the common token that a token begins with). It is the
first term of path-KL, without that loss's allowance for a token that might have gone on. Teacher mass on roots that the
student has no token for takes no part: the teacher is normalised on the others. For one tokenizer on both sides it is
the KL of the whole distributions. A chunk's realised log-probabilities, of all its tokens, are told besides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.alignment import Alignment, align_spans
from xtoken.losses.index import ChunkIndex
from xtoken.losses.likelihood import chunk_sum
from xtoken.projection import PathTries
from xtoken.report.aligned import AlignedText, Expected, Measured, aligned_text
from xtoken.shown import token_text
from xtoken.teachers.causal import causal_logits
from xtoken.teachers.signal import flat_log_probs
from xtoken.tokens import Vocabulary
from xtoken.training.models import LoadedModel

__all__ = ["CONTEXT", "Reader", "kl_by_root"]

_GUESSES = 3
# A text is read up to here, in tokens of either side: what a page can show, at 150 MB of float32 for 150,000 tokens.
CONTEXT = 256


@dataclass(frozen=True)
class Reader:
    """A student beside a teacher.

    Attributes:
        student, teacher: both loaded.
        tries: of the pair; their roots are what is compared.
        method: of the alignment, as the run had it.
        context: tokens of either side that are read.
    """

    student: LoadedModel
    teacher: LoadedModel
    tries: PathTries
    method: str = "bytes"
    context: int = CONTEXT

    def read(self, text: str) -> AlignedText:
        """Aligns a text and measures its chunks."""
        student, teacher = self.student.vocabulary, self.teacher.vocabulary
        spans_s, spans_t = (v.encode(text).with_specials(v.prefix_ids) for v in (student, teacher))
        whole = align_spans(student, teacher, spans_s, spans_t, self.method)
        cut = _first(whole, self.context)
        return aligned_text(cut, student, teacher, self.measure(cut), is_cut=cut is not whole)

    def measure(self, alignment: Alignment) -> dict[int, Measured]:
        """By number of chunk; none for chunks whose first token nothing predicts."""
        index = ChunkIndex.from_chunks(alignment.chunks, alignment.student_ids, alignment.teacher_ids)
        if not index.n_chunks:
            return {}
        kept = np.flatnonzero((alignment.chunks[:, 0] > 0) & (alignment.chunks[:, 2] > 0))
        q = _log_probs(self.student, alignment.student_ids, "student")
        p = _log_probs(self.teacher, alignment.teacher_ids, "teacher")
        rows_s = index.student_rows[index.student_starts[:-1]]
        rows_t = index.teacher_rows[index.teacher_starts[:-1]]
        kl = kl_by_root(p[rows_t], q[rows_s], self.tries)
        told = zip(
            kept.tolist(),
            kl.tolist(),
            chunk_sum(q[index.student_rows, index.student_tokens], index.student_starts).tolist(),
            chunk_sum(p[index.teacher_rows, index.teacher_tokens], index.teacher_starts).tolist(),
            _expected(q[rows_s], self.student.vocabulary),
            _expected(p[rows_t], self.teacher.vocabulary),
            strict=True,
        )
        return {chunk: Measured(*figures) for chunk, *figures in told}


def kl_by_root(teacher: Tensor, student: Tensor, tries: PathTries) -> Tensor:
    """KL(teacher || student), each summed by root, on the roots that the student has tokens for.

    Args:
        teacher: [n, V_T], log-probabilities.
        student: [n, V_S], log-probabilities.
        tries: of the pair.

    Returns:
        [n], nats; at least 0, and 0 where the teacher has no mass on such roots.
    """
    roots_s, roots_t = torch.from_numpy(tries.student_roots), torch.from_numpy(tries.teacher_roots)
    n_roots = 1 + int(max(roots_s.max(), roots_t.max()))
    # One more class on either side for tokens without a root; it is one class of the comparison like any other.
    p, q = _by_class(teacher, roots_t, n_roots), _by_class(student, roots_s, n_roots)
    has_student = torch.bincount(torch.where(roots_s < 0, n_roots, roots_s), minlength=n_roots + 1) > 0
    p = p * has_student
    p = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    ratio = p.clamp(min=torch.finfo(p.dtype).tiny).log() - q.clamp(min=torch.finfo(q.dtype).tiny).log()
    return torch.where(p > 0, p * ratio, 0.0).sum(-1).clamp(min=0)


def _by_class(log_probs: Tensor, classes: Tensor, n: int) -> Tensor:
    into = torch.where(classes < 0, n, classes)
    return log_probs.new_zeros(len(log_probs), n + 1).index_add_(1, into, log_probs.exp())


def _log_probs(loaded: LoadedModel, ids: NDArray[np.int64], whose: str) -> Tensor:
    """[L, V] on the CPU, of one sequence."""
    device = next(loaded.model.parameters()).device
    tokens = torch.from_numpy(ids)[None].to(device)
    with torch.inference_mode():
        logits = causal_logits(loaded.model, tokens, torch.ones_like(tokens))
        return flat_log_probs(logits, loaded.vocabulary.size, 1.0, whose).cpu()


def _expected(log_probs: Tensor, vocabulary: Vocabulary) -> list[Expected]:
    top = log_probs.topk(min(_GUESSES, log_probs.shape[-1]), -1)
    probs = top.values.exp().tolist()
    return [
        tuple((token_text(vocabulary, i), p) for i, p in zip(ids, row, strict=True))
        for ids, row in zip(top.indices.tolist(), probs, strict=True)
    ]


def _first(alignment: Alignment, context: int) -> Alignment:
    """The chunks within the first tokens of either side, and those tokens; the same object where all are."""
    if max(len(alignment.student_ids), len(alignment.teacher_ids)) <= context:
        return alignment
    fits = (alignment.chunks[:, 1] <= context) & (alignment.chunks[:, 3] <= context)
    chunks = alignment.chunks[fits]
    n, m = (int(chunks[-1, 1]), int(chunks[-1, 3])) if len(chunks) else (0, 0)
    ids = alignment.student_ids[:n], alignment.teacher_ids[:m]
    return Alignment(alignment.method, chunks, *ids, alignment.student_ends[:n], alignment.teacher_ends[:m])
