"""One fingerprint a tokenizer, whatever file it came from; another one for any change that can change an id."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, processors

from small_tokenizers import (
    GPT4_PATTERN,
    gemma_json,
    hf_unigram_json,
    packing_json,
    prefix_space_json,
    small,
    splitting_json,
    spm_bpe_model,
    tiktoken_file,
    vocabulary_of_file,
    wordpiece_json,
)
from xtoken.tokens import Vocabulary

Spec = dict[str, Any]
JSON = {
    "packing": packing_json,
    "splitting": splitting_json,
    "prefix-space": prefix_space_json,
    "hf-unigram": hf_unigram_json,
    "gemma": gemma_json,
    "wordpiece": wordpiece_json,
}


def of_spec(spec: Spec) -> str:
    return Vocabulary.from_tokenizer(Tokenizer.from_str(json.dumps(spec))).fingerprint


def shuffled(value: Any) -> Any:
    """The same JSON with the keys of every object the other way round."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", JSON)
def test_file_folder_object_and_rewritten_file_agree(name: str, tmp_path: Path) -> None:
    text, expected = JSON[name](), small(name).vocabulary.fingerprint
    assert len(expected) == 64
    assert set(expected) <= set("0123456789abcdef")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    assert Vocabulary.from_pretrained(tmp_path).fingerprint == expected
    assert Vocabulary.from_pretrained(tmp_path / "tokenizer.json").fingerprint == expected
    assert Vocabulary.from_pretrained(str(tmp_path)).fingerprint == expected
    for n, rewritten in enumerate((json.dumps(json.loads(text), indent=4), json.dumps(shuffled(json.loads(text))))):
        other = tmp_path / f"other-{n}.json"
        other.write_text(rewritten, encoding="utf-8")
        assert Vocabulary.from_pretrained(other).fingerprint == expected


@pytest.mark.parametrize("name", JSON)
def test_merges_written_as_strings_are_the_same_merges(name: str) -> None:
    """Files of before tokenizers 0.20 join the pair with a space."""
    spec = json.loads(JSON[name]())
    if "merges" not in spec["model"]:
        pytest.skip("no merges")
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    assert of_spec(spec) == small(name).vocabulary.fingerprint


@pytest.mark.parametrize("name", JSON)
def test_what_is_added_around_a_text_does_not_count(name: str) -> None:
    tokenizer = Tokenizer.from_str(JSON[name]())
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(5)
    special = next(t for t in tokenizer.get_added_tokens_decoder().values() if t.special).content
    pair = [(special, tokenizer.token_to_id(special))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{special} $A {special}", special_tokens=pair)
    tokenizer.decoder = decoders.Fuse()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.fingerprint == small(name).vocabulary.fingerprint
    text = "The quick brown fox, 12345 times and more."
    assert vocabulary.encode(text).ids.tolist() == small(name).vocabulary.encode(text).ids.tolist()
    assert vocabulary.prefix_ids == vocabulary.suffix_ids == (pair[0][1],)


@pytest.mark.parametrize("name", JSON)
def test_reading_a_tokenizer_leaves_it_as_it_was(name: str) -> None:
    tokenizer = Tokenizer.from_str(JSON[name]())
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(5)
    before = tokenizer.to_str()
    Vocabulary.from_tokenizer(tokenizer).encode("The quick brown fox")
    assert tokenizer.to_str() == before
    assert not tokenizer.encode_special_tokens


@pytest.mark.parametrize("name", ["packing", "splitting", "gemma", "wordpiece"])
def test_transformers_tokenizers_and_what_they_save_agree(name: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(JSON[name]()))
    expected = small(name).vocabulary.fingerprint
    assert Vocabulary.from_tokenizer(fast).fingerprint == expected
    fast.padding_side, fast.model_max_length = "left", 8
    fast("The quick brown fox jumps", truncation=True, max_length=4)
    assert Vocabulary.from_tokenizer(fast).fingerprint == expected
    fast.save_pretrained(tmp_path)
    assert Vocabulary.from_pretrained(tmp_path).fingerprint == expected


def test_a_tiktoken_file_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    path = tmp_path / "ours.tiktoken"
    path.write_bytes(tiktoken_file())
    converter = TikTokenConverter(vocab_file=str(path), pattern=GPT4_PATTERN, extra_special_tokens=[])
    assert Vocabulary.from_tokenizer(converter.converted()).fingerprint == small("tiktoken").vocabulary.fingerprint


def test_a_sentencepiece_file_has_one_fingerprint_under_any_name() -> None:
    names = ("tokenizer.model", "spiece.model", "other.model")
    found = {vocabulary_of_file(spm_bpe_model(), name).fingerprint for name in names}
    assert found == {small("spm-bpe").vocabulary.fingerprint}


def test_different_tokenizers_have_different_fingerprints() -> None:
    names = ("packing", "splitting", "prefix-space", "tiktoken", "spm-bpe", "spm-nmt", "spm-unknown", "hf-unigram")
    assert len({small(name).vocabulary.fingerprint for name in names}) == len(names)


# -- changes that count ------------------------------------------------------------------------------------------------


def swap_two_ids(spec: Spec) -> None:
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, list):
        vocab[-1], vocab[-2] = vocab[-2], vocab[-1]
    else:
        a, b = sorted(vocab, key=vocab.__getitem__)[-2:]
        vocab[a], vocab[b] = vocab[b], vocab[a]


