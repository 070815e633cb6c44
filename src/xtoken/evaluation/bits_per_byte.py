"""Bits per byte: how many bits a model needs for a text, over the bytes of the text.

Unlike a loss per token it compares models of different tokenizers, because the bytes are the same for all. Types: texts
in, `BitsPerByte` out, overall and by class of token. Laws: every token is scored exactly once, whatever the window and
the batch; the bytes of the classes and the bytes that nothing predicts add up to the text's.

A document is read as the model was trained to read one: after what its tokenizer puts in front by itself, or else after
its bos. Where there is neither, nothing predicts the first token; it is left out on both sides of the fraction and
counted. The end-of-document token has no bytes and is not scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from xtoken.errors import XTokenError
from xtoken.evaluation.batches import document_prefix, padded
from xtoken.teachers.causal import causal_logits
from xtoken.teachers.online import check_head
from xtoken.teachers.signal import flat_log_probs
from xtoken.tokens import Vocabulary
from xtoken.tokens.classes import CLASSES, NUMERALS, token_classes

__all__ = ["BitsPerByte", "CutText", "Score", "Share", "bits_per_byte"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NUMERALS_NAME = "numerals"
# A window starts half a context after the one before, so that every token but a document's first ones sees at least
# half a context; a smaller step costs more passes for a slightly better score.
_STEP = 0.5
_DEFAULT_CONTEXT = 4096  # for a model that does not say how long a sequence it takes
_BATCH_OF_TEXTS = 256
_BATCHES_SORTED = 16  # enough for lengths to be alike, few enough to hold
# Of a forward pass, padding included: 1 GiB in float32. A longer window goes alone.
_LOGITS_A_PASS = 2**28


@dataclass(frozen=True)
class Score:
    """The cost of some tokens.

    Attributes:
        tokens: how many were scored.
        bytes: of text they cover.
        bits: -log2 of the probability the model gave them, summed.
    """

    tokens: int
    bytes: int
    bits: float

    @property
    def bits_per_byte(self) -> float:
        """NaN where there are no bytes."""
        return self.bits / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class BitsPerByte:
    """What a model makes of some texts.

    Attributes:
        total: of all scored tokens.
        classes: by class of token (`xtoken.tokens.classes`), those that occur; and `numerals`, all digits together.
        documents: how many had text.
        unscored_bytes: of first tokens that nothing predicts; in no score.
    """

    total: Score
    classes: dict[str, Score]
    documents: int
    unscored_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Overall."""
        return self.total.bits_per_byte

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "documents": self.documents,
            "tokens": self.total.tokens,
            "bytes": self.total.bytes,
            "unscored_bytes": self.unscored_bytes,
            "classes": {
                name: {"bits_per_byte": s.bits_per_byte, "tokens": s.tokens, "bytes": s.bytes}
                for name, s in self.classes.items()
            },
        }


@dataclass(frozen=True)
class _Window:
    """A stretch of a document: `ids` go in, and those from `first` on are scored."""

    ids: Ints
    widths: Ints
    first: int


