"""The only code that touches tokenizer libraries: any published file format becomes one `tokenizers.Tokenizer`.

`load_tokenizer` takes a folder, a file or a hub id. The rest of xtoken sees the `Tokenizer` and its parsed JSON. What
`tokenizer.json` says is taken as it stands; transformers' AutoTokenizer is not asked, since for some classes it puts
another pre-tokenizer in its place.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from xtoken.errors import UnsupportedTokenizerError, XTokenError
from xtoken.tokens.families import byte_level_pieces
from xtoken.tokens.known import CL100K_PATTERN, KNOWN_TIKTOKEN, TiktokenRecipe
from xtoken.tokens.merges import merges_by_rank

__all__ = ["TOKENIZER_FILES", "LoadedTokenizer", "load_tokenizer", "tokenizer_of"]

# Looked for in a folder or a hub repository, first found first taken.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tekken.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "qwen.tiktoken",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
_CONFIG = "tokenizer_config.json"
# `gpt2` or `owner/name`; what ends like a file was meant as one.
_HUB_ID = re.compile(r"(?!.*\.(json|model|txt|tiktoken)$)\w[\w.-]*(/[\w.-]+)?")
_SPECIAL_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer and what its folder says of it.

    Attributes:
        tokenizer: ours alone; it may be changed.
        name: for people.
        declared: `bos_token` and the like from `tokenizer_config.json`, to the token's text.
    """

    tokenizer: Any
    name: str
    declared: dict[str, str] = field(default_factory=dict)


def load_tokenizer(path_or_id: str | Path, *, revision: str | None = None) -> LoadedTokenizer:
    """Loads a tokenizer from a folder, a file or a hub id.

    Args:
        path_or_id: a model folder; a `tokenizer.json`, `tekken.json`, SentencePiece `.model`, tiktoken file or
            `vocab.txt`; or a repository id on the Hugging Face hub.
        revision: the hub revision; only for an id.

    Raises:
        XTokenError: nothing there, or it cannot be read.
        UnsupportedTokenizerError: a format that is not known.
    """
    path = Path(path_or_id).expanduser()
    if path.is_file():
        return _load_file(path, path.parent.name if path.name in TOKENIZER_FILES else path.stem, {})
    if path.is_dir():
        return _load_folder(path, path.name)
    name = str(path_or_id)
    if not _HUB_ID.fullmatch(name):
        raise XTokenError(f"no tokenizer at {name!r}: no such file or folder")
    return _load_folder(_download(name, revision), name.rpartition("/")[2])


def tokenizer_of(tokenizer: Any) -> LoadedTokenizer:
    """A private copy of the `tokenizers.Tokenizer` inside a tokenizer object.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, or a transformers tokenizer that is built on one.

    Raises:
        UnsupportedTokenizerError: it is built on something else.
    """
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        kind = type(tokenizer)
        raise UnsupportedTokenizerError(
            f"a tokenizer of class {kind.__module__}.{kind.__qualname__} is not built on the tokenizers library. "
            "Supported: tokenizers.Tokenizer and transformers' fast tokenizers; a slow one can be read from its files "
            "with Vocabulary.from_pretrained(folder)."
        )
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    declared = {key: str(value) for key in _SPECIAL_KEYS if (value := getattr(tokenizer, key, None)) is not None}
    return LoadedTokenizer(Tokenizer.from_str(backend.to_str()), Path(name).name, declared)


