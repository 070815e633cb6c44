"""Classes of tokens by the bytes they stand for: what the audit counts and the evaluation breaks down.

One leading space belongs to the word after it, so ` the` and `the` are one class. Law: every token that stands for
bytes is in exactly one class.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from xtoken.tokens.vocabulary import Vocabulary

__all__ = ["CLASSES", "NUMERALS", "class_numbers", "class_of", "token_classes"]

# Only GPT-2's generation of vocabularies holds numerals longer than three.
CLASSES = (
    "digits-1",
    "digits-2",
    "digits-3",
    "digits-4+",
    "punctuation",
    "alphabetic",
    "whitespace",
    "other-ascii",
    "multibyte",
    "partial-utf8",
)
NUMERALS = ("digits-1", "digits-2", "digits-3", "digits-4+")

_ASCII_RULES = (
    (re.compile(rb"\s+"), "whitespace"),
    (re.compile(rb" ?[0-9]"), "digits-1"),
    (re.compile(rb" ?[0-9]{2}"), "digits-2"),
    (re.compile(rb" ?[0-9]{3}"), "digits-3"),
    (re.compile(rb" ?[0-9]{4,}"), "digits-4+"),
    (re.compile(rb" ?[!-/:-@\[-`{-~]+"), "punctuation"),
    (re.compile(rb" ?[A-Za-z]+"), "alphabetic"),
)


def class_of(content: bytes) -> str:
    """The class of a token that stands for these bytes (at least one)."""
    if content.isascii():
        return next((name for rule, name in _ASCII_RULES if rule.fullmatch(content)), "other-ascii")
    try:
        content.decode()
    except UnicodeDecodeError:
        return "partial-utf8"
    return "multibyte"


# Kinds of byte, a bit each; they are those whose single bytes the classes tell apart.
_BEYOND_ASCII = 1 << 7
_KINDS = {"whitespace": 1, "digits-1": 2, "punctuation": 4, "alphabetic": 8, "other-ascii": 16}
_KIND_OF_BYTE = np.array([_KINDS[class_of(bytes([b]))] if b < 0x80 else _BEYOND_ASCII for b in range(256)], np.uint8)
# The class of a token whose bytes, but for one leading space, are of these kinds; of numerals the shortest.
_CLASS_OF_KINDS = np.full(256, CLASSES.index("other-ascii"), np.int8)
_CLASS_OF_KINDS[list(_KINDS.values())] = [CLASSES.index(name) for name in _KINDS]


def token_classes(vocabulary: Vocabulary) -> list[str | None]:
    """[V]: the class of every token; None for special tokens and unused ids."""
    names = (*CLASSES, None)
    return [names[number] for number in class_numbers(vocabulary).tolist()]


def class_numbers(vocabulary: Vocabulary) -> NDArray[np.int8]:
    """int8 [V]: the place of every token's class in `CLASSES`; -1 for special tokens and unused ids.

    `class_of` for a whole vocabulary at once: the kinds of byte that occur in a token, one bit each, decide.
    """
    table = vocabulary.token_bytes
    numbers = np.full(vocabulary.size, -1, np.int8)
    used = np.flatnonzero(table.lengths)
    if not len(used):
        return numbers
    raw = np.frombuffer(b"".join(vocabulary.tokens), np.uint8)
    starts, lengths = (np.cumsum(table.lengths) - table.lengths)[used], table.lengths[used]
    led = (raw[starts] == 0x20) & (lengths > 1)  # the one space that belongs to the word behind it
    bodies, sizes = starts + led, lengths - led
    kinds = np.bitwise_or.reduceat(_KIND_OF_BYTE[raw], np.stack([starts, bodies], axis=1).reshape(-1))[1::2]
    found = _CLASS_OF_KINDS[kinds]
    numerals = kinds == _KINDS["digits-1"]
    found[numerals] += np.minimum(sizes[numerals], len(NUMERALS)).astype(np.int8) - 1
    for n in np.flatnonzero(kinds & _BEYOND_ASCII).tolist():
        found[n] = CLASSES.index(class_of(vocabulary.tokens[used[n]]))
    numbers[used] = found
    return numbers
