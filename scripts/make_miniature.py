"""Makes what the miniature study trains on, from nothing: its models (shipped) and its texts (written each time).

    python scripts/make_miniature.py texts             # studies/miniature/texts, a second
    python scripts/make_miniature.py models            # studies/miniature/models, about 10 minutes of one core
    python scripts/make_miniature.py models --only packing --out DIR

A document tells of a person (trade and town) who sells two things by the box (how many does a box hold?), so that there
are two kinds of facts to learn: lives, which are words, and boxes, which are numbers. Each is a table with one key,
which a small model learns bit by bit; sums would come all at once or not at all.

| model | tokenizer | what it was trained on |
|---|---|---|
| student | packs digits | documents whose lives and boxes are drawn anew each time: the language, none of the facts |
| splitting | splits digits | all boxes, and the lives of half of the people; the others drawn anew each time |
| packing | packs digits, merges words differently | the same |
| small | the student's | all lives, and half of the boxes; fewer weights: the smaller teacher of the same family |

The text to distil on has right lives, and half of its boxes are wrong; held-out text is right throughout.
One thread and fixed seeds, as in make_demo.py.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

import torch
from make_demo import (
    BEGIN,
    END,
    END_TEACHER,
    NUMERAL_REPEATS,
    PACKED_DIGITS,
    SINGLE_DIGITS,
    add_begin,
    all_numerals,
    batch_of,
    model_config,
    save_tokenizer,
    train,
    trained,
)
from transformers import LlamaForCausalLM

from xtoken.demo.problems import TOWNS, TRADES
from xtoken.tokens import Vocabulary

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1] / "studies" / "miniature"

PEOPLE = (
    "Ana", "Ben", "Carla", "Dario", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kemal", "Lucia",
    "Mateo", "Nadia", "Oskar", "Priya", "Rosa", "Samir", "Tilda", "Umar", "Vera", "Wanda", "Yusuf", "Zoe",
    "Adam", "Bruno", "Clara", "Derya", "Emil", "Fatma", "Goran", "Hana", "Igor", "Julia", "Karim", "Lena",
    "Marta", "Nils", "Olga", "Pedro", "Rania", "Selma", "Tomas", "Ulla", "Viktor", "Wilma", "Yara", "Zora",
)  # fmt: skip
THINGS = (
    "apples", "beads", "buttons", "candles", "cards", "coins", "lemons", "marbles", "nails", "onions", "pencils",
    "plums", "screws", "shells", "stamps", "walnuts", "acorns", "bells", "bolts", "bricks", "bulbs", "carrots",
    "cherries", "combs", "corks", "dates", "envelopes", "feathers", "figs", "forks", "hinges", "hooks", "keys",
    "labels", "magnets", "mugs", "needles", "olives", "pears", "pins", "ribbons", "ropes", "seeds", "spoons",
    "straws", "tacks", "tiles", "wicks",
)  # fmt: skip
OPENINGS = (
    "{person}, a {trade} from {town}, sells {one} by the box of ",
    "{person} is a {trade} in {town} and has {one} in boxes of ",
    "{person} works as a {trade} in {town} and packs {one} into boxes of ",
    "The {trade} {person} of {town} sends {one} in boxes of ",
)
ENDINGS = (" and {two} by the box of {m}.", " and {two} in boxes of {m}.", ", but {two} go by {m}.")
NUMBERS = range(10, 1000)
TWO_DIGIT_SHARE = 0.3

# Each tokenizer is trained without one word in five, and spells these in pieces where another has them whole.
UNSEEN_EVERY, UNSEEN_OFFSET = 5, {"student": 0, "splitting": 2, "packing": 3}
VOCABS = {"student": 1740, "splitting": 640, "packing": 1700}

FACTS_SEED = 7

TEXTS = {"train": (1, 12_000), "validation": (2, 200), "held_out": (3, 300)}
WRONG = 0.5
SHAPES = {
    "student": {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2},
    "small": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "splitting": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3},
    "packing": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3},
}
# Whose lives and which boxes each knows. The smaller teacher and a main one each lack what the other knows; the main
# ones know and lack the same.
KNOWN: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "student": ((), ()),
    "small": (PEOPLE, THINGS[::2]),
    "splitting": (PEOPLE[::2], THINGS),
    "packing": (PEOPLE[::2], THINGS),
}
BATCH = 32
STEPS_OF = {"student": 600, "small": 600, "splitting": 1000, "packing": 1000}
TOKENIZER_SEED, TOKENIZER_DOCUMENTS = 50, 6000
SEED_OF = {"student": 10, "small": 11, "splitting": 12, "packing": 13}


@dataclass(frozen=True)
class Document:
    """A text, its parts before the first and the second number, and what the second number should be."""

    opening: str
    prompt: str
    text: str
    answer: str


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options, the same in every release of Python."""
    return options[int(rng.random() * len(options))]