def _download(repo: str, revision: str | None) -> Path:
    """The tokenizer files of a hub repository, in the hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = [*TOKENIZER_FILES, "merges.txt", "*.tiktoken", "*tokenizer_config.json"]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise XTokenError(
            f"no tokenizer at {repo!r}: it is no file or folder here, and the hub did not give it ({reason})"
        ) from None


def _load_folder(folder: Path, name: str) -> LoadedTokenizer:
    config = _read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    candidates = [folder / file for file in TOKENIZER_FILES] + sorted(folder.glob("*.tiktoken"))
    for candidate in candidates:
        if candidate.is_file() and not (candidate.name == "vocab.json" and not (folder / "merges.txt").is_file()):
            return _load_file(candidate, name, config)
    raise XTokenError(
        f"no tokenizer in {str(folder)!r}: it has none of {', '.join(TOKENIZER_FILES)}. "
        "Give the folder that holds the tokenizer, or the file itself."
    )


def _load_file(path: Path, name: str, config: dict[str, Any]) -> LoadedTokenizer:
    tokenizer, known_name = _read_tokenizer(path, config)
    declared = {key: content for key in _SPECIAL_KEYS if (content := _content(config.get(key))) is not None}
    return LoadedTokenizer(tokenizer, known_name or name or path.stem, declared)


def _read_tokenizer(path: Path, config: dict[str, Any]) -> tuple[Any, str | None]:
    """Tells the format by content where a name is shared (`tokenizer.model` is tiktoken's and SentencePiece's).

    Returns:
        The tokenizer, and its own name where it is a known one: a lone file may lie in any folder.
    """
    if path.suffix == ".json" and path.name != "vocab.json":
        content = _read_json(path)
        if "vocab" in content and "config" in content:
            try:
                return _from_tekken(content), None
            except (KeyError, TypeError, ValueError) as error:
                raise XTokenError(f"{str(path)!r} is not a readable tekken.json: {error!r}") from None
        if "model" in content:
            return _from_json(path), None
        raise UnsupportedTokenizerError(f"{path.name} is no tokenizer: it holds the keys {sorted(content)[:8]}")
    if path.name == "vocab.json":
        return _from_gpt2_files(path, path.with_name("merges.txt"), config), None
    if path.suffix == ".txt":
        return _from_wordpiece(path, config), None
    raw = _read_bytes(path)
    ranks = _tiktoken_ranks(raw)
    if ranks is not None:
        known = KNOWN_TIKTOKEN.get(hashlib.sha256(raw).hexdigest())
        recipe = known or _guessed_recipe(path.name)
        return _from_tiktoken(ranks, recipe, config), known.name if known else None
    return _from_sentencepiece(raw, path.name, config), None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise XTokenError(f"cannot read {str(path)!r}: {error.strerror or error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(path))
    except ValueError as error:
        raise XTokenError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise XTokenError(f"{str(path)!r} holds a {type(content).__name__}, not an object")
    return content


def _from_json(path: Path) -> Any:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise XTokenError(f"{str(path)!r} is not a readable tokenizer.json: {error}") from None


# -- byte pairs by rank: tiktoken and tekken ---------------------------------------------------------------------------


def _tiktoken_ranks(content: bytes) -> dict[bytes, int] | None:
    """The ranks of a tiktoken file (lines of base64 and a number), or None where the content is something else."""
    ranks = {}
    try:
        for line in content.splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        return None
    return ranks or None


def _guessed_recipe(name: str) -> TiktokenRecipe:
    warnings.warn(
        f"{name} is a tiktoken file that xtoken does not know, and such a file does not say how texts are split: "
        "the pattern of cl100k (GPT-4, Llama-3) is used. Give a tokenizer.json if that is not its own.",
        stacklevel=2,
    )
    return TiktokenRecipe(name, CL100K_PATTERN)


def _from_tiktoken(ranks: dict[bytes, int], recipe: TiktokenRecipe, config: dict[str, Any]) -> Any:
    tokenizer = _byte_pair_tokenizer(ranks, recipe.pattern)
    if recipe.nfc:
        tokenizer.normalizer = normalizers.NFC()
    _add_in_order(tokenizer, recipe.special_tokens, special=True)
    _add_in_order(tokenizer, recipe.content_tokens, special=False)
    if not recipe.special_tokens:
        _add_declared(tokenizer, config)
    _set_prefix(tokenizer, recipe.prefix)
    return tokenizer


def _from_tekken(content: dict[str, Any]) -> Any:
    """Mistral's tekken.json: ranks after a block of special ids (mistral_common, `tokens/tokenizers/tekken.py`)."""
    config = content["config"]
    n_special, size = int(config["default_num_special_tokens"]), int(config["default_vocab_size"])
    kept = content["vocab"][: size - n_special]
    ranks = {base64.b64decode(entry["token_bytes"]): int(entry["rank"]) + n_special for entry in kept}
    named = {int(entry["rank"]): str(entry["token_str"]) for entry in content.get("special_tokens") or []}
    # Files before version v7 leave the first names out; these three have been the same in all.
    names = {0: "<unk>", 1: "<s>", 2: "</s>"} | named
    specials = [names.get(i, f"<SPECIAL_{i}>") for i in range(n_special)]
    tokenizer = _byte_pair_tokenizer(ranks, str(config["pattern"]), specials)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    _set_prefix(tokenizer, ("<s>",))
    return tokenizer


