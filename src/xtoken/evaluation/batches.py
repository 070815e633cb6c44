"""How documents are put before a model to be measured: what stands in front of them, and their padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.tokens import Vocabulary

__all__ = ["document_prefix", "padded"]


def document_prefix(vocabulary: Vocabulary) -> tuple[int, ...]:
    """What stands before a document: the tokenizer's own prefix, else its bos, else nothing."""
    if vocabulary.prefix_ids:
        return vocabulary.prefix_ids
    return () if vocabulary.bos_id is None else (vocabulary.bos_id,)


def padded(rows: Sequence[Sequence[int] | NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [B, L], padded on the right, where a causal model does not look.

    Args:
        rows: ids of each sequence.
        device: where they go, in one piece each.
    """
    shape = (len(rows), max(map(len, rows)))
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for row, content in enumerate(rows):
        ids[row, : len(content)], mask[row, : len(content)] = torch.as_tensor(content), 1
    return ids.to(device), mask.to(device)
