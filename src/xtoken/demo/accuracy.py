"""Exact answers: the share of word problems that a model finishes with the right number.

The model continues each prompt greedily, and what counts is the text it writes: a number in one token and the same
number digit by digit are the same answer. Law: the result does not depend on how problems are grouped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from xtoken.demo.problems import Problem
from xtoken.errors import XTokenError
from xtoken.teachers.causal import causal_logits
from xtoken.tokens import Vocabulary

__all__ = ["exact_answers"]

# Three digits one by one and one token more, by which a longer number shows itself.
_NEW_TOKENS = 4


def exact_answers(model: Any, vocabulary: Vocabulary, problems: Sequence[Problem]) -> float:
    """The share, in [0, 1], of problems whose answer a causal LM writes exactly.

    Prompts of one length are continued together, so nothing is padded.

    Args:
        model: a Hugging Face causal LM in evaluation mode; its head may be wider than the tokenizer.
        vocabulary: its tokenizer.
        problems: at least one.

    Raises:
        XTokenError: there is no problem.
    """
    if not problems:
        raise XTokenError("there is no problem to answer")
    right = 0
    for group in _by_length(vocabulary, problems).values():
        prompts = torch.tensor([ids for ids, _ in group], device=model.device)
        written = _continue(model, prompts, vocabulary.size)
        right += sum(
            _number(vocabulary, row) == problem.answer
            for row, (_, problem) in zip(written.tolist(), group, strict=True)
        )
    return right / len(problems)


def _by_length(vocabulary: Vocabulary, problems: Iterable[Problem]) -> dict[int, list[tuple[list[int], Problem]]]:
    """Prompts as token ids, what the tokenizer puts in front included, by their number of tokens."""
    groups = defaultdict(list)
    for problem in problems:
        ids = [*vocabulary.prefix_ids, *vocabulary.encode(problem.prompt).ids.tolist()]
        groups[len(ids)].append((ids, problem))
    return groups


def _continue(model: Any, ids: Tensor, vocab_size: int) -> Tensor:
    """int64 [B, _NEW_TOKENS], the most probable continuation, token by token."""
    width = ids.shape[1]
    with torch.no_grad():
        for _ in range(_NEW_TOKENS):
            logits = causal_logits(model, ids, torch.ones_like(ids))[:, -1, :vocab_size]
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids[:, width:]


def _number(vocabulary: Vocabulary, ids: Iterable[int]) -> str:
    """The digits a continuation begins with. A special token has no bytes, and ends a number as a full stop does."""
    text = b"".join([vocabulary.tokens[i] or b"\n" for i in ids])
    return text[: len(text) - len(text.lstrip(b"0123456789"))].decode()
