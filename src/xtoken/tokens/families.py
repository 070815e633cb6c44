"""From a tokenizer's pieces to the bytes of text they stand for: one rule a family.

A tokenizer is described by `tokenizer.json` (a `spec` here: the parsed JSON). Its family follows from the model and
the pre-tokenizer, and the family says how a piece is spelled. The law: for a text that the tokenizer does not
normalise, the bytes of its tokens joined are the bytes of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from xtoken.errors import UnsupportedTokenizerError

__all__ = [
    "BYTE_TO_CHAR",
    "Family",
    "byte_level_bytes",
    "byte_level_pieces",
    "components",
    "family_of",
    "meta_symbol",
    "piece_bytes",
]

Spec = dict[str, Any]


class Family(str, Enum):
    """How a vocabulary spells its pieces."""

    BYTE_LEVEL = "byte-level"
    SENTENCEPIECE_BPE = "sentencepiece-bpe"
    SENTENCEPIECE_UNIGRAM = "sentencepiece-unigram"
    WORDPIECE = "wordpiece"


def _byte_alphabet() -> dict[int, str]:
    """The 256 printable characters in which byte-level BPE writes bytes (GPT-2, Radford et al. 2019, encoder.py).

    A byte whose Latin-1 character is printable stands for itself; the others take the characters from U+0100 on, in
    order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + n) for n, b in enumerate(shifted)}


BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
# By code point; -1 for what is no byte's character, as the last entry and all beyond it are.
_CODE_TO_BYTE = np.array([_CHAR_TO_BYTE.get(chr(code), -1) for code in range(0x145)], np.int16)
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def components(part: Spec | None) -> Iterator[Spec]:
    """The normalisers or pre-tokenizers of a spec in order, with nested sequences opened."""
    if part is None:
        return
    if part.get("type") == "Sequence":
        for inner in part.get("normalizers") or part.get("pretokenizers") or []:
            yield from components(inner)
    else:
        yield part


def meta_symbol(spec: Spec) -> str | None:
    """The character that stands for a space in the pieces (`▁`), or None where a space is itself."""
    for part in components(spec.get("pre_tokenizer")):
        if part["type"] == "Metaspace":
            return str(part.get("replacement", "▁"))
    for part in components(spec.get("normalizer")):
        if part["type"] == "Replace" and part.get("pattern") == {"String": " "} and len(part.get("content", "")) == 1:
            return str(part["content"])
    return None


def family_of(spec: Spec) -> Family:
    """Recognises the family of a tokenizer.

    Args:
        spec: the parsed `tokenizer.json`.

    Raises:
        UnsupportedTokenizerError: its tokens have no exact bytes; the message names what was found.
    """
    model = spec["model"]
    kind = model.get("type") or _kind_by_fields(model)
    parts = [*components(spec.get("normalizer")), *components(spec.get("pre_tokenizer"))]
    # Marks of place inside a word are no bytes; only WordPiece's, which it always has, is known how to take off.
    marks = {"end_of_word_suffix": "end-of-word suffix", "continuing_subword_prefix": "continuing-subword prefix"}
    marked = kind == "BPE" and any(model.get(mark) for mark in marks)
    if kind in ("BPE", "Unigram") and not marked and any(part["type"] == "ByteLevel" for part in parts):
        return Family.BYTE_LEVEL
    if kind == "Unigram":
        return Family.SENTENCEPIECE_UNIGRAM
    if kind == "BPE" and not marked and (meta_symbol(spec) or model.get("byte_fallback")):
        return Family.SENTENCEPIECE_BPE
    if kind == "WordPiece":
        return Family.WORDPIECE
    found = f"model {kind!r} with pre-tokenizer {[p['type'] for p in components(spec.get('pre_tokenizer'))]}"
    if marked:
        found += "".join(f" and {name} {model[mark]!r}" for mark, name in marks.items() if model.get(mark))
    raise UnsupportedTokenizerError(
        f"this tokenizer's tokens have no exact bytes: found {found}. Supported families: byte-level BPE (GPT-2, "
        "Llama-3, Qwen, DeepSeek), SentencePiece BPE and Unigram (Llama-2, Mistral, Gemma, T5), WordPiece (BERT) and "
        "tiktoken files."
    )


def _kind_by_fields(model: Spec) -> str:
    """The model's type where an old `tokenizer.json` leaves it out."""
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def byte_level_bytes(pieces: Sequence[str]) -> list[bytes]:
    """The bytes of byte-level pieces: `piece_bytes` for a whole vocabulary at once, by one table of characters."""
    lengths = np.fromiter(map(len, pieces), np.int64, count=len(pieces))
    codes = np.frombuffer("".join(pieces).encode("utf-32-le"), np.uint32)
    values = _CODE_TO_BYTE[np.minimum(codes, len(_CODE_TO_BYTE) - 1)]
    raw, stops = values.astype(np.uint8).tobytes(), np.cumsum(lengths)
    found = [raw[a:b] for a, b in zip((stops - lengths).tolist(), stops.tolist(), strict=True)]
    for n in np.searchsorted(stops, np.flatnonzero(values < 0), side="right").tolist():
        found[n] = pieces[n].encode()  # not in the alphabet: see `piece_bytes`
    return found


def byte_level_pieces(tokens: Sequence[bytes]) -> list[str]:
    """How a byte-level vocabulary spells each of these tokens."""
    spelled = b"".join(tokens).decode("latin-1").translate(BYTE_TO_CHAR)
    stops = [0, *accumulate(map(len, tokens))]
    return [spelled[a:b] for a, b in pairwise(stops)]


def is_byte_piece(piece: str) -> bool:
    """Whether a piece is spelled `<0xHH>`, which under byte fallback is one byte."""
    return _BYTE_PIECE.fullmatch(piece) is not None


def piece_bytes(piece: str, family: Family, *, meta: str | None, byte_fallback: bool, prefix: str) -> bytes:
    """The bytes of text that a piece of the model's own vocabulary stands for.

    Args:
        piece: as the vocabulary spells it.
        family: of the vocabulary.
        meta: the character that stands for a space, if any (`meta_symbol`).
        byte_fallback: whether `<0xHH>` is one byte rather than six characters.
        prefix: WordPiece's mark of a continuation (`##`).
    """
    if family is Family.BYTE_LEVEL:
        try:
            return bytes([_CHAR_TO_BYTE[char] for char in piece])
        except (
            KeyError
        ):  # a piece with a character outside the alphabet: the model cannot produce it, its text is itself
            return piece.encode()
    if family is Family.WORDPIECE:
        return piece.removeprefix(prefix).encode()
    if byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
        return bytes([int(match[1], 16)])
    return (piece.replace(meta, " ") if meta else piece).encode()
