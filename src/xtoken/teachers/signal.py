"""`TeacherSignal`: what a loss may know of the teacher, either all log-probabilities or the k largest and the rest.

A signal carries its temperature, because log-probabilities cannot be reheated after the fact: the student is read at
the same one. Rows are those of the teacher's flattened logits, the ones `ChunkIndex.teacher_rows` counts. Law: each
row's probabilities, tail included, sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken.errors import XTokenError

__all__ = ["DenseSignal", "TeacherSignal", "TopKSignal", "flat_log_probs", "signal_from_logits"]


@dataclass(frozen=True)
class DenseSignal:
    """The teacher's whole distribution at every row.

    Attributes:
        log_probs: [R_t, V_T], nats, after division of the logits by the temperature.
        temperature: tau the log-probabilities were taken at.
    """

    log_probs: Tensor
    temperature: float = 1.0

    @property
    def vocab_size(self) -> int:
        """V_T."""
        return int(self.log_probs.shape[-1])


@dataclass(frozen=True)
class TopKSignal:
    """The teacher's k most probable tokens at every row, and the mass of all the others.

    Attributes:
        log_probs: [R_t, k], nats, of the full distribution (not renormalised among the k).
        token_ids: int64 [R_t, k], distinct in a row.
        log_tail: [R_t], log of the mass outside the k; -inf where there is none.
        vocab_size: V_T.
        temperature: tau the log-probabilities were taken at.
    """

    log_probs: Tensor
    token_ids: Tensor
    log_tail: Tensor
    vocab_size: int
    temperature: float = 1.0


TeacherSignal = DenseSignal | TopKSignal


def flat_log_probs(
    logits: Tensor, vocab_size: int, temperature: float, whose: str, rows: Tensor | None = None
) -> Tensor:
    """Log-probabilities over the tokenizer's tokens: the one place where a head's padding and the temperature act.

    Args:
        logits: [..., W], W at least `vocab_size`; columns past it are a head's padding and are cut off before the
            softmax.
        vocab_size: V, the tokenizer's size.
        temperature: tau, above 0.
        whose: "student" or "teacher", for the message.
        rows: int64 [N], which of the flattened rows to read; all of them by default.

    Returns:
        [R, V] or [N, V], nats, in at least float32.

    Raises:
        XTokenError: the logits are narrower than the vocabulary, or the temperature is not positive.
    """
    width = logits.shape[-1]
    if width < vocab_size:
        raise XTokenError(
            f"the {whose}'s logits have {width} columns, but its tokenizer has {vocab_size} tokens. Pass the logits "
            f"of the model that goes with this tokenizer; or resize its embeddings to {vocab_size}."
        )
    if not temperature > 0:
        raise XTokenError(f"the temperature is {temperature}; it must be above 0 (1 leaves the probabilities alone).")
    flat = logits.reshape(-1, width)[:, :vocab_size]
    if rows is not None:
        flat = flat.index_select(0, rows)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return torch.log_softmax(flat / temperature, dim=-1)


def signal_from_logits(
    logits: Tensor, vocab_size: int, temperature: float = 1.0, top_k: int | None = None
) -> TeacherSignal:
    """The signal of a teacher's logits; no gradient goes back to the teacher.

    Args:
        logits: [..., W], W at least `vocab_size`.
        vocab_size: V_T, the teacher's tokenizer's size.
        temperature: tau, above 0.
        top_k: how many tokens to keep a row, 1 to V_T; None keeps all.

    Raises:
        XTokenError: the logits are narrower than the vocabulary, or an argument is outside its range.
    """
    log_probs = flat_log_probs(logits.detach(), vocab_size, temperature, "teacher")
    if top_k is None:
        return DenseSignal(log_probs, temperature)
    if not 1 <= top_k <= vocab_size:
        raise XTokenError(f"top_k is {top_k}; it must be between 1 and the teacher's {vocab_size} tokens.")
    kept = log_probs.topk(top_k, dim=-1)
    # The tail is summed over the tokens left out: 1 - (sum of the kept) loses every tail below 1e-7 in float32.
    tail = log_probs.scatter(-1, kept.indices, float("-inf")).logsumexp(dim=-1)
    return TopKSignal(kept.values, kept.indices, tail, vocab_size, temperature)