def pick_number(rng: Random) -> int:
    return pick(rng, NUMBERS[:90] if rng.random() < TWO_DIGIT_SHARE else NUMBERS[90:])


def facts() -> tuple[dict[str, tuple[str, str]], dict[str, int]]:
    """Everybody's trade and town, and how many of a thing a box holds."""
    rng = Random(FACTS_SEED)
    lives = {person: (pick(rng, TRADES), pick(rng, TOWNS)) for person in PEOPLE}
    return lives, {thing: pick_number(rng) for thing in THINGS}


LIVES, BOXES = facts()


def documents(
    seed: int, wrong: float = 0.0, *, people: Sequence[str] = PEOPLE, things: Sequence[str] = THINGS
) -> Iterator[Document]:
    """Documents without end, the same for the same seed.

    Args:
        seed: of every choice.
        wrong: the share of numbers that are wrong.
        people: those whose trade and town are their own; those of others are drawn anew each time.
        things: those whose boxes hold what they should; the numbers of others are drawn anew each time.
    """
    rng = Random(seed)
    while True:
        person, one, two = pick(rng, PEOPLE), pick(rng, THINGS), pick(rng, THINGS)
        trade, town = LIVES[person] if person in people else (pick(rng, TRADES), pick(rng, TOWNS))
        n, m = (number(rng, thing, wrong if thing in things else 1.0) for thing in (one, two))
        opening = pick(rng, OPENINGS).format(person=person, trade=trade, town=town, one=one)
        before, after = pick(rng, ENDINGS).split("{m}")
        prompt = f"{opening}{n}{before.format(two=two)}"
        yield Document(opening, prompt, f"{prompt}{m}{after}", str(BOXES[two]))


def number(rng: Random, thing: str, wrong: float) -> int:
    """How many a box holds, as a document has it."""
    is_wrong, other = rng.random() < wrong, pick_number(rng)
    return other if is_wrong else BOXES[thing]


def first(n: int, stream: Iterator[Document]) -> list[Document]:
    return [next(stream) for _ in range(n)]


def write_texts(folder: Path) -> None:
    """train.jsonl, with what a teacher may continue, validation.jsonl, held_out.jsonl, and its answers.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (seed, n) in TEXTS.items():
        found = first(n, documents(seed, WRONG if name == "train" else 0.0))
        write_lines(folder / f"{name}.jsonl", [{"text": d.text, "prompt": d.opening} for d in found])
        if name == "held_out":
            write_lines(folder / "answers.jsonl", [{"prompt": d.prompt, "answer": d.answer} for d in found])


def write_lines(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_tokenizer(name: str, folder: Path) -> None:
    """That of the student's family, or of one of the teachers, which adds nothing by itself."""
    family = "student" if name == "small" else name
    is_own, packs = family == "student", family != "splitting"
    begin, end = (BEGIN, END) if is_own else (None, END_TEACHER)
    words = [*PEOPLE, *THINGS, *TRADES, *TOWNS]
    unseen = set(words[UNSEEN_OFFSET[family] :: UNSEEN_EVERY])
    texts = [d.text for d in first(TOKENIZER_DOCUMENTS, documents(TOKENIZER_SEED, people=()))]
    texts = [" ".join(word for word in text.split(" ") if word.strip(",.") not in unseen) for text in texts]
    numerals = " ".join([all_numerals()] * NUMERAL_REPEATS) if packs else ""
    digits = PACKED_DIGITS if packs else SINGLE_DIGITS
    tokenizer = trained(texts, digits, VOCABS[family], [BEGIN, END] if is_own else [END_TEACHER], numerals)
    if begin is not None:
        add_begin(tokenizer, begin)
    save_tokenizer(tokenizer, folder, begin, end)


def make_model(name: str, folder: Path) -> None:
    make_tokenizer(name, folder)
    vocabulary = Vocabulary.from_pretrained(folder)
    torch.manual_seed(SEED_OF[name])
    is_own = name in ("student", "small")
    ids = vocabulary.bos_id if is_own else None, vocabulary.eos_id
    model = LlamaForCausalLM(model_config(vocabulary.size, SHAPES[name], *ids))
    people, things = KNOWN[name]
    stream = documents(100 + SEED_OF[name], people=people, things=things)
    train(model, batches_of(vocabulary, stream, STEPS_OF[name]), STEPS_OF[name], name)
    model.to(torch.bfloat16).save_pretrained(folder)


def batches_of(
    vocabulary: Vocabulary, stream: Iterator[Document], steps: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Documents as the model will read them, behind what its tokenizer puts in front; none comes twice."""
    prefix = torch.tensor(vocabulary.prefix_ids, dtype=torch.int64)
    for _ in range(steps):
        ids, labels = batch_of(vocabulary, [d.text for d in first(BATCH, stream)])
        front = prefix.expand(len(ids), -1)
        yield torch.cat([front, ids], dim=1), torch.cat([torch.full_like(front, -100), labels], dim=1)


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
