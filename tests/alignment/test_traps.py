"""What other aligners get wrong: bytes that look alike, and ids that decode to nothing readable."""

from __future__ import annotations

import json
from itertools import product

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from small_tokenizers import SMALL, byte_of_char, small
from xtoken.alignment import align
from xtoken.projection import build_projection, strict_partition
from xtoken.tokens import Vocabulary


def byte_level(*words: str) -> Vocabulary:
    """A byte-level vocabulary of all single bytes and these words, each of which it takes whole."""
    char_of = {byte: char for char, byte in byte_of_char().items()}
    alphabet = [char_of[b] for b in range(256)]
    pieces = ["".join(char_of[b] for b in word.encode()) for word in words]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*alphabet, *pieces]))}
    tokenizer = Tokenizer(models.BPE(vocab, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return Vocabulary.from_tokenizer(tokenizer)


def metaspace(*words: str) -> Vocabulary:
    """A SentencePiece-like vocabulary of these words and byte pieces."""
    vocab = {piece: i for i, piece in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *words])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return Vocabulary.from_tokenizer(tokenizer)


LOOK_ALIKES = [
    ("的", " 的"),
    ("\t", "\n"),
    ("_init", " init"),
    (",", " ,"),
    ("\n", "\\n"),
    (" ", "\u00a0"),
    ("é", "e\u0301"),
]


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKES, ids=ascii)
def test_look_alikes_are_different_tokens(one: str, other: str) -> None:
    student, teacher = byte_level(one), byte_level(other)
    carried = set(strict_partition(student, teacher).student_ids.tolist())
    longer = [i for i, token in enumerate(student.tokens) if token == one.encode() and len(token) > 1]
    assert not carried & set(longer)
    assert strict_partition(student, byte_level(one)).student_ids.tolist() == list(range(student.size))


def test_a_tab_is_a_tab_in_every_family() -> None:
    tabbed = metaspace("▁", "\t", "\n")
    pairs = strict_partition(byte_level(), tabbed)
    by_student = dict(zip(pairs.student_ids.tolist(), pairs.teacher_ids.tolist(), strict=True))
    for char, piece in (("\t", "\t"), ("\n", "\n"), (" ", "▁")):
        (i,) = (n for n, token in enumerate(byte_level().tokens) if token == char.encode())
        j = by_student[i]
        assert tabbed.tokens[j] == char.encode()
        assert j in (1 + ord(char), json.loads(tabbed._tokenizer.to_str())["model"]["vocab"][piece])


def test_a_space_is_written_in_three_ways_and_a_newline_in_three() -> None:
    """`Ġ` and `▁` are a space, `Ċ` and `<0x0A>` a newline: the canonical form."""
    student, teacher = byte_level(" the", "\n\n"), metaspace("▁the")
    projection = build_projection(student, teacher)
    rows, cols, values = projection.to_coo()
    found = {student.tokens[r]: teacher.tokens[c] for r, c, v in zip(rows, cols, values, strict=True) if v == 1}
    assert found[b" the"] == b" the"
    assert found[b"\n"] == b"\n"
    assert found[b"\n\n"] == b"\n", "two newlines are the byte piece twice"


@pytest.mark.parametrize("method", ["bytes", "dp"])
def test_a_word_and_the_word_after_a_space_do_not_match(method: str) -> None:
    alignment = align(byte_level(" 的"), byte_level("的"), " 的", method)
    assert alignment.chunks.tolist() in ([[0, 1, 0, 2]], [[0, 1, 0, 4]], [])
    assert [0, 1, 1, 2] not in alignment.chunks.tolist()


@pytest.mark.parametrize("method", ["bytes", "dp"])
def test_ids_that_decode_to_the_replacement_character_are_not_one_another(method: str) -> None:
    """Two halves of a character both print as U+FFFD."""
    student, teacher = byte_level("\ufffd"), byte_level()
    for text in ("的", "犬的", "é", "\ufffd", "👍"):
        alignment = align(student, teacher, text, method)
        for s0, s1, t0, t1 in alignment.chunks.tolist():
            left = b"".join(student.tokens[i] for i in alignment.student_ids[s0:s1])
            right = b"".join(teacher.tokens[i] for i in alignment.teacher_ids[t0:t1])
            assert left == right
    partial = strict_partition(student, teacher)
    for s, t in zip(partial.student_ids.tolist(), partial.teacher_ids.tolist(), strict=True):
        assert student.tokens[s] == teacher.tokens[t]


@pytest.mark.parametrize(("student", "teacher"), list(product(SMALL, SMALL)))
def test_an_unknown_token_is_common_with_unknown_tokens_only(student: str, teacher: str) -> None:
    one, other = small(student), small(teacher)
    pairs = strict_partition(one.vocabulary, other.vocabulary)
    for s, t in zip(pairs.student_ids.tolist(), pairs.teacher_ids.tolist(), strict=True):
        assert one.table[s] == other.table[t]
        assert (one.table[s] is None) == (s in one.vocabulary.roles)
