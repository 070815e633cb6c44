"""Laws of spans: ends never fall, stay inside the text, and a token marked verbatim spells exactly what it covers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given

from hard_texts import HARD_TEXTS, texts
from small_tokenizers import SMALL, Small, small
from xtoken.errors import XTokenError
from xtoken.tokens import TokenSpans

LOSSLESS = ("packing", "tiktoken", "gemma")  # nothing rewritten; every byte can be spelled


def check(made: Small, text: str, spans: TokenSpans) -> None:
    raw = text.encode()
    ends = spans.ends.tolist()
    begins = [0, *ends][:-1]
    assert spans.length == len(raw)
    assert len(spans.ids) == len(ends)
    assert all(0 <= a <= b <= len(raw) for a, b in zip(begins, ends, strict=True)), (made.name, text, ends)
    covered = [made.spell([i]) == raw[a:b] for i, a, b in zip(spans.ids.tolist(), begins, ends, strict=True)]
    marked = [True] * len(ends) if spans.verbatim is None else spans.verbatim.tolist()
    for i, (equal, said) in enumerate(zip(covered, marked, strict=True)):
        if made.spell([spans.ids[i]]) is not None:
            assert equal == said, (made.name, text, i, ends)


@given(texts())
def test_spans_hold_their_law_in_every_family(text: str) -> None:
    for name in SMALL:
        made = small(name)
        check(made, text, made.vocabulary.encode(text))


@pytest.mark.parametrize("name", SMALL)
def test_spans_hold_their_law_on_hard_texts(name: str) -> None:
    for text in HARD_TEXTS:
        check(small(name), text, small(name).vocabulary.encode(text))


@given(texts())
def test_a_tokenizer_that_rewrites_nothing_is_verbatim_throughout(text: str) -> None:
    for name in LOSSLESS:
        spans = small(name).vocabulary.encode(text)
        if name == "gemma" and "▁" in text:  # the one character it cannot tell from a space
            continue
        assert spans.verbatim is None, name
        assert small(name).spell(spans.ids.tolist()) == text.encode(), name
        assert spans.ends.tolist()[-1:] == ([len(text.encode())] if text else [])


@given(texts())
def test_no_special_token_is_read_out_of_a_text(text: str) -> None:
    for name in SMALL:
        vocabulary = small(name).vocabulary
        read = [vocabulary.contents[i] for i in vocabulary.encode(text).ids if i in vocabulary.roles]
        assert set(read) <= {"<unk>", "[UNK]"}, (name, read)


@pytest.mark.parametrize("name", SMALL)
def test_a_special_tokens_name_in_a_text_is_spelled(name: str) -> None:
    vocabulary = small(name).vocabulary
    for i, written in vocabulary.contents.items():
        ids = vocabulary.encode(f"a{written}b {written}").ids.tolist()
        assert i not in ids, written


@pytest.mark.parametrize("name", ["spm-bpe", "spm-nmt", "gemma"])
def test_the_name_of_a_byte_piece_is_not_that_byte(name: str) -> None:
    made = small(name)
    spelled = made.spell(made.vocabulary.encode("x<0x41>y").ids.tolist())
    assert spelled is not None
    assert b"<0x41>" in spelled


@pytest.mark.parametrize("name", SMALL)
def test_a_lone_surrogate_is_refused(name: str) -> None:
    with pytest.raises(XTokenError, match=r"lone surrogate, U\+D83D, at character 2.*errors='replace'"):
        small(name).vocabulary.encode("ab\ud83d")


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_text_has_no_tokens(name: str) -> None:
    spans = small(name).vocabulary.encode("")
    assert (len(spans), spans.length) == (0, 0)
    assert (spans.ids.dtype, spans.ends.dtype) == (np.int64, np.int64)


@pytest.mark.parametrize("name", SMALL)
def test_a_text_of_spaces_keeps_the_law(name: str) -> None:
    for text in (" ", "  ", " " * 17, "\n", "\t \n", "\u3000", "\u00a0\u2028"):
        check(small(name), text, small(name).vocabulary.encode(text))


@pytest.mark.parametrize("name", SMALL)
def test_a_long_repetitive_text_keeps_the_law(name: str) -> None:
    for text in ("a" * 50_000, "的" * 10_000, "= " * 10_000, "12" * 10_000):
        check(small(name), text, small(name).vocabulary.encode(text))


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_is_its_texts_one_by_one(name: str) -> None:
    vocabulary = small(name).vocabulary
    batch = vocabulary.encode_batch(list(HARD_TEXTS))
    assert len(batch) == len(HARD_TEXTS)
    for text, spans in zip(HARD_TEXTS, batch, strict=True):
        one = vocabulary.encode(text)
        assert (spans.ids.tolist(), spans.ends.tolist()) == (one.ids.tolist(), one.ends.tolist())
        assert spans.raw == text.encode()
    assert vocabulary.encode_batch([]) == []


@pytest.mark.parametrize("name", SMALL)
def test_special_tokens_around_a_text_cover_no_bytes(name: str) -> None:
    spans = small(name).vocabulary.encode("  Hello é")
    around = spans.with_specials([7, 8], [9])
    assert around.ids.tolist() == [7, 8, *spans.ids.tolist(), 9]
    assert around.ends.tolist() == [0, 0, *spans.ends.tolist(), spans.length]
    assert around.verbatim is None or len(around.verbatim) == len(around)
    assert spans.with_specials().ids.tolist() == spans.ids.tolist()


@pytest.mark.parametrize("name", SMALL)
def test_a_vocabulary_survives_pickling(name: str) -> None:
    """Data loaders with workers pickle it."""
    vocabulary = small(name).vocabulary
    copy = pickle.loads(pickle.dumps(vocabulary))
    assert (copy.fingerprint, copy.name, copy.family) == (vocabulary.fingerprint, vocabulary.name, vocabulary.family)
    assert (copy.prefix_ids, copy.suffix_ids) == (vocabulary.prefix_ids, vocabulary.suffix_ids)
    assert (copy.tokens, copy.roles, copy.contents) == (vocabulary.tokens, vocabulary.roles, vocabulary.contents)
    for text in HARD_TEXTS:
        assert copy.encode(text).ids.tolist() == vocabulary.encode(text).ids.tolist()


# -- where a tokenizer rewrote the text --------------------------------------------------------------------------------


def pieces(name: str, text: str) -> list[tuple[bytes | None, bytes]]:
    """Each token with what it spells and the bytes it covers."""
    made = small(name)
    spans = made.vocabulary.encode(text)
    begins = [0, *spans.ends.tolist()][:-1]
    return [
        (made.table[i], spans.raw[a:b]) for i, a, b in zip(spans.ids.tolist(), begins, spans.ends.tolist(), strict=True)
    ]


def covered_otherwise(name: str, text: str) -> bytes:
    """The bytes of the text under tokens that spell something else."""
    return b"".join(covers for spelled, covers in pieces(name, text) if spelled != covers)


def test_a_composed_character_covers_its_base_and_its_marks() -> None:
    assert covered_otherwise("splitting", "the e\u0301 fox") == "e\u0301".encode()
    assert covered_otherwise("splitting", "x \u1112\u1161\u11ab 12") == "\u1112\u1161\u11ab".encode()
    assert covered_otherwise("splitting", "\u212a") == "\u212a".encode()


def test_a_dummy_prefix_inside_a_token_costs_that_token() -> None:
    assert pieces("spm-bpe", "fox")[0] == (b" fox", b"fox")
    assert covered_otherwise("prefix-space", "the fox") == b"the"


@pytest.mark.parametrize(
    ("name", "text"), [("spm-bpe", "的 x"), ("spm-bpe", "12"), ("prefix-space", "的"), ("hf-unigram", "12")]
)
def test_a_dummy_prefix_that_is_a_token_covers_nothing_and_costs_nothing(name: str, text: str) -> None:
    first, *rest = pieces(name, text)
    assert first == (b" ", b"")
    assert rest
    assert all(spelled == covers for spelled, covers in rest)


def test_lower_case_costs_the_token_it_is_in() -> None:
    assert covered_otherwise("wordpiece", "Hello,world") == b"H"


def test_space_that_a_tokenizer_drops_leads_the_word_after_it() -> None:
    assert pieces("wordpiece", "the the  the ") == [(b"the", b"the"), (b"the", b" the"), (b"the", b"  the")]


def test_an_unknown_character_costs_itself() -> None:
    spelled = pieces("spm-unknown", "the 犭 fox")
    assert (None, "犭".encode()) in spelled
    assert covered_otherwise("spm-unknown", " the 犭 fox").strip() == "犭".encode()


def test_folded_space_costs_only_itself() -> None:
    assert covered_otherwise("spm-nmt", "x  fox dog").count(b"dog") == 0


@given(texts(max_size=5))
def test_retokenizing_the_middle_of_a_text_spells_that_and_no_more(text: str) -> None:
    """No dummy space appears in front, and no space that is there goes."""
    for name in ("packing", "prefix-space", "tiktoken", "spm-bpe", "gemma"):
        if "▁" not in text or name not in ("spm-bpe", "gemma"):
            assert small(name).spell(small(name).vocabulary.retokenize([text])[0]) == text.encode(), name


@pytest.mark.parametrize("name", [name for name in SMALL if name != "wordpiece"])
@pytest.mark.parametrize("text", ["the", " the", " xq", "xq", ",", " ,", "12", " 12"])
def test_a_token_cut_again_keeps_the_space_before_it(name: str, text: str) -> None:
    """The default normaliser of SentencePiece strips a text, but a token is no text of its own."""
    assert small(name).spell(small(name).vocabulary.retokenize([text])[0]) == text.encode()


@pytest.mark.parametrize("name", ["packing", "splitting", "prefix-space", "tiktoken", "spm-bpe", "spm-nmt", "gemma"])
def test_any_bytes_can_be_cut_where_every_byte_has_a_token(name: str) -> None:
    made = small(name)
    for content in ("的".encode()[:2], b"\xff\xfe", b" \xe7", b"  \xe7", b"fox\x80", b"\xf0\x9f\x91"):
        ids = made.vocabulary.segment(content)
        assert ids is not None, content
        assert made.spell(ids) == content


@pytest.mark.parametrize("name", ["spm-unknown", "hf-unigram", "wordpiece"])
def test_bytes_that_no_token_spells_are_not_cut(name: str) -> None:
    assert small(name).vocabulary.segment("的".encode()[:2]) is None
