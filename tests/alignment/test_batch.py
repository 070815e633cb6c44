"""Whole batches give what the plain way gives text by text: spans by joining tokens, chunks by `byte_chunks`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hard_texts import HARD_TEXTS, texts
from small_tokenizers import CORPUS, SMALL, small
from xtoken.alignment import align_spans_batch, batch
from xtoken.alignment.bytes import byte_chunks
from xtoken.errors import XTokenError
from xtoken.tokens import TokenSpans, Vocabulary, lossless
from xtoken.tokens.blocks import blocks

PAIRS = list(product(SMALL, SMALL))
REPETITIVE = ("a" * 3000, " " * 2000, "ab" * 1500, "的" * 500)


def check_batch(name_s: str, name_t: str, spans_s: Sequence[TokenSpans], spans_t: Sequence[TokenSpans]) -> None:
    student, teacher = small(name_s).vocabulary, small(name_t).vocabulary
    found = align_spans_batch(student, teacher, spans_s, spans_t)
    assert len(found) == len(spans_s)
    for one, other, alignment in zip(spans_s, spans_t, found, strict=True):
        expected = byte_chunks(student, teacher, one, other)
        assert alignment.chunks.dtype == np.int64
        assert alignment.chunks.tolist() == expected.tolist(), (name_s, name_t, one.raw)
        assert (alignment.student_ids is one.ids, alignment.teacher_ends is other.ends) == (True, True)


def specials(vocabulary: Vocabulary) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(sorted(vocabulary.roles) or [0]), max_size=2 if vocabulary.roles else 0)


@settings(max_examples=30)
@given(st.lists(texts(max_size=4), max_size=5))
def test_chunks_of_a_batch_are_those_of_its_texts(documents: list[str]) -> None:
    spans = {name: small(name).vocabulary.encode_batch(documents) for name in SMALL}
    for student, teacher in PAIRS:
        check_batch(student, teacher, spans[student], spans[teacher])


@settings(max_examples=60)
@given(st.data())
def test_chunks_between_special_tokens_are_those_of_its_texts(data: st.DataObject) -> None:
    """One, two or none at each end, on either side: paired, left alone, crossing."""
    documents = data.draw(st.lists(texts(max_size=3), min_size=1, max_size=4))
    names = data.draw(st.sampled_from(PAIRS))
    sides = []
    for name in names:
        vocabulary = small(name).vocabulary
        around = st.tuples(specials(vocabulary), specials(vocabulary))
        sides.append([spans.with_specials(*data.draw(around)) for spans in vocabulary.encode_batch(documents)])
    check_batch(*names, *sides)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_chunks_of_hard_texts(student: str, teacher: str) -> None:
    documents = [*HARD_TEXTS, *CORPUS[:13], *REPETITIVE]
    sides = []
    for name in (student, teacher):
        vocabulary = small(name).vocabulary
        plain = vocabulary.encode_batch(documents)
        sides.append(plain + [spans.with_specials(vocabulary.prefix_ids, vocabulary.suffix_ids) for spans in plain])
    check_batch(student, teacher, *sides)


def test_most_texts_never_see_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Special tokens around a text do not make it slow."""
    student, teacher = small("packing").vocabulary, small("tiktoken").vocabulary
    spans_s = [spans.with_specials([900], [901]) for spans in student.encode_batch(CORPUS[:50])]
    spans_t = [spans.with_specials([], []) for spans in teacher.encode_batch(CORPUS[:50])]

    def fail(*_: object) -> None:
        raise AssertionError("aligned on its own")

    monkeypatch.setattr(batch, "byte_chunks", fail)
    assert len(align_spans_batch(student, teacher, spans_s, spans_t)) == 50
    with pytest.raises(AssertionError, match="on its own"):
        align_spans_batch(student, teacher, [spans_s[0].with_specials([900])], spans_t[:1])


def by_hand(text: bytes, ids: list[int], ends: list[int]) -> TokenSpans:
    return TokenSpans(np.array(ids, np.int64), np.array(ends, np.int64), None, text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (([70, 71, 72], [1, 2, 3]), ([70, 71], [1, 2])),  # one side stops before the text does
        (([70, 71, 72], [1, 2, 3]), ([70, 71, 901], [1, 2, 3])),  # and its special token stands at the end
        (([70, 71, 901], [1, 2, 3]), ([70, 71, 901], [1, 2, 3])),
        (([70, 900, 71, 72], [1, 1, 2, 3]), ([70, 71, 72], [1, 2, 3])),  # a special token inside
        (([900, 70], [0, 3]), ([900], [0])),
        (([900], [0]), ([900], [0])),
        (([], []), ([70], [3])),
    ],
)
def test_spans_made_by_hand(one: tuple[list[int], list[int]], other: tuple[list[int], list[int]]) -> None:
    for left, right in ((one, other), (other, one)):
        sides = by_hand(b"abc", *left), by_hand(b"abc", *right)
        whole = small("packing").vocabulary.encode("the end").with_specials([900])
        check_batch("packing", "packing", [sides[0], whole, sides[0]], [sides[1], whole, sides[1]])


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 12))
def test_blocks_are_runs_as_long_as_the_limit_allows(sizes: list[int], limit: int) -> None:
    runs = [sizes[run] for run in blocks(sizes, limit)]
    assert [size for run in runs for size in run] == sizes
    assert all(run and (sum(run) <= limit or len(run) == 1) for run in runs)
    assert all(sum(run) + following[0] > limit for run, following in pairwise(runs))


def test_a_batch_of_many_blocks_is_its_texts_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (batch, lossless):
        monkeypatch.setattr(module, "blocks", lambda sizes: blocks(sizes, 40))
    sides = [small(name).vocabulary.encode_batch([*HARD_TEXTS, *CORPUS[:20]]) for name in ("packing", "splitting")]
    for text, spans in zip([*HARD_TEXTS, *CORPUS[:20]], sides[0], strict=True):
        one = small("packing").vocabulary.encode(text)
        assert (spans.raw, spans.ids.tolist(), spans.ends.tolist()) == (one.raw, one.ids.tolist(), one.ends.tolist())
    check_batch("packing", "splitting", *sides)


def test_batches_of_two_sizes_are_refused() -> None:
    packing = small("packing").vocabulary
    spans = packing.encode_batch(["a", "b"])
    with pytest.raises(XTokenError, match="two different texts"):
        align_spans_batch(packing, packing, spans, spans[:1])
    with pytest.raises(XTokenError, match="two different texts"):
        align_spans_batch(packing, packing, spans, spans[::-1])
