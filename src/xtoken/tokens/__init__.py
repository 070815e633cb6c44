"""Tokenizers as bytes: vocabularies, and where the tokens of a text end."""

from xtoken.tokens.families import Family
from xtoken.tokens.roles import Role
from xtoken.tokens.spans import TokenSpans
from xtoken.tokens.vocabulary import Vocabulary

__all__ = ["Family", "Role", "TokenSpans", "Vocabulary"]
