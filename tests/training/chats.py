"""Chat templates of four families, and small tokenizers that have their special tokens, for tests of chat data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, processors

import small_tokenizers as st
from training import tiny
from xtoken.tokens import Vocabulary
from xtoken.training import LoadedModel
from xtoken.training.chat import ChatTokenizer
from xtoken.training.templates import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
)
# The system's text goes into the first user's turn; no special token around a role, and spaces of its own.
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {{ ns.system + m.content }} [/INST]{% set ns.system = '' %}"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
)
# Shows what an assistant thought in its last turn alone, and writes an empty thought where there was none.
THINKING = (
    "{% for m in messages %}{% set said = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' and '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ said }}<|im_end|>\n{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """A tokenizer with the template it goes with.

    Attributes:
        name: for people.
        template: Jinja.
        closing: the token that ends an assistant's turn.
        bos: how its bos is written; None where there is none.
        trims: whether it strips contents.
    """

    name: str
    template: str
    closing: str
    bos: str | None
    trims: bool

    @property
    def vocabulary(self) -> Vocabulary:
        return self.chat.vocabulary

    @property
    def chat(self) -> ChatTokenizer:
        return _chat(self.name)


FAMILIES = {
    family.name: family
    for family in (
        Family("chatml", CHATML, "<|im_end|>", None, False),
        Family("llama", LLAMA, "<|eot_id|>", "<|begin_of_text|>", True),
        Family("mistral", MISTRAL, "</s>", "<s>", False),
        Family("gemma", GEMMA, "<end_of_turn>", "<bos>", True),
        Family("thinking", THINKING, "<|im_end|>", None, False),
    )
}


@cache
def tokenizer_json(name: str) -> str:
    """A small tokenizer with the special tokens that the family's template writes."""
    if name in ("chatml", "thinking"):
        return st.splitting_json()
    if name == "gemma":
        return st.gemma_json()
    if name == "llama":
        tokenizer = Tokenizer.from_str(st.packing_json())
        tokenizer.add_special_tokens(["<|start_header_id|>", "<|end_header_id|>"])
        return str(tokenizer.to_str())
    tokenizer = Tokenizer.from_str(st.small("spm-bpe").vocabulary._json)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return str(tokenizer.to_str())


@cache
def _chat(name: str) -> ChatTokenizer:
    family = FAMILIES[name]
    vocabulary = Vocabulary.from_tokenizer(Tokenizer.from_str(tokenizer_json(name)))
    return chat_tokenizer(vocabulary, family.template, name)


def chat_tokenizer(vocabulary: Vocabulary, template: str, who: str = "student") -> ChatTokenizer:
    return ChatTokenizer(vocabulary, ChatTemplate(template, tuple(sorted(vocabulary.named_specials.items())), who))


@cache
def tiny_json(digits: int, size: int, closing: str, pad: str | None = None) -> str:
    """The tiny tokenizer of `training.tiny` with turns of its own: `<|turn|>` before each, `closing` behind it."""
    tokenizer = Tokenizer.from_str(tiny.tokenizer_json(digits, size))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|turn|>", closing)])
    return str(tokenizer.to_str())


def tiny_template(closing: str) -> str:
    turn = "<|turn|>{{ m.role }}\n{{ m.content }}" + closing
    return "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}"


def save(folder: Path, digits: int, size: int, closing: str, seed: int, **settings: object) -> Path:
    """A model folder with a chat template in its tokenizer's config."""
    tokenizer = Vocabulary.from_tokenizer(Tokenizer.from_str(tiny_json(digits, size, closing)))
    tiny.llama(tokenizer.size + 4, seed).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny_json(digits, size, closing))
    config = {"bos_token": "<s>", "eos_token": closing, "chat_template": tiny_template(closing)} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def student_folder(folder: Path) -> Path:
    return save(folder, 3, 420, "<|end|>", 0)


def teacher_folder(folder: Path) -> Path:
    return save(folder, 1, 360, "<|eot_id|>", 1)


def loaded(folder: Path, who: str) -> LoadedModel:
    from xtoken.training import load_model

    return load_model(str(folder), who=who)


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A user's turn and an assistant's in alternation, after a system message if there is one."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def sums(n: int) -> list[list[dict[str, str]]]:
    """Short conversations about sums."""
    return [turns(text.rpartition(":")[0], text.rpartition(": ")[2]) for text in tiny.documents(n)]
