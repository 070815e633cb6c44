"""A teacher writes the text to train on: sequence-level distillation.

Each document's prompt is continued by the teacher, and prompt and continuation are a new document (Kim and Rush,
Sequence-Level Knowledge Distillation, arXiv 1606.07947, who take the most probable sequence; here it is greedy, or
drawn). A file of such documents is written whole, and its name says what decided it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtoken.config import DataConfig
from xtoken.errors import XTokenError
from xtoken.files import write_whole
from xtoken.study.config import TeacherTextConfig
from xtoken.study.plan import TeacherTexts
from xtoken.tokens import Vocabulary
from xtoken.training.models import LoadedModel, max_positions

__all__ = ["continued", "prompts_of", "write_teacher_texts"]

DEFAULT_PROMPT = "prompt"
# Of what is drawn where the temperature is not 0; the text is the same for all seeds of a study.
_SEED = 0


def write_teacher_texts(asked: TeacherTexts, teacher: LoadedModel) -> None:
    """Writes the file, unless it is there.

    Args:
        asked: what is to be written, and where to.
        teacher: who writes.

    Raises:
        XTokenError: a document without the prompt that was asked for; one that leaves the teacher no room.
    """
    file = Path(asked.file)
    if file.is_file():
        return
    prompts = list(prompts_of(asked.data, asked.how.prompt_column))
    rows = [
        {"text": prompt + more, "prompt": prompt}
        for prompt, more in zip(prompts, continued(teacher, prompts, asked.how), strict=True)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def prompts_of(data: DataConfig, column: str | None) -> Iterator[str]:
    """The prompt of each document that has text.

    Args:
        data: where the documents are.
        column: the key of the .jsonl that holds it; None for `prompt` where a document has one, and else for the first
            half of its text, up to a space.

    Raises:
        XTokenError: a column that was asked for is not there.
    """
    from xtoken.training.inputs import sources_of

    (texts,) = sources_of(data, None)
    if column is not None or _has_prompts(texts.made_of["files"]):
        named = data.model_copy(update={"text_column": column or DEFAULT_PROMPT})
        (texts,) = sources_of(named, None)
        yield from (prompt for prompt in texts.read() if prompt)
    else:
        yield from (_half(text) for text in texts.read() if text.strip())


def _has_prompts(files: Sequence[Any]) -> bool:
    """Whether the first row of each file is one with a prompt."""
    for file in files:
        if not str(file["name"]).endswith(".jsonl"):
            return False
        with Path(file["name"]).open(encoding="utf-8") as stream:
            row = json.loads(stream.readline() or "{}")
        if not isinstance(row, dict) or DEFAULT_PROMPT not in row:
            return False
    return True


def _half(text: str) -> str:
    """The first half of a text, up to the last space in it; the space belongs to what follows."""
    half = text[: len(text) // 2 + 1]
    return half[: half.rfind(" ")] if " " in half.strip() else half


def continued(teacher: LoadedModel, prompts: Sequence[str], how: TeacherTextConfig) -> list[str]:
    """What the teacher writes after each prompt, up to its end-of-document token.

    Args:
        teacher: the model, on its device.
        prompts: none of them empty.
        how: greedily or drawn, and how long.

    Raises:
        XTokenError: a prompt that leaves the teacher no room for a token.
    """
    vocabulary = teacher.vocabulary
    ids = [[*vocabulary.prefix_ids, *spans.ids.tolist()] for spans in vocabulary.encode_batch(prompts)]
    _check_room(ids, max_positions(teacher.model), how.max_new_tokens)
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))  # neighbours of one length waste no padding
    found = [""] * len(ids)
    torch.manual_seed(_SEED)
    for start in range(0, len(order), how.batch_size):
        batch = order[start : start + how.batch_size]
        for number, row in zip(batch, _generate(teacher, [ids[n] for n in batch], how).tolist(), strict=True):
            found[number] = _text(vocabulary, row)
    return found


def _check_room(ids: Sequence[Sequence[int]], positions: int | None, new: int) -> None:
    for number, prompt in enumerate(ids):
        if positions is not None and len(prompt) + new > positions:
            raise XTokenError(
                f"teacher_text: the prompt of document {number} (counting from 0) has {len(prompt)} tokens, which with "
                f"max_new_tokens {new} is more than the teacher's {positions} positions; shorten either"
            )
        if not prompt:
            raise XTokenError(f"teacher_text: the prompt of document {number} (counting from 0) has no tokens")


def _generate(teacher: LoadedModel, prompts: Sequence[Sequence[int]], how: TeacherTextConfig) -> Tensor:
    """int64 [B, T], the continuations; padded on the left, so that all end where the new tokens begin."""
    width, device, vocabulary = max(map(len, prompts)), teacher.model.device, teacher.vocabulary
    ids = torch.zeros(len(prompts), width, dtype=torch.int64, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    end = vocabulary.eos_id
    drawn = {"do_sample": False} if how.temperature == 0 else {"do_sample": True, "temperature": how.temperature}
    with torch.no_grad():
        made = teacher.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=how.max_new_tokens,
            eos_token_id=end,
            pad_token_id=0 if end is None else end,
            logits_processor=[_WithinTokenizer(vocabulary.size)],
            **drawn,
            **({} if how.temperature == 0 else {"top_k": 0, "top_p": 1.0}),
        )
    return made[:, width:]


class _WithinTokenizer:
    """Keeps a head that is wider than its tokenizer from writing tokens that there are not."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.size :] = float("-inf")
        return scores


def _text(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    """The text of a continuation; a character that it breaks off in is left out."""
    spelled = []
    for token in ids:
        if token == vocabulary.eos_id:
            break
        spelled.append(vocabulary.tokens[token] or b"")
    return b"".join(spelled).decode("utf-8", errors="ignore")
