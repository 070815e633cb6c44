"""Small tokenizers of every family, trained here from an embedded corpus, each with a byte table made by another route.

`SMALL` names them and `small(name)` builds one once a process. Its `table` is the test's own id -> bytes: learned from
what the tokenizer libraries do (a pre-tokenizer's output, a decoder, sentencepiece's own queries, the base64 of a
file), never read from the code under test. `None` stands for an id that spells no known text: a special token, or the
unknown one.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from xtoken.tokens import Vocabulary
from xtoken.tokens.hf import load_tokenizer

# Numbers of every length, indented code, scripts with and without spaces, marks, emoji: enough for merges in each.
CORPUS = tuple(
    line
    for n in range(24)
    for line in (
        f"The quick brown fox jumps over the lazy dog, {n * 37 % 1000} times in {1990 + n}.",
        f"Anna has {n} apples and buys {n * 7 % 100} more; how many are there? {n + n * 7 % 100}!",
        f"def _init(self, value={n}):\n    return self.value + {n * 11 % 100}\n\t# done",
        "Der Fuchs läuft über die Straße, während die Vögel singen. Größe, Maß, Übung.",
        "Le café naïf où l'élève déçu a mangé des crêpes à Noël.",
        "Быстрая лиса прыгает через ленивую собаку, и это хорошо.",
        "敏捷的棕色狐狸跳过了懒狗。今天的天气很好,我们的朋友来了。",
        "素早い茶色の狐がのろまな犬を飛び越える。カタカナとひらがな。",
        "빠른 갈색 여우가 게으른 개를 뛰어넘는다. 오늘 날씨가 좋다.",
        "الثعلب البني السريع يقفز فوق الكلب الكسول في عام ٢٠٢٤.",
        "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
        "The family 👨‍👩‍👧‍👦 and the flag 🏳️‍🌈 said 👍🏽, twice 🎉🎉.",
        "the they then there these those; running, jumping, singing -- (100%) [ok] {x} <tag> a/b",
    )
)

GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ONE_DIGIT_PATTERN = GPT4_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

Table = tuple[bytes | None, ...]


@dataclass(frozen=True)
class Small:
    """A small tokenizer.

    Attributes:
        name: a key of `SMALL`.
        vocabulary: as xtoken reads it.
        table: [V], the bytes of every id by another route; None for an id that spells no known text.
    """

    name: str
    vocabulary: Vocabulary
    table: Table

    def spell(self, ids: Sequence[int]) -> bytes | None:
        """The bytes of some tokens joined, or None where one of them spells no known text."""
        pieces = [self.table[i] for i in ids]
        return None if None in pieces else b"".join(pieces)  # type: ignore[arg-type]


# -- byte-level --------------------------------------------------------------------------------------------------------


def _train_byte_level(pattern: str | None, size: int, specials: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE; `pattern` None takes ByteLevel's own (GPT-2's)."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@functools.cache
def packing_json() -> str:
    """Like Llama-3: packs up to three digits, a bos in front of every text."""
    tokenizer = _train_byte_level(GPT4_PATTERN, 900)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer.to_str()


@functools.cache
def splitting_json() -> str:
    """Like Qwen: one digit a token, NFC, no bos, two added tokens that are text."""
    tokenizer = _train_byte_level(ONE_DIGIT_PATTERN, 800)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    return tokenizer.to_str()


@functools.cache
def prefix_space_json() -> str:
    """Like RoBERTa: a space put in front of every text, bos and eos around it, a mask that eats the space before it."""
    tokenizer = _train_byte_level(None, 700, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    ends = [(t, tokenizer.token_to_id(t)) for t in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=True)
    return tokenizer.to_str()


@functools.cache
def tiktoken_ranks() -> dict[bytes, int]:
    """Ranks of a byte-level BPE, as a tiktoken file lists them: the bytes, then the merges in order."""
    merges = json.loads(_train_byte_level(GPT4_PATTERN, 600).to_str())["model"]["merges"]
    alphabet = byte_of_char()
    tokens = [bytes([b]) for b in range(256)] + [bytes([alphabet[c] for c in a + b]) for a, b in merges]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


@functools.cache
def tiktoken_file() -> bytes:
    """The content of a tiktoken file that nobody has published."""
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in tiktoken_ranks().items())


@functools.cache
def byte_of_char() -> dict[str, int]:
    """The byte alphabet, learned by watching the tokenizers library spell characters whose bytes are known."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    known: dict[str, int] = {}
    for code in [*range(0x800), *range(0x800, 0xD800, 0x400), *range(0xE000, 0x110000, 0x1000)]:
        ((spelled, _),) = spell(chr(code))
        known |= dict(zip(spelled, chr(code).encode(), strict=True))
    # Thirteen bytes occur in no UTF-8; their characters are the Latin-1 ones left over.
    return known | {c: ord(c) for c in pre_tokenizers.ByteLevel.alphabet() if c not in known}


