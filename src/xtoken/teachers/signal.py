"""`TeacherSignal`: what a loss may know of the teacher, either all probabilities or the k largest and the rest.

All of them can be had in three forms: as log-probabilities, as logits, or as hidden states and the head that turns them
into logits. The last two are read a few rows at a time, so that no float32 copy of a whole [tokens, vocabulary] matrix
is ever made, and under the last not even the logits are held.

A signal carries its temperature, because log-probabilities cannot be reheated after the fact: the student is read at
the same one. Rows are those of the teacher's flattened logits, the ones `ChunkIndex.teacher_rows` counts. Law: each
row's probabilities, tail included, sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.teachers.head import Head

__all__ = [
    "DenseSignal",
    "HeadSignal",
    "LogitSignal",
    "TeacherSignal",
    "TopKSignal",
    "WholeSignal",
    "check_logits",
    "flat_log_probs",
    "signal_from_logits",
]


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

    @property
    def dtype(self) -> torch.dtype:
        """Of what it holds."""
        return self.log_probs.dtype

    def log_probs_at(self, rows: Tensor) -> Tensor:
        """[n, V_T], nats, of at least float32."""
        return self.log_probs.index_select(0, rows).to(_accumulator(self.dtype))

    def read(self, rows: Tensor, out: Tensor) -> None:
        """Writes rows whose softmax is the distribution.

        Args:
            rows: int64 [n].
            out: [n, V_T], of at least float32.
        """
        _read(self.log_probs, rows, 1.0, out)


@dataclass(frozen=True)
class LogitSignal:
    """The whole distribution at every row, as the logits it is the softmax of.

    Attributes:
        logits: [R, W], W at least `vocab_size`; columns past it are a head's padding and take no part in the softmax.
        vocab_size: V, the tokenizer's size.
        temperature: tau to divide the logits by.
    """

    logits: Tensor
    vocab_size: int
    temperature: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        """Of what it holds."""
        return self.logits.dtype

    @property
    def log_probs(self) -> Tensor:
        """[R, V], nats, of at least float32: made anew, whole, at every call. The losses read rows instead."""
        return flat_log_probs(self.logits, self.vocab_size, self.temperature, "teacher")

    def log_probs_at(self, rows: Tensor) -> Tensor:
        """[n, V], nats, of at least float32."""
        return _log_softmax_at(self, rows)

    def read(self, rows: Tensor, out: Tensor) -> None:
        """As `DenseSignal.read`."""
        _read(self.logits[:, : self.vocab_size], rows, self.temperature, out)


@dataclass(frozen=True)
class HeadSignal:
    """The whole distribution at every row, as hidden states and the head that gives their logits.

    Attributes:
        hidden: [R, H], what the model's head is given.
        head: the head.
        vocab_size: V, the tokenizer's size, at most the head's.
        temperature: tau to divide the logits by.
    """

    hidden: Tensor
    head: Head
    vocab_size: int
    temperature: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        """Of what it holds."""
        return self.hidden.dtype

    @property
    def log_probs(self) -> Tensor:
        """[R, V], nats, of at least float32: made anew, whole, at every call. The losses read rows instead."""
        return self.log_probs_at(torch.arange(len(self.hidden), device=self.hidden.device))

    def log_probs_at(self, rows: Tensor) -> Tensor:
        """[n, V], nats, of at least float32."""
        return _log_softmax_at(self, rows)

    def read(self, rows: Tensor, out: Tensor) -> None:
        """As `DenseSignal.read`."""
        self.head.logits(self.hidden.index_select(0, rows), self.vocab_size, out)
        if self.temperature != 1:
            out.div_(self.temperature)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over a vocabulary are taken in."""
    return torch.promote_types(dtype, torch.float32)


def _log_softmax_at(signal: LogitSignal | HeadSignal, rows: Tensor) -> Tensor:
    logits = torch.empty(len(rows), signal.vocab_size, dtype=_accumulator(signal.dtype), device=rows.device)
    signal.read(rows, logits)
    return torch.log_softmax(logits, dim=-1)


def _read(matrix: Tensor, rows: Tensor, temperature: float, out: Tensor) -> None:
    if matrix.dtype == out.dtype:
        torch.index_select(matrix, 0, rows, out=out)
    else:
        out.copy_(matrix.index_select(0, rows))
    if temperature != 1:
        out.div_(temperature)


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

    @property
    def dtype(self) -> torch.dtype:
        """Of what it holds."""
        return self.log_probs.dtype


WholeSignal = DenseSignal | LogitSignal | HeadSignal
TeacherSignal = WholeSignal | TopKSignal


def check_logits(logits: Tensor, vocab_size: int, temperature: float, whose: str) -> None:
    """Refuses logits that cannot be read at a temperature.

    Args:
        logits: [..., W].
        vocab_size: V, the tokenizer's size.
        temperature: tau.
        whose: "student" or "teacher", for the message.

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
    check_logits(logits, vocab_size, temperature, whose)
    flat = logits.reshape(-1, logits.shape[-1])[:, :vocab_size]
    if rows is not None:
        flat = flat.index_select(0, rows)
    return torch.log_softmax(flat.to(_accumulator(flat.dtype)) / temperature, dim=-1)


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
    check_logits(logits, vocab_size, temperature, "teacher")
    logits = logits.detach().reshape(-1, logits.shape[-1])
    if top_k is None:
        return LogitSignal(logits, vocab_size, temperature)
    if not 1 <= top_k <= vocab_size:
        raise XTokenError(f"top_k is {top_k}; it must be between 1 and the teacher's {vocab_size} tokens.")
    return _top_k(logits, vocab_size, temperature, top_k)


# Rows of a signal's logits that are normalised at a time: 2**24 float32 are 64 MiB.
_BLOCK_ELEMENTS = 2**24


def _top_k(logits: Tensor, vocab_size: int, temperature: float, top_k: int) -> TopKSignal:
    """The top-k signal of [R, W] logits, some rows at a time."""
    blocks = []
    for block in logits.split(max(1, _BLOCK_ELEMENTS // vocab_size)):
        log_probs = flat_log_probs(block, vocab_size, temperature, "teacher")
        kept = log_probs.topk(top_k, dim=-1)
        # The tail is summed over the tokens left out: 1 - (sum of the kept) loses every tail below 1e-7 in float32.
        tail = log_probs.scatter_(-1, kept.indices, float("-inf")).logsumexp(dim=-1)
        blocks.append((kept.values, kept.indices, tail))
    values, token_ids, tails = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return TopKSignal(values, token_ids, tails, vocab_size, temperature)
