"""Reading tokenizers from every published kind of file, and what is said where there is nothing readable."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from small_tokenizers import (
    CORPUS,
    LLAMA_SETTINGS,
    SMALL,
    packing_json,
    small,
    splitting_json,
    spm_bpe_model,
    spm_nmt_model,
    tiktoken_file,
    tiktoken_ranks,
    train_sentencepiece,
    wordpiece_json,
)
from xtoken.errors import UnsupportedTokenizerError, XTokenError
from xtoken.tokens import Role, Vocabulary
from xtoken.tokens.hf import load_tokenizer

FAMILIES = r"Supported families: byte-level BPE .*SentencePiece BPE and Unigram .*WordPiece .*tiktoken"


# -- formats -----------------------------------------------------------------------------------------------------------


def test_a_file_is_named_after_itself_and_a_folder_after_itself(tmp_path: Path) -> None:
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(packing_json(), encoding="utf-8")
    (tmp_path / "lone.json").write_text(packing_json(), encoding="utf-8")
    assert Vocabulary.from_pretrained(folder).name == "some-model"
    assert Vocabulary.from_pretrained(folder / "tokenizer.json").name == "some-model"
    assert Vocabulary.from_pretrained(tmp_path / "lone.json").name == "lone"


def test_tokenizer_json_goes_before_the_model_it_was_made_from(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(splitting_json(), encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(spm_bpe_model())
    assert Vocabulary.from_pretrained(tmp_path).fingerprint == small("splitting").vocabulary.fingerprint


def test_a_sentencepiece_model_equals_its_own_json(tmp_path: Path) -> None:
    """Scores go through JSON, which the tokenizers library reads a rounding error off."""
    for n, model in enumerate((spm_bpe_model(), spm_nmt_model())):
        source, target = tmp_path / f"{n}.model", tmp_path / f"{n}.json"
        source.write_bytes(model)
        load_tokenizer(source).tokenizer.save(str(target))
        assert Vocabulary.from_pretrained(source).fingerprint == Vocabulary.from_pretrained(target).fingerprint


def test_an_unknown_tiktoken_file_warns_that_its_split_is_a_guess(tmp_path: Path) -> None:
    (tmp_path / "mine.tiktoken").write_bytes(tiktoken_file())
    with pytest.warns(UserWarning, match=r"mine\.tiktoken is a tiktoken file .*the pattern of cl100k"):
        vocabulary = Vocabulary.from_pretrained(tmp_path)
    assert vocabulary.tokens == tuple(tiktoken_ranks())


def test_a_tiktoken_file_may_be_called_tokenizer_model(tmp_path: Path) -> None:
    """Llama-3's is; SentencePiece files have the same name, so the content decides."""
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file())
    with pytest.warns(UserWarning, match="tiktoken file"):
        assert Vocabulary.from_pretrained(tmp_path).fingerprint == small("tiktoken").vocabulary.fingerprint


def tekken(n_special: int = 5) -> dict[str, Any]:
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in tiktoken_ranks().items()
    ]
    config = {
        "pattern": r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        "default_num_special_tokens": n_special,
        "default_vocab_size": n_special + len(entries) - 10,
    }
    return {"config": config, "vocab": entries}


def test_a_tekken_file_puts_its_ranks_after_the_special_ids(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken()), encoding="utf-8")
    vocabulary = Vocabulary.from_pretrained(tmp_path)
    assert vocabulary.size == 5 + len(tiktoken_ranks()) - 10
    assert vocabulary.tokens[5:] == tuple(tiktoken_ranks())[:-10]
    assert list(vocabulary.contents.values()) == ["<unk>", "<s>", "</s>", "<SPECIAL_3>", "<SPECIAL_4>"]
    assert vocabulary.prefix_ids == (1,)
    assert all(i >= 5 for i in vocabulary.encode("<s> the </s> 12 <SPECIAL_3>").ids)


def test_a_tekken_file_may_name_its_special_tokens(tmp_path: Path) -> None:
    named = tekken() | {"special_tokens": [{"rank": 3, "token_str": "[INST]", "is_control": True}]}
    (tmp_path / "tekken.json").write_text(json.dumps(named), encoding="utf-8")
    assert Vocabulary.from_pretrained(tmp_path).contents[3] == "[INST]"


def gpt2_folder(folder: Path) -> None:
    model = json.loads(packing_json())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"] | {"<|endoftext|>": 900}), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def test_gpt2s_two_files_make_a_byte_level_vocabulary(tmp_path: Path) -> None:
    gpt2_folder(tmp_path)
    vocabulary = Vocabulary.from_pretrained(tmp_path)
    assert vocabulary.tokens[:900] == small("packing").vocabulary.tokens[:900]
    assert vocabulary.roles == {900: Role.EOS}
    assert vocabulary.encode("the fox<|endoftext|>").verbatim is None


