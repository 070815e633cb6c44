"""What a special token is for, told by its text.

A special token stands for an event (the text begins, the turn ends), not for characters, so it covers no bytes. Two
vocabularies name the same event differently; the role is what they share. It is read off the token's own text rather
than a model's settings, so that the same tokenizer has the same roles whatever file it came from.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Role", "role_of"]


class Role(str, Enum):
    """The event a special token stands for; `OTHER` is paired only with a token of equal text."""

    BOS = "bos"
    EOS = "eos"
    EOT = "eot"
    PAD = "pad"
    UNK = "unk"
    MASK = "mask"
    CLS = "cls"
    SEP = "sep"
    OTHER = "other"


# The names the published tokenizers use. <|endoftext|> closes a document in GPT-2's and Qwen's families, so it is an
# eos even where a chat model's settings call another token eos; those end-of-turn markers are EOT.
_NAMES: dict[Role, tuple[str, ...]] = {
    Role.BOS: ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|bos|>", "<｜begin▁of▁sentence｜>"),
    Role.EOS: ("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "<|eos|>", "<｜end▁of▁sentence｜>"),
    Role.EOT: ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|END_OF_TURN_TOKEN|>"),
    Role.PAD: (
        "<pad>",
        "[PAD]",
        "<|pad|>",
        "<|padding|>",
        "<|finetune_right_pad_id|>",
        "<|finetune_right_pad|>",
        "<｜▁pad▁｜>",
    ),
    Role.UNK: ("<unk>", "[UNK]", "<|unk|>"),
    Role.MASK: ("<mask>", "[MASK]"),
    Role.CLS: ("[CLS]", "<cls>"),
    Role.SEP: ("[SEP]", "<sep>"),
}
_ROLE_BY_NAME = {name: role for role, names in _NAMES.items() for name in names}


def role_of(content: str) -> Role:
    """The role of the special token written `content`; `Role.OTHER` where the name is not a known one."""
    return _ROLE_BY_NAME.get(content, Role.OTHER)
