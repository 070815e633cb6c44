"""Worked examples on vocabularies small enough to read: weights, repeated pieces, and rows that stay empty."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from small_tokenizers import byte_of_char, small
from xtoken.projection import build_projection, strict_partition
from xtoken.tokens import Vocabulary

CHAR_OF = {byte: char for char, byte in byte_of_char().items()}


def byte_level(*tokens: bytes, specials: tuple[str, ...] = (), first: tuple[bytes, ...] = ()) -> Vocabulary:
    """All single bytes and some tokens; a word that is a token is taken whole, any other in single bytes."""
    listed = dict.fromkeys([*first, *(bytes([b]) for b in range(256)), *tokens])
    vocab = {"".join(CHAR_OF[b] for b in token): i for i, token in enumerate(listed)}
    tokenizer = Tokenizer(models.BPE(vocab, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(list(specials))
    return Vocabulary.from_tokenizer(tokenizer)


def row(student: Vocabulary, teacher: Vocabulary, token: bytes) -> dict[bytes, float]:
    """A student token's row, its teacher tokens by their bytes."""
    rows, cols, values = build_projection(student, teacher).to_coo()
    (i,) = (n for n, spelled in enumerate(student.tokens) if spelled == token)
    return {teacher.tokens[c]: float(v) for r, c, v in zip(rows, cols, values, strict=True) if r == i}


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (b"7", {b"7": 1.0}),
        (b"12", {b"1": 0.9 / 0.99, b"2": 0.09 / 0.99}),
        (b"123", {b"1": 0.9 / 0.999, b"2": 0.09 / 0.999, b"3": 0.009 / 0.999}),
        (b"1234", {b"1": 0.9 / 0.9999, b"2": 0.09 / 0.9999, b"3": 0.009 / 0.9999, b"4": 0.0009 / 0.9999}),
        (b"12345", {}),
        (b"11", {b"1": 1.0}),
        (b"121", {b"1": 0.909 / 0.999, b"2": 0.09 / 0.999}),
        (b"1221", {b"1": 0.9009 / 0.9999, b"2": 0.099 / 0.9999}),
        (b"11111", {}),
        (b" 5", {b" ": 0.9 / 0.99, b"5": 0.09 / 0.99}),
        ("é".encode(), {b"\xc3": 0.9 / 0.99, b"\xa9": 0.09 / 0.99}),
        (b"\xe7\x9a", {b"\xe7": 0.9 / 0.99, b"\x9a": 0.09 / 0.99}),
        (b"\xf0\x9f\x91\x8d\xf0\x9f", {}),
    ],
    ids=repr,
)
def test_rows(token: bytes, expected: dict[bytes, float]) -> None:
    found = row(byte_level(token), byte_level(), token)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), rtol=1e-6)


def test_the_printed_weights() -> None:
    """To three and four places: (0.909, 0.091), (0.9009, 0.0901, 0.0090), (0.9000, 0.0900, 0.0090, 0.0009)."""
    student, teacher = byte_level(b"12", b"123", b"1234"), byte_level()
    assert [round(v, 3) for v in row(student, teacher, b"12").values()] == [0.909, 0.091]
    assert [round(v, 4) for v in row(student, teacher, b"123").values()] == [0.9009, 0.0901, 0.0090]
    assert [round(v, 4) for v in row(student, teacher, b"1234").values()] == [0.9001, 0.0900, 0.0090, 0.0009]


def test_an_exact_match_goes_before_pieces() -> None:
    assert row(byte_level(b"12"), byte_level(b"12"), b"12") == {b"12": 1.0}


def test_of_several_ids_with_equal_bytes_the_one_that_texts_get_is_taken() -> None:
    """A byte-fallback vocabulary has `a` as a piece and as a byte piece, which has the lower id."""
    spm, packing = small("spm-bpe").vocabulary, small("packing").vocabulary
    twice = {token for token in spm.tokens if token and spm.tokens.count(token) > 1}
    assert len(twice) > 20
    rows, cols, _ = build_projection(packing, spm).to_coo()
    by_row = dict(zip(rows.tolist(), cols.tolist(), strict=True))
    for i, token in enumerate(packing.tokens):
        if token in twice:
            assert by_row[i] == len(spm.tokens) - 1 - spm.tokens[::-1].index(token)
            assert by_row[i] > spm.tokens.index(token)