def test_a_vocab_txt_is_bert(tmp_path: Path) -> None:
    vocab = json.loads(wordpiece_json())["model"]["vocab"]
    lines = sorted(vocab, key=vocab.__getitem__)
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    vocabulary = Vocabulary.from_pretrained(tmp_path)
    made = small("wordpiece").vocabulary
    assert vocabulary.fingerprint == made.fingerprint
    assert (vocabulary.prefix_ids, vocabulary.suffix_ids) == (made.prefix_ids, made.suffix_ids)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Vocabulary.from_pretrained(tmp_path).fingerprint != made.fingerprint


def test_the_config_says_whether_a_sentencepiece_model_adds_a_bos(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm_bpe_model())
    assert Vocabulary.from_pretrained(tmp_path).prefix_ids == ()
    config = {"add_bos_token": True, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = Vocabulary.from_pretrained(tmp_path)
    assert vocabulary.prefix_ids == (vocabulary.bos_id,) == (1,)
    assert vocabulary.fingerprint == small("spm-bpe").vocabulary.fingerprint


def test_a_declared_role_names_a_token_that_nobody_knows(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(splitting_json())
    tokenizer.add_special_tokens(["<|strange|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<|strange|>", "eos_token": "<|im_end|>"}')
    vocabulary = Vocabulary.from_pretrained(tmp_path)
    assert vocabulary.pad_id == 805
    assert vocabulary.roles[805] is Role.PAD
    assert vocabulary.eos_id == 800, "a chat model's settings do not turn the end of a turn into the end of a document"


def test_a_config_that_puts_a_token_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm_bpe_model())
    config = {"added_tokens_decoder": {"5": {"content": "<new>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(XTokenError, match=r"'<new>' at id 5.*at 900.*do not belong together"):
        Vocabulary.from_pretrained(tmp_path)


def test_added_tokens_keep_their_ids_whatever_stands_before_them() -> None:
    """In a Unigram vocabulary too, where special pieces must be kept out of the lattice."""
    for name in ("hf-unigram", "gemma", "packing", "wordpiece"):
        tokenizer = Tokenizer.from_str(_JSON[name]())
        tokenizer.add_special_tokens(["<extra>"])
        tokenizer.add_tokens(["<newly>"])
        expected = tokenizer.token_to_id("<newly>")
        ids = Vocabulary.from_tokenizer(tokenizer).encode("the<newly>").ids.tolist()
        assert ids.count(expected) == 1, name
        assert tokenizer.token_to_id("<extra>") == expected - 1


def _json_makers() -> dict[str, Any]:
    from small_tokenizers import gemma_json, hf_unigram_json

    return {"hf-unigram": hf_unigram_json, "gemma": gemma_json, "packing": packing_json, "wordpiece": wordpiece_json}


_JSON = _json_makers()


# -- what cannot be read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "missing.json", "a/b/c"])
def test_a_missing_path_is_named(path: str) -> None:
    with pytest.raises(XTokenError, match=rf"no tokenizer at '{path}': no such file or folder"):
        Vocabulary.from_pretrained(path)


def test_a_folder_without_a_tokenizer_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(XTokenError, match=r"no tokenizer in .*tokenizer\.json, tekken\.json, tokenizer\.model.*Give"):
        Vocabulary.from_pretrained(tmp_path)


def test_vocab_json_alone_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(XTokenError, match="no tokenizer in"):
        Vocabulary.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model": ', "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "holds a list, not an object"),
        (b'{"a": 1, "b": 2}', r"is no tokenizer: it holds the keys \['a', 'b'\]"),
        (b'{"model": {"type": "BPE"}}', "is not a readable tokenizer.json"),
        (b'{"model": null}', "is not a readable tokenizer.json"),
    ],
)
def test_a_broken_tokenizer_json_says_how(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(XTokenError, match=message):
        Vocabulary.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", b"{broken"),
        ("tekken.json", b'{"config": {}, "vocab": []}'),
        ("tekken.json", b'{"config": {"default_num_special_tokens": 3}, "vocab": [{"rank": 0}]}'),
        ("tokenizer.model", b"\x00\x01 neither of the two"),
        ("tokenizer.model", b""),
        ("vocab.txt", b"hello\nworld\n"),
        ("merges.txt", b"not merges at all \xff"),
        ("mine.tiktoken", b"aGVsbG8= zero\n"),
    ],
)
def test_other_broken_files_are_named(file: str, content: bytes, tmp_path: Path) -> None:
    if file == "merges.txt":
        (tmp_path / "vocab.json").write_text('{"a": 0}')
    if file == "tokenizer_config.json":
        (tmp_path / "tokenizer.json").write_text(packing_json(), encoding="utf-8")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(XTokenError, match=file.replace(".", r"\.")):
        Vocabulary.from_pretrained(tmp_path)


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def clip() -> Tokenizer:
    vocab = {"t": 0, "t</w>": 1}
    tokenizer = Tokenizer(models.BPE(vocab, [], end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def plain_characters() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (word_level, "model 'WordLevel' with pre-tokenizer .'Whitespace'."),
        (clip, "model 'BPE' .* and end-of-word suffix '</w>'"),
        (plain_characters, "model 'BPE' with pre-tokenizer .'Whitespace'."),
    ],
)
def test_an_unsupported_family_says_what_was_found_and_what_is_supported(make: Any, found: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTokenizerError, match=f"{found}.*{FAMILIES}"):
        Vocabulary.from_tokenizer(make())
    make().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedTokenizerError, match=found):
        Vocabulary.from_pretrained(tmp_path)


def test_clip_with_byte_level_and_a_suffix_is_refused() -> None:
    """CLIP's pre-tokenizer is byte-level, but `</w>` is no byte: taken as byte-level it would spell `</w>` as text."""
    tokenizer = clip()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(UnsupportedTokenizerError, match="end-of-word suffix '</w>'"):
        Vocabulary.from_tokenizer(tokenizer)


def test_bpe_that_marks_continuations_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "##b": 1}, [], continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(UnsupportedTokenizerError, match="##"):
        Vocabulary.from_tokenizer(tokenizer)


