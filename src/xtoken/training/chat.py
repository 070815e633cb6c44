"""Conversations as tokens: what each side reads, which of it is learnt, and which tokens stand for the same content.

Types: `ChatTokenizer`, a vocabulary with its chat template; `ChatTokens`, one conversation on one side. Laws: special
tokens are read out of the template's own text only, so a content that spells one is text; a run of text between two of
them, own text and content joined, is tokenised as one, as the model saw it in its training; a token belongs to a
content where it lies wholly inside it. Contents are aligned message by message, and nothing else is, but for the token
that ends a turn, where it comes right after the content on both sides and the losses can tell that the two are one.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from xtoken.alignment import align_spans_batch
from xtoken.alignment.bytes import special_key
from xtoken.errors import XTokenError
from xtoken.tokens import TokenSpans, Vocabulary
from xtoken.tokens.spans import utf8
from xtoken.training.conversations import Conversation
from xtoken.training.templates import ChatTemplate, Rendered

__all__ = ["CHAT_RULES", "ChatTokenizer", "ChatTokens", "Content", "align_chats"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Which tokens are learnt and aligned: prepared data is kept under this too.
CHAT_RULES = "xtoken-chat-1"
# Pieces of own text whose special tokens are remembered: nearly all conversations are made of a few.
_PIECES = 4096


@dataclass(frozen=True)
class Content:
    """Where the content of a message stands on one side.

    Attributes:
        begin, stop: the bytes of the content that are shown, [begin, stop).
        at: the byte of the rendered text where they begin.
        first, last: the tokens wholly inside, [first, last).
        closing: the tokens that end the turn, [c0, c1), the last of them special; None where there are none.
        is_closed: whether they are one special token, right behind the content.
    """

    begin: int
    stop: int
    at: int
    first: int
    last: int
    closing: tuple[int, int] | None

    @property
    def is_closed(self) -> bool:
        return self.closing is not None and self.closing[1] - self.closing[0] == 1 and self.closing[0] == self.last


@dataclass(frozen=True)
class ChatTokens:
    """A conversation on one side.

    Attributes:
        spans: its tokens over the rendered text, special tokens by the bytes of their names.
        contents: where each message stands, by its number.
    """

    spans: TokenSpans
    contents: dict[int, Content]

    def learnt(self, messages: Sequence[int]) -> Bools:
        """bool [n], the tokens of these messages' contents and those that end their turns."""
        mask = np.zeros(len(self.spans), bool)
        for content in (self.contents[number] for number in messages):
            mask[content.first : content.last] = True
            if content.closing is not None:
                mask[slice(*content.closing)] = True
        return mask


