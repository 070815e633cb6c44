"""A sha256 of everything that decides which tokens a text becomes, and nothing else.

Two tokenizers that share it turn every text into the same ids; one made from a `tokenizer.json`, a loaded object or a
converted file is the same tokenizer. Left out on purpose: what is added around a text (bos, eos), padding, truncation,
the decoder, the offsets' trimming and the order in which a file happens to list things.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from xtoken.tokens.families import components

__all__ = ["fingerprint"]

# Changing what is hashed makes saved artifacts unreadable, so it carries a number of its own.
_SCHEME = "xtoken-tokenizer-1"
_WITHOUT_EFFECT = {"trim_offsets"}
_ADDED_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def _settings(part: dict[str, Any]) -> dict[str, Any]:
    """A component without what does not change ids; absent, null and empty are one thing, false and zero are not."""
    return {k: v for k, v in part.items() if k not in _WITHOUT_EFFECT and v is not None and v != ""}


def _model(model: dict[str, Any]) -> dict[str, Any]:
    settings = _settings({k: v for k, v in model.items() if k not in ("vocab", "merges")})
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: (piece, score) in id order
        # SentencePiece scores in float32, and a passage through JSON moves a double's last bit.
        settings["vocab"] = [(piece, float(np.float32(score))) for piece, score in vocab]
    else:
        settings["vocab"] = sorted((i, piece) for piece, i in vocab.items())
    if "merges" in model:
        settings["merges"] = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    return settings


def fingerprint(spec: dict[str, Any]) -> str:
    """The fingerprint of a tokenizer, 64 hexadecimal digits.

    Args:
        spec: the parsed `tokenizer.json`.
    """
    added = [
        [token["id"], token["content"], *(bool(token.get(flag)) for flag in _ADDED_FLAGS)]
        for token in spec.get("added_tokens") or []
    ]
    content = {
        "scheme": _SCHEME,
        "model": _model(spec["model"]),
        "added_tokens": sorted(added),
        "normalizer": [_settings(part) for part in components(spec.get("normalizer"))],
        "pre_tokenizer": [_settings(part) for part in components(spec.get("pre_tokenizer"))],
    }
    encoded = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(encoded.encode()).hexdigest()
