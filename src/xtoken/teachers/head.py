"""`Head`: the last step of a causal language model, from hidden states to logits.

Held as plain tensors, so that a loss can run it on a few rows at a time and never hold the logits of a batch. Law: it
gives the model's own logits; whether it does is checked on the model (`xtoken.teachers.causal`), never assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Head"]


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh( (hidden @ weight.T + bias) / softcap ), without the cap where there is none.

    Attributes:
        weight: [W, H]; W may exceed the tokenizer's size.
        bias: [W] or None.
        softcap: above 0 (Gemma 2 caps its logits at 30), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    def logits(self, hidden: Tensor, vocab_size: int, out: Tensor) -> None:
        """Writes the logits of the tokenizer's own columns.

        Args:
            hidden: [n, H].
            vocab_size: V, at most W.
            out: [n, V], in any floating dtype; the product is made in the weight's.
        """
        weight = self.weight[:vocab_size]
        hidden = hidden.to(weight.dtype)
        if out.dtype == weight.dtype:
            torch.mm(hidden, weight.t(), out=out)
        else:
            out.copy_(hidden @ weight.t())
        if self.bias is not None:
            out.add_(self.bias[:vocab_size])
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
