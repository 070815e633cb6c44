"""Texts on which tokenizers go wrong, and a hypothesis strategy that mixes them over all of Unicode."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["HARD_TEXTS", "TRICKY", "texts"]

# What each breaks stands beside it.
TRICKY = (
    "e\u0301",  # composed by NFC
    "\u0344",  # one mark that NFC turns into two
    "q\u0307\u0323",  # marks that NFC reorders
    "\u0301",  # a mark on nothing
    "\u1112\u1161\u11ab",  # jamo, one syllable in NFC
    "한",
    "\u212a",  # the Kelvin sign is the letter K in NFC
    "İ",  # grows when lower-cased
    "ß",
    "ﬁ",  # two letters in NFKC
    "½",  # three characters in NFKC, one of them rare
    "㌔",
    "①",
    "ｱﾞ",
    "的",
    "犬的",
    "犭",  # in no small vocabulary
    "👨‍👩‍👧‍👦",  # one grapheme of seven characters
    "👍🏽",
    "🏳️‍🌈",
    "\u200d",
    "क्षि",
    "ال",
    "لله\u064b",
    "٢٠٢٤",
    "12",
    "1234567",
    "3.14",
    " ",
    "  ",
    "    ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\u00a0",
    "\u3000",  # a space in NFKC
    "\u2028",
    "\x85",
    "\x00",  # dropped by some normalisers
    "\x01",
    "\x7f",
    "\ufeff",
    "\ufffd",
    "<s>",
    "</s>",
    "<unk>",
    "<bos>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<think>",
    " <mask>",
    "[UNK]",
    "[CLS]",
    "<0x41>",
    "<0xE4>",
    "▁",
    "▁▁",
    "##ing",
    "Ġthe",
    "Ċ",
    "the",
    " the",
    " fox",
    "_init",
    " init",
    " ,",
    ",",
    "=====",
    "aaaa",
    "\U0010ffff",
)

HARD_TEXTS = (
    "",
    "   ",
    "\n",
    "\nhello\n",
    "\t\tx = 1\n\n\n    y = 22\r\n",
    "The quick brown fox, 12345 times.",
    "Der Fuchs läuft über die Straße.",
    "敏捷的棕色狐狸 的 good",
    "오늘 날씨가 좋다. 1234",
    "الثعلب البني ٢٠٢٤",
    "a<s>b</s> <0x41> [UNK] <|endoftext|>",
    "▁a ▁▁ b",
    "👨‍👩‍👧‍👦 and 🏳️‍🌈👍🏽",
    "cafe\u0301 na\u0308ive",
    "I'M he's DON'T 'ſ",
    *TRICKY,
)


def texts(*, min_size: int = 0, max_size: int = 10) -> st.SearchStrategy[str]:
    """Any Unicode text, or one joined from tricky parts and single characters; never a lone surrogate."""
    part = st.one_of(st.sampled_from(TRICKY), st.sampled_from(TRICKY), st.characters(exclude_categories=["Cs"]))
    joined = st.lists(part, min_size=min_size, max_size=max_size).map("".join)
    return st.one_of(joined, st.text(min_size=min_size, max_size=max_size))