@pytest.mark.parametrize(("kind", "number"), [("word", 3), ("char", 4)])
def test_other_kinds_of_sentencepiece_are_refused(kind: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(train_sentencepiece(model_type=kind, vocab_size=200, use_all_vocab=True))
    with pytest.raises(UnsupportedTokenizerError, match=rf"x\.model is a SentencePiece model of type {number}"):
        Vocabulary.from_pretrained(tmp_path / "x.model")


def test_a_sentencepiece_model_with_the_space_behind_is_refused(tmp_path: Path) -> None:
    model = train_sentencepiece(
        CORPUS[:40], **(LLAMA_SETTINGS | {"vocab_size": 600, "treat_whitespace_as_suffix": True})
    )
    (tmp_path / "x.model").write_bytes(model)
    with pytest.raises(UnsupportedTokenizerError, match="treat_whitespace_as_suffix"):
        Vocabulary.from_pretrained(tmp_path / "x.model")


class Slow:
    """Stands for a tokenizer that is plain Python."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@pytest.mark.parametrize("tokenizer", [Slow(), None, 7, "a name"], ids=["slow", "none", "number", "string"])
def test_an_object_that_is_no_fast_tokenizer_is_refused(tokenizer: object) -> None:
    with pytest.raises(UnsupportedTokenizerError, match=rf"{type(tokenizer).__name__} is not built on .*Supported: "):
        Vocabulary.from_tokenizer(tokenizer)


@pytest.mark.parametrize("repo", ["nobody-here/no-such-model", "Qwen/Qwen3-0.6B", "gpt2"])
def test_a_hub_id_without_a_network_is_a_clear_error(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(XTokenError, match=rf"no tokenizer at '{repo}': it is no file or folder here, and the hub") as e:
        Vocabulary.from_pretrained(repo)
    assert "\n" not in str(e.value)


def test_a_hub_revision_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        (tmp_path / "tokenizer.json").write_text(packing_json(), encoding="utf-8")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    vocabulary = Vocabulary.from_pretrained("some-owner/some-model", revision="abc")
    assert vocabulary.name == "some-model"
    assert (asked["repo"], asked["revision"]) == ("some-owner/some-model", "abc")
    assert {"tokenizer.json", "tokenizer_config.json"} <= {p.lstrip("*") for p in asked["patterns"]}
    assert not any(p.endswith((".safetensors", ".bin", "*")) for p in asked["patterns"]), "weights are not fetched"


def test_every_small_tokenizer_can_be_shown() -> None:
    for name in SMALL:
        vocabulary = small(name).vocabulary
        assert vocabulary.fingerprint[:12] in repr(vocabulary)
        assert str(vocabulary.size) in repr(vocabulary)