class _Layout:
    """A rendered conversation cut at its special tokens, in bytes of the whole; it is written from front to back.

    Attributes:
        text: the pieces so far.
        size: their bytes.
        runs: of text between special tokens: the byte each begins at, and its pieces.
        specials: the special tokens: the bytes each begins and stops at, and its id.
        contents: by message, the byte that its content begins at.
        limits: by message, the byte where the template's own text behind it stops.
    """

    def __init__(self) -> None:
        self.text: list[str] = []
        self.size = 0
        self.runs: list[tuple[int, list[str]]] = []
        self.specials: list[tuple[int, int, int]] = []
        self.contents: dict[int, int] = {}
        self.limits: dict[int, int] = {}
        self._is_in_run = False

    def add_text(self, text: str) -> None:
        if text:
            if not self._is_in_run:
                self.runs.append((self.size, []))
            self.runs[-1][1].append(text)
            self._is_in_run = True
            self._add(text)

    def add_special(self, text: str, token: int) -> None:
        begin, self._is_in_run = self.size, False
        self._add(text)
        self.specials.append((begin, self.size, token))

    def _add(self, text: str) -> None:
        self.text.append(text)
        self.size += len(utf8(text))


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with a chat template.

    Attributes:
        vocabulary: the tokenizer.
        template: its template.
    """

    vocabulary: Vocabulary
    template: ChatTemplate

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[ChatTokens]:
        """The tokens of conversations, on all cores.

        What the tokenizer by itself puts in front of a text comes first, unless the template has written it.

        Raises:
            XTokenError: a conversation that the template refuses, or renders in a way that is not understood.
        """
        rendered = [self.template.render(one.messages) for one in conversations]
        layouts = [self._layout(text, one) for text, one in zip(rendered, conversations, strict=True)]
        texts: tuple[list[str], list[str]] = ([], [])
        for layout in layouts:
            for begin, pieces in layout.runs:
                texts[begin > 0].append("".join(pieces))
        spans = [iter(reader.encode_batch(some)) for reader, some in zip(self._readers, texts, strict=True)]
        return [
            self._assembled(layout, [(begin, next(spans[begin > 0])) for begin, _ in layout.runs], text, one)
            for layout, text, one in zip(layouts, rendered, conversations, strict=True)
        ]

    @cached_property
    def _readers(self) -> tuple[Vocabulary, Vocabulary]:
        """For a run that begins the text, and for one behind a special token."""
        unread = set(self._markup)
        return self.vocabulary.reader(is_inner=False, unread=unread), self.vocabulary.reader(
            is_inner=True, unread=unread
        )

    @cached_property
    def _markup(self) -> dict[str, tuple[int, str, str]]:
        """The tokens that a template marks up with: id, and what white space each takes in on its left and right.

        They are the special ones, and added ones that are written around a user's turn though nobody declared them
        special. What is written around an assistant's alone (`<think>`) is what an assistant may write itself.
        """
        own = self.template.own_text("user")
        return {
            token["content"]: (token["id"], r"\s*" * token["lstrip"], r"\s*" * token["rstrip"])
            for token in self.vocabulary.added_tokens
            if token["special"] or (token["content"] in own and not token["content"].isspace())
        }

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Finds markup, the longest name first, each in a group; never matches where there is none."""
        names = sorted(self._markup, key=len, reverse=True)
        spaced = (f"{self._markup[name][1]}({re.escape(name)}){self._markup[name][2]}" for name in names)
        return re.compile("|".join(spaced) or "(?!)")

    def _layout(self, rendered: Rendered, conversation: Conversation) -> _Layout:
        layout = _Layout()
        self._add_own(layout, rendered.own[0])
        for slot, own in zip(rendered.slots, rendered.own[1:], strict=True):
            layout.contents[slot.message] = layout.size
            layout.add_text(conversation.messages[slot.message]["content"][slot.begin : slot.stop])
            self._add_own(layout, own)
            layout.limits[slot.message] = layout.size
        return layout

    def _add_own(self, layout: _Layout, own: str) -> None:
        at = 0
        for begin, stop, name in _markup_in(self._pattern, own):
            layout.add_text(own[at:begin])
            layout.add_special(own[begin:stop], self._markup[name][0])
            at = stop
        layout.add_text(own[at:])

    def _assembled(
        self, layout: _Layout, runs: Sequence[tuple[int, TokenSpans]], rendered: Rendered, conversation: Conversation
    ) -> ChatTokens:
        """The tokens of runs and special ones in their order, and where each content is among them."""
        prefix = self._prefix(layout)
        parts: list[tuple[int, Ints, Ints, Bools | None]] = [
            (begin, spans.ids, spans.ends + begin, spans.verbatim) for begin, spans in runs
        ]
        parts += [(begin, np.array([token]), np.array([stop]), None) for begin, stop, token in layout.specials]
        parts.sort(key=lambda part: part[0])
        starts, n = {}, len(prefix)  # the first token of what begins at a byte
        for begin, ids, _, _ in parts:
            starts[begin] = n
            n += len(ids)
        none = np.empty(0, np.int64)
        verbatim = None
        if any(part[3] is not None for part in parts):
            verbatim = np.concatenate(
                [np.ones(len(prefix), bool), *(np.ones(len(p[1]), bool) if p[3] is None else p[3] for p in parts)]
            )
        spans = TokenSpans(
            np.concatenate([none, np.array(prefix, np.int64), *(part[1] for part in parts)]),
            np.concatenate([none, np.zeros(len(prefix), np.int64), *(part[2] for part in parts)]),
            verbatim,
            utf8("".join(layout.text)),
        )
        contents = {}
        for slot in rendered.slots:
            text = conversation.messages[slot.message]["content"]
            begin, at = len(utf8(text[: slot.begin])), layout.contents[slot.message]
            stop = begin + len(utf8(text[slot.begin : slot.stop]))
            first, last = _inside(spans.ends, at, at + stop - begin, starts)
            closing = self._closing(layout, spans, starts, slot.message, at + stop - begin, conversation)
            contents[slot.message] = Content(begin, stop, at, first, last, closing)
        return ChatTokens(spans, contents)

    def _prefix(self, layout: _Layout) -> tuple[int, ...]:
        written = {token for _, _, token in layout.specials}
        return () if written.issuperset(self.vocabulary.prefix_ids) else self.vocabulary.prefix_ids

    def _closing(
        self,
        layout: _Layout,
        spans: TokenSpans,
        starts: dict[int, int],
        message: int,
        end: int,
        conversation: Conversation,
    ) -> tuple[int, int] | None:
        """The tokens that end a message's turn: white space of the template's, and the special token that follows.

        It ends the turn, rather than beginning the next, if it would stand there too were the message the last.
        """
        place = bisect_left(layout.specials, (end,))
        if place == len(layout.specials):
            return None
        begin, _, token = layout.specials[place]
        if begin >= layout.limits[message] or spans.raw[end:begin].strip():
            return None
        own = self.template.closing(conversation.messages, message)
        found = next(iter(_markup_in(self._pattern, own)), None)
        if found is None or own[: found[0]].strip() or self._markup[found[2]][0] != token:
            return None
        return _inside(spans.ends, end, begin, starts)[0], starts[begin] + 1