def swap_two_merges(spec: Spec) -> None:
    merges = spec["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def drop_a_merge(spec: Spec) -> None:
    spec["model"]["merges"].pop()


def rename_a_piece(spec: Spec) -> None:
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, list):
        vocab[-1][0] = "entirely-new"
    else:
        in_merges = {part for a, b in spec["model"].get("merges", []) for part in (a, b, a + b)}
        special = {token["content"] for token in spec["added_tokens"]}
        piece = next(p for p in vocab if p not in in_merges | special)
        vocab["entirely-new"] = vocab.pop(piece)


def change_a_score(spec: Spec) -> None:
    spec["model"]["vocab"][-1][1] -= 1e-3


def set_model(key: str, value: Any) -> Callable[[Spec], None]:
    def change(spec: Spec) -> None:
        assert spec["model"][key] != value
        spec["model"][key] = value

    return change


def change_the_pattern(spec: Spec) -> None:
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": GPT4_PATTERN.replace("{1,3}", "{1,4}")}


def change_the_behavior(spec: Spec) -> None:
    spec["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"


def drop_the_prefix_space(spec: Spec) -> None:
    spec["pre_tokenizer"]["add_prefix_space"] = False


def drop_the_normalizer(spec: Spec) -> None:
    spec["normalizer"] = None


def set_normalizer(key: str, value: Any) -> Callable[[Spec], None]:
    def change(spec: Spec) -> None:
        assert spec["normalizer"][key] != value
        spec["normalizer"][key] = value

    return change


def add_a_normalizer(spec: Spec) -> None:
    before = [spec["normalizer"]] if spec["normalizer"] else []
    spec["normalizer"] = {"type": "Sequence", "normalizers": [*before, {"type": "Lowercase"}]}


def set_prepend(spec: Spec) -> None:
    spec["pre_tokenizer"]["prepend_scheme"] = "first"


def set_flag(flag: str) -> Callable[[Spec], None]:
    def change(spec: Spec) -> None:
        spec["added_tokens"][-1][flag] = not spec["added_tokens"][-1][flag]

    return change


def add_a_token(spec: Spec) -> None:
    top = max([t["id"] for t in spec["added_tokens"]] + [len(spec["model"]["vocab"]) - 1])
    spec["added_tokens"].append({**spec["added_tokens"][-1], "id": top + 1, "content": "<entirely-new>"})


CHANGES = [
    *((name, swap_two_ids) for name in JSON),
    *((name, swap_two_merges) for name in ("packing", "splitting", "gemma")),
    *((name, drop_a_merge) for name in ("packing", "gemma")),
    *((name, rename_a_piece) for name in ("hf-unigram", "gemma", "wordpiece")),
    ("hf-unigram", change_a_score),
    ("hf-unigram", set_model("unk_id", None)),
    ("hf-unigram", set_model("byte_fallback", True)),
    ("hf-unigram", set_prepend),
    ("gemma", set_model("byte_fallback", False)),
    ("gemma", set_model("fuse_unk", False)),
    ("gemma", set_model("unk_token", None)),
    ("gemma", set_model("ignore_merges", True)),
    ("gemma", set_normalizer("content", "_")),
    ("gemma", drop_the_normalizer),
    ("splitting", drop_the_normalizer),
    ("splitting", change_the_pattern),
    ("packing", change_the_pattern),
    ("packing", change_the_behavior),
    ("packing", add_a_normalizer),
    ("prefix-space", drop_the_prefix_space),
    ("wordpiece", set_normalizer("lowercase", False)),
    ("wordpiece", set_normalizer("strip_accents", False)),
    ("wordpiece", set_model("max_input_chars_per_word", 3)),
    ("wordpiece", set_model("max_input_chars_per_word", 0)),
    *(("splitting", set_flag(flag)) for flag in ("lstrip", "rstrip", "single_word", "normalized", "special")),
    *((name, add_a_token) for name in JSON),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_change_that_can_change_an_id_changes_the_fingerprint(name: str, change: Callable[[Spec], None]) -> None:
    spec = json.loads(JSON[name]())
    changed = copy.deepcopy(spec)
    change(changed)
    try:
        found = of_spec(changed)
    except ValueError:
        return  # without its meta symbol it is of no supported family, so it has no fingerprint at all
    assert found != of_spec(spec) == small(name).vocabulary.fingerprint


def test_unknown_id_zero_is_not_no_unknown_id() -> None:
    """Zero, false and nothing are equal to Python; a tokenizer with an unknown token and one without are not."""
    spec = json.loads(hf_unigram_json())
    vocab = spec["model"]["vocab"]
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] == "<unk>"]
    vocab.insert(0, vocab.pop(2))
    spec["added_tokens"][0]["id"] = 0
    spec["post_processor"] = None
    spec["model"]["unk_id"] = 0
    without = copy.deepcopy(spec)
    without["model"]["unk_id"] = None
    assert of_spec(spec) != of_spec(without)
