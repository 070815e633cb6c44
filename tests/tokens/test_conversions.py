"""A converted tokenizer gives the ids of the library it comes from: sentencepiece's and tiktoken's, text by text."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings

from hard_texts import HARD_TEXTS, texts
from small_tokenizers import (
    CORPUS,
    GPT4_PATTERN,
    LLAMA_SETTINGS,
    ONE_DIGIT_PATTERN,
    small,
    spm_bpe_model,
    spm_nmt_model,
    spm_unknown_model,
    tiktoken_ranks,
    train_sentencepiece,
    vocabulary_of_file,
)
from xtoken.tokens import Vocabulary

# Repetition, ties between merges, and every length of a run: where a conversion of merges goes wrong first.
RUNS = tuple(unit * n for unit in ("a", "=", " ", "-", "ab", "aab", "12", "的", "\n", "é ") for n in range(1, 24))
TEXTS = (*HARD_TEXTS, *RUNS, *CORPUS[:13])

IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
SYMBOLS = {"user_defined_symbols": ["<foo>", "==", "==="]}

MODELS: dict[str, Callable[[], bytes]] = {
    "bpe": spm_bpe_model,
    "bpe, unknown token": lambda: train_sentencepiece(**(LLAMA_SETTINGS | {"byte_fallback": False})),
    "bpe, spaces folded": lambda: train_sentencepiece(**(LLAMA_SETTINGS | {"remove_extra_whitespaces": True})),
    "bpe, no dummy prefix": lambda: train_sentencepiece(**(LLAMA_SETTINGS | {"add_dummy_prefix": False})),
    "bpe, symbols": lambda: train_sentencepiece(**LLAMA_SETTINGS, **SYMBOLS),
    "bpe, symbols, no dummy prefix": lambda: train_sentencepiece(**LLAMA_SETTINGS, **SYMBOLS, add_dummy_prefix=False),
    "bpe, runs of spaces": lambda: train_sentencepiece(
        CORPUS + tuple(" " * n + "x" for n in range(1, 30)), **LLAMA_SETTINGS, allow_whitespace_only_pieces=True
    ),
    "bpe, ties": lambda: train_sentencepiece(
        ["a" * n for n in range(1, 30)] + ["ab" * n + "a" for n in range(1, 20)],
        model_type="bpe",
        vocab_size=40,
        **IDENTITY | {"byte_fallback": False},
    ),
    "unigram, unknown token": spm_unknown_model,
    "unigram, identity": lambda: train_sentencepiece(model_type="unigram", **IDENTITY),
    "unigram, symbols": lambda: train_sentencepiece(
        model_type="unigram", **IDENTITY, user_defined_symbols=["<foo>", "=>"]
    ),
    "unigram, no dummy prefix": lambda: train_sentencepiece(model_type="unigram", **IDENTITY, add_dummy_prefix=False),
}

# Long compositions are beyond the tokenizers library's Precompiled normaliser, which goes grapheme by grapheme.
OUT_OF_REACH = ("\u1112\u1161\u11ab", "ｱﾞ", "\u0344", "q\u0307\u0323", "\u0301", "\u200d")


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece_ids_are_sentencepieces_own(name: str) -> None:
    model = MODELS[name]()
    reference, vocabulary = (
        sentencepiece.SentencePieceProcessor(model_proto=model),
        vocabulary_of_file(model, "x.model"),
    )
    written = [text for text in TEXTS if name != "bpe, spaces folded" or "▁" not in text]
    for text, spans in zip(written, vocabulary.encode_batch(written), strict=True):
        assert spans.ids.tolist() == reference.encode(text), text


@pytest.mark.parametrize("name", ["bpe, symbols", "unigram, symbols"])
def test_symbols_are_cut_out_and_nothing_else_is_taken_whole(name: str) -> None:
    model = MODELS[name]()
    reference, vocabulary = (
        sentencepiece.SentencePieceProcessor(model_proto=model),
        vocabulary_of_file(model, "x.model"),
    )
    for text in ("a<foo>b", "<foo>", " <foo> ", "====", "=====", "==<s>==", "==<0x41>==", "<foo><foo>x", "===the==fox"):
        assert vocabulary.encode(text).ids.tolist() == reference.encode(text), text


def test_the_default_normaliser_is_sentencepieces_own() -> None:
    model = spm_nmt_model()
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in TEXTS:
        if "▁" not in text and not any(part in text for part in OUT_OF_REACH):
            assert small("spm-nmt").vocabulary.encode(text).ids.tolist() == reference.encode(text), text


@pytest.mark.xfail(strict=True, reason="tokenizers' Precompiled goes grapheme by grapheme; fast T5 and XLM-R do too")
@pytest.mark.parametrize("text", ["\u1112\u1161\u11ab", "e\u0301\u200d", "\u215a\u035f"])
def test_long_compositions_are_sentencepieces_own(text: str) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=spm_nmt_model())
    assert small("spm-nmt").vocabulary.encode(text).ids.tolist() == reference.encode(text)


@given(texts())
def test_a_llama_like_model_gives_sentencepieces_ids_on_any_text(text: str) -> None:
    assert small("spm-bpe").vocabulary.encode(text).ids.tolist() == LLAMA_LIKE.encode(text)


LLAMA_LIKE = sentencepiece.SentencePieceProcessor(model_proto=spm_bpe_model())


@given(texts())
def test_a_tiktoken_file_gives_tiktokens_ids_on_any_text(text: str) -> None:
    assert small("tiktoken").vocabulary.encode(text).ids.tolist() == TIKTOKEN(text)


def tiktoken_ids(ranks: dict[bytes, int], pattern: str) -> Callable[[str], list[int]]:
    from tiktoken import Encoding

    encoding = Encoding("reference", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: encoding.encode(text, disallowed_special=())


TIKTOKEN = tiktoken_ids(tiktoken_ranks(), GPT4_PATTERN)


# -- the real ones -----------------------------------------------------------------------------------------------------


def ranks_of(path: Path) -> dict[bytes, int]:
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    return {base64.b64decode(token): int(rank) for token, rank in lines}


O200K_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def check_on_any_text(vocabulary: Vocabulary, reference: Callable[[str], list[int]]) -> None:
    for text, spans in zip(TEXTS, vocabulary.encode_batch(list(TEXTS)), strict=True):
        assert spans.ids.tolist() == reference(text), text

    @settings(max_examples=200)
    @given(texts(max_size=16))
    def on_any(text: str) -> None:
        assert vocabulary.encode(text).ids.tolist() == reference(text)

    on_any()


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "file", "pattern"),
    [("llama-3", "tokenizer.model", GPT4_PATTERN), ("llama-4", "tokenizer.model", O200K_PATTERN)],
)
def test_llamas_ids_are_tiktokens(
    name: str,
    file: str,
    pattern: str,
    real_tokenizer: Callable[[str], Path],
    real_vocabulary: Callable[[str], Vocabulary],
) -> None:
    check_on_any_text(real_vocabulary(name), tiktoken_ids(ranks_of(real_tokenizer(name) / file), pattern))


@pytest.mark.real
def test_qwens_ids_are_tiktokens_after_nfc(
    real_tokenizer: Callable[[str], Path], real_vocabulary: Callable[[str], Vocabulary]
) -> None:
    plain = tiktoken_ids(ranks_of(real_tokenizer("qwen3") / "qwen.tiktoken"), ONE_DIGIT_PATTERN)
    added = ("<think>", "</think>", "<tool_call>")
    vocabulary = real_vocabulary("qwen3")

    def reference(text: str) -> list[int]:
        if any(token in text for token in added):  # text to Qwen, but not to its tiktoken file
            return vocabulary.encode(text).ids.tolist()
        return plain(unicodedata.normalize("NFC", text))

    check_on_any_text(vocabulary, reference)


@pytest.mark.real
def test_tekkens_ids_are_tiktokens(
    real_tokenizer: Callable[[str], Path], real_vocabulary: Callable[[str], Vocabulary]
) -> None:
    content = json.loads((real_tokenizer("mistral-tekken") / "tekken.json").read_bytes())
    config = content["config"]
    n_special = config["default_num_special_tokens"]
    kept = content["vocab"][: config["default_vocab_size"] - n_special]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in kept}
    plain = tiktoken_ids(ranks, config["pattern"])
    check_on_any_text(real_vocabulary("mistral-tekken"), lambda text: [i + n_special for i in plain(text)])


@pytest.mark.real
def test_mistrals_ids_are_sentencepieces(
    real_tokenizer: Callable[[str], Path], real_vocabulary: Callable[[str], Vocabulary]
) -> None:
    path = real_tokenizer("mistral-v1") / "tokenizer.model"
    check_on_any_text(real_vocabulary("mistral-v1"), sentencepiece.SentencePieceProcessor(model_file=str(path)).encode)


@pytest.mark.real
def test_real_special_ids_are_the_published_ones(real_vocabulary: Callable[[str], Vocabulary]) -> None:
    llama, qwen = real_vocabulary("llama-3"), real_vocabulary("qwen3")
    assert (llama.size, llama.bos_id, llama.eos_id, llama.pad_id) == (128_256, 128_000, 128_001, 128_004)
    assert (llama.contents[128_009], llama.prefix_ids) == ("<|eot_id|>", (128_000,))
    assert (qwen.size, qwen.eos_id, qwen.bos_id) == (151_669, 151_643, None)
    assert (qwen.contents[151_645], qwen.tokens[151_667]) == ("<|im_end|>", b"<think>")
    mistral = real_vocabulary("mistral-v1")
    assert (mistral.size, mistral.unk_id, mistral.bos_id, mistral.eos_id) == (32_000, 0, 1, 2)
