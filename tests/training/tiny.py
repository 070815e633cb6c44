"""Tiny models and tokenizers for tests of training: made on the spot, the same every time, trained in a second."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from xtoken.tokens import Vocabulary
from xtoken.training import LoadedModel

NAMES = ("Ada", "Bo", "Cleo", "Dan", "Eve")
THINGS = ("apples", "coins", "books", "pens")


def documents(n: int, seed: int = 0) -> list[str]:
    """Short sentences with sums in them."""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        a, b = rng.randrange(400), rng.randrange(400)
        found.append(f"{rng.choice(NAMES)} has {a} {rng.choice(THINGS)} and gets {b} more: {a + b} in all.")
    return found


@cache
def tokenizer_json(digits: int, size: int, bos: bool = True) -> str:
    """A byte-level BPE tokenizer that packs up to `digits` digits, with an automatic bos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"\d{{1,{digits}}}| ?[A-Za-z]+|\s+|[^\sA-Za-z\d]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        documents(300),
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return str(tokenizer.to_str())


def packed(bos: bool = True) -> Vocabulary:
    """The student's tokenizer: up to three digits a token."""
    return Vocabulary.from_tokenizer(Tokenizer.from_str(tokenizer_json(3, 420, bos)))


def split(bos: bool = True) -> Vocabulary:
    """The teacher's tokenizer: one digit a token."""
    return Vocabulary.from_tokenizer(Tokenizer.from_str(tokenizer_json(1, 360, bos)))


def llama(vocab_size: int, seed: int = 0, **changes: Any) -> Any:
    """A Llama of two layers and 32 dimensions with random weights."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    } | changes
    return LlamaForCausalLM(LlamaConfig(**settings))


def student(seed: int = 0, **changes: Any) -> LoadedModel:
    """A student with the packing tokenizer, its head wider than the tokenizer."""
    vocabulary = packed()
    return LoadedModel(llama(vocabulary.size + 12, seed, **changes), vocabulary)


def teacher(seed: int = 1, **changes: Any) -> LoadedModel:
    """A teacher with the splitting tokenizer, its head wider than the tokenizer."""
    vocabulary = split()
    return LoadedModel(llama(vocabulary.size + 8, seed, **changes), vocabulary)


def save(folder: Path, loaded: LoadedModel, digits: int, size: int) -> Path:
    """A model folder as one finds them: weights, config and the tokenizer's files, without a pad token."""
    loaded.model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(digits, size))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def student_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    return save(folder, student(seed, **changes), 3, 420)


def teacher_folder(folder: Path, seed: int = 1, **changes: Any) -> Path:
    return save(folder, teacher(seed, **changes), 1, 360)


def taught(loaded: LoadedModel, steps: int = 80) -> LoadedModel:
    """The same model after a little cross-entropy on the documents: a teacher that has something to say."""
    ids = [torch.tensor([0, *spans.ids.tolist(), 1]) for spans in loaded.vocabulary.encode_batch(documents(64))]
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = ids[step % 8 :: 8]
        padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
        loaded.model(padded, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loaded