def _byte_pair_tokenizer(ranks: dict[bytes, int], pattern: str, specials: Sequence[str] = ()) -> Any:
    """A byte-level BPE whose merges are all the ways to cut a token in two tokens, in the order of its rank.

    tiktoken joins the pair whose result ranks lowest, so the order of the results is the order of the merges; a whole
    word that is itself a token is taken at once (`ignore_merges`).
    """
    tokens = sorted(ranks, key=ranks.__getitem__)
    spelled = byte_level_pieces(tokens)
    firsts, seconds = merges_by_rank(tokens)
    merges = [(spelled[a], spelled[b]) for a, b in zip(firsts.tolist(), seconds.tolist(), strict=True)]
    vocab = {text: i for i, text in enumerate(specials)}
    vocab |= {text: ranks[token] for text, token in zip(spelled, tokens, strict=True)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# -- SentencePiece -----------------------------------------------------------------------------------------------------


_SPM_UNIGRAM, _SPM_BPE = 1, 2  # TrainerSpec.ModelType in sentencepiece_model.proto


def _from_sentencepiece(content: bytes, name: str, config: dict[str, Any]) -> Any:
    """A SentencePiece model as the tokenizers library runs it."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise UnsupportedTokenizerError(
            f"{name} is neither a tiktoken file nor a SentencePiece model. Supported files: tokenizer.json, "
            "tekken.json, tiktoken, SentencePiece BPE and Unigram, vocab.txt."
        ) from None
    kinds = {_SPM_UNIGRAM: _spm_unigram, _SPM_BPE: _spm_bpe}
    if not model.pieces or model.trainer_spec.model_type not in kinds:
        raise UnsupportedTokenizerError(
            f"{name} is a SentencePiece model of type {model.trainer_spec.model_type} (3 is word, 4 is char); "
            "supported are 1 (Unigram) and 2 (BPE)."
        )
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise UnsupportedTokenizerError(
            f"{name} is a SentencePiece model with treat_whitespace_as_suffix: its pieces end in their space, which "
            "the tokenizers library cannot run. Supported are pieces that begin with it."
        )
    tokenizer = Tokenizer(kinds[model.trainer_spec.model_type](model))
    tokenizer.normalizer = _spm_normalizer(model.normalizer_spec)
    kind = proto.ModelProto.SentencePiece
    _add_in_order(tokenizer, [p.piece for p in model.pieces if p.type in (kind.UNKNOWN, kind.CONTROL)], special=True)
    if model.trainer_spec.model_type == _SPM_BPE:
        tokenizer.pre_tokenizer = _spm_symbols([p.piece for p in model.pieces if p.type == kind.USER_DEFINED])
    _add_declared(tokenizer, config)
    if config.get("add_bos_token", False) and (bos := _content(config.get("bos_token"))):
        _set_prefix(tokenizer, (bos,))
    return tokenizer


def _spm_unigram(model: Any) -> Any:
    """Scores as they are, and a user-defined symbol's so that it always wins (sentencepiece, `unigram_model.cc`)."""
    kind = type(model).SentencePiece
    best = max((piece.score for piece in model.pieces if piece.type == kind.NORMAL), default=0.0)
    symbol_score = {p.piece: len(p.piece) * best - 0.1 for p in model.pieces if p.type == kind.USER_DEFINED}
    pieces = [(piece.piece, symbol_score.get(piece.piece, piece.score)) for piece in model.pieces]
    return models.Unigram(pieces, unk_id=model.trainer_spec.unk_id, byte_fallback=model.trainer_spec.byte_fallback)


def _spm_bpe(model: Any) -> Any:
    """Merges from scores: SentencePiece joins the pair whose piece scores highest."""
    kind = type(model).SentencePiece
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    usable = {piece.piece for piece in model.pieces if piece.type == kind.NORMAL}
    merges = []
    for piece in sorted(usable, key=lambda text: (-model.pieces[ids[text]].score, ids[text])):
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pairs = [(ids[a], ids[b], a, b) for a, b in cuts if a in usable and b in usable]
        merges += [(a, b) for _, _, a, b in sorted(pairs)]
    spec, symbols = model.trainer_spec, any(piece.type == kind.USER_DEFINED for piece in model.pieces)
    return models.BPE(
        ids,
        merges,
        unk_token=spec.unk_piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
        ignore_merges=symbols,  # a user-defined symbol is made of no merges; it is taken whole
    )


def _spm_symbols(symbols: Sequence[str]) -> Any:
    """User-defined symbols cut out of the normalised text, the longest first; each then is a word that is a piece.

    As added tokens they would cut the text before the dummy space is put in front of it, which then comes before each
    part.
    """
    if not symbols:
        return None
    longest_first = sorted(symbols, key=len, reverse=True)
    pattern = "|".join("".join(f"\\x{{{ord(char):X}}}" for char in symbol) for symbol in longest_first)
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def _spm_normalizer(spec: Any) -> Any:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # Spaces alone, where the library's Strip takes every white space.
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", "▁"))
    return normalizers.Sequence(steps)


# -- the older pairs of files ------------------------------------------------------------------------------------------


def _from_gpt2_files(vocab: Path, merges: Path, config: dict[str, Any]) -> Any:
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises bare Exception
        raise XTokenError(f"{str(vocab)!r} and merges.txt are not a readable BPE vocabulary: {error}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    tokenizer.decoder = decoders.ByteLevel()
    _add_declared(tokenizer, config)
    if not config and tokenizer.token_to_id("<|endoftext|>") is not None:  # GPT-2 published its files without a config
        _add_in_order(tokenizer, ("<|endoftext|>",), special=True)
    return tokenizer


def _from_wordpiece(vocab: Path, config: dict[str, Any]) -> Any:
    """BERT's vocab.txt, with the lower-casing its config states (BERT's default: on)."""
    pieces = _read_bytes(vocab).decode("utf-8", "replace").splitlines()
    ids = {piece: i for i, piece in enumerate(pieces)}
    if "[UNK]" not in ids:
        raise UnsupportedTokenizerError(f"{vocab.name} is not a WordPiece vocabulary: it has no [UNK] line")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=bool(config.get("do_lower_case", True)))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _add_in_order(tokenizer, [t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in ids], special=True)
    if "[CLS]" in ids and "[SEP]" in ids:
        pair = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    return tokenizer


# -- added tokens ------------------------------------------------------------------------------------------------------


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _add_in_order(tokenizer: Any, contents: Iterable[str], *, special: bool) -> None:
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in contents])


def _add_declared(tokenizer: Any, config: dict[str, Any]) -> None:
    """Adds the tokens `tokenizer_config.json` lists, at the ids it gives."""
    listed = sorted((int(i), token) for i, token in (config.get("added_tokens_decoder") or {}).items())
    for i, token in listed:
        flags = {k: bool(token.get(k)) for k in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        tokenizer.add_tokens([AddedToken(token["content"], **flags)])
        if tokenizer.token_to_id(token["content"]) != i:
            raise XTokenError(
                f"tokenizer_config.json puts {token['content']!r} at id {i}, but the vocabulary file puts it at "
                f"{tokenizer.token_to_id(token['content'])}: the two do not belong together"
            )
    for key in _SPECIAL_KEYS:
        if (content := _content(config.get(key))) and tokenizer.token_to_id(content) is not None:
            tokenizer.add_tokens([AddedToken(content, special=True, normalized=False)])


def _set_prefix(tokenizer: Any, prefix: Sequence[str]) -> None:
    if prefix:
        pairs = [(text, tokenizer.token_to_id(text)) for text in prefix]
        template = [*prefix, "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
