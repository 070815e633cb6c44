"""What a model's forward and backward pass hold in memory, found without memory: on tensors that have shapes only.

Types: `ModelShape`, what config.json says of a model; `TrainingBytes` and `TeacherBytes`, what was found. The model's
own code runs on fake tensors, on the CPU and in the GPU's dtypes; every storage is counted from the operation that
makes it to the one that lets it go. So the peak is that of this code, whatever the architecture; what single kernels
hold while they run is not seen. Attention is taken to be a fused kernel, which keeps its inputs, its output and a
number for each query and head, and documents are taken to be of one length, so that no mask is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xtoken.errors import XTokenError

__all__ = ["ModelShape", "TeacherBytes", "TrainingBytes", "model_shape", "read_config", "teacher_bytes", "train_bytes"]

_ATTENTION = "xtoken-trace"


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes.

    Attributes:
        parameters: all of them, a tied weight once.
        matrices: weights that every token is multiplied with, embeddings and output head left out; of experts the
            share that a token meets.
        head_rows, hidden: the output head is [head_rows, hidden].
        attention_width: heads times their size, summed over the layers.
        largest_layer: parameters of the largest layer.
        layers: how many.
        positions: the longest sequence; None where it does not say.
    """

    parameters: int
    matrices: int
    head_rows: int
    hidden: int
    attention_width: int
    largest_layer: int
    layers: int
    positions: int | None

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.head_rows * self.hidden


@dataclass(frozen=True)
class TrainingBytes:
    """A student's pass over one micro-batch, in bytes beside weights and their gradients.

    Attributes:
        forward: the peak of the forward pass.
        kept: what is held between forward and backward.
        backward: the peak of the backward pass, the gradients of the head's weight and of the hidden states that it
            is given included.
    """

    forward: int
    kept: int
    backward: int


@dataclass(frozen=True)
class TeacherBytes:
    """A teacher's pass over one micro-batch, in bytes beside its weights.

    Attributes:
        forward: the peak, the hidden states included.
        hidden: the hidden states that stay.
    """

    forward: int
    hidden: int


