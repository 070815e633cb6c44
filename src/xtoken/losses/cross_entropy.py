"""Cross-entropy on the text itself: the other half of every distillation run.

Like every loss here it returns a sum and a count, over the tokenizer's own columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xtoken.errors import XTokenError
from xtoken.losses.term import LossTerm

__all__ = ["IGNORED_LABEL", "cross_entropy", "targets_of"]

# transformers and torch agree on this number.
IGNORED_LABEL = -100


def targets_of(labels: Tensor) -> Tensor:
    """The token that each row of logits predicts: the labels' shift.

    Args:
        labels: int64 [..., L], the input ids as in transformers, -100 for what is not to be learnt.

    Returns:
        int64 [R], flat over the leading dimensions; -100 for a sequence's last row.
    """
    return nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORED_LABEL).reshape(-1)


def cross_entropy(logits: Tensor, labels: Tensor, vocab_size: int | None = None) -> LossTerm:
    """-log p(label), summed over the labelled tokens.

    The plain way: it keeps several [tokens, V] tensors, in at least float32. `losses_from_hidden` does not.

    Args:
        logits: [..., L, W], as the model gives them.
        labels: int64 [..., L], the input ids as in transformers: *not* shifted. labels[i] is scored with logits[i-1],
            here and not by the caller; -100 marks what is not to be learnt.
        vocab_size: V, the tokenizer's size; columns past it are padding and are cut off before the softmax. None keeps
            all.

    Returns:
        total in nats, count in tokens, no metrics.

    Raises:
        XTokenError: the shapes do not fit, or the logits are narrower than the vocabulary.
    """
    if logits.shape[:-1] != labels.shape:
        raise XTokenError(f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}.")
    width = logits.shape[-1] if vocab_size is None else vocab_size
    if logits.shape[-1] < width:
        raise XTokenError(
            f"the student's logits have {logits.shape[-1]} columns, but its tokenizer has {width} tokens."
        )
    predictions, targets = logits[..., :width].reshape(-1, width), targets_of(labels)
    predictions = predictions.to(torch.promote_types(predictions.dtype, torch.float32))
    total = nn.functional.cross_entropy(predictions, targets, ignore_index=IGNORED_LABEL, reduction="sum")
    return LossTerm(total, (targets != IGNORED_LABEL).sum())
