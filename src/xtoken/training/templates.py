"""Chat templates: what text a conversation becomes, and where in it each message's content stands.

Types: `ChatTemplate`, a model's Jinja template with the names of its special tokens; `Rendered`, a conversation as it
renders it; `Slot`, where a content stands. Law: the template's own text and the contents, put together again, are
exactly what the template renders; what cannot be told apart so is an error, never a guess.

A template is a program and may do anything. So it is run on stand-ins first, which shows its own text around every
content, and then on the real ones: that text must be the first with the contents in their places, whole or stripped
of white space at their ends. The one thing more that is understood is thinking: a content with `</think>` may be shown
from there on alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from xtoken.errors import XTokenError
from xtoken.tokens import Vocabulary
from xtoken.training.conversations import Message

__all__ = ["ChatTemplate", "Rendered", "Slot", "chat_template_of"]

# Characters for private use, which no template writes.
_STAND_IN = "\ue000{}\ue001"
_STAND_INS = re.compile("\ue000([0-9]+)\ue001")
_THOUGHT_ENDS = "</think>"
_THINKING = "<think>\n{}\n" + _THOUGHT_ENDS + "\n\n{}"
# What templates strip off a content; None is all white space, as Jinja's `trim`.
_STRIPPED: tuple[str | None, ...] = (None, "\n")
# Shapes of conversations whose frames are kept: nearly all data has a handful.
_FRAMES = 4096

Shape = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Slot:
    """Where the content of a message stands.

    Attributes:
        message: its number.
        begin, stop: the characters of the content that are shown, [begin, stop).
    """

    message: int
    begin: int
    stop: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        own: the template's own text: before the first slot, between each two, behind the last.
        slots: in the order of the text.
    """

    own: tuple[str, ...]
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
        source: Jinja.
        specials: `bos_token` and the like, each with its text.
        who: what messages call its model.
    """

    source: str
    specials: tuple[tuple[str, str], ...]
    who: str

    @property
    def key(self) -> str:
        """sha256 in hexadecimal; equal keys render alike (but for a template that asks for the date)."""
        return hashlib.sha256(json.dumps([self.source, sorted(self.specials)]).encode()).hexdigest()

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Renders a conversation.

        Args:
            messages: each with a role and a content.

        Raises:
            XTokenError: the template refuses it; a content that it leaves out, repeats or rewrites; a key beside role
                and content that changes what it writes.
        """
        text = self._run([_bare(message) for message in messages])
        if any(set(_given(message)) - {"role", "content"} for message in messages):
            self._check_other_keys(messages, text)
        own, shown = _frame(self, _shape(messages))
        slots, at = [], 0
        for n, (number, is_tail) in enumerate(shown):
            content = messages[number]["content"]
            slot = None
            if text.startswith(own[n], at):
                at += len(own[n])
                parts = _parts(content, is_tail)
                is_last = n + 1 == len(shown)
                fits = (Slot(number, a, b) for a, b in parts if _stands(text, at, content[a:b], own[n + 1], is_last))
                slot = next(fits, None)
            if slot is None:
                raise XTokenError(
                    f"{self.who}: its chat template does something to message {number} ({messages[number]['role']}) "
                    f"that is not understood: the content {content[:60]!r} stands neither whole nor stripped at its "
                    f"place, where the text is {text[at : at + 60]!r}. Leave the conversation out, or give a template "
                    "that writes contents as they are (chat_template)."
                )
            slots.append(slot)
            at += slot.stop - slot.begin
        return Rendered(own, tuple(slots))

    def closing(self, messages: Sequence[Message], last: int) -> str:
        """The template's own text behind message `last`, were it the last one; empty where it refuses that."""
        try:
            own, shown = _frame(self, _shape(messages[: last + 1]))
        except XTokenError:
            return ""
        return own[-1] if shown[-1][0] == last else ""

    def own_text(self, role: str) -> str:
        """What the template writes around a lone message of a role."""
        return "\n".join(_frame(self, ((role, False),))[0])

    def _check_other_keys(self, messages: Sequence[Message], text: str) -> None:
        if self._run([_given(message) for message in messages]) != text:
            names = sorted({key for message in messages for key in _given(message)} - {"role", "content"})
            raise XTokenError(
                f"{self.who}: its chat template writes other keys of the messages than role and content "
                f"({', '.join(names)}), and those cannot be trained on: take them out, or give a template that leaves "
                "them (chat_template)"
            )

    def _run(self, messages: Sequence[Message]) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                conversations=[list(messages)], chat_template=self.source, **dict(self.specials)
            )
        except Exception as error:  # Jinja's own dozen, and whatever the template's program runs into
            raise XTokenError(f"{self.who}: its chat template refuses the conversation: {error}") from error
        return str(texts[0])