def read_config(path_or_id: str, *, who: str, revision: str | None = None) -> Any:
    """A model's config.json, from a folder or the hub; nothing else of it is read.

    Args:
        path_or_id: a model folder or a hub id.
        who: what messages call it.
        revision: a hub revision.

    Raises:
        XTokenError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    folder = Path(path_or_id).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise XTokenError(f"{who}: {folder} is no model folder: it has no config.json")
    if not folder.exists() and path_or_id.startswith((".", "/", "~")):
        raise XTokenError(f"{who}: there is no model folder {path_or_id}")
    try:
        return AutoConfig.from_pretrained(str(folder) if folder.exists() else path_or_id, revision=revision)
    except Exception as error:  # it raises what its parts raise: OSError, ValueError, KeyError
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise XTokenError(
            f"{who}: cannot read the config.json of {path_or_id!r}: {reason.rstrip('.')}. Without the hub, name a "
            "folder that holds the model's config.json; a dry run needs no more of it."
        ) from error


def model_shape(config: Any, who: str) -> ModelShape:
    """Counts a model's parameters on the meta device.

    Args:
        config: of transformers.
        who: what messages call the model.

    Raises:
        XTokenError: no causal language model can be made of it.
    """
    with torch.device("meta"):
        model = _make(config, who, torch.float32)
    text = config.get_text_config()
    embeddings = {id(_weight(model, "input")), id(_weight(model, "output"))} - {id(None)}
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    share = (getattr(text, "num_experts_per_tok", None) or 1) / experts if experts else 1.0
    weights = [weight for weight in model.parameters() if id(weight) not in embeddings and weight.dim() > 1]
    head = _weight(model, "output")
    if head is None:
        raise XTokenError(f"{who}: {type(model).__name__} has no output head to count")
    layers = _layers(model, text)
    heads = getattr(text, "num_attention_heads", 0) or 0
    size = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    return ModelShape(
        parameters=sum(weight.numel() for weight in model.parameters()),
        matrices=sum(int(weight.numel() * (share if weight.dim() > 2 else 1)) for weight in weights),
        head_rows=head.shape[0],
        hidden=head.shape[1],
        attention_width=heads * size * len(layers),
        largest_layer=max((sum(weight.numel() for weight in layer.parameters()) for layer in layers), default=0),
        layers=len(layers),
        positions=getattr(text, "max_position_embeddings", None),
    )


def train_bytes(
    config: Any, who: str, *, documents: int, tokens: int, dtype: torch.dtype, autocast: bool, checkpointing: bool
) -> TrainingBytes:
    """Runs a student forward to its hidden states and backward, and counts.

    Args:
        config: of transformers.
        who: what messages call the model.
        documents: in the micro-batch.
        tokens: of each document.
        dtype: of the weights.
        autocast: whether products are made in bfloat16.
        checkpointing: whether activations are recomputed.

    Raises:
        XTokenError: the model's code needs the tensors' content.
    """
    with _fake(who):
        model = _make(config, who, dtype).train()
        if checkpointing:
            # Newer releases call it activation checkpointing.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        live = _LiveBytes()
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
            live.leave_out(weight, weight.grad)
        head = _weight(model, "output")
        with live:
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                hidden = _hidden(model, documents, tokens)
            forward, kept = live.restart(), live.now
            gradients = [torch.zeros_like(hidden), torch.zeros_like(head)]
            torch.autograd.backward([hidden, head], gradients)
            del hidden, gradients
        return TrainingBytes(forward, kept, live.peak)


def teacher_bytes(config: Any, who: str, *, documents: int, tokens: int, dtype: torch.dtype) -> TeacherBytes:
    """Runs a teacher forward without gradients, and counts; arguments and errors as for `train_bytes`."""
    with _fake(who), torch.no_grad():
        model = _make(config, who, dtype).eval()
        live = _LiveBytes()
        live.leave_out(*model.parameters())
        with live:
            hidden = _hidden(model, documents, tokens)
        return TeacherBytes(live.peak, hidden.numel() * hidden.element_size())


class _LiveBytes(TorchDispatchMode):
    """The bytes of all storages that operations under it made and that are still held.

    Attributes:
        now: at this moment.
        peak: the most since the start or `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return out

    def leave_out(self, *tensors: Tensor) -> None:
        """Tensors that are not to be counted."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage)

    def restart(self) -> int:
        """The peak so far; a new one begins at what is held."""
        peak, self.peak = self.peak, self.now
        return peak

    def _meet(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _FusedAttention(torch.autograd.Function):
    """The memory of a fused attention kernel; its values mean nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, _ = query.shape
        out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, query.new_empty(batch, heads, length, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> tuple[Tensor, None]:
    """As transformers calls attention: [B, heads, L, d] to [B, L, heads, d]."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    out: Any = _FusedAttention.apply(query, key, value)
    return out.transpose(1, 2).contiguous(), None


def _make(config: Any, who: str, dtype: torch.dtype) -> Any:
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register(_ATTENTION, _attend)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_ATTENTION)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise XTokenError(f"{who}: no causal language model can be made of its config.json: {reason}") from error


@contextmanager
def _fake(who: str) -> Iterator[None]:
    """Tensors made within have shapes only."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            yield
    except XTokenError:
        raise
    except Exception as error:  # what a model's code makes of tensors without content is its own
        raise XTokenError(
            f"{who}: its memory cannot be estimated, because the model's code does not run on tensors without content "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


def _hidden(model: Any, documents: int, tokens: int) -> Tensor:
    """[B, L, H], what the head is given, with everything that the model's own forward keeps for it."""
    ids = torch.zeros(documents, tokens, dtype=torch.int64)
    decoder = getattr(model, str(model.base_model_prefix) or "model", None)
    hidden: Tensor = (decoder if decoder is not None else model)(input_ids=ids, use_cache=False)[0]
    return hidden


def _weight(model: Any, which: str) -> Any:
    layer = getattr(model, f"get_{which}_embeddings")()
    return None if layer is None else layer.weight


def _layers(model: Any, text: Any) -> list[Any]:
    """The decoder's layers: the longest list of modules, which has as many entries as the config says."""
    lists = [list(part) for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    named = [part for part in lists if len(part) == getattr(text, "num_hidden_layers", -1)]
    return max(named or lists or [[]], key=len)
