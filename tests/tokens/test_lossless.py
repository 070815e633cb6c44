"""Spans of a batch are those of joining each text's tokens; a single wrong byte anywhere is seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hard_texts import HARD_TEXTS, texts
from small_tokenizers import CORPUS, SMALL, small
from xtoken.tokens import TokenSpans, Vocabulary
from xtoken.tokens.lossless import TokenBytes, lossless_spans
from xtoken.tokens.spans import spans_by_offsets

# Around the eight bytes of a word, and over several words.
TOKENS = (
    b"",
    b"a",
    b"\x00",
    b"ab",
    b"\x00\x00",
    b"\xff",
    b"1234567",
    b"12345678",
    b"123456789",
    *(b"x" * n for n in (15, 16, 17, 64)),
)


def plain_spans(vocabulary: Vocabulary, text: str) -> TokenSpans:
    """The reference: the tokens joined are compared with the text; where they differ, the library's offsets."""
    encoding, raw = vocabulary._tokenizer.encode(text, add_special_tokens=False), text.encode()
    ids = np.array(encoding.ids, np.int64)
    pieces = [vocabulary.tokens[i] for i in encoding.ids]
    if b"".join(pieces) == raw:
        return TokenSpans(ids, np.array([*accumulate(map(len, pieces))], np.int64), None, raw)
    return spans_by_offsets(ids, encoding.offsets, vocabulary.tokens, text, raw)


def check_batch(name: str, documents: Sequence[str]) -> None:
    vocabulary = small(name).vocabulary
    for text, found in zip(documents, vocabulary.encode_batch(documents), strict=True):
        expected = plain_spans(vocabulary, text)
        assert (found.ids.tolist(), found.ends.tolist()) == (expected.ids.tolist(), expected.ends.tolist()), text
        assert (found.verbatim is None) == (expected.verbatim is None), (name, text)
        assert found.verbatim is None or found.verbatim.tolist() == expected.verbatim.tolist()  # type: ignore[union-attr]
        assert (found.ids.dtype, found.ends.dtype, found.raw) == (np.int64, np.int64, text.encode())


@settings(max_examples=60)
@given(st.lists(texts(max_size=5), max_size=6))
def test_spans_of_a_batch_are_those_of_joining(documents: list[str]) -> None:
    """Texts that a tokenizer rewrites and texts that it does not stand in one batch."""
    for name in SMALL:
        check_batch(name, documents)


@pytest.mark.parametrize("name", SMALL)
def test_spans_of_hard_texts_are_those_of_joining(name: str) -> None:
    check_batch(name, [*HARD_TEXTS, *CORPUS[:13], "a" * 3000, " " * 3000, "ab" * 1500])


@given(st.lists(st.lists(st.integers(0, len(TOKENS) - 1), max_size=6), max_size=5), st.data())
def test_exactly_the_texts_that_their_tokens_spell_get_spans(ids: list[list[int]], data: st.DataObject) -> None:
    raws = [b"".join([TOKENS[i] for i in row]) for row in ids]
    damaged = [data.draw(st.booleans()) and len(raw) > 0 for raw in raws]
    for n, raw in enumerate(raws):
        if damaged[n]:
            place = data.draw(st.integers(0, len(raw) - 1))
            other = data.draw(st.sampled_from([b"", b"\x00\x00", bytes([raw[place] ^ 1]), bytes([raw[place] ^ 128])]))
            raws[n] = raw[:place] + other + raw[place + 1 :]
    found = lossless_spans(TokenBytes.of(TOKENS), [np.array(row, np.int64) for row in ids], raws)
    for row, raw, was_damaged, spans in zip(ids, raws, damaged, found, strict=True):
        assert (spans is None) == was_damaged
        if spans is not None:
            assert spans.ends.tolist() == [*accumulate(len(TOKENS[i]) for i in row)]
            assert (spans.ids.tolist(), spans.raw, spans.verbatim) == (row, raw, None)


@pytest.mark.parametrize("place", range(80))
def test_every_byte_of_a_long_token_counts(place: int) -> None:
    """80 bytes are ten words; and a byte more than the token has is none of its business."""
    token = bytes(range(80))
    wrong = token[:place] + bytes([token[place] ^ 64]) + token[place + 1 :]
    table = TokenBytes.of([token, b"!"])
    ids = [np.array([0, 1]), np.array([1, 0]), np.array([0])]
    found = lossless_spans(table, ids, [wrong + b"!", b"!" + token, wrong])
    assert [spans is None for spans in found] == [True, False, True]


def test_the_table_holds_each_token_in_whole_words() -> None:
    table = TokenBytes.of(TOKENS)
    raw = table.words.tobytes()
    for token, first, length in zip(TOKENS, table.first.tolist(), table.lengths.tolist(), strict=True):
        assert raw[8 * first : 8 * first + length] == token
        assert raw[8 * first + length : 8 * first + max(-(-length // 8), 1) * 8].strip(b"\x00") == b""
    assert lossless_spans(table, [], []) == []
    assert len(TokenBytes.of([]).lengths) == 0