@lru_cache(maxsize=_PIECES)
def _markup_in(pattern: re.Pattern[str], own: str) -> tuple[tuple[int, int, str], ...]:
    """The markup in a template's own text: the characters [begin, stop) of each, and its name."""
    return tuple((m.start(), m.end(), str(m.group(m.lastindex or 0))) for m in pattern.finditer(own))


def _inside(ends: Ints, begin: int, stop: int, starts: dict[int, int]) -> tuple[int, int]:
    """The tokens wholly inside the bytes [begin, stop), as [first, last); `first` is where one would stand if none is.

    Args:
        ends: int64 [n], the byte where each token ends.
        begin, stop: bytes.
        starts: the first token of what begins at a byte behind a special token, or is one. What stands there and covers
            no byte is a dummy space, which belongs to the text behind it.
    """
    if begin in starts:
        first = starts[begin]
    else:
        first = int(np.searchsorted(ends, begin, side="right"))
        if first and first < len(ends) and ends[first - 1] < begin:  # it began before: it and its group are left out
            first = int(np.searchsorted(ends, ends[first], side="right"))
    last = int(np.searchsorted(ends, stop, side="right")) if begin < stop else first
    return first, max(first, last)


def align_chats(
    student: Vocabulary,
    teacher: Vocabulary,
    chats_s: Sequence[ChatTokens],
    chats_t: Sequence[ChatTokens],
    messages: Sequence[Sequence[int]],
    method: str = "bytes",
) -> list[Ints]:
    """The chunks of conversations: of the contents of their messages, and of the ends of their turns.

    A chunk lies inside the content of one message, and of it inside what both templates show.

    Args:
        student, teacher: the vocabularies.
        chats_s, chats_t: the same conversations on both sides.
        messages: of each the messages to align.
        method: as for `xtoken.align`.

    Returns:
        for each int64 [C, 4], rows (s0, s1, t0, t1) of its tokens.

    Raises:
        XTokenError: the two templates put these messages in different orders; an unknown method.
    """
    pairs = [
        [_common(chat_s, chat_t, number) for number in _in_order(chat_s, chat_t, numbers)]
        for chat_s, chat_t, numbers in zip(chats_s, chats_t, messages, strict=True)
    ]
    flat = [pair for pairs_of_one in pairs for pair in pairs_of_one]
    found = iter(align_spans_batch(student, teacher, [p[0].spans for p in flat], [p[1].spans for p in flat], method))
    is_same = student.fingerprint == teacher.fingerprint
    rows = []
    for chat_s, chat_t, pairs_of_one in zip(chats_s, chats_t, pairs, strict=True):
        of_one = [np.empty((0, 4), np.int64)]
        for part_s, part_t, number in pairs_of_one:
            chunks = next(found).chunks
            chunks = chunks[(chunks[:, 0] >= part_s.skip) & (chunks[:, 2] >= part_t.skip)]
            if is_same:
                chunks = _token_by_token(chunks, part_s.spans.ids, part_t.spans.ids)
            of_one.append(chunks + np.repeat([part_s.offset, part_t.offset], 2))
            content_s, content_t = chat_s.contents[number], chat_t.contents[number]
            s, t = content_s.last, content_t.last
            is_closed = content_s.is_closed and content_t.is_closed
            if is_closed and _is_one_event(student, int(chat_s.spans.ids[s]), teacher, int(chat_t.spans.ids[t])):
                of_one.append(np.array([[s, s + 1, t, t + 1]]))
        rows.append(np.concatenate(of_one))
    return rows


