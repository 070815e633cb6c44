"""Loading a model and the tokenizer that belongs to it, from a folder or the hub, with errors a user can act on.

Type: `LoadedModel`. The tokenizer is read as its files say (`Vocabulary`), never through AutoTokenizer, and its files
are kept to be copied as they are: AutoTokenizer can put another pre-tokenizer in place of the file's and would save
that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xtoken.errors import UnsupportedTokenizerError, XTokenError
from xtoken.teachers.online import check_head
from xtoken.tokens import Vocabulary
from xtoken.training.packages import check_peft, check_quantization

__all__ = ["LoadedModel", "load_model", "max_positions", "no_library_bars", "tokenizer_files"]

# Everything by which published model folders describe a tokenizer and its chat template.
TOKENIZER_PATTERNS = (
    "tokenizer*.json",
    "tokenizer.model*",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "chat_template*",
)
ADAPTER_FILE = "adapter_config.json"
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory and its tokenizer.

    Attributes:
        model: a Hugging Face causal LM.
        vocabulary: its tokenizer.
        tokenizer_files: the files the tokenizer came from, to be saved with a student; may be empty.
    """

    model: Any
    vocabulary: Vocabulary
    tokenizer_files: tuple[Path, ...] = ()


def load_model(
    path_or_id: str,
    *,
    who: str = "model",
    revision: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    attention: str | None = None,
    quantization: str | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
) -> LoadedModel:
    """Loads a causal LM and its tokenizer.

    Args:
        path_or_id: a model folder, one of an adapter whose base model can be found, or a hub id.
        who: what messages call it, `student` say.
        revision: a hub revision.
        dtype: of the weights, a name in torch; of the products where the weights are quantised.
        trust_remote_code: whether to run the Python code that comes with the model.
        attention: its implementation, a name in transformers; None lets transformers choose.
        quantization: `8bit` or `4bit` weights; they lie on a GPU, the process's own where there is no device map.
        device_map: where each module lies, or `auto`; None is the CPU.

    Raises:
        XTokenError: no model there, or one that cannot be read; code of its own that is not trusted; weights missing;
            a tokenizer larger than the model; no package or GPU for `quantization`.
    """
    folder = Path(path_or_id).expanduser()
    if folder.exists():
        _check_folder(folder, who)
    elif path_or_id.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(path_or_id):
        raise XTokenError(f"{who}: there is no model folder {path_or_id}")
    source = str(folder) if folder.exists() else path_or_id
    vocabulary = _load_vocabulary(source, who, revision)
    how = _how(dtype, attention, quantization, device_map)
    model = _load_weights(source, who, revision=revision, trust_remote_code=trust_remote_code, **how)
    check_head(model, vocabulary.size, f"{who} {path_or_id}")
    return LoadedModel(model, vocabulary, tokenizer_files(source, revision=revision))


def max_positions(model: Any) -> int | None:
    """How many tokens a model has positions for; None where it does not say."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    return int(positions) if positions else None


def tokenizer_files(path_or_id: str, *, revision: str | None = None) -> tuple[Path, ...]:
    """The files of a model folder, or of a hub repository in the hub's own cache, that make up its tokenizer."""
    folder = Path(path_or_id)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path_or_id, revision=revision, allow_patterns=list(TOKENIZER_PATTERNS)))
    found = {file for pattern in TOKENIZER_PATTERNS for file in folder.glob(pattern) if file.is_file()}
    return tuple(sorted(found))


def _check_folder(folder: Path, who: str) -> None:
    if not folder.is_dir():
        raise XTokenError(f"{who}: {folder} is a file; expected a model folder with config.json and weights")
    if (folder / ADAPTER_FILE).is_file():
        check_peft(f"{who}: the adapter in {folder}")
    elif not (folder / "config.json").is_file():
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise XTokenError(f"{who}: {folder} is no model folder: it has no config.json (it holds {there})")


def _load_vocabulary(source: str, who: str, revision: str | None) -> Vocabulary:
    """The tokenizer. A name that is no folder may be one mistyped as well as a hub id, and the message says both."""
    try:
        return Vocabulary.from_pretrained(source, revision=revision)
    except XTokenError as error:
        if Path(source).exists() or isinstance(error, UnsupportedTokenizerError):
            raise
        raise XTokenError(f"{who}: {error}") from error


def _how(
    dtype: str, attention: str | None, quantization: str | None, device_map: str | Mapping[str, int | str] | None
) -> dict[str, Any]:
    """What transformers is to be told of the weights."""
    how: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if attention is not None:
        how["attn_implementation"] = attention
    if quantization is not None:
        check_quantization("quantization")
        how["quantization_config"] = _quantized(quantization, how["dtype"])
        own_gpu = {"": int(os.environ.get("LOCAL_RANK") or 0)}  # the first GPU would get every process's model
        device_map = own_gpu if device_map is None else device_map
    if device_map is not None:
        how["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    return how


def _quantized(bits: str, dtype: torch.dtype) -> Any:
    """bitsandbytes' LLM.int8 (Dettmers et al., arXiv 2208.07339) or QLoRA's nf4 (arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _load_weights(source: str, who: str, *, trust_remote_code: bool, **how: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=trust_remote_code, output_loading_info=True, **how
        )
    except Exception as error:  # it raises what its parts raise: OSError, ValueError, SafetensorError, KeyError
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise XTokenError(
                f"{who}: {source!r} brings Python code of its own, which is not run unless you trust it. Read it, and "
                "then set trust_remote_code: true beside the model."
            ) from error
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise XTokenError(f"{who}: cannot load a causal language model from {source!r}: {reason}") from error
    if missing := sorted(info["missing_keys"]):
        raise XTokenError(
            f"{who}: {source!r} lacks {len(missing)} of the model's weights, {missing[0]} for one; they would be "
            "random. The folder is incomplete, or is not a causal language model of the kind its config.json names."
        )
    return model


@contextmanager
def no_library_bars() -> Iterator[None]:
    """Keeps transformers from drawing a bar for every file it reads or writes, through ours."""
    from transformers.utils import logging as bars

    was_on = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            bars.enable_progress_bar()
