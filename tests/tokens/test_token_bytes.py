"""Every id stands for the bytes that the tokenizer's own library says it does; special tokens stand for none."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from small_tokenizers import SMALL, byte_of_char, small
from xtoken.tokens import Family, Role, Vocabulary
from xtoken.tokens.classes import CLASSES, class_of, token_classes


@pytest.mark.parametrize("name", SMALL)
def test_the_table_equals_the_one_made_by_another_route(name: str) -> None:
    made = small(name)
    assert len(made.vocabulary.tokens) == made.vocabulary.size == len(made.table)
    assert made.vocabulary.tokens == tuple(spelled or b"" for spelled in made.table)


@pytest.mark.parametrize("name", SMALL)
def test_exactly_the_tokens_that_spell_nothing_have_a_role(name: str) -> None:
    made = small(name)
    assert set(made.vocabulary.roles) == {i for i, spelled in enumerate(made.table) if spelled is None}
    assert set(made.vocabulary.contents) == set(made.vocabulary.roles)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("packing", Family.BYTE_LEVEL),
        ("prefix-space", Family.BYTE_LEVEL),
        ("tiktoken", Family.BYTE_LEVEL),
        ("spm-bpe", Family.SENTENCEPIECE_BPE),
        ("gemma", Family.SENTENCEPIECE_BPE),
        ("spm-nmt", Family.SENTENCEPIECE_UNIGRAM),
        ("hf-unigram", Family.SENTENCEPIECE_UNIGRAM),
        ("wordpiece", Family.WORDPIECE),
    ],
)
def test_families_are_recognised(name: str, family: Family) -> None:
    assert small(name).vocabulary.family is family


def test_each_of_the_256_bytes_has_one_character() -> None:
    assert sorted(byte_of_char().values()) == list(range(256))
    tokens = small("packing").vocabulary.tokens
    assert {bytes([b]) for b in range(256)} <= set(tokens)


def test_a_byte_piece_is_a_byte_only_with_byte_fallback() -> None:
    vocab = {"<unk>": 0, "▁": 1, "<0x41>": 2}
    for fallback, expected in ((True, b"A"), (False, b"<0x41>")):
        tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=fallback))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        assert Vocabulary.from_tokenizer(tokenizer).tokens[2] == expected


def test_an_added_token_of_spaces_spells_spaces() -> None:
    """Gemma lists its runs of `▁` as added tokens too, but reaches them through its merges: they are spaces."""
    gemma = small("gemma").vocabulary
    spans = gemma.encode("a  b")
    assert b"".join(gemma.tokens[i] for i in spans.ids) == b"a  b"


def test_an_added_token_outside_the_model_spells_its_own_text() -> None:
    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "a": 2}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("<é>", normalized=False)])
    assert Vocabulary.from_tokenizer(tokenizer).tokens[3:] == ("▁▁".encode(), "<é>".encode())


def test_an_id_that_no_token_has_is_empty_and_absent() -> None:
    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "a": 4}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.size == 5
    assert vocabulary.tokens[2:4] == (b"", b"")
    assert vocabulary.absent == {2, 3}


def test_roles_are_read_off_the_special_tokens_own_names() -> None:
    packing, splitting, wordpiece = (small(name).vocabulary for name in ("packing", "splitting", "wordpiece"))
    assert list(packing.roles.values()) == [Role.BOS, Role.EOS, Role.EOT]
    assert list(splitting.roles.values()) == [Role.EOS, Role.OTHER, Role.EOT]
    assert list(wordpiece.roles.values()) == [Role.PAD, Role.UNK, Role.CLS, Role.SEP, Role.MASK]


def test_named_ids_are_those_of_the_roles() -> None:
    packing, wordpiece = small("packing").vocabulary, small("wordpiece").vocabulary
    assert (packing.bos_id, packing.eos_id, packing.pad_id, packing.unk_id) == (900, 901, None, None)
    assert (wordpiece.bos_id, wordpiece.eos_id, wordpiece.pad_id, wordpiece.unk_id) == (None, None, 0, 1)


@pytest.mark.parametrize(
    ("name", "prefix", "suffix"),
    [
        ("packing", ["<|begin_of_text|>"], []),
        ("splitting", [], []),
        ("prefix-space", ["<s>"], ["</s>"]),
        ("hf-unigram", ["<s>"], ["</s>"]),
        ("wordpiece", ["[CLS]"], ["[SEP]"]),
        ("tiktoken", [], []),
    ],
)
def test_what_a_tokenizer_adds_by_itself_is_known(name: str, prefix: list[str], suffix: list[str]) -> None:
    vocabulary = small(name).vocabulary
    assert [vocabulary.contents[i] for i in vocabulary.prefix_ids] == prefix
    assert [vocabulary.contents[i] for i in vocabulary.suffix_ids] == suffix


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"7", "digits-1"),
        (b" 7", "digits-1"),
        (b" 42", "digits-2"),
        (b" 123", "digits-3"),
        (b" 20245", "digits-4+"),
        (b"  ", "whitespace"),
        (b",", "punctuation"),
        (b"a ", "other-ascii"),
        (b"123", "digits-3"),
        (b"2024", "digits-4+"),
        (b"1a", "other-ascii"),
        (b"  12", "other-ascii"),
        (b" the", "alphabetic"),
        (b"_init", "other-ascii"),
        (b" --", "punctuation"),
        (b" ", "whitespace"),
        (b"\n\t", "whitespace"),
        (b"\x00", "other-ascii"),
        ("的".encode(), "multibyte"),
        ("²".encode(), "multibyte"),
        (b"\xe7\x9a", "partial-utf8"),
        (b" \xe7", "partial-utf8"),
    ],
)
def test_classes_of_tokens(content: bytes, expected: str) -> None:
    assert class_of(content) == expected


@pytest.mark.parametrize("name", SMALL)
def test_every_token_that_spells_something_is_in_one_class(name: str) -> None:
    made = small(name)
    for spelled, found in zip(made.table, token_classes(made.vocabulary), strict=True):
        assert (found in CLASSES) if spelled else (found is None)