@lru_cache(maxsize=_FRAMES)
def _frame(template: ChatTemplate, shape: Shape) -> tuple[tuple[str, ...], tuple[tuple[int, bool], ...]]:
    """The template's own text around conversations of a shape, and the contents between.

    Args:
        template: the template.
        shape: of each message its role, and whether it thinks.

    Returns:
        The pieces of its own text; and in their order the contents, each as the message's number and whether only what
        comes after thinking is shown.
    """
    messages, tails = [], {}
    for n, (role, thinks) in enumerate(shape):
        thought, said = _STAND_IN.format(2 * n), _STAND_IN.format(2 * n + 1)
        messages.append({"role": role, "content": _THINKING.format(thought, said) if thinks else said})
    text = template._run(messages)
    for n, (_, thinks) in enumerate(shape):
        thought, said = _STAND_IN.format(2 * n), _STAND_IN.format(2 * n + 1)
        tails[n] = thinks and thought not in text
        text = text.replace(_THINKING.format(thought, said), said)
    parts = _STAND_INS.split(text)
    found = [int(number) for number in parts[1::2]]
    if sorted(found) != [2 * n + 1 for n in range(len(shape))]:
        n = next(n for n in range(len(shape)) if found.count(2 * n + 1) != 1 or 2 * n in found)
        what = "leaves out" if 2 * n + 1 not in found else "takes apart or repeats"
        raise XTokenError(
            f"{template.who}: its chat template {what} the content of message {n} ({shape[n][0]}). Leave such messages "
            "out of the data, or give a template that writes them once (chat_template)."
        )
    return tuple(parts[::2]), tuple((number // 2, tails[number // 2]) for number in found)


def _shape(messages: Sequence[Message]) -> Shape:
    return tuple((message["role"], _THOUGHT_ENDS in message["content"]) for message in messages)


def _bare(message: Message) -> dict[str, Any]:
    return {"role": message["role"], "content": message["content"]}


def _given(message: Message) -> dict[str, Any]:
    """Without the keys that a table fills with nothing where other rows have something."""
    return {key: value for key, value in message.items() if value is not None}


def _parts(content: str, is_tail: bool) -> Iterator[tuple[int, int]]:
    """What a template may show of a content, [begin, stop): all first, then stripped.

    Args:
        content: of a message.
        is_tail: whether thinking is left out.
    """
    first = content.rfind(_THOUGHT_ENDS) + len(_THOUGHT_ENDS) if is_tail else 0
    yield first, len(content)
    for chars in _STRIPPED:
        begin = len(content) - len(content[first:].lstrip(chars))
        stop = max(begin, len(content.rstrip(chars)))
        yield from ((begin, stop), (begin, len(content)), (first, max(first, stop)))


def _stands(text: str, at: int, part: str, following: str, is_last: bool) -> bool:
    """Whether the text at `at` is this part and then the template's own."""
    end = at + len(part)
    ends_right = not is_last or end + len(following) == len(text)
    return ends_right and text.startswith(part, at) and text.startswith(following, end)


def chat_template_of(files: Sequence[Path], vocabulary: Vocabulary, path: str | None, *, who: str) -> ChatTemplate:
    """The template of a model: of a file of its own, or as its folder has it.

    Args:
        files: the tokenizer's files.
        vocabulary: the tokenizer.
        path: a file that holds Jinja; None looks through `files`, in transformers' order.
        who: what messages call the model, `student` say.

    Raises:
        XTokenError: there is none, or it cannot be read.
    """
    source = _from_files(files, who) if path is None else _read(Path(path).expanduser(), who)
    if source is None:
        raise XTokenError(
            f"{who}: its folder has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), "
            f"and chat data needs one. Write one to a file and name it: {who}.chat_template; or take data.format: text."
        )
    return ChatTemplate(source, tuple(sorted(vocabulary.named_specials.items())), who)


def _from_files(files: Sequence[Path], who: str) -> str | None:
    by_name = {file.name: file for file in files}
    if "chat_template.jinja" in by_name:
        return _read(by_name["chat_template.jinja"], who)
    for name in ("chat_template.json", "tokenizer_config.json"):
        if name in by_name:
            try:
                content = json.loads(_read(by_name[name], who))
            except ValueError as error:
                raise XTokenError(f"{who}: {by_name[name]} is not JSON: {error}") from None
            found = _default(content.get("chat_template") if isinstance(content, dict) else None, by_name[name], who)
            if found is not None:
                return found
    return None


def _default(entry: Any, file: Path, who: str) -> str | None:
    """A template, or of several with names the one called `default`."""
    if isinstance(entry, list):
        entry = {named.get("name"): named.get("template") for named in entry if isinstance(named, dict)}
    if isinstance(entry, dict):
        if "default" not in entry:
            raise XTokenError(
                f"{who}: {file} has the chat templates {', '.join(map(repr, entry)) or 'none'}, and none called "
                f"'default'. Write the one to use to a file and name it: {who}.chat_template."
            )
        entry = entry["default"]
    if entry is not None and not isinstance(entry, str):
        raise XTokenError(f"{who}: the chat template in {file} is a {type(entry).__name__}; expected Jinja")
    return entry


def _read(file: Path, who: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise XTokenError(f"{who}: cannot read the chat template {file}: {error}") from None