def bits_per_byte(
    model: Any,
    vocabulary: Vocabulary,
    texts: Iterable[str],
    *,
    context_length: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> BitsPerByte:
    """Scores texts with a causal LM, on the device it is on.

    Args:
        model: a Hugging Face causal LM; it is left in the mode it came in.
        vocabulary: its tokenizer.
        texts: documents; one without text is skipped.
        context_length: tokens in a window, at least 2 and more than its prefix; by default as many as the model takes,
            and no more than 4,096.
        batch_size: windows in a forward pass; fewer, and at least one, where their logits would be more than 2**28.
        progress: show a bar.

    Raises:
        XTokenError: no text; a context that is too short or longer than the model's; a model too small for its
            tokenizer.
    """
    check_head(model, vocabulary.size, "the model")
    context = _context(model, vocabulary, context_length)
    sums = _Sums(_classes_of(vocabulary))
    with _evaluating(model):
        _score_all(model, vocabulary, _windows(vocabulary, texts, context, sums, progress), sums, batch_size, Share())
    _check_text(sums.documents)
    return sums.result()


@dataclass(frozen=True)
class Share:
    """One process's part in scoring a text that several score together.

    Attributes:
        process: its number, from 0.
        processes: how many there are. Each makes as many forward passes as any other, so that a model whose weights
            are spread over them can be scored.
        add: adds up an array of float64 over all of them.
    """

    process: int = 0
    processes: int = 1
    add: Callable[[Floats], Floats] = lambda sums: sums


class CutText:
    """Documents that are encoded once, to be scored again and again.

    Args:
        model: of the kind that is to be scored; it says how long a window may be.
        vocabulary: its tokenizer.
        texts: documents; one without text is skipped.
        context_length: tokens in a window, as for `bits_per_byte`.

    Attributes:
        documents: how many had text.
        bytes: of text that is scored.

    Raises:
        XTokenError: no text, or none that anything predicts; a context that is too short or longer than the model's.
    """

    def __init__(
        self, model: Any, vocabulary: Vocabulary, texts: Iterable[str], *, context_length: int | None = None
    ) -> None:
        context = _context(model, vocabulary, context_length)
        self._vocabulary, self._class_of = vocabulary, _classes_of(vocabulary)
        sums = _Sums(self._class_of)
        self._windows = tuple(_windows(vocabulary, texts, context, sums, progress=False))
        self.documents, self._unscored_bytes = sums.documents, sums.unscored_bytes
        self.bytes = sum(int(window.widths.sum()) for window in self._windows)
        _check_text(self.documents)
        if not self.bytes:
            raise XTokenError("there is no text to score: nothing predicts the first token, and no document has more")

    def score(self, model: Any, *, batch_size: int = 8, share: Share | None = None) -> BitsPerByte:
        """Scores the documents with a causal LM, on the device it is on.

        Args:
            model: a Hugging Face causal LM; every part of it is left in the mode it came in.
            batch_size: windows in a forward pass, as for `bits_per_byte`.
            share: this process's part, where several score together; all get the result of the whole.
        """
        sums, share = _Sums(self._class_of), share or Share()
        sums.documents, sums.unscored_bytes = self.documents, self._unscored_bytes
        with _evaluating(model):
            _score_all(model, self._vocabulary, iter(self._windows), sums, batch_size, share)
        sums.add_over(share)
        return sums.result()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients. A model may train with parts in evaluation mode, so each is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _check_text(documents: int) -> None:
    if not documents:
        raise XTokenError("there is no text to score: every document is empty")


def _score_all(
    model: Any, vocabulary: Vocabulary, windows: Iterator[_Window], sums: _Sums, batch_size: int, share: Share
) -> None:
    """Deals the forward passes out in turn; a process without one in the last round makes one that does not count."""
    while group := list(islice(windows, batch_size * _BATCHES_SORTED * share.processes)):
        group.sort(key=lambda window: len(window.ids))  # neighbours of one length waste no padding
        passes = list(_passes(group, batch_size, _LOGITS_A_PASS // vocabulary.size))
        for start in range(0, len(passes), share.processes):
            number = start + share.process
            if number < len(passes):
                _score(model, vocabulary, passes[number], sums)
            else:
                _score(model, vocabulary, passes[0], _Sums(sums.class_of))


def _classes_of(vocabulary: Vocabulary) -> Ints:
    """The number of each token's class, int64 [V]."""
    number = {name: n for n, name in enumerate(CLASSES)}
    # A special token spells no bytes; an unknown one stands for some all the same, and is the last class.
    return np.array([len(CLASSES) if name is None else number[name] for name in token_classes(vocabulary)], np.int64)


class _Sums:
    """Tokens, bytes and nats by class of token."""

    def __init__(self, class_of: Ints) -> None:
        self.class_of = class_of
        self.tokens, self.bytes = np.zeros(len(CLASSES) + 1, np.int64), np.zeros(len(CLASSES) + 1, np.int64)
        self.nats = np.zeros(len(CLASSES) + 1)
        self.documents = self.unscored_bytes = 0

    def add_over(self, share: Share) -> None:
        """Makes the sums those of all processes; float64 counts exactly up to 2**53."""
        self.nats, tokens, widths = share.add(np.stack([self.nats, self.tokens, self.bytes]))
        self.tokens, self.bytes = tokens.astype(np.int64), widths.astype(np.int64)

    def add(self, ids: Ints, widths: Ints, nats: NDArray[np.float64]) -> None:
        classes = self.class_of[ids]
        np.add.at(self.tokens, classes, 1)
        np.add.at(self.bytes, classes, widths)
        np.add.at(self.nats, classes, nats)

    def _score(self, numbers: Sequence[int]) -> Score:
        rows = list(numbers)
        bits = float(self.nats[rows].sum() / math.log(2))
        return Score(int(self.tokens[rows].sum()), int(self.bytes[rows].sum()), bits)

    def result(self) -> BitsPerByte:
        names = [*CLASSES, "unknown"]
        classes = {name: self._score([n]) for n, name in enumerate(names) if self.tokens[n]}
        if any(name in classes for name in NUMERALS):
            classes[NUMERALS_NAME] = self._score([CLASSES.index(name) for name in NUMERALS])
        return BitsPerByte(self._score(range(len(names))), classes, self.documents, self.unscored_bytes)


def _context(model: Any, vocabulary: Vocabulary, asked: int | None) -> int:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or None
    if asked is None:
        return min(positions or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
    shortest = max(len(document_prefix(vocabulary)) + 1, 2)
    if asked < shortest:
        raise XTokenError(f"a context of {asked} tokens predicts nothing here; it must be at least {shortest}")
    if positions is not None and asked > positions:
        raise XTokenError(f"a context of {asked} tokens is longer than the {positions} positions the model has")
    return asked


def _windows(
    vocabulary: Vocabulary, texts: Iterable[str], context: int, sums: _Sums, progress: bool
) -> Iterator[_Window]:
    prefix, remaining = np.asarray(document_prefix(vocabulary), np.int64), iter(texts)
    with tqdm(desc="scoring", unit=" documents", disable=not progress, dynamic_ncols=True) as bar:
        while batch := list(islice(remaining, _BATCH_OF_TEXTS)):
            for spans in vocabulary.encode_batch([text for text in batch if text]):
                widths = np.diff(spans.ends, prepend=0)
                if len(widths):  # what a tokenizer drops at the end is text all the same
                    widths[-1] += spans.length - spans.ends[-1]
                sums.documents += 1
                sums.unscored_bytes += _unscored(widths, spans.length, has_prefix=len(prefix) > 0)
                yield from _cut(spans.ids, widths, prefix, context)
            bar.update(len(batch))


def _unscored(widths: Ints, length: int, *, has_prefix: bool) -> int:
    """The bytes that no scored token covers."""
    if not len(widths):
        return length
    return 0 if has_prefix else int(widths[0])


def _cut(ids: Ints, widths: Ints, prefix: Ints, context: int) -> Iterator[_Window]:
    """Windows of at most `context` tokens, each with the prefix in front, that score every token once."""
    room = context - len(prefix)
    step = max(1, int(room * _STEP))
    scored = 0 if len(prefix) else 1  # without a prefix nothing predicts the first token
    begin = 0
    while scored < len(ids):
        end = min(begin + room, len(ids))
        body = np.concatenate([prefix, ids[begin:end]])
        yield _Window(body, widths[scored:end], len(prefix) + scored - begin)
        scored, begin = end, min(begin + step, len(ids))


def _passes(windows: Sequence[_Window], most: int, tokens: int) -> Iterator[Sequence[_Window]]:
    """Cuts windows that rise in length into forward passes of at most `most` windows and about `tokens` tokens."""
    start = 0
    while start < len(windows):
        end = start + 1
        # The last window is the longest, and the others are padded to it.
        while end < min(start + most, len(windows)) and (end + 1 - start) * len(windows[end].ids) <= tokens:
            end += 1
        yield windows[start:end]
        start = end


def _score(model: Any, vocabulary: Vocabulary, windows: Sequence[_Window], sums: _Sums) -> None:
    """One forward pass."""
    ids, mask = padded([window.ids for window in windows], model.device)
    logits = causal_logits(model, ids, mask)
    for row, window in enumerate(windows):
        targets = torch.from_numpy(window.ids[window.first :]).to(model.device)
        predictions = logits[row, window.first - 1 : len(window.ids) - 1]
        log_probs = flat_log_probs(predictions, vocabulary.size, 1.0, "model")
        nats = -log_probs.gather(1, targets[:, None]).squeeze(1).double().cpu().numpy()
        sums.add(window.ids[window.first :], window.widths, nats)