# -- SentencePiece -----------------------------------------------------------------------------------------------------


def train_sentencepiece(corpus: Sequence[str] = CORPUS, **settings: object) -> bytes:
    """A .model file trained by the sentencepiece library, in memory."""
    written = io.BytesIO()
    defaults: dict[str, object] = {"vocab_size": 700, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in corpus for line in text.split("\n")]),
        model_writer=written,
        **(defaults | settings),
    )
    return written.getvalue()


# Like Llama-2 and Mistral: nothing normalised but the space in front; unknown characters by bytes.
LLAMA_SETTINGS = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "character_coverage": 0.99,
    "vocab_size": 900,
}


@functools.cache
def spm_bpe_model() -> bytes:
    """Like Llama-2: BPE, byte fallback, a dummy prefix."""
    return train_sentencepiece(**LLAMA_SETTINGS)


@functools.cache
def spm_nmt_model() -> bytes:
    """Unigram with sentencepiece's default normaliser (nmt_nfkc), which also folds white space; byte fallback."""
    return train_sentencepiece(model_type="unigram", byte_fallback=True, vocab_size=900, character_coverage=0.99)


@functools.cache
def spm_unknown_model() -> bytes:
    """Unigram that cannot spell everything: no byte fallback, no normaliser."""
    return train_sentencepiece(
        model_type="unigram",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        vocab_size=600,
    )


@functools.cache
def hf_unigram_json() -> str:
    """Like XLM-R as the tokenizers library trains it: NFKC, Metaspace, an unknown token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer.to_str()


@functools.cache
def t5_json() -> str:
    """Like T5's tokenizer.json: the same charsmap, but words are split first and each gets its space from Metaspace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spiece.model"
        path.write_bytes(spm_nmt_model())
        spec = json.loads(load_tokenizer(path).tokenizer.to_str())
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    spec["normalizer"] = spec["normalizer"]["normalizers"][0]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}
    spec["decoder"] = metaspace
    return json.dumps(spec)