def _is_one_event(student: Vocabulary, one: int, teacher: Vocabulary, other: int) -> bool:
    """Whether the losses can tell that two ends of a turn are one.

    They join special tokens by role. Of two that they do not join, P-KL would take the teacher's end for a reason
    against the student's; there the end is taught by the text alone.
    """
    if one in student.roles and other in teacher.roles:
        return special_key(student, one) == special_key(teacher, other)
    return bool(student.tokens[one]) and student.tokens[one] == teacher.tokens[other]


@dataclass(frozen=True)
class _Part:
    """The tokens inside a part of a content, as spans of that part.

    Attributes:
        spans: its tokens; where a token that begins outside covers its first bytes, that one too.
        skip: 1 where there is such a token, else 0; no chunk may hold it.
        offset: where the spans' first token is in the conversation.
    """

    spans: TokenSpans
    skip: int
    offset: int


def _part(chat: ChatTokens, content: Content, begin: int, stop: int) -> _Part:
    """What is inside the bytes [begin, stop) of a content."""
    at, ends = content.at + begin - content.begin, chat.spans.ends
    first, last = content.first, content.last
    if (begin, stop) != (content.begin, content.stop):
        first, last = _inside(ends, at, at + stop - begin, {} if begin > content.begin else {at: content.first})
    skip = int(first < last and first > 0 and ends[first - 1] > at)
    taken = slice(first - skip, last)
    verbatim = chat.spans.verbatim if chat.spans.verbatim is None else chat.spans.verbatim[taken]
    raw = chat.spans.raw[at : at + stop - begin]
    return _Part(TokenSpans(chat.spans.ids[taken], ends[taken] - at, verbatim, raw), skip, first - skip)


def _common(chat_s: ChatTokens, chat_t: ChatTokens, number: int) -> tuple[_Part, _Part, int]:
    """Both sides' tokens inside what both show of a message."""
    content_s, content_t = chat_s.contents[number], chat_t.contents[number]
    begin = max(content_s.begin, content_t.begin)
    stop = max(begin, min(content_s.stop, content_t.stop))
    if begin > min(content_s.stop, content_t.stop):  # nothing in common
        begin = stop = min(content_s.stop, content_t.stop)
    return _part(chat_s, content_s, begin, stop), _part(chat_t, content_t, begin, stop), number


def _in_order(chat_s: ChatTokens, chat_t: ChatTokens, numbers: Sequence[int]) -> list[int]:
    """The messages as they stand on both sides."""
    order = sorted(numbers, key=lambda n: chat_s.contents[n].at)
    if order != sorted(numbers, key=lambda n: chat_t.contents[n].at):
        raise XTokenError(
            "the student's and the teacher's chat templates put the messages in different orders, so they cannot be "
            "aligned; with loss_on: assistant only those of the assistant have to agree"
        )
    return order


def _token_by_token(chunks: Ints, ids_s: Ints, ids_t: Ints) -> Ints:
    """The chunks of one tokenizer as single tokens: those that are the same on both sides."""
    rows = []
    for s0, s1, t0, t1 in chunks.tolist():
        if np.array_equal(ids_s[s0:s1], ids_t[t0:t1]):
            rows += [(s0 + k, s0 + k + 1, t0 + k, t0 + k + 1) for k in range(s1 - s0)]
    return np.array(rows, np.int64).reshape(-1, 4)
