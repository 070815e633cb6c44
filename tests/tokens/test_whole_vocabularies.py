"""What is done to a whole vocabulary at once is what the plain rule does token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from small_tokenizers import SMALL, byte_of_char, small, splitting_json, tiktoken_ranks
from xtoken.tokens import Family, Vocabulary, vocabulary
from xtoken.tokens.classes import CLASSES, class_numbers, class_of
from xtoken.tokens.families import byte_level_bytes, byte_level_pieces, piece_bytes
from xtoken.tokens.merges import merges_by_rank

# Bytes of every class, few enough to meet in a token.
BYTES = st.lists(st.sampled_from(list(b" \t0129aZ.~\x00\x7f\xe7\x9a\x84\xff")), max_size=5).map(bytes)


def plain_merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Every cut of every token looked up, in the order of the ranks."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += sorted(
            [(a, b) for a, b in cuts if a in ranks and b in ranks], key=lambda c: (ranks[c[0]], ranks[c[1]])
        )
    return merges


def check_merges(tokens: Sequence[bytes]) -> None:
    firsts, seconds = merges_by_rank(tokens)
    assert [(tokens[a], tokens[b]) for a, b in zip(firsts, seconds, strict=True)] == plain_merges(tokens)


@given(st.lists(st.lists(st.sampled_from(list(b"ab\x00\xff")), max_size=6).map(bytes), unique=True, max_size=40))
def test_merges_are_the_cuts_in_two_tokens(tokens: list[bytes]) -> None:
    check_merges(tokens)


def test_merges_of_a_trained_vocabulary_in_any_order() -> None:
    check_merges(list(tiktoken_ranks()))
    check_merges(list(tiktoken_ranks())[::-1])
    check_merges([b"ab" * 70, b"ab" * 35, b"a", b"b" + b"ab" * 69])


def byte_level(tokens: Sequence[bytes]) -> Vocabulary:
    """A byte-level vocabulary of exactly these tokens."""
    char_of = {byte: char for char, byte in byte_of_char().items()}
    vocab = {"".join(char_of[b] for b in token): i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Vocabulary.from_tokenizer(tokenizer)


@given(st.lists(BYTES.filter(bool), unique=True, min_size=1, max_size=40))
def test_classes_of_a_vocabulary_are_those_of_its_tokens(tokens: list[bytes]) -> None:
    found = class_numbers(byte_level(tokens)).tolist()
    assert [CLASSES[n] for n in found] == [class_of(token) for token in tokens]


@pytest.mark.parametrize("name", SMALL)
def test_classes_of_every_family(name: str) -> None:
    found = class_numbers(small(name).vocabulary).tolist()
    assert found == [CLASSES.index(class_of(token)) if token else -1 for token in small(name).vocabulary.tokens]


def test_every_byte_alone_is_in_its_class() -> None:
    tokens = [bytes([b]) for b in range(256)] + [b" " + bytes([b]) for b in range(256)]
    assert [CLASSES[n] for n in class_numbers(byte_level(tokens)).tolist()] == [class_of(token) for token in tokens]


@given(st.lists(st.text(st.sampled_from([*byte_of_char(), *"的 \n\U0001f642\u0144\u0145"]), max_size=4)))
def test_pieces_are_read_as_one_by_one(pieces: list[str]) -> None:
    expected = [piece_bytes(p, Family.BYTE_LEVEL, meta=None, byte_fallback=False, prefix="") for p in pieces]
    assert byte_level_bytes(pieces) == expected


@given(st.lists(st.binary(max_size=5)))
def test_pieces_are_spelled_and_read_back(tokens: list[bytes]) -> None:
    pieces = byte_level_pieces(tokens)
    assert byte_level_bytes(pieces) == tokens
    assert all(
        byte_of_char()[c] == b for piece, t in zip(pieces, tokens, strict=True) for c, b in zip(piece, t, strict=True)
    )


@pytest.mark.parametrize("name", SMALL)
def test_a_file_without_its_merges_is_else_the_same(name: str) -> None:
    text = small(name).vocabulary._json
    whole, light = json.loads(text), vocabulary._without_merges(text)
    if "merges" in whole["model"]:
        assert light["model"]["merges"] == []
        whole["model"]["merges"] = []
    assert light == whole


def test_a_token_spelled_like_the_merges_is_no_merges() -> None:
    tokenizer = Tokenizer.from_str(splitting_json())
    written = ['"merges":[', '\\"merges":["a","b"]}}', '"merges":[["a","b"]]}}']
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in written])
    read = Vocabulary.from_tokenizer(tokenizer)
    whole = json.loads(tokenizer.to_str())
    assert {text.encode() for text in written} <= set(read.tokens)
    assert vocabulary._without_merges(tokenizer.to_str()) == {**whole, "model": {**whole["model"], "merges": []}}
    bare = Tokenizer(models.BPE({'"merges":[': 0, "a": 1}, []))
    assert vocabulary._without_merges(bare.to_str()) == json.loads(bare.to_str())


def test_the_same_tokenizer_is_told_by_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    one, copy = (Vocabulary.from_tokenizer(Tokenizer.from_str(splitting_json())) for _ in range(2))
    assert one.is_same_as(one)
    assert one.is_same_as(copy)
    other = Tokenizer.from_str(splitting_json())
    other.normalizer = None  # equal tokens, other ids for some text
    assert not one.is_same_as(Vocabulary.from_tokenizer(other))

    def fail(_: object) -> str:
        raise AssertionError("computed")

    monkeypatch.setattr(vocabulary, "fingerprint", fail)
    assert not copy.is_same_as(small("packing").vocabulary)
