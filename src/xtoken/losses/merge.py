"""From the distributions at a chunk's positions to one distribution for the chunk.

A chunk covers the same bytes on both sides, with tokens in different numbers; a loss compares one vector of each. Three
ways: `chain` (the default) takes the distribution at the first position times the probability of the tokens that
followed, so its realised entry is the joint probability of the whole span, and it sums to at most 1; `mean` averages
the positions, geometrically for the teacher and arithmetically for the student; `first` takes the first position alone.
Law: a chunk of one token has the same distribution under all three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses.index import ChunkIndex
from xtoken.losses.logspace import log_normalise, segment_ids, segment_log_sum
from xtoken.teachers.signal import TeacherSignal, TopKSignal, flat_log_probs

__all__ = [
    "ChunkDistributions",
    "Merge",
    "check_merge",
    "check_teacher",
    "check_whole",
    "merge_rows",
    "realised_log_prob",
    "student_chunks",
    "teacher_chunks",
]

Merge = Literal["chain", "mean", "first"]
Average = Literal["geometric", "arithmetic"]


@dataclass(frozen=True)
class ChunkDistributions:
    """One vector a chunk, kept as a distribution and a factor: the vector is exp(log_factor) * exp(log_probs).

    Attributes:
        log_probs: [K, V], nats; each row sums to 1 in probability.
        log_factor: [K], nats, at most 0: for `chain` the log-probability of the chunk's later tokens, else 0.
    """

    log_probs: Tensor
    log_factor: Tensor

    @property
    def log_vectors(self) -> Tensor:
        """[K, V], the merged vectors."""
        return self.log_probs + self.log_factor.unsqueeze(-1)


def check_merge(merge: str) -> None:
    """Refuses a name that is no merge.

    Raises:
        XTokenError: with the names there are.
    """
    if merge not in get_args(Merge):
        raise XTokenError(f"merge is {merge!r}; it must be one of {', '.join(get_args(Merge))}.")


def _later_log_prob(realised: Tensor, starts: Tensor) -> Tensor:
    """[K], the sum of `realised` [N] over each chunk's entries but its first."""
    segments = segment_ids(starts, realised.shape[0])
    is_later = torch.arange(realised.shape[0], device=starts.device) != starts[segments]
    later = torch.where(is_later, realised, 0)
    return realised.new_zeros(starts.shape[0] - 1).index_add(0, segments, later)


def _geometric_mean(log_probs: Tensor, starts: Tensor) -> Tensor:
    """exp of the mean log-probability, renormalised; a token impossible at one position is impossible in the mean."""
    sums = log_probs.new_zeros(starts.shape[0] - 1, log_probs.shape[1])
    sums = sums.index_add(0, segment_ids(starts, log_probs.shape[0]), log_probs)
    return log_normalise(sums / starts.diff().unsqueeze(-1))


def _arithmetic_mean(log_probs: Tensor, starts: Tensor) -> Tensor:
    """log of the mean probability; it sums to 1 as the positions do."""
    segments = segment_ids(starts, log_probs.shape[0])
    sums = segment_log_sum(log_probs, segments, starts.shape[0] - 1, dim=0)
    return sums - starts.diff().to(log_probs.dtype).log().unsqueeze(-1)


def merge_rows(
    log_probs: Tensor, tokens: Tensor, starts: Tensor, merge: Merge, average: Average = "arithmetic"
) -> ChunkDistributions:
    """One distribution a chunk from those at its positions.

    Args:
        log_probs: [N, V], nats, the distribution that predicts each chunk token.
        tokens: int64 [N], the token the text has there.
        starts: int64 [K+1].
        merge: how; see the module.
        average: which mean `mean` takes. NVIDIA's code (NeMo-RL) takes the geometric one for the teacher and the
            arithmetic for the student.
    """
    no_factor = log_probs.new_zeros(starts.shape[0] - 1)
    if merge == "mean":
        mean = _geometric_mean if average == "geometric" else _arithmetic_mean
        return ChunkDistributions(mean(log_probs, starts), no_factor)
    first = log_probs.index_select(0, starts[:-1])
    if merge == "first":
        return ChunkDistributions(first, no_factor)
    realised = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return ChunkDistributions(first, _later_log_prob(realised, starts))


