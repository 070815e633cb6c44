"""What published tiktoken files leave out: the split pattern, the normaliser and the special tokens.

A tiktoken file lists byte strings and ranks only; the rest stands in its model's source code. Files are recognised by
their sha256, so a look-alike is never taken for one of these.
Sources: Llama-3 and Llama-4, llama_models `llama3/tokenizer.py` and `llama4/tokenizer.py` (Meta); Qwen, the
`tokenizer_config.json` of Qwen3 and `tokenization_qwen.py` of Qwen (Alibaba).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CL100K_PATTERN", "KNOWN_TIKTOKEN", "TiktokenRecipe"]


@dataclass(frozen=True)
class TiktokenRecipe:
    """How to complete a tiktoken file.

    Attributes:
        name: the tokenizer's name.
        pattern: the regular expression that cuts a text before the merges.
        special_tokens: in id order, the first right after the last rank.
        content_tokens: added tokens, after the special ones, that are text like any other.
        nfc: whether the text is normalised to NFC first.
        prefix: special tokens the tokenizer puts in front of a text by itself.
    """

    name: str
    pattern: str
    special_tokens: tuple[str, ...] = ()
    content_tokens: tuple[str, ...] = ()
    nfc: bool = False
    prefix: tuple[str, ...] = ()


_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
CL100K_PATTERN = rf"{_WORDS}|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN_PATTERN = rf"{_WORDS}|\p{{N}}|{_TAIL}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_O200K_PATTERN = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _reserved(name: str, first: int, count: int) -> tuple[str, ...]:
    return tuple(f"<|{name}reserved_special_token_{n}|>" for n in range(first, first + count))


_LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *_reserved("", 0, 2),
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
    *_reserved("", 2, 244),
)

_QWEN3_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|{what}_{side}|>" for what in ("object_ref", "box", "quad", "vision") for side in ("start", "end")),
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_QWEN3_CONTENT = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)

_LLAMA4_VISION = (
    "<|image_start|>",
    "<|image_end|>",
    *_reserved("vision_", 0, 2),
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    *_reserved("vision_", 2, 4),
    "<|image|>",
    *_reserved("vision_", 6, 1),
    "<|patch|>",
    *_reserved("vision_", 7, 1041),
)
_LLAMA4_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|step|>",
    *_reserved("text_post_train_", 0, 6),
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
    *_reserved("text_post_train_", 8, 61),
    *_LLAMA4_VISION,
    *_reserved("reasoning_", 0, 8),
    "<|reasoning_thinking_start|>",
    "<|reasoning_thinking_end|>",
)
_LLAMA4_SPECIAL_COUNT = 2048
_LLAMA4_SPECIALS = (*_LLAMA4_NAMED, *_reserved("", 0, _LLAMA4_SPECIAL_COUNT - len(_LLAMA4_NAMED)))

KNOWN_TIKTOKEN: dict[str, TiktokenRecipe] = {
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": TiktokenRecipe(
        "llama-3", CL100K_PATTERN, _LLAMA3_SPECIALS, prefix=("<|begin_of_text|>",)
    ),
    "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed": TiktokenRecipe(
        "llama-4", _O200K_PATTERN, _LLAMA4_SPECIALS, prefix=("<|begin_of_text|>",)
    ),
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186": TiktokenRecipe(
        "qwen3", _QWEN_PATTERN, _QWEN3_SPECIALS, _QWEN3_CONTENT, nfc=True
    ),
}
