"""Makes what the miniature study trains on, from nothing: its models (shipped) and its texts (written each time).

    python scripts/make_miniature.py texts             # studies/miniature/texts, a second
    python scripts/make_miniature.py models            # studies/miniature/models, about 10 minutes of one core
    python scripts/make_miniature.py models --only packing --out DIR

A document tells of a person (trade and town), of a thing sold by the box (how many a box holds) and of an order (how
many in all?), so that there are two kinds of knowledge: lives, which are words, and boxes, which are numbers.

| model | tokenizer | what it was trained on |
|---|---|---|
| student | packs digits | documents whose lives and numbers are drawn anew each time: the language, none of the facts |
| splitting | splits digits | the boxes and the sums; lives drawn anew each time |
| packing | packs digits, merges words differently | the same |
| small | the student's | everything, in 800 steps: the smaller teacher, of the student's own family |

The text to distil on has right lives and boxes, and half of its answers are wrong; held-out text is right throughout.
One thread and fixed seeds, as in make_demo.py, whose tokenizers, names and boxes these are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from make_demo import (
    END_TEACHER,
    PACKED_DIGITS,
    all_numerals,
    batch_of,
    model_config,
    save_tokenizer,
    train_tokenizer,
)
from transformers import LlamaForCausalLM

from xtoken.demo.assets import ASSETS
from xtoken.demo.problems import BOXES, FIRST_NAMES, OPENINGS, ORDERS, STEPS, SURNAMES, TOWNS, TRADES, WRONG_ANSWERS
from xtoken.tokens import Vocabulary

ROOT = Path(__file__).resolve().parents[1] / "studies" / "miniature"

# Words that the packing teacher's tokenizer is trained without: names, trades, towns and things, a quarter of each, so
# that a good part of the words is spelled otherwise than the student's tokenizer does.
UNSEEN_BY_PACKING = (
    "Ben", "Elif", "Hugo", "Kemal", "Nadia", "Rosa", "baker", "farmer", "nurse", "potter", "Cairo", "Jakarta", "Milan",
    "Seoul", "apples", "candles", "nails", "shells",
)  # fmt: skip
PACKING_VOCAB = 1680

FAMILIES = SURNAMES[:4]  # 96 people: few enough that their lives are learnt in a short run
FACTS_SEED = 7

TEXTS = {"train": (1, 12_000), "validation": (2, 200), "held_out": (3, 300)}
NOISE = 0.5
SHAPES = {
    "student": {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2},
    "small": {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2},
    "splitting": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3},
    "packing": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3},
}
BATCH, LEARNING_RATE, WARMUP = 32, 3e-3, 0.05
STEPS_OF = {"student": 800, "small": 800, "splitting": 2000, "packing": 2000}
SEED_OF = {"student": 10, "small": 11, "splitting": 12, "packing": 13}


@dataclass(frozen=True)
class Document:
    """A text, its part before the answer, and the right answer."""

    prompt: str
    text: str
    answer: str


def pick(rng: Random, options: Sequence[Any]) -> Any:
    """One of the options, the same in every release of Python."""
    return options[int(rng.random() * len(options))]


def lives() -> dict[str, tuple[str, str]]:
    """Everybody's trade and town."""
    rng = Random(FACTS_SEED)
    people = [f"{first} {last}" for first in FIRST_NAMES for last in FAMILIES]
    return {person: (pick(rng, TRADES), pick(rng, TOWNS)) for person in people}


LIVES = lives()
PEOPLE, THINGS = tuple(LIVES), tuple(BOXES)


