"""From examples to a batch: pads both sides and says which rows of logits each chunk reads.

A batch is a nested dict of tensors, which a Trainer and a DataLoader know how to move. Padding is on the right: a
causal model then never sees it before a real token, positions need no correction, and the rows of a sequence are its
offset plus the token's place. Padding is masked out of attention, labelled -100 and in no chunk, so the id that fills
it is arbitrary, and neither model needs a pad token. Documents packed into one sequence begin their positions anew, by
which transformers keeps them apart, and no row predicts across a border. Law: a document's rows, labels and chunks are
the same in any batch and any sequence. Of a conversation only what is learnt has labels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.losses import ChunkIndex
from xtoken.losses.cross_entropy import IGNORED_LABEL
from xtoken.training.data import Example
from xtoken.training.packing import Pack

__all__ = ["Collator"]

PADDING_ID = 0  # any id below V would do


class Collator:
    """Puts examples side by side.

    Args:
        sides: the `Side.key` of each teacher's tokenizer that the batch must hold; None takes all there are.
    """

    def __init__(self, sides: Collection[str] | None = None) -> None:
        self.sides = sides

    def __call__(self, examples: Sequence[Example | Pack]) -> dict[str, Any]:
        """The batch of B examples, or of B sequences of packed examples.

        Returns:
            `input_ids`, `attention_mask` and `labels` (not shifted), int64 [B, L_s]; `documents`, int64 [D, 2], the
            corpus and number of each document; and `teachers`, by side: `input_ids` and `attention_mask`, int64
            [B, L_t], and `index`, the tensors of a `ChunkIndex` whose rows count the flattened logits [B * L_s, V_S]
            and [B * L_t, V_T]. Of packed examples both sides have `position_ids` as well, int64 [B, L].
        """
        packs = [example if isinstance(example, tuple) else (example,) for example in examples]
        is_packed = any(isinstance(example, tuple) for example in examples)
        student = _Rows.of([[example.ids for example in pack] for pack in packs])
        scored = _Rows.of([[_scored(example) for example in pack] for pack in packs])
        labels = student.ids.masked_fill(scored.ids * student.mask == 0, IGNORED_LABEL)
        if is_packed:  # a document's first token has nothing before it
            labels[student.positions == 0] = IGNORED_LABEL
        sides = packs[0][0].teachers if self.sides is None else self.sides
        whole = [example for pack in packs for example in pack]
        return {
            **student.inputs(is_packed),
            "labels": labels,
            "documents": torch.tensor([[one.corpus, number] for one in whole for number in one.documents]).view(-1, 2),
            "teachers": {side: _teacher_side(side, packs, student, is_packed) for side in sides},
        }


def _scored(example: Example) -> NDArray[np.int64]:
    """1 for the tokens that are learnt, all where the example does not say."""
    return np.ones(len(example.ids), np.int64) if example.scored is None else example.scored.astype(np.int64)


@dataclass(frozen=True)
class _Rows:
    """Sequences of documents, filled up on the right.

    Attributes:
        ids, mask, positions: int64 [B, L]; a document's positions count from 0, and padding is at 0.
        begins: where each document begins in the flattened rows, sequence by sequence.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    begins: list[int]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[NDArray[np.int64]]]) -> _Rows:
        width = max(sum(map(len, documents)) for documents in sequences)
        ids = np.full((len(sequences), width), PADDING_ID, np.int64)
        mask, positions = np.zeros_like(ids), np.zeros_like(ids)
        begins = []
        for row, documents in enumerate(sequences):
            at = 0
            for document in documents:
                inside = slice(at, at + len(document))
                ids[row, inside], mask[row, inside], positions[row, inside] = document, 1, np.arange(len(document))
                begins.append(row * width + at)
                at += len(document)
        return cls(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(positions), begins)

    def inputs(self, is_packed: bool) -> dict[str, Tensor]:
        """What a model is given."""
        found = {"input_ids": self.ids, "attention_mask": self.mask}
        return {**found, "position_ids": self.positions} if is_packed else found


def _teacher_side(side: str, packs: Sequence[Pack], student: _Rows, is_packed: bool) -> dict[str, Any]:
    teacher = _Rows.of([[example.teachers[side].ids for example in pack] for pack in packs])
    documents = [(example, example.teachers[side]) for pack in packs for example in pack]
    indices = [
        ChunkIndex.from_chunks(tokens.chunks, example.ids, tokens.ids, at_s, at_t)
        for (example, tokens), at_s, at_t in zip(documents, student.begins, teacher.begins, strict=True)
    ]
    return {**teacher.inputs(is_packed), "index": ChunkIndex.cat(indices).tensors()}
