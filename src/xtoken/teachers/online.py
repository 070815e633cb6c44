"""A teacher that runs beside the student: its model, its loss and its weight in one object.

Types: token ids in, a `TeacherSignal` out. Laws: no gradient ever reaches it; the columns by which its head is wider
than its tokenizer are cut off before the softmax; a head narrower than the tokenizer is refused when the teacher is
made; what it says of a batch lies where the batch does, wherever its own weights lie.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from xtoken.errors import XTokenError
from xtoken.losses import ChunkIndex, LossTerm
from xtoken.teachers.causal import HiddenReader, causal_logits
from xtoken.teachers.head import Head
from xtoken.teachers.signal import HeadSignal, LogitSignal, TeacherSignal, WholeSignal

__all__ = ["DistillationLoss", "OnlineTeacher", "check_head"]

DistillationLoss = Callable[[Tensor, TeacherSignal, ChunkIndex], LossTerm]


class OnlineTeacher:
    """A causal language model that teaches.

    Args:
        name: what the logs call it.
        model: a Hugging Face causal LM; it is put into evaluation mode and frozen, and keeps its dtype.
        vocab_size: V_T, the size of its tokenizer.
        loss: a module of `xtoken.losses`, or anything called like one.
        weight: how much it counts among several teachers, above 0.
        side: which tokens of a batch are its own: the `side_key` of its tokenizer.
        temperature: tau, above 0, of teacher and student alike.
        sharded: spread its weights over the processes of the run; each holds all of them where there is one.
        is_placed: whether the model is where it is to stay, beside the student or not.
        loss_learning_rate: of what the loss itself learns (a learnable W); None for the default.

    Raises:
        XTokenError: the model's head or embeddings are narrower than the tokenizer; a weight or temperature out of
            range.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        vocab_size: int,
        loss: DistillationLoss,
        *,
        side: str,
        weight: float = 1.0,
        temperature: float = 1.0,
        sharded: bool = False,
        is_placed: bool = False,
        loss_learning_rate: float | None = None,
    ) -> None:
        check_head(model, vocab_size, f"teacher {name!r}")
        if not 0 < weight < float("inf"):
            raise XTokenError(f"teacher {name!r} has weight {weight}; it must be above 0 and finite")
        if not 0 < temperature < float("inf"):
            raise XTokenError(f"teacher {name!r} has temperature {temperature}; it must be above 0 and finite")
        self.name, self.vocab_size, self.loss = name, vocab_size, loss
        self.side, self.weight, self.temperature = side, weight, temperature
        self.sharded, self.is_placed = sharded, is_placed
        self.loss_learning_rate = loss_learning_rate
        self.model = model.eval().requires_grad_(False)
        self._copied_head: Head | None = None

    def to(self, device: torch.device | str) -> OnlineTeacher:
        """Moves the model and what the loss holds; a model that was placed, by hand or accelerate, stays there."""
        if not self.is_placed and getattr(self.model, "hf_device_map", None) is None:
            self.model.to(device)
        if isinstance(self.loss, nn.Module):
            self.loss.to(device)
        return self

    @cached_property
    def reader(self) -> HiddenReader | None:
        """How to read its hidden states; None where it has no plain head."""
        return HiddenReader.of(self.model)

    def signal(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> WholeSignal:
        """What it predicts after every token: from its hidden states where it has a plain head, else as logits.

        Args:
            input_ids: int64 [B, L_t].
            attention_mask: int64 [B, L_t], 0 on padding.
            position_ids: int64 [B, L_t], of documents packed into one sequence, each counted from 0; else None.
        """
        device = input_ids.device
        ids, mask = self._bring(input_ids), self._bring(attention_mask)
        positions = None if position_ids is None else self._bring(position_ids)
        own_dtype = torch.autocast(ids.device.type, enabled=False)  # whatever the student computes in
        with torch.no_grad(), own_dtype:
            if self.reader is None:
                logits = causal_logits(self.model, ids, mask, positions).to(device)
                return LogitSignal(logits.flatten(0, 1), self.vocab_size, self.temperature)
            hidden = self.reader.read(self.model, ids, mask, positions).to(device)
            return HeadSignal(hidden.flatten(0, 1), self._head_on(device), self.vocab_size, self.temperature)

    def _bring(self, tensor: Tensor) -> Tensor:
        """To where the model takes its inputs; accelerate's hooks take them there by themselves."""
        return tensor if hasattr(self.model, "_hf_hook") else tensor.to(next(self.model.parameters()).device)

    def _head_on(self, device: torch.device) -> Head:
        """The head where the batch is; elsewhere than the model that is a copy, made once."""
        assert self.reader is not None
        head = self.reader.head
        if head.weight.device == device:
            return head
        if self._copied_head is None or self._copied_head.weight.device != device:
            bias = None if head.bias is None else head.bias.to(device)
            self._copied_head = Head(head.weight.to(device), bias, head.softcap)
        return self._copied_head


def check_head(model: nn.Module, vocab_size: int, who: str) -> None:
    """Refuses a model that has no column or no embedding for some token of its tokenizer.

    Args:
        model: a Hugging Face causal LM.
        vocab_size: the tokenizer's size.
        who: what the message calls the model.

    Raises:
        XTokenError: the head or the embeddings are too narrow.
    """
    for what, layer in (("output head has", _layer(model, "output")), ("embeddings have", _layer(model, "input"))):
        rows = None if layer is None or layer.weight is None else int(layer.weight.shape[0])
        if rows is not None and rows < vocab_size:
            raise XTokenError(
                f"{who}: its {what} {rows} rows, but its tokenizer has {vocab_size} tokens. Use the tokenizer "
                f"that belongs to the model, or resize the model (model.resize_token_embeddings({vocab_size}))."
            )


def _layer(model: nn.Module, which: str) -> Any:
    """The embedding layer of a Hugging Face model; None where it has none to show."""
    getter = getattr(model, f"get_{which}_embeddings", None)
    try:
        layer = getter() if getter is not None else None
    except NotImplementedError:
        return None
    # A head packed by quantisation has another shape than its rows.
    return layer if isinstance(layer, (nn.Linear, nn.Embedding)) else None
