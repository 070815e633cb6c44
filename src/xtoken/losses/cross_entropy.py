"""Cross-entropy on the text itself: the other half of every distillation run.

Like every loss here it returns a sum and a count, over the tokenizer's own columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xtoken.errors import XTokenError
from xtoken.losses.fast.handover import hand_out, keep_for_backward
from xtoken.losses.fast.passes import blocks
from xtoken.losses.fast.walk import block_rows
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

    Differentiable once. It keeps one tensor of the logits' shape and type; `losses_from_hidden` does without.

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
    logits = logits if torch.is_grad_enabled() else logits.detach()  # a Function is not told
    total = _CrossEntropy.apply(logits.reshape(-1, logits.shape[-1]), targets_of(labels), width)
    return LossTerm(total, (labels[..., 1:] != IGNORED_LABEL).sum())


class _CrossEntropy(torch.autograd.Function):
    """The sum over rows, a block at a time: d / d logits = p - onehot, made on the way.

    Memory: one tensor of the logits' shape and type, and a block.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, width: int) -> Tensor:
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        dtype = torch.promote_types(logits.dtype, torch.float32)
        counts = (targets != IGNORED_LABEL).unsqueeze(1)
        labels = torch.where(counts, targets.unsqueeze(1), 0)
        total = torch.zeros((), dtype=dtype, device=logits.device)
        for part in blocks(len(targets), block_rows(logits.device, width)):
            block = logits[part, :width].to(dtype)
            total += torch.where(counts[part], -block.log_softmax(dim=-1).gather(1, labels[part]), 0).sum()
            if gradient is not None:
                by_logits = block.softmax(dim=-1).scatter_add_(1, labels[part], block.new_full(labels[part].shape, -1))
                gradient[part, :width] = torch.where(counts[part], by_logits, 0).to(gradient.dtype)
        keep_for_backward(ctx, [gradient])
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return (*hand_out(ctx, grad_output), None, None)