def test_special_tokens_go_to_the_special_token_of_their_role() -> None:
    student = byte_level(specials=("<s>", "</s>", "<pad>", "<|weird|>", "[CLS]"))
    teacher = byte_level(b"</s>", specials=("<|endoftext|>", "<bos>", "<|weird|>", "<unk>"))
    rows, cols, values = build_projection(student, teacher).to_coo()
    found = {student.contents[r]: (c, v) for r, c, v in zip(rows, cols, values, strict=True) if r in student.roles}
    names = {name: teacher.contents[c] for name, (c, v) in found.items() if v == 1}
    assert names == {"<s>": "<bos>", "</s>": "<|endoftext|>", "<|weird|>": "<|weird|>"}


def test_of_several_special_tokens_of_one_role_the_lowest_id_is_taken() -> None:
    student = byte_level(specials=("</s>", "<|end_of_text|>"))
    teacher = byte_level(specials=("<|endoftext|>", "<eos>", "[EOS]"))
    rows, cols, _ = build_projection(student, teacher).to_coo()
    assert cols[rows >= 256].tolist() == [256, 256]
    pairs = strict_partition(student, teacher)
    assert (pairs.student_ids[-1], pairs.teacher_ids[-1], len(pairs)) == (256, 256, 257)


def test_a_special_token_never_becomes_text_nor_text_a_special_token() -> None:
    """`</s>` the event and `</s>` the four characters are two things, whichever side holds which."""
    event, text = byte_level(specials=("</s>",)), byte_level(b"</s>")
    assert len(row(event, text, b"<")) == 1
    rows, _, _ = build_projection(event, text).to_coo()
    assert 256 not in rows
    assert row(text, event, b"</s>").keys() == {b"<", b"/", b"s", b">"}


@pytest.mark.parametrize("teacher", ["spm-unknown", "hf-unigram", "spm-nmt"])
@pytest.mark.parametrize("written", [b"</s>", b"<s>", b"<unk>"])
def test_a_teacher_that_lists_its_special_pieces_does_not_read_them_in_a_token(teacher: str, written: bytes) -> None:
    made = small(teacher)
    rows, cols, _ = build_projection(byte_level(written), made.vocabulary).to_coo()
    carried = cols[rows == 256].tolist()
    assert all(made.table[c] is not None for c in carried)


def test_text_that_the_teacher_cannot_spell_has_no_row() -> None:
    """A cut through the unknown token would say that the student's token is any unknown thing."""
    assert row(byte_level("犭".encode()), small("spm-unknown").vocabulary, "犭".encode()) == {}


def test_an_id_not_in_use_has_no_row() -> None:
    tokenizer = Tokenizer(models.BPE({CHAR_OF[b]: b for b in range(256)} | {"ab": 300}, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    student = Vocabulary.from_tokenizer(tokenizer)
    projection = build_projection(student, byte_level())
    assert projection.shape == (301, 256)
    sums = projection.row_sums()
    assert (sums[256:300] == 0).all()
    assert (sums[:256] == 1).all()
    assert sums[300] == pytest.approx(1)


def test_a_row_keeps_the_space_before_its_token() -> None:
    """T5's normaliser strips a text; a student token is the middle of one."""
    made = small("spm-nmt")
    student = byte_level(b" xq", b" s", b", ", b"xq")
    rows, cols, values = build_projection(student, made.vocabulary).to_coo()
    for i in range(256, student.size):
        of_row = sorted(zip(-values[rows == i], cols[rows == i], strict=True))
        spelled = b"".join(made.table[c] or b"" for _, c in of_row)
        assert spelled in (student.tokens[i], student.tokens[i].rstrip()), student.tokens[i]
