"""How far a student is from a teacher on a text: the KL between what each expects of the next byte.

Wherever both tokenizers have a boundary, both models give a distribution of the next token; summed by the first byte of
the token, and with every special token as the end of the text, these are two distributions over the same 257 events.
No loss of ours compares just that, so the figure favours none of them. It sees the first byte of a number, not the
rest: `answer_kl` sees all of it. Laws: 0 for a model and itself; never negative; with one tokenizer every boundary
counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.evaluation.batches import document_prefix, padded
from xtoken.evaluation.bits_per_byte import NUMERALS_NAME
from xtoken.teachers.causal import causal_logits
from xtoken.teachers.online import check_head
from xtoken.teachers.signal import flat_log_probs
from xtoken.tokens import TokenSpans, Vocabulary

__all__ = ["TeacherKL", "teacher_kl"]

Ints = NDArray[np.int64]

WORDS_NAME = "words"
END = 256  # the event that no text follows
_EVENTS = END + 1
# What float32 rounds to 0, or a student has no token for, counts as the smallest number of float32, so that a KL stays
# finite.
_SMALLEST = 2.0**-149


@dataclass(frozen=True)
class TeacherKL:
    """KL(teacher || student) of the next byte.

    Attributes:
        total: nats, the mean over all boundaries that the tokenizers share.
        classes: the mean where a number follows (`numerals`), and where a word does (`words`).
        boundaries: how many there were.
    """

    total: float
    classes: dict[str, float]
    boundaries: int


@dataclass(frozen=True)
class _Reader:
    """A model with its tokenizer, and the first byte of each of its tokens, int64 [V]."""

    model: Any
    vocabulary: Vocabulary
    events: Tensor

    @classmethod
    def of(cls, model: Any, vocabulary: Vocabulary, who: str) -> _Reader:
        check_head(model, vocabulary.size, who)
        events = torch.tensor([content[0] if content else END for content in vocabulary.tokens], device=model.device)
        return cls(model, vocabulary, events)

    def log_probs(self, batch: Sequence[TokenSpans], places: Sequence[Ints]) -> Tensor:
        """Of the next byte.

        Args:
            batch: texts.
            places: for each, how many of its tokens have been read.

        Returns:
            float64 [all places, 257] on the CPU.
        """
        prefix = document_prefix(self.vocabulary)
        ids, mask = padded([[*prefix, *spans.ids.tolist()] for spans in batch], self.model.device)
        logits = causal_logits(self.model, ids, mask)
        read = [logits[n, torch.from_numpy(at + len(prefix) - 1).to(ids.device)] for n, at in enumerate(places)]
        probs = flat_log_probs(torch.cat(read), self.vocabulary.size, 1.0, "model").exp()
        summed = probs.new_zeros(len(probs), _EVENTS).index_add_(1, self.events, probs)
        return summed.double().log().cpu()


def teacher_kl(
    student: Any,
    student_vocabulary: Vocabulary,
    teacher: Any,
    teacher_vocabulary: Vocabulary,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
) -> TeacherKL:
    """Compares two causal LMs in evaluation mode, each on the device it is on.

    Args:
        student, teacher: Hugging Face causal LMs.
        student_vocabulary, teacher_vocabulary: their tokenizers.
        texts: documents that fit into both models' positions.
        batch_size: documents in a forward pass.

    Raises:
        XTokenError: no text with a boundary that both models predict from; a model too small for its tokenizer.
    """
    readers = (
        _Reader.of(student, student_vocabulary, "the student"),
        _Reader.of(teacher, teacher_vocabulary, "the teacher"),
    )
    kls: list[Tensor] = []
    classes: list[str] = []
    remaining = iter([text for text in texts if text])
    with torch.no_grad():
        while batch := list(islice(remaining, batch_size)):
            spans = [reader.vocabulary.encode_batch(batch) for reader in readers]
            shared = [_shared(s, t, readers) for s, t in zip(*spans, strict=True)]
            log_s, log_t = (
                reader.log_probs(side, [places[n] for places, _ in shared])
                for n, (reader, side) in enumerate(zip(readers, spans, strict=True))
            )
            # An event that the teacher rules out adds nothing, whatever the student makes of it.
            log_s = log_s.clamp(min=math.log(_SMALLEST))
            kls.append(torch.where(log_t > -torch.inf, log_t.exp() * (log_t - log_s), 0.0).sum(dim=1))
            classes += [name for _, names in shared for name in names]
    if not classes:
        raise XTokenError("there is no text with a boundary that both models predict from")
    return _result(torch.cat(kls).numpy(), np.array(classes))


def _result(kls: NDArray[np.float64], classes: NDArray[np.str_]) -> TeacherKL:
    found = {name: kls[classes == name] for name in (NUMERALS_NAME, WORDS_NAME)}
    return TeacherKL(float(kls.mean()), {name: float(x.mean()) for name, x in found.items() if len(x)}, len(kls))


def _shared(
    spans_s: TokenSpans, spans_t: TokenSpans, readers: tuple[_Reader, _Reader]
) -> tuple[tuple[Ints, Ints], list[str]]:
    """How many tokens of each side lie before every shared boundary, and what follows it."""
    starts_s, starts_t = (np.concatenate([[0], spans.ends]) for spans in (spans_s, spans_t))
    # A tokenizer may give several tokens one end; what has been read is all of them.
    bytes_s, places_s = _last_places(starts_s)
    bytes_t, places_t = _last_places(starts_t)
    _, in_s, in_t = np.intersect1d(bytes_s, bytes_t, assume_unique=True, return_indices=True)
    # Before the first token a model without a prefix has read nothing, and predicts nothing.
    if not all(document_prefix(reader.vocabulary) for reader in readers):
        in_s, in_t = in_s[bytes_s[in_s] > 0], in_t[bytes_t[in_t] > 0]
    return (places_s[in_s], places_t[in_t]), [_class_at(spans_s.raw, int(at)) for at in bytes_s[in_s]]


def _last_places(starts: Ints) -> tuple[Ints, Ints]:
    is_last = np.append(starts[1:] > starts[:-1], True)
    places = np.flatnonzero(is_last)
    return starts[places], places


def _class_at(raw: bytes, at: int) -> str:
    """What kind of token the text goes on with."""
    following = raw[at : at + 2]
    if following[:1].isdigit():
        return NUMERALS_NAME
    return WORDS_NAME if following.removeprefix(b" ")[:1].isalpha() else ""
