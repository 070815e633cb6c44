"""A Hugging Face causal language model as the losses read it: by its logits, or by the hidden states before its head.

The second way spares the [tokens, vocabulary] matrix, and needs a model whose logits are what `Head` makes of its last
hidden states. Some models scale or mask them besides, some heads are wrapped or quantised: so it is tried on the model
itself, on two tokens, and where anything differs the logits are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from xtoken.teachers.head import Head

__all__ = ["HiddenReader", "causal_logits", "decoder_of", "packs_apart", "uses_flash_attention"]

# How far, as a share of the largest logit, the head's logits may lie from the model's: rounding in the model's dtype.
_SLACK = {torch.float64: 1e-10, torch.float32: 1e-4}
_HALF_SLACK = 1e-2
# The head is tried on its hidden states as they are and made larger: a cap that is out of reach now shows then.
_TRIAL_SCALES = (1.0, 100.0)


def causal_logits(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """A causal LM's logits [B, L, W] as it gives them, soft-capped where it caps them; no key-value cache is built.

    Args:
        model: the model.
        input_ids: int64 [B, L].
        attention_mask: int64 [B, L], 0 on padding.
        position_ids: int64 [B, L], of packed documents, each counted from 0; see `packs_apart`.
    """
    return cast(Tensor, model(**_inputs(input_ids, attention_mask, position_ids), use_cache=False).logits)


def _inputs(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None) -> dict[str, Tensor]:
    """transformers keeps packed documents apart by their positions, and only where no mask says otherwise."""
    if position_ids is None:
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    return {"input_ids": input_ids, "position_ids": position_ids}


def packs_apart(model: nn.Module) -> bool:
    """Whether documents packed into one sequence, each with positions from 0, are read as if each stood alone.

    It is tried on the model, in evaluation mode, on two sequences with other borders; state-space layers and some
    attention layers let them mix. Flash attention runs on GPUs alone and is not tried: transformers keeps documents
    apart for it in a batch of one sequence, and not in larger ones.

    Args:
        model: unwrapped, on its device.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 1, 0]], device=device)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]], device=device)
    borders = (3, 2)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = causal_logits(model, ids, torch.ones_like(ids), positions)
            apart = []
            for row, border in enumerate(borders):
                own = ids[row : row + 1, border:]
                alone = causal_logits(model, own, torch.ones_like(own))[0]
                slack = _SLACK.get(alone.dtype, _HALF_SLACK) * alone.abs().max()
                apart.append((packed[row, border:] - alone).abs().max() <= slack)
    finally:
        model.train(was_training)
    return all(bool(each) for each in apart)


def uses_flash_attention(model: nn.Module) -> bool:
    """Whether a Hugging Face model's attention is one of the flash kernels."""
    return "flash" in str(getattr(getattr(model, "config", None), "_attn_implementation", ""))


def decoder_of(model: nn.Module) -> nn.Module | None:
    """A causal LM without its head; None where it does not show one.

    Args:
        model: a Hugging Face causal LM, in peft's wrapper or bare.
    """
    model = _unwrapped(model)
    decoder = getattr(model, str(getattr(model, "base_model_prefix", "")) or "model", None)
    return decoder if isinstance(decoder, nn.Module) and decoder is not model else None


@contextmanager
def _in_own_precision(model: nn.Module) -> Iterator[None]:
    """Without the autocast that accelerate puts around a model's `forward`, under which no head agrees in float32."""
    there = vars(model)
    if "_original_forward" not in there or "forward" not in there:
        yield
        return
    mixed = there["forward"]
    there["forward"] = there["_original_forward"]
    try:
        yield
    finally:
        there["forward"] = mixed


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a `peft.PeftModel`, which passes its attributes on but `forward`; any other as it is."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else cast(nn.Module, inner())


@dataclass(frozen=True)
class HiddenReader:
    """Reads the hidden states that a model's head is given.

    Attributes:
        decoder: the model without its head.
        output: its head.
        softcap: of its logits, or None.
    """

    decoder: nn.Module
    output: nn.Linear
    softcap: float | None

    @classmethod
    def of(cls, model: nn.Module) -> HiddenReader | None:
        """A reader for this model; None where its logits are not those of a plain head.

        Args:
            model: on its device, in no wrapper but peft's.
        """
        bare, decoder = _unwrapped(model), decoder_of(model)
        output: Any = getattr(bare, "get_output_embeddings", lambda: None)()
        # Exactly a Linear: an adapter or a quantised layer is a subclass, or another class, with another product.
        if type(output) is not nn.Linear or decoder is None:
            return None
        if "logits_to_keep" not in signature(bare.forward).parameters or type(output.weight) is not nn.Parameter:
            return None
        # Weights that accelerate moves about, or keeps elsewhere, are at hand in the model's own forward alone.
        hooked = any(hasattr(part, "_hf_hook") for part in (bare, decoder, output))
        if hooked or output.weight.is_meta or len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            return None
        config: Any = getattr(model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        reader = cls(decoder, output, getattr(config, "final_logit_softcapping", None))
        return reader if reader._gives_the_logits_of(model) else None

    @property
    def head(self) -> Head:
        """The head, with the model's own parameters."""
        return Head(self.output.weight, self.output.bias, self.softcap)

    def read(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
    ) -> Tensor:
        """[B, L, H], what the head would be given.

        Args:
            model: the one the reader was made for, or what wraps it for several processes; it is called once, so that
                hooks on it run as ever, and makes the logits of one token a sequence.
            input_ids: int64 [B, L].
            attention_mask: int64 [B, L], 0 on padding.
            position_ids: int64 [B, L], as for `causal_logits`.
        """
        with self._caught() as caught:
            model(**_inputs(input_ids, attention_mask, position_ids), use_cache=False, logits_to_keep=1)
        return caught[0]

    @contextmanager
    def _caught(self) -> Iterator[list[Tensor]]:
        """What the decoder gives while it runs."""
        caught: list[Tensor] = []
        handle = self.decoder.register_forward_hook(lambda _, __, output: caught.append(output[0]))
        try:
            yield caught
        finally:
            handle.remove()

    def _gives_the_logits_of(self, model: nn.Module) -> bool:
        """Tries it on two tokens, in the model's own mode; the random state is left as it was."""
        device = self.output.weight.device
        plain = torch.autocast(device.type, enabled=False)
        with (
            torch.no_grad(),
            plain,
            _in_own_precision(model),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            return all(self._agrees(model, scale) for scale in _TRIAL_SCALES)

    def _agrees(self, model: nn.Module, scale: float) -> bool:
        """Whether the model makes of its hidden states, times `scale`, the logits that the head makes."""
        ids = torch.tensor([[0, 1]], device=self.output.weight.device)
        scaling = self.output.register_forward_pre_hook(lambda _, inputs: (scale * inputs[0], *inputs[1:]))
        try:
            with self._caught() as caught:
                logits = causal_logits(model, ids, torch.ones_like(ids))[0]
        finally:
            scaling.remove()
        hidden = caught[0][0] if caught else None
        weight = self.output.weight
        if hidden is None or hidden.shape[-1] != weight.shape[1] or hidden.dtype != weight.dtype:
            return False
        own = torch.empty(logits.shape, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
        self.head.logits(scale * hidden, own.shape[1], own)
        largest = own.abs().max()
        return bool((largest > 0) & ((own - logits).abs().max() <= _SLACK.get(hidden.dtype, _HALF_SLACK) * largest))
