"""Conversations: what a row of chat data becomes, and which of its messages are learnt.

Type: `Conversation`, messages of a role and a content each. A row holds `messages`, or a `prompt` and a `completion`,
each a string (a user's and an assistant's turn) or a list of messages, as TRL has it. A conversation travels through
`TextSource` as one JSON string, so that reading documents is one thing. Law: nothing of a prompt is learnt, unless all
is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xtoken.errors import XTokenError

__all__ = ["ChatColumns", "Conversation", "LossOn", "Message"]

LossOn = Literal["assistant", "all"]
Message = Mapping[str, Any]

_DEFAULTS = (("messages",), ("prompt", "completion"))


@dataclass(frozen=True)
class Conversation:
    """One document of chat data.

    Attributes:
        messages: each with a `role` and a `content`, both strings.
        n_prompt: how many of them, from the first, are a prompt.
    """

    messages: tuple[Message, ...]
    n_prompt: int = 0

    @classmethod
    def of(cls, value: Any) -> Conversation:
        """Reads a list of messages, or a row with `messages` or with `prompt` and `completion`.

        Raises:
            XTokenError: it is none of these; a message without role or text.
        """
        if not isinstance(value, Mapping):
            return cls(_messages(value, "user"))
        if "messages" in value:
            return cls(_messages(value["messages"], "user"))
        if "prompt" in value and "completion" in value:
            prompt = _messages(value["prompt"], "user")
            return cls(prompt + _messages(value["completion"], "assistant"), len(prompt))
        raise XTokenError(
            f"a conversation is a list of messages, or has the keys messages, or prompt and completion; this one has "
            f"{', '.join(map(repr, value)) or 'none'}"
        )

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """The inverse of `to_json`."""
        raw = json.loads(text)
        return cls(tuple(raw["messages"]), raw["n_prompt"])

    def to_json(self) -> str:
        """As one string; empty where there is no message at all."""
        if not self.messages:
            return ""
        try:
            return json.dumps({"messages": self.messages, "n_prompt": self.n_prompt}, ensure_ascii=False)
        except TypeError as error:  # a date, say, in a key beside role and content
            raise XTokenError(f"a message holds what is no JSON: {error}") from None

    def learnt(self, loss_on: LossOn) -> list[int]:
        """The messages that are learnt, by number.

        Args:
            loss_on: `assistant` takes the assistant's turns after the prompt, `all` every message.
        """
        if loss_on == "all":
            return list(range(len(self.messages)))
        return [n for n, m in enumerate(self.messages) if n >= self.n_prompt and m["role"] == "assistant"]


@dataclass(frozen=True)
class ChatColumns:
    """Where a row of a file or a data set holds its conversation.

    Attributes:
        names: the column of the messages, or those of prompt and completion; None looks for `messages`, then for
            `prompt` and `completion`.
    """

    names: tuple[str, ...] | None = None

    @property
    def key(self) -> list[str]:
        """What the documents depend on besides the rows."""
        return ["chat", *(self.names or ())]

    def among(self, columns: Sequence[str], where: str) -> list[str]:
        """The columns to read of those there are.

        Raises:
            XTokenError: they are not there.
        """
        choices = _DEFAULTS if self.names is None else (self.names,)
        for names in choices:
            if set(names) <= set(columns):
                return list(names)
        wanted = " or ".join(" and ".join(map(repr, names)) for names in choices)
        there = ", ".join(map(repr, columns)) or "none"
        raise XTokenError(
            f"{where} has no columns {wanted}; there are {there}. Name the one that holds the messages, or the two "
            "that hold prompt and completion (chat_columns)."
        )

    def read(self, row: Mapping[str, Any], where: str) -> str:
        """The document of a row; empty where its conversation is missing or empty."""
        values = [row[name] for name in self.among(list(row), where)]
        if any(value is None for value in values):
            return ""
        try:
            keys = ("messages",) if len(values) == 1 else ("prompt", "completion")
            return Conversation.of(dict(zip(keys, values, strict=True))).to_json()
        except XTokenError as error:
            raise XTokenError(f"{where}: {error}") from None


def _messages(value: Any, role: str) -> tuple[Message, ...]:
    """Messages as they stand; a string is one, by `role`."""
    if isinstance(value, str):
        return ({"role": role, "content": value},)
    if not isinstance(value, Sequence):
        raise XTokenError(f"expected a list of messages, got {_shown(value)}")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise XTokenError(f"message {number} is {_shown(message)}; expected an object with a role and a content")
        if not isinstance(message.get("content"), str):
            raise XTokenError(
                f"the content of message {number} ({message['role']}) is {_shown(message.get('content'))}; only text "
                "can be trained on"
            )
    return tuple(dict(message) for message in value)


def _shown(value: Any) -> str:
    return f"a {type(value).__name__} ({str(value)[:40]!r})"