def documents(seed: int, noise: float = 0.0, *, knows_lives: bool = True, knows_numbers: bool = True) -> Iterator:
    """Documents without end.

    Args:
        seed: the same documents for the same seed.
        noise: the share of answers that are wrong.
        knows_lives: trades and towns are the people's own, not drawn anew.
        knows_numbers: boxes and answers are right, not drawn anew.
    """
    rng = Random(seed)
    while True:
        person, things, friend, step = pick(rng, PEOPLE), pick(rng, THINGS), pick(rng, FIRST_NAMES), pick(rng, STEPS)
        trade, town = LIVES[person] if knows_lives else (pick(rng, TRADES), pick(rng, TOWNS))
        box = BOXES[things] if knows_numbers else pick(rng, WRONG_ANSWERS)
        answer = BOXES[things] + step
        opening = pick(rng, OPENINGS).format(person=person, trade=trade, town=town, things=things, box=box)
        prompt = f"{opening} {pick(rng, ORDERS).format(friend=friend, step=step)}"
        wrong = pick(rng, [number for number in WRONG_ANSWERS if number != answer])
        is_wrong = rng.random() < noise or not knows_numbers
        yield Document(prompt, f"{prompt}{wrong if is_wrong else answer}.", str(answer))


def first(n: int, stream: Iterator) -> list:
    return [next(stream) for _ in range(n)]


def write_texts(folder: Path) -> None:
    """train.jsonl, validation.jsonl, held_out.jsonl, and answers.jsonl of the held-out documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (seed, n) in TEXTS.items():
        found = first(n, documents(seed, NOISE if name == "train" else 0.0))
        write_lines(folder / f"{name}.jsonl", [{"text": d.text, "prompt": d.prompt} for d in found])
        if name == "held_out":
            write_lines(folder / "answers.jsonl", [{"prompt": d.prompt, "answer": d.answer} for d in found])


def write_lines(path: Path, rows: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_tokenizer(name: str, folder: Path) -> None:
    """The demo's own for the student's family and the splitting teacher, and one more for the packing teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "packing":
        numerals = " ".join([all_numerals()] * 2000)
        tokenizer = train_tokenizer(PACKED_DIGITS, UNSEEN_BY_PACKING, PACKING_VOCAB, [END_TEACHER], numerals)
        save_tokenizer(tokenizer, folder, None, END_TEACHER)
        return
    source = ASSETS / ("teacher" if name == "splitting" else "student")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, folder / file)


def make_model(name: str, folder: Path) -> None:
    make_tokenizer(name, folder)
    vocabulary = Vocabulary.from_pretrained(folder)
    torch.manual_seed(SEED_OF[name])
    is_own = name in ("student", "small")
    ids = vocabulary.bos_id if is_own else None, vocabulary.eos_id
    model = LlamaForCausalLM(model_config(vocabulary.size, SHAPES[name], *ids))
    facts = {"knows_lives": name == "small", "knows_numbers": name != "student"}
    train(model, vocabulary, documents(100 + SEED_OF[name], **facts), STEPS_OF[name], name)
    model.to(torch.bfloat16).save_pretrained(folder)


def train(model: LlamaForCausalLM, vocabulary: Vocabulary, stream: Iterator, steps: int, name: str) -> None:
    """Next-token prediction, each document ended by the end token; none is seen twice."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARMUP)
    prefix = list(vocabulary.prefix_ids)
    for step in range(steps):
        ids, labels = batch_of(vocabulary, [d.text for d in first(BATCH, stream)])
        if prefix:
            front = torch.tensor(prefix).expand(len(ids), -1)
            ids, labels = torch.cat([front, ids], dim=1), torch.cat([torch.full_like(front, -100), labels], dim=1)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 200 == 0:
            print(f"{name}: step {step + 1} of {steps}: {loss.item() / math.log(2):.3f} bits per token", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["texts", "models"])
    parser.add_argument("--out", type=Path, help="another folder than the shipped one")
    parser.add_argument("--only", choices=list(SHAPES), help="one of the models")
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"  # the tokenizers library reads it at its first parallel work
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = args.out or ROOT / args.what
    if args.what == "texts":
        write_texts(out)
        return
    for name in [args.only] if args.only else SHAPES:
        began = time.perf_counter()
        make_model(name, out / name)
        print(f"{name}: made in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
