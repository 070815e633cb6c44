"""Answers in digits: how often a model writes the right one, and how far its belief about them is from a teacher's.

Types: `Answer`, a prompt and the number that should follow it. `exact_answers` continues each prompt greedily, and what
counts is the text it writes: a number in one token and the same number digit by digit are the same answer.
`answer_distributions` goes through every number of up to three digits, so that two models can be compared on all of
their belief whatever their tokenizers. Laws: no result depends on how prompts are grouped; a model's distribution adds
up to 1; its KL from itself is 0.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.teachers.causal import causal_logits
from xtoken.teachers.signal import flat_log_probs
from xtoken.tokens import Vocabulary

__all__ = ["NUMBERS", "Answer", "answer_distributions", "answer_kl", "exact_answers", "read_answers"]

Floats = NDArray[np.float64]

# One token more than the digits, by which a longer number shows itself.
_SPARE_TOKENS = 1
_BATCH = 128
# What a distribution rounds to 0 counts as this much, so that a KL stays finite; a softmax in float32 ends near 1e-38.
_FLOOR = 1e-30

# The events of `answer_distributions`: each number of up to three digits, a leading zero being another number.
NUMBERS = tuple(f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width))


@dataclass(frozen=True)
class Answer:
    """What should be answered.

    Attributes:
        prompt: the text up to the answer.
        answer: its digits.
    """

    prompt: str
    answer: str


def read_answers(path: str | Path) -> list[Answer]:
    """Reads a .jsonl file of `prompt` and `answer`.

    Args:
        path: the file.

    Raises:
        XTokenError: no such file; a line without the two, or whose answer is not digits.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise XTokenError(f"cannot read the answers in {path}: {error}") from None
    found = [_answer(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise XTokenError(f'{path} holds no answer; expected lines such as {{"prompt": "1 + 1 = ", "answer": "2"}}')
    return found


def _answer(line: str, where: str) -> Answer:
    try:
        row = json.loads(line)
        prompt, answer = str(row["prompt"]), str(row["answer"])
    except (ValueError, KeyError, TypeError):
        raise XTokenError(f"{where}: expected an object with prompt and answer") from None
    if not (answer.isascii() and answer.isdigit()):
        raise XTokenError(f"{where}: the answer is {answer!r}; expected digits")
    return Answer(prompt, answer)


def exact_answers(model: Any, vocabulary: Vocabulary, answers: Sequence[Answer]) -> float:
    """The share, in [0, 1], of prompts that a causal LM finishes with the right number.

    Prompts of one length are continued together, so nothing is padded.

    Args:
        model: a Hugging Face causal LM in evaluation mode; its head may be wider than the tokenizer.
        vocabulary: its tokenizer.
        answers: at least one.

    Raises:
        XTokenError: there is no prompt.
    """
    if not answers:
        raise XTokenError("there is no problem to answer")
    # As many as a model needs that writes digit by digit, whatever its tokenizer would do.
    most = max(len(each.answer) for each in answers) + _SPARE_TOKENS
    right = 0
    for rows, prompts in _by_length(vocabulary, [each.prompt for each in answers], model.device):
        written = _continue(model, prompts, vocabulary.size, most).tolist()
        right += sum(_number(vocabulary, ids) == answers[row].answer for row, ids in zip(rows, written, strict=True))
    return right / len(answers)


def answer_distributions(model: Any, vocabulary: Vocabulary, prompts: Sequence[str]) -> Floats:
    """What a causal LM believes will follow each prompt, over all numbers of up to three digits.

    A number is followed as the tokenizer itself would cut it, and one of fewer digits ends where no digit comes next;
    where the tokenizer would cut a longer number otherwise, so that no digit can come next, it ends by itself.

    Args:
        model: a Hugging Face causal LM in evaluation mode.
        vocabulary: its tokenizer.
        prompts: texts that end where a number begins a token of its own.

    Returns:
        float64 [prompts, 1111]: the probabilities of `NUMBERS`, in their order, and last that of anything else.
    """
    paths = _Paths(vocabulary)
    found = np.zeros((len(prompts), len(NUMBERS) + 1))
    for rows, ids in _by_length(vocabulary, prompts, model.device):
        found[rows, :-1] = paths.probabilities(model, ids)
    found[:, -1] = np.maximum(0.0, 1.0 - found.sum(axis=1))
    return found


def answer_kl(teacher: Floats, student: Floats) -> float:
    """The mean over prompts of KL(teacher || student) in nats, between two `answer_distributions`.

    Args:
        teacher, student: float64 [prompts, 1111], of the same prompts.
    """
    ratio = np.log(np.maximum(teacher, _FLOOR)) - np.log(np.maximum(student, _FLOOR))
    return float((teacher * ratio).sum(axis=1).mean())


class _Paths:
    """Every number as token ids, and the places in between where a model has to be asked."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.size = vocabulary.size
        self.of = [tuple(vocabulary.encode(number).ids.tolist()) for number in NUMBERS]
        # A number has to be ended where a longer one begins with the same tokens, be it one alone: a tokenizer may have
        # 30 as a token and spell 31 in two.
        begun = {path[:n] for path in self.of for n in range(1, len(path))}
        self.is_open = [path in begun for path in self.of]
        self.next: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for path, is_open in zip(self.of, self.is_open, strict=True):
            for n, token in enumerate(path):
                self.next[path[:n]].add(token)
            if is_open:
                self.next[path] |= set()
        self.digits = torch.tensor([i for i, content in enumerate(vocabulary.tokens) if content[:1].isdigit()])

    def probabilities(self, model: Any, prompts: Tensor) -> Floats:
        """float64 [B, len(NUMBERS)], of prompts' ids [B, L]."""
        steps: dict[tuple[int, ...], Floats] = {}
        continues: dict[tuple[int, ...], Floats] = {}
        for path in self.next:
            probs = self._next_probs(model, prompts, path)
            steps |= {(*path, token): probs[:, token].numpy() for token in self.next[path]}
            continues[path] = probs[:, self.digits].sum(dim=1).numpy()
        found = []
        for path, is_open in zip(self.of, self.is_open, strict=True):
            value = np.prod([steps[path[: n + 1]] for n in range(len(path))], axis=0)
            found.append(value * (1 - continues[path]) if is_open else value)
        return np.stack(found, axis=1)

    def _next_probs(self, model: Any, prompts: Tensor, path: tuple[int, ...]) -> Tensor:
        """float64 [B, V] on the CPU, of what follows a path."""
        read = torch.tensor(path, dtype=torch.int64, device=prompts.device).expand(len(prompts), -1)
        ids = torch.cat([prompts, read], dim=1)
        with torch.no_grad():
            logits = causal_logits(model, ids, torch.ones_like(ids))[:, -1]
            return flat_log_probs(logits, self.size, 1.0, "model").double().exp().cpu()


def _by_length(
    vocabulary: Vocabulary, prompts: Iterable[str], device: torch.device
) -> Iterator[tuple[list[int], Tensor]]:
    """Places and token ids [B, L] of prompts of one length, what the tokenizer puts in front included."""
    groups = defaultdict(list)
    for row, spans in enumerate(vocabulary.encode_batch(list(prompts))):
        ids = [*vocabulary.prefix_ids, *spans.ids.tolist()]
        groups[len(ids)].append((row, ids))
    for group in groups.values():
        for start in range(0, len(group), _BATCH):
            part = group[start : start + _BATCH]
            yield [row for row, _ in part], torch.tensor([ids for _, ids in part], device=device)


def _continue(model: Any, ids: Tensor, vocab_size: int, tokens: int) -> Tensor:
    """int64 [B, tokens], the most probable continuation, token by token."""
    width = ids.shape[1]
    with torch.no_grad():
        for _ in range(tokens):
            logits = causal_logits(model, ids, torch.ones_like(ids))[:, -1, :vocab_size]
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids[:, width:]


def _number(vocabulary: Vocabulary, ids: Iterable[int]) -> str:
    """The digits a continuation begins with. A special token has no bytes, and ends a number as a full stop does."""
    text = b"".join([vocabulary.tokens[i] or b"\n" for i in ids])
    return text[: len(text) - len(text.lstrip(b"0123456789"))].decode()
