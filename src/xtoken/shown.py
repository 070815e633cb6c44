"""Tokens and texts as people are to read them: white space shown, and bytes that are no text written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xtoken.tokens import Vocabulary

__all__ = ["counted", "token_text", "visible"]

_VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


def visible(text: str) -> str:
    """A token's text with its white space shown."""
    return "".join(c if c.isprintable() else _escape(c) for c in text.translate(_VISIBLE))


def _escape(c: str) -> str:
    return c.encode("ascii", "backslashreplace").decode() if ord(c) > 0x7F else f"\\x{ord(c):02x}"


def token_text(vocabulary: Vocabulary, token: int) -> str:
    """A token as text: a special one as it is written; bytes that are no text on their own as \\xHH."""
    return vocabulary.contents.get(token) or vocabulary.tokens[token].decode("utf-8", "backslashreplace")


def counted(n: int, noun: str) -> str:
    """`1 gap`, `2 gaps`, `1,000 gaps`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