def student_chunks(
    logits: Tensor, vocab_size: int, index: ChunkIndex, temperature: float, merge: Merge
) -> ChunkDistributions:
    """The student's chunks, read from its logits.

    Args:
        logits: [..., W], W at least `vocab_size`; leading dimensions are flattened, padding columns cut off.
        vocab_size: V_S.
        index: the chunks.
        temperature: tau of the teacher's signal.
        merge: how positions become one distribution.

    Raises:
        XTokenError: the logits are narrower than the vocabulary.
    """
    log_probs = flat_log_probs(logits, vocab_size, temperature, "student", index.student_rows)
    return merge_rows(log_probs, index.student_tokens, index.student_starts, merge)


def check_whole(signal: TeacherSignal, loss: str) -> None:
    """Refuses a top-k signal for a loss that needs every probability.

    Args:
        signal: the teacher's.
        loss: the name of the loss, for the message.

    Raises:
        XTokenError: the signal keeps only the top k.
    """
    if isinstance(signal, TopKSignal):
        raise XTokenError(
            f"{loss} compares whole distributions, and this teacher signal keeps the top {signal.token_ids.shape[-1]} "
            f"of {signal.vocab_size} tokens. Give it a dense signal (top_k=None), or use P-KL."
        )


def teacher_chunks(signal: TeacherSignal, vocab_size: int, index: ChunkIndex, merge: Merge) -> ChunkDistributions:
    """The teacher's chunks.

    A top-k signal gives its k log-probabilities and -inf elsewhere, so its rows sum to less than 1.

    Args:
        signal: rows as `index.teacher_rows` counts them.
        vocab_size: V_T.
        index: the chunks.
        merge: how positions become one distribution.

    Raises:
        XTokenError: the signal's vocabulary is of another size, or `mean` is asked of a top-k signal.
    """
    check_teacher(signal, vocab_size)
    if isinstance(signal, TopKSignal):
        return _top_k_chunks(signal, index, merge)
    log_probs = signal.log_probs_at(index.teacher_rows)
    return merge_rows(log_probs, index.teacher_tokens, index.teacher_starts, merge, "geometric")


def check_teacher(signal: TeacherSignal, vocab_size: int) -> None:
    """Refuses the signal of another teacher than the loss was built for.

    Raises:
        XTokenError: its vocabulary is of another size.
    """
    if signal.vocab_size != vocab_size:
        raise XTokenError(
            f"the teacher signal covers {signal.vocab_size} tokens, but this loss was built for a teacher of "
            f"{vocab_size}. Use the signal of the teacher whose tokenizer the loss was built with."
        )


def _top_k_chunks(signal: TopKSignal, index: ChunkIndex, merge: Merge) -> ChunkDistributions:
    if merge == "mean":
        raise XTokenError(
            "merge 'mean' needs a dense teacher signal: a top-k signal keeps other tokens at each position."
        )
    first = index.teacher_rows.index_select(0, index.teacher_starts[:-1])
    kept = _upcast(signal.log_probs).index_select(0, first)
    shape = (first.shape[0], signal.vocab_size)
    dense = kept.new_full(shape, float("-inf")).scatter(1, signal.token_ids.index_select(0, first), kept)
    if merge == "first":
        return ChunkDistributions(dense, kept.new_zeros(shape[0]))
    realised = realised_log_prob(signal, index.teacher_rows, index.teacher_tokens)
    return ChunkDistributions(dense, _later_log_prob(realised, index.teacher_starts))


def realised_log_prob(signal: TopKSignal, rows: Tensor, tokens: Tensor) -> Tensor:
    """log p of the text's own tokens [N]; one outside the top k gets an equal share of the tail.

    The share is a guess: it is too high for a token in the far tail, too low for one just past the k-th.
    """
    log_probs, log_tail = _upcast(signal.log_probs), _upcast(signal.log_tail)
    is_token = signal.token_ids.index_select(0, rows) == tokens.unsqueeze(1)
    kept = torch.where(is_token, log_probs.index_select(0, rows), 0).sum(dim=1)
    n_left_out = max(signal.vocab_size - log_probs.shape[1], 1)
    share = log_tail.index_select(0, rows) - math.log(n_left_out)
    return torch.where(is_token.any(dim=1), kept, share)


def _upcast(log_probs: Tensor) -> Tensor:
    return log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
