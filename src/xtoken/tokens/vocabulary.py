"""A tokenizer as bytes: what each id stands for, and which ids a text becomes.

`Vocabulary` is the one view of a tokenizer that the rest of xtoken uses. Types: an id -> bytes table, roles of special
tokens, a fingerprint, and `encode`, which gives `TokenSpans`. Law: where the tokenizer does not rewrite the text, the
bytes of the tokens joined are the text's, and this is checked on every text, never assumed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors

from xtoken.errors import XTokenError
from xtoken.tokens.families import (
    BYTE_TO_CHAR,
    Family,
    byte_level_bytes,
    components,
    family_of,
    is_byte_piece,
    meta_symbol,
    piece_bytes,
)
from xtoken.tokens.fingerprint import fingerprint
from xtoken.tokens.hf import LoadedTokenizer, load_tokenizer, tokenizer_of
from xtoken.tokens.lossless import TokenBytes, lossless_spans
from xtoken.tokens.roles import Role, role_of
from xtoken.tokens.spans import TokenSpans, spans_by_offsets, utf8

__all__ = ["Vocabulary"]


class Vocabulary:
    """The bytes of every token of a tokenizer, and its way of cutting a text.

    Make one with `from_pretrained` or `from_tokenizer`. It never changes.

    Attributes:
        name: for people.
        family: how its pieces are spelled.
        size: V, one more than the largest id; a model's head may be wider.
        tokens: id -> bytes of text; empty for special tokens and for ids that the tokenizer leaves out.
        roles: the special ids and what each stands for.
        contents: the special ids and how each is written.
        prefix_ids, suffix_ids: what the tokenizer by itself puts around a text (an automatic bos, say).
        fingerprint: sha256 in hexadecimal; equal for equal tokenizers, whatever file they came from.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        *,
        prefix_ids: Sequence[int] = (),
        suffix_ids: Sequence[int] = (),
        declared: dict[str, str] | None = None,
    ) -> None:
        """Takes over a `tokenizers.Tokenizer` (it is changed); prefer the two class methods."""
        tokenizer.post_processor = None  # it would add specials, and trim the spaces off the offsets
        tokenizer.encode_special_tokens = True  # a text that spells a special token is still text
        self._declared = dict(declared or {})
        self.name = name
        self.prefix_ids = tuple(prefix_ids)
        self.suffix_ids = tuple(suffix_ids)
        self._json: str = tokenizer.to_str()
        self._spec = _without_merges(self._json)
        self.family = family_of(self._spec)
        self._read_tokens()
        self._tokenizer = _runnable(json.loads(self._json), self.contents) if _reads_names(self._spec) else tokenizer

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *, revision: str | None = None) -> Vocabulary:
        """Reads a tokenizer from a folder, a file or the Hugging Face hub.

        Args:
            path_or_id: a model folder; a `tokenizer.json`, `tekken.json`, SentencePiece model, tiktoken file or
                `vocab.txt`; or a hub id.
            revision: a hub revision.

        Raises:
            XTokenError: nothing readable there.
            UnsupportedTokenizerError: a family whose tokens have no exact bytes.
        """
        return cls._from_loaded(load_tokenizer(path_or_id, revision=revision))

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """Reads a loaded tokenizer, which is left as it is.

        Args:
            tokenizer: a `tokenizers.Tokenizer` or a transformers fast tokenizer.

        Raises:
            UnsupportedTokenizerError: another kind of object, or a family whose tokens have no exact bytes.
        """
        return cls._from_loaded(tokenizer_of(tokenizer))

    @classmethod
    def _from_loaded(cls, loaded: LoadedTokenizer) -> Vocabulary:
        tokenizer = loaded.tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        prefix, suffix = _automatic_specials(tokenizer)
        return cls(tokenizer, loaded.name, prefix_ids=prefix, suffix_ids=suffix, declared=loaded.declared)

    def __reduce__(self) -> tuple[Any, ...]:
        state = (self._json, self.name, self.prefix_ids, self.suffix_ids, self._declared)
        return _rebuild, state

    def __repr__(self) -> str:
        return f"Vocabulary({self.name!r}, {self.family.value}, size={self.size}, fingerprint={self.fingerprint[:12]})"

    def _read_tokens(self) -> None:
        """Fills `size`, `tokens`, `roles` and `contents` from the model's vocabulary and the added tokens."""
        model, added = self._spec["model"], self._spec.get("added_tokens") or []
        listed = model["vocab"]
        pieces = (
            dict(enumerate(p for p, _ in listed)) if isinstance(listed, list) else {i: p for p, i in listed.items()}
        )
        self.size = 1 + max([*pieces, *(token["id"] for token in added)], default=-1)
        tokens = [b""] * self.size
        for i, content in zip(pieces, self._spelled([*pieces.values()]), strict=True):
            tokens[i] = content
        contents = {token["id"]: str(token["content"]) for token in added if token["special"]}
        contents |= {i: pieces[i] for i in _unknown_ids(model) if i in pieces}
        for token in added:
            if token["id"] not in pieces:  # else the model too can produce it, and spells it as its other pieces
                tokens[token["id"]] = str(token["content"]).encode()
        for i in contents:
            tokens[i] = b""
        self.tokens: tuple[bytes, ...] = tuple(tokens)
        self.contents = contents
        self.roles: dict[int, Role] = {i: self._role(content) for i, content in sorted(contents.items())}
        falls_back = meta_symbol(self._spec) is not None and bool(model.get("byte_fallback"))
        self._byte_pieces = {i for i, piece in pieces.items() if falls_back and is_byte_piece(piece)}
        self.absent: frozenset[int] = frozenset(range(self.size)) - set(pieces) - {token["id"] for token in added}

    def _spelled(self, pieces: list[str]) -> list[bytes]:
        if self.family is Family.BYTE_LEVEL:
            return byte_level_bytes(pieces)
        model, meta = self._spec["model"], meta_symbol(self._spec)
        fallback, prefix = bool(model.get("byte_fallback")), model.get("continuing_subword_prefix") or "##"
        return [piece_bytes(p, self.family, meta=meta, byte_fallback=fallback, prefix=prefix) for p in pieces]

    def _role(self, content: str) -> Role:
        """By the token's name; for a name nobody knows, by what its folder declares."""
        role = role_of(content)
        if role is Role.OTHER:
            for key, text in self._declared.items():
                if text == content:
                    return Role(key.removesuffix("_token"))
        return role

    @cached_property
    def ids_by_bytes(self) -> dict[bytes, int]:
        """The lowest id of each byte string, special tokens left out.

        Byte-fallback pieces come last: `<0x2E>` has a lower id than `.`, but no text ever gets it.
        """
        found: dict[bytes, int] = {}
        for is_late in (False, True):
            for i, content in enumerate(self.tokens):
                if content and (i in self._byte_pieces) is is_late:
                    found.setdefault(content, i)
        return found

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(json.loads(self._json))

    def is_same_as(self, other: Vocabulary) -> bool:
        """Whether the fingerprints are equal; most tokenizers that differ are told apart without computing them.

        Args:
            other: another vocabulary.
        """
        return self is other or (self.tokens == other.tokens and self.fingerprint == other.fingerprint)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """`tokens` as arrays, by which whole batches are cut."""
        return TokenBytes.of(self.tokens)

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """bool [V], whether the id is a special token."""
        mask = np.zeros(self.size, bool)
        mask[list(self.roles)] = True
        return mask

    @cached_property
    def is_event(self) -> NDArray[np.bool_]:
        """bool [V], whether the id is a special token that stands for an event: all but the unknown token."""
        mask: NDArray[np.bool_] = self.is_special.copy()
        mask[[i for i, role in self.roles.items() if role is Role.UNK]] = False
        return mask

    def _first(self, role: Role) -> int | None:
        by_name = next((i for i, r in self.roles.items() if r is role), None)
        content = self._declared.get(f"{role.value}_token")
        declared = next((i for i, text in self.contents.items() if text == content), None)
        return by_name if by_name is not None else declared

    @property
    def bos_id(self) -> int | None:
        """The token that begins a document, if there is one."""
        return self._first(Role.BOS)

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document (not a chat turn), if there is one."""
        return self._first(Role.EOS)

    @property
    def pad_id(self) -> int | None:
        """The padding token, if there is one."""
        return self._first(Role.PAD)

    @property
    def unk_id(self) -> int | None:
        """The token for what the vocabulary cannot spell, if there is one."""
        return self._first(Role.UNK)

    @property
    def named_specials(self) -> dict[str, str]:
        """`bos_token` and the like with their texts: as the tokenizer's files declare them, and else by role."""
        by_role = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        return {key: self.contents[i] for key, i in by_role.items() if i is not None} | self._declared

    @property
    def added_tokens(self) -> tuple[dict[str, Any], ...]:
        """The tokens added to the model's vocabulary, special and not, as `tokenizer.json` describes them."""
        return tuple(self._spec.get("added_tokens") or ())

    def to_tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer` for other libraries: it puts `prefix_ids` in front of a text, and nothing behind.

        Unlike `encode`, it reads a special token out of a text that spells one, as such libraries expect.
        """
        tokenizer = Tokenizer.from_str(self._json)
        if self.prefix_ids:
            names = [f"prefix{n}" for n in range(len(self.prefix_ids))]  # of the template's own
            specials = list(zip(names, self.prefix_ids, strict=True))
            tokenizer.post_processor = processors.TemplateProcessing(single=[*names, "$A"], special_tokens=specials)
        return tokenizer

    def reader(self, *, is_inner: bool, unread: Collection[str] = ()) -> Vocabulary:
        """The same tokenizer for parts of a text, with the same ids; this one where it would read them alike.

        Args:
            is_inner: for parts that something stands before: a dummy space that is for the beginning of a text alone is
                left out.
            unread: added tokens that a text which spells them is not to get, beside the special ones.
        """
        steps = list(components(self._spec.get("pre_tokenizer")))
        dummies = [step for step in steps if is_inner and step.get("prepend_scheme") == "first"]
        if not dummies and not any(token["content"] in unread and not token["special"] for token in self.added_tokens):
            return self
        spec = json.loads(self._json)
        for token in spec.get("added_tokens") or []:
            token["special"] = token["special"] or token["content"] in unread
        if dummies:
            inner = [{**step, "prepend_scheme": "never"} if step in dummies else step for step in steps]
            spec["pre_tokenizer"] = _sequence("pretokenizers", inner)
        return Vocabulary(Tokenizer.from_str(json.dumps(spec)), self.name, declared=self._declared)

    def encode(self, text: str) -> TokenSpans:
        """The tokens of a text and where each ends; no special token is added, and none is read out of the text.

        Args:
            text: any Unicode text.

        Raises:
            XTokenError: the text holds a lone surrogate.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[TokenSpans]:
        """`encode` for many texts at once, on all cores."""
        raws = [utf8(text) for text in texts]
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int64) for encoding in encodings]
        found = lossless_spans(self.token_bytes, ids, raws)
        return [
            spans if spans is not None else spans_by_offsets(ids[n], encodings[n].offsets, self.tokens, texts[n], raw)
            for n, (spans, raw) in enumerate(zip(found, raws, strict=True))
        ]

    @cached_property
    def _bare(self) -> Any:
        """The tokenizer without the space some put in front of a text: for pieces that are no beginning of a text."""
        before = {key: list(components(self._spec.get(key))) for key in ("normalizer", "pre_tokenizer")}
        after = {key: _without_dummy_space(parts) for key, parts in before.items()}
        if after == before:
            return self._tokenizer
        spec = json.loads(self._json)
        spec["normalizer"] = _sequence("normalizers", after["normalizer"])
        spec["pre_tokenizer"] = _sequence("pretokenizers", after["pre_tokenizer"])
        return _runnable(spec, self.contents) if _reads_names(spec) else _tokenizer_of(spec)

    def retokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text taken as the middle of a longer one: no special tokens, no dummy space in front.

        A tokenizer that puts a space in front of a text may strip one it finds there; such a text is given to it
        without, and the space it adds is the one wanted.
        """
        cuts = [encoding.ids for encoding in self._bare.encode_batch(list(texts))]
        if self._bare is not self._tokenizer:
            led = [n for n, text in enumerate(texts) if text[:1] == " " and not self._spells(cuts[n], text)]
            for n, encoding in zip(led, self._tokenizer.encode_batch([texts[n][1:] for n in led]), strict=True):
                if self._spells(encoding.ids, texts[n]):
                    cuts[n] = encoding.ids
        return cuts

    def _spells(self, ids: Sequence[int], text: str) -> bool:
        return b"".join([self.tokens[i] for i in ids]) == text.encode()

    def segment(self, content: bytes) -> list[int] | None:
        """The ids whose bytes joined are exactly `content`, which need not be text; None where there are none.

        Byte-level vocabularies run their merges on the bytes; SentencePiece ones fall back to byte pieces.
        """
        if self.family is Family.BYTE_LEVEL:
            ids = [t.id for t in self._tokenizer.model.tokenize("".join([BYTE_TO_CHAR[b] for b in content]))]
        else:
            ids = [i for run in _text_and_byte_runs(content) for i in self._segment_run(run)]
        return ids if b"".join([self.tokens[i] for i in ids]) == content else None

    def _segment_run(self, run: str | int) -> list[int]:
        meta = meta_symbol(self._spec)
        if isinstance(run, str) and meta:  # the model alone: no normaliser may strip a space here
            return [token.id for token in self._tokenizer.model.tokenize(run.replace(" ", meta))]
        if isinstance(run, str):
            return self.retokenize([run])[0]
        byte = self._tokenizer.token_to_id(f"<0x{run:02X}>")
        return [] if byte is None else [byte]


# Cuts a text that spells a byte piece after its first character, so that it is never taken for the piece.
_BYTE_PIECE_CUT = {
    "type": "Split",
    "pattern": {"Regex": "<(?=0x[0-9A-Fa-f]{2}>)"},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


# In JSON a quotation mark inside a string has a backslash before it, so this is no token's text.
_MERGES = '"merges":['


def _without_merges(text: str) -> dict[str, Any]:
    """A parsed `tokenizer.json`, its merges left out where they stand last, as the tokenizers library writes them.

    Hundreds of thousands of pairs, which only the fingerprint needs, would be most of the parsing and of the memory.
    """
    head, found, _ = text.rpartition(_MERGES)
    if not found:
        return dict(json.loads(text))
    return dict(json.loads(head + _MERGES + "]}}"))


def _reads_names(spec: dict[str, Any]) -> bool:
    """Whether the tokenizer reads special tokens and byte pieces out of a text that spells their names.

    The library's Unigram matches every piece of its list, and its BPE takes whole words that are pieces where it is
    told to ignore merges; SentencePiece leaves special and byte pieces out.
    """
    model = spec["model"]
    return meta_symbol(spec) is not None and (isinstance(model["vocab"], list) or bool(model.get("ignore_merges")))


def _tokenizer_of(spec: dict[str, Any]) -> Any:
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _runnable(spec: dict[str, Any], contents: dict[int, str]) -> Any:
    """A tokenizer that reads names out of texts, so that it does not.

    Special pieces get a name with a bare space, which no text holds once spaces are escaped; byte pieces keep theirs,
    by which they are found, and a text that spells one is cut.
    """
    model = dict(spec["model"])
    is_unigram = isinstance(model["vocab"], list)
    if is_unigram:
        vocab = enumerate(model["vocab"])
        model["vocab"] = [[f" {piece}" if i in contents else piece, score] for i, (piece, score) in vocab]
    else:
        model["vocab"] = {f" {piece}" if i in contents else piece: i for piece, i in model["vocab"].items()}
        model["unk_token"] = f" {model['unk_token']}" if model.get("unk_token") else None
    in_model = set(range(len(model["vocab"]))) if is_unigram else set(model["vocab"].values())
    added = [
        {**token, "content": f" {token['content']}"} if token["special"] and token["id"] in in_model else token
        for token in spec.get("added_tokens") or []
    ]
    cuts = [*components(spec.get("pre_tokenizer")), *([_BYTE_PIECE_CUT] if model.get("byte_fallback") else [])]
    changed = {"added_tokens": added, "model": model, "pre_tokenizer": _sequence("pretokenizers", cuts)}
    return _tokenizer_of({**spec, **changed})


def _rebuild(
    spec: str, name: str, prefix_ids: Sequence[int], suffix_ids: Sequence[int], declared: dict[str, str]
) -> Vocabulary:
    return Vocabulary(Tokenizer.from_str(spec), name, prefix_ids=prefix_ids, suffix_ids=suffix_ids, declared=declared)


def _automatic_specials(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer's template puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise XTokenError(f"the tokenizer's template turns 'a', {bare}, into {full}, which does not hold it")


def _unknown_ids(model: dict[str, Any]) -> list[int]:
    """The id of the model's unknown token, where it has one."""
    if model.get("unk_id") is not None:
        return [int(model["unk_id"])]
    vocab = model["vocab"]
    return [vocab[model["unk_token"]]] if isinstance(vocab, dict) and model.get("unk_token") in vocab else []


def _sequence(key: str, parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Normalisers or pre-tokenizers as one."""
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else {"type": "Sequence", key: parts}


def _without_dummy_space(parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The components, none of which puts a space in front any more."""
    never: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    return [{**part, **never.get(part["type"], {})} for part in parts if part["type"] != "Prepend"]


def _text_and_byte_runs(content: bytes) -> list[str | int]:
    """Cuts bytes into runs of valid text and single bytes that belong to none."""
    runs: list[str | int] = []
    for char in content.decode("utf-8", "surrogateescape"):
        if 0xDC80 <= ord(char) <= 0xDCFF:
            runs.append(ord(char) - 0xDC00)
        elif runs and isinstance(runs[-1], str):
            runs[-1] += char
        else:
            runs.append(char)
    return runs