@functools.cache
def gemma_json() -> str:
    """Like Gemma: spaces spelled by a normaliser, no dummy prefix, byte fallback, runs of spaces as added tokens."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, max_token_length=8)
    trained.train_from_iterator([line.replace("👍🏽", "") for line in CORPUS], trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces += ["\n\n", "▁▁", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "▁"), *(tuple(pair) for pair in model["merges"] if pair != ["▁", "▁"])]
    bpe = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(pieces[:6])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("\n\n", "▁▁")])
    bos = ("<bos>", tokenizer.token_to_id("<bos>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    return tokenizer.to_str()


# -- WordPiece ---------------------------------------------------------------------------------------------------------


@functools.cache
def wordpiece_json() -> str:
    """Like BERT uncased: lower case, accents dropped, white space dropped, unknown words as one token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([line for line in CORPUS if "👍" not in line], trainer)
    ends = [(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer.to_str()


# -- tables by another route -------------------------------------------------------------------------------------------


def _added(tokenizer: Tokenizer) -> dict[int, bytes | None]:
    return {i: None if t.special else t.content.encode() for i, t in tokenizer.get_added_tokens_decoder().items()}


def _table(size: int, spelled: dict[int, bytes | None]) -> Table:
    return tuple(spelled.get(i) for i in range(size))


def byte_level_table(tokenizer: Tokenizer) -> Table:
    """By the alphabet that the library was seen to use."""
    alphabet = byte_of_char()
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    spelled = {i: bytes(alphabet[c] for c in piece) for piece, i in vocab.items() if set(piece) <= set(alphabet)}
    return _table(tokenizer.get_vocab_size(), spelled | _added(tokenizer))


def sentencepiece_table(model: bytes) -> Table:
    """By sentencepiece's own word on which pieces are bytes, controls and unknown."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)

    def spell(i: int) -> bytes | None:
        if sp.is_control(i) or sp.is_unknown(i):
            return None
        return bytes.fromhex(sp.id_to_piece(i)[3:5]) if sp.is_byte(i) else sp.id_to_piece(i).replace("▁", " ").encode()

    return tuple(spell(i) for i in range(sp.get_piece_size()))


def decoder_table(tokenizer: Tokenizer) -> Table:
    """By the tokenizer's decoder, behind an `x` since decoders trim what comes first; bytes by their hexadecimal."""
    spelled: dict[int, bytes | None] = dict(_added(tokenizer))
    for piece, i in tokenizer.get_vocab(with_added_tokens=False).items():
        if spelled.get(i, b"") is None:
            continue
        is_byte = len(piece) == 6 and piece.startswith("<0x")
        spelled[i] = bytes.fromhex(piece[3:5]) if is_byte else tokenizer.decoder.decode(["x", piece])[1:].encode()
    return _table(tokenizer.get_vocab_size(), spelled)


def wordpiece_table(tokenizer: Tokenizer) -> Table:
    """A piece behind another: the decoder joins a continuation and puts a space before anything else."""
    spelled = dict(_added(tokenizer))
    for piece, i in tokenizer.get_vocab(with_added_tokens=False).items():
        if spelled.get(i, b"") is not None:
            spelled[i] = piece[2:].encode() if piece.startswith("##") and len(piece) > 2 else piece.encode()
    return _table(tokenizer.get_vocab_size(), spelled)


# -- the list ----------------------------------------------------------------------------------------------------------


def vocabulary_of_file(content: bytes, file: str) -> Vocabulary:
    """The vocabulary of a file with this content and name; a tiktoken file's warning is expected."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is a tiktoken file that xtoken does not know")
        path = Path(folder) / file
        path.write_bytes(content)
        return Vocabulary.from_pretrained(path)


def _from_json(name: str, make: Callable[[], str], table: Callable[[Tokenizer], Table]) -> Small:
    tokenizer = Tokenizer.from_str(make())
    return Small(name, Vocabulary.from_tokenizer(tokenizer), table(tokenizer))


def _from_model(name: str, make: Callable[[], bytes]) -> Small:
    return Small(name, vocabulary_of_file(make(), f"{name}.model"), sentencepiece_table(make()))


def _from_tiktoken(name: str) -> Small:
    return Small(name, vocabulary_of_file(tiktoken_file(), f"{name}.tiktoken"), tuple(tiktoken_ranks()))


_BUILDERS: dict[str, Callable[[], Small]] = {
    "packing": lambda: _from_json("packing", packing_json, byte_level_table),
    "splitting": lambda: _from_json("splitting", splitting_json, byte_level_table),
    "prefix-space": lambda: _from_json("prefix-space", prefix_space_json, byte_level_table),
    "tiktoken": lambda: _from_tiktoken("tiktoken"),
    "spm-bpe": lambda: _from_model("spm-bpe", spm_bpe_model),
    "spm-nmt": lambda: _from_model("spm-nmt", spm_nmt_model),
    "spm-unknown": lambda: _from_model("spm-unknown", spm_unknown_model),
    "hf-unigram": lambda: _from_json("hf-unigram", hf_unigram_json, decoder_table),
    "t5": lambda: _from_json("t5", t5_json, decoder_table),
    "gemma": lambda: _from_json("gemma", gemma_json, decoder_table),
    "wordpiece": lambda: _from_json("wordpiece", wordpiece_json, wordpiece_table),
}
SMALL = tuple(_BUILDERS)


@functools.cache
def small(name: str) -> Small:
    """A small tokenizer by name, built once."""
    return _BUILDERS[name]()
