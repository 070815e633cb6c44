"""From examples to a batch: pads both sides and says which rows of logits each chunk reads.

A batch is a nested dict of tensors, which a Trainer and a DataLoader know how to move. Padding is on the right: a
causal model then never sees it before a real token, positions need no correction, and the rows of a sequence are its
offset plus the token's place. Padding is masked out of attention, labelled -100 and in no chunk, so the id that fills
it is arbitrary, and neither model needs a pad token. Law: a document's rows, labels and chunks are the same in any
batch. Of a conversation only what is learnt has labels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.losses import ChunkIndex
from xtoken.losses.cross_entropy import IGNORED_LABEL
from xtoken.training.data import Example

__all__ = ["Collator"]

PADDING_ID = 0  # any id below V would do


class Collator:
    """Puts examples side by side.

    Args:
        sides: the `Side.key` of each teacher's tokenizer that the batch must hold; None takes all there are.
    """

    def __init__(self, sides: Collection[str] | None = None) -> None:
        self.sides = sides

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The batch of B examples.

        Returns:
            `input_ids`, `attention_mask` and `labels` (not shifted), int64 [B, L_s]; and `teachers`, by side:
            `input_ids` and `attention_mask`, int64 [B, L_t], and `index`, the tensors of a `ChunkIndex` whose rows
            count the flattened logits [B * L_s, V_S] and [B * L_t, V_T].
        """
        ids, mask = _pad([example.ids for example in examples])
        sides = examples[0].teachers if self.sides is None else self.sides
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": ids.masked_fill(_scored(examples, mask) == 0, IGNORED_LABEL),
            "teachers": {side: _teacher_side(side, examples, ids.shape[1]) for side in sides},
        }


def _scored(examples: Sequence[Example], mask: Tensor) -> Tensor:
    """int64 [B, L]: 1 for the tokens that are learnt, all real ones where an example does not say."""
    scored = mask.clone()
    for row, example in enumerate(examples):
        if example.scored is not None:
            scored[row, : len(example.scored)] = torch.from_numpy(example.scored.astype(np.int64))
    return scored


def _teacher_side(side: str, examples: Sequence[Example], student_width: int) -> dict[str, Any]:
    teachers = [example.teachers[side] for example in examples]
    ids, mask = _pad([tokens.ids for tokens in teachers])
    indices = [
        ChunkIndex.from_chunks(tokens.chunks, example.ids, tokens.ids, row * student_width, row * ids.shape[1])
        for row, (example, tokens) in enumerate(zip(examples, teachers, strict=True))
    ]
    return {"input_ids": ids, "attention_mask": mask, "index": ChunkIndex.cat(indices).tensors()}


def _pad(sequences: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Token ids int64 [B, L] filled up on the right, and 1 where they are real."""
    width = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), width), PADDING_ID, np.int64)
    mask = np.zeros((len(sequences), width), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
