"""Low-rank adapters (LoRA; Hu et al., arXiv 2106.09685) on a student, by peft, and what is saved of them.

Law: at the first step the student is its base model, for an adapter adds nothing yet; the base model's weights never
change but by being merged at the very end.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xtoken.config import LoraConfig
from xtoken.errors import XTokenError
from xtoken.training.packages import check_peft

__all__ = ["add_lora", "finished"]

_EVERY_LINEAR = "all-linear"  # peft's name for every linear layer but the head


def add_lora(model: Any, settings: LoraConfig, *, seed: int, revision: str | None = None) -> Any:
    """Wraps a model so that adapters learn and nothing else does.

    Args:
        model: a Hugging Face causal LM; adapters are put into it, and its weights are frozen.
        settings: of the adapters.
        seed: of their start.
        revision: the hub revision the model was loaded at, to be named in what is saved.

    Returns:
        a `peft.PeftModel`.

    Raises:
        XTokenError: peft is not installed; the model has adapters already; a target module that is none of its linear
            layers, or that shares its weight with another layer.
    """
    check_peft("student.lora")
    import peft

    if isinstance(model, peft.PeftModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise XTokenError("the student has an adapter already: leave student.lora out to go on training that one")
    if settings.target_modules is not None:
        _check_targets(model, settings.target_modules)
    made = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules or _EVERY_LINEAR,
        fan_in_fan_out=any(type(layer).__name__ == "Conv1D" for layer in model.modules()),
        base_model_name_or_path=_name_of(model),
        revision=revision,
    )
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for names that it has renamed
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(model, made)
    # It would write a README.md into every folder, and edit one that is there; and it would ask the hub, at every
    # checkpoint, whether the embeddings are to be saved, which are frozen.
    wrapped.create_or_update_model_card = _write_no_card
    wrapped.save_pretrained = partial(wrapped.save_pretrained, save_embedding_layers=False)
    return wrapped


def finished(model: Any, settings: LoraConfig | None) -> Any:
    """The trained student as it is to be saved: with its adapters merged into the weights, or as it is.

    Args:
        model: what was trained, unwrapped.
        settings: of the adapters that `add_lora` made; None where it made none.
    """
    if settings is None or settings.save == "adapter":
        return model
    return model.merge_and_unload().requires_grad_(True)


def _write_no_card(folder: str) -> None:
    """In place of peft's model card."""


def _name_of(model: Any) -> str | None:
    """Where the base model is found again, from any working directory; None for one that came from memory."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    return str(Path(name).resolve()) if Path(name).is_dir() and name else name or None


def _check_targets(model: Any, names: Sequence[str]) -> None:
    """A name that fits no layer would do nothing; an adapter on a shared weight could not be merged into it."""
    layers = {name: layer for name, layer in model.named_modules() if _takes_adapter(layer)}
    shared = _tied(model)
    for name in names:
        found = [layer for full, layer in layers.items() if full == name or full.endswith(f".{name}")]
        if not found:
            there = ", ".join(sorted({full.rpartition(".")[2] for full in layers}))
            raise XTokenError(f"student.lora.target_modules: {name!r} is the end of no layer's name; there are {there}")
        if any(layer.weight is shared for layer in found):
            raise XTokenError(
                f"student.lora.target_modules: {name!r} shares its weight between embeddings and head, and an adapter "
                "on one of them could not be merged into it: leave it out"
            )


def _takes_adapter(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Embedding)) or type(layer).__name__ == "Conv1D"


def _tied(model: Any) -> Any:
    """The weight that embeddings and head share, or None."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and embeddings is not None and head.weight is embeddings.weight
    return head.weight if is_tied else None
