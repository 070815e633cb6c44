"""Classes of tokens by the bytes they stand for: what the audit counts and the evaluation breaks down.

One leading space belongs to the word after it, so ` the` and `the` are one class. Law: every token that stands for
bytes is in exactly one class.
"""

from __future__ import annotations

import re

from xtoken.tokens.vocabulary import Vocabulary

__all__ = ["CLASSES", "NUMERALS", "class_of", "token_classes"]

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


def token_classes(vocabulary: Vocabulary) -> list[str | None]:
    """[V]: the class of every token; None for special tokens and unused ids."""
    return [class_of(content) if content else None for content in vocabulary.tokens]
