"""What alignment costs: against the tokenizers, a token, and as texts grow or repeat themselves.

    python -m benchmarks.alignment

Timed is all that is ours, from ids and texts to chunks: bytes of the texts, spans of both sides, the check that every
token spells its place, and the chunks. It runs on one core, and so does `tokenizers` where the share is of one core, as
in a data loader's worker; the other share is of the wall time on all cores. Texts are Python's own: the source of its
library, and the language reference inside `pydoc_data`.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from scripts.fetch_tokenizers import fetch

from benchmarks.common import Figure, alternate, ratio
from xtoken.alignment import align_spans_batch
from xtoken.tokens import TokenSpans, Vocabulary
from xtoken.tokens.hf import load_tokenizer
from xtoken.tokens.lossless import lossless_spans

__all__ = ["figures"]

_SHARE = 0.05
_TOKENS_A_SECOND = 10e6
# Linear is 2; the rest is for caches that a longer text no longer fits.
_DOUBLING = 2.2
_TURNS, _ENCODING_TURNS = 7, 3
_BATCH = 512  # texts, as `prepare` takes them
_SHORT = 800  # bytes, about 180 tokens
_LONGEST = 2**20  # tokens of the longest single text


class Pair:
    """Llama-3 as student and Qwen3 as teacher."""

    def __init__(self) -> None:
        paths = [fetch(name) for name in ("llama-3", "qwen3")]
        self.vocabularies = [Vocabulary.from_pretrained(path) for path in paths]
        self.tokenizers = [load_tokenizer(path).tokenizer for path in paths]
        for tokenizer in self.tokenizers:
            tokenizer.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """What `tokenizers` does with the texts, both sides."""
        return [tokenizer.encode_batch(list(texts), add_special_tokens=False) for tokenizer in self.tokenizers]

    def ids(self, texts: Sequence[str]) -> list[list[Any]]:
        """For each side, int64 [n] for each text."""
        return [[np.array(encoding.ids, np.int64) for encoding in side] for side in self.encode(texts)]

    def align(self, texts: Sequence[str], ids: Sequence[Sequence[Any]]) -> None:
        """All that is ours, a batch at a time."""
        for at in range(0, len(texts), _BATCH):
            batch = slice(at, at + _BATCH)
            self._align_batch(texts[batch], [side[batch] for side in ids])

    def _align_batch(self, texts: Sequence[str], ids: Sequence[Sequence[Any]]) -> None:
        spans: list[list[TokenSpans]] = []
        for vocabulary, rows in zip(self.vocabularies, ids, strict=True):
            found = lossless_spans(vocabulary.token_bytes, rows, [text.encode() for text in texts])
            spans.append([one for one in found if one is not None])
            assert len(spans[-1]) == len(texts), "a text of the benchmark is rewritten by a tokenizer"
        align_spans_batch(*self.vocabularies, *spans)


@cache
def pair() -> Pair:
    return Pair()


@cache
def code() -> tuple[str, ...]:
    """The modules of Python's standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return tuple(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")) if path.stat().st_size)


@cache
def prose() -> tuple[str, ...]:
    """The language reference, topic by topic."""
    return tuple(import_module("pydoc_data.topics").topics.values())


def documents() -> list[str]:
    """Prose and code, whole documents; every other one, which both sides encode in seconds."""
    return [*prose(), *code()][::2]


def short_documents() -> list[str]:
    """The same, cut short."""
    return [text[at : at + _SHORT] for text in documents() for at in range(0, len(text), _SHORT)]


@contextmanager
def one_core() -> Iterator[None]:
    """`tokenizers` without its threads; it reads the variable at each call."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    yield
    os.environ.pop("TOKENIZERS_PARALLELISM")
    os.environ |= {} if before is None else {"TOKENIZERS_PARALLELISM": before}


def share_and_rate(name: str, texts: Sequence[str]) -> list[Figure]:
    """Ours over theirs, theirs on one core and on all, and our rate."""
    ids = pair().ids(texts)
    student, teacher = (sum(map(len, side)) for side in ids)

    def alone() -> None:
        with one_core():
            pair().encode(texts)

    work = [lambda: pair().align(texts, ids), lambda: pair().encode(texts), alone]
    ours, theirs, theirs_alone = alternate(work, _ENCODING_TURNS)
    seconds = ours.median
    what = f"{len(texts):,} texts, {student:,} student and {teacher:,} teacher tokens"
    times = f"ours {seconds * 1e3:.0f} ms, theirs {theirs_alone.median * 1e3:.0f}"
    on_all = f"on {os.cpu_count()} cores {theirs.median * 1e3:.0f}: {ratio(ours, theirs):.3f}"
    return [
        Figure(
            f"alignment / tokenizing, a core, {name}",
            ratio(ours, theirs_alone),
            _SHARE,
            note=f"{what}; {times}, {on_all}",
        ),
        Figure(
            f"alignment, {name}",
            (student + teacher) / seconds / 1e6,
            _TOKENS_A_SECOND / 1e6,
            unit="M tokens/s a core",
            at_least=True,
            note=f"both sides counted; {student / seconds / 1e6:.1f} M student tokens/s",
        ),
    ]


def doubling(name: str, text: str, *, repeats: int = 1) -> Figure:
    """Time of a text over time of its first half.

    Args:
        name: of the text.
        text: the whole.
        repeats: runs a turn, for texts of which one is too quick to time.
    """

    def work(part: str) -> Callable[[], None]:
        ids = pair().ids([part])

        def run() -> None:
            for _ in range(repeats):
                pair().align([part], ids)

        return run

    whole, half = alternate([work(text), work(text[: len(text) // 2])], _TURNS)
    note = f"{len(text):,} bytes in {whole.median / repeats * 1e3:.2f} ms"
    return Figure(f"alignment, twice the length: {name}", ratio(whole, half), _DOUBLING, note=note)


def long_text(tokens: int) -> str:
    """Prose and code, over and over, of about so many tokens of the student."""
    text = "".join(documents())
    rate = len(text) / sum(map(len, pair().ids([text])[0]))
    size = int(tokens * rate)
    return (text * (size // len(text) + 1))[:size]


def figures() -> list[Figure]:
    """The figures, in under a minute."""
    found = share_and_rate("documents", documents()) + share_and_rate(f"texts of {_SHORT} bytes", short_documents())
    for tokens in (2**16, 2**18, _LONGEST):
        found.append(doubling(f"prose and code, {tokens:,} tokens", long_text(tokens), repeats=max(1, 2**18 // tokens)))
    for name, text in (
        ("'a' x 200,000", "a" * 200_000),
        ("40,000 spaces", " " * 40_000),
        ("'ab' x 100,000", "ab" * 100_000),
    ):
        found.append(doubling(name, text, repeats=20))
    return found


if __name__ == "__main__":
    for figure in figures():
        print(figure)
