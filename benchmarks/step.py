"""What distillation adds to a training step: P-KL with the teacher's logits at hand against plain fine-tuning.

    python -m benchmarks.step

One student of 0.4 billion parameters (16 layers of 1,024, vocabulary 128,256, tied), one text of 256 tokens, float32,
AdamW: the same model, batch and optimizer take a step by each way in turn, through the trainer's own `training_step`.
Plain fine-tuning is both `XTokenTrainer` without a teacher, whose cross-entropy is made from hidden states as well, and
transformers' own Trainer with the model's own loss. Dynamic scaling, the default, is on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from benchmarks.common import Figure, alternate, ratio
from benchmarks.pair import logits, one_to_one, real_pair
from xtoken.losses import PKL
from xtoken.teachers import LogitSignal
from xtoken.teachers.online import OnlineTeacher
from xtoken.training import XTokenTrainer
from xtoken.training.distiller import Counts

__all__ = ["figures"]

_TOKENS = 256
_TURNS = 5
_STEP = 1.15


class GivenTeacher(OnlineTeacher):
    """A teacher whose logits are at hand: its own forward is not what is measured."""

    def __init__(self, given: LogitSignal, **settings: Any) -> None:
        tiny = LlamaConfig(
            vocab_size=given.vocab_size,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
        super().__init__("given", LlamaForCausalLM(tiny), given.vocab_size, **settings)
        self.given = given

    def signal(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> LogitSignal:
        return self.given


def student(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=8,
            tie_word_embeddings=True,
        )
    )


def batch(sizes: tuple[int, int]) -> dict[str, Any]:
    """As the collator makes it: one text, cut alike on both sides."""
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, sizes[0], (1, _TOKENS)))
    side = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "index": one_to_one(_TOKENS, sizes).tensors()}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "teachers": {"given": side}}


def figures() -> list[Figure]:
    """The figures, in about two minutes."""
    pair = real_pair()
    model, inputs = student(pair.sizes[0]), batch(pair.sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    given = LogitSignal(logits(_TOKENS, pair.sizes[1], 0), pair.sizes[1])
    teacher = GivenTeacher(given, loss=PKL(pair.projection), side="given")
    tokens, chunks = torch.tensor(_TOKENS - 1), torch.tensor(_TOKENS - 1)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(output_dir=folder, report_to=[], use_cpu=True, disable_tqdm=True)
        distilling = XTokenTrainer(model, [teacher], args)
        tuning = XTokenTrainer(model, [], args)
        plain = Trainer(model, args)
        own = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        ours, theirs, stock = alternate(
            [
                _step(distilling, model, optimizer, inputs, Counts(tokens, {"given": chunks})),
                _step(tuning, model, optimizer, {**own, "teachers": {}}, Counts(tokens, {})),
                _step(plain, model, optimizer, own, None),
            ],
            _TURNS,
        )
    return [
        Figure(
            f"a P-KL training step over {name}",
            ratio(ours, other),
            _STEP,
            note=f"{ours.median:.2f} s against {other.median:.2f} s",
        )
        for name, other in (("the same Trainer's without a teacher", theirs), ("transformers' own Trainer's", stock))
    ]


def _step(
    trainer: Trainer, model: Any, optimizer: torch.optim.Optimizer, inputs: dict[str, Any], counts: Counts | None
) -> Callable[[], None]:
    trainer.current_gradient_accumulation_steps = 1  # `train` would set it

    def work() -> None:
        trainer.training_step(model, inputs, counts)
        optimizer.step()
        optimizer.zero_grad()

    return work


if __name__ == "__main__":
    for figure in figures():
        print(figure)
