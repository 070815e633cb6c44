"""Every loss under a microscope: worlds small enough that the truth is known, and how close a student comes to it.

    python -m benchmarks.microscope [--json] [--long] [--figure PATH]

A world is a known distribution over texts for each of a few contexts. The teacher is that distribution itself, seen
through its tokenizer; the student is a table of logits, one row a context and text so far, over a tokenizer of its own.
So nothing stands between a loss and its target but the loss. After equal steps on equal texts (which the teacher
writes) the table gives KL( truth || student ) in nats a text, by the chain rule over the student's own tokens.

- **packing**: 240 contexts, 1,000 numbers of up to three digits; the student has every number as one token, the teacher
  single digits, as Llama-3 and Qwen3 have. `--json` prints this world: one object, method to KL, with `oracle`, the
  same-tokenizer KL of a teacher that shares the student's tokenizer.
- **splitting**: the same with the roles exchanged.
- **letters**: words of a random Markov chain on four letters and two BPE tokenizers trained on different words, whose
  pieces are not prefix-closed and whose tokens cross.

No method has cross-entropy beside it. All learn with Adam at the same falling rate. `--long` adds runs of more steps,
which take some minutes: whether what is left of a method's KL is noise or bias.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from xtoken.alignment.align import align_spans
from xtoken.losses import GOLD, HKL, PKL, ULD, ChunkIndex, PathKL, SameTokenizerKL, cross_entropy
from xtoken.projection import build_projection, build_tries, relaxed_partition, strict_partition
from xtoken.projection.tries import ranges
from xtoken.teachers import LogitSignal
from xtoken.tokens import Vocabulary

__all__ = ["METHODS", "Study", "World", "letters", "numbers", "study", "world_of"]

Ints = NDArray[np.int64]

CONTEXTS, NUMBERS = 240, 1000
STEPS, BATCH, RATE = 400, 192, 0.1
END_OF_TEXT = "\n"

METHODS = ("cross-entropy", "uld", "gold", "h-kl", "p-kl-chain", "p-kl-mean", "p-kl-first", "path-kl", "oracle")


@dataclass(frozen=True)
class World:
    """Texts and how likely each is.

    Attributes:
        texts: [N], each ending with a newline.
        probs: float64 [C, N], by context.
        student, teacher: the tokenizers.
    """

    texts: tuple[str, ...]
    probs: Tensor
    student: Vocabulary
    teacher: Vocabulary


def numbers(seed: int = 0) -> tuple[Tokenizer, Tokenizer, tuple[str, ...], Tensor]:
    """A packing and a splitting tokenizer, and the numbers' distributions: a few favourites on a rough ground."""
    generator = torch.Generator().manual_seed(seed)
    texts = tuple(f"{n}{END_OF_TEXT}" for n in range(NUMBERS))
    logits = 2 * torch.randn(CONTEXTS, NUMBERS, dtype=torch.float64, generator=generator)
    favourites = torch.randint(NUMBERS, (CONTEXTS, 3), generator=generator)
    logits.scatter_add_(1, favourites, torch.full(favourites.shape, 6.0, dtype=torch.float64))
    digits = [str(d) for d in range(10)]
    return _whole_words([str(n) for n in range(NUMBERS)]), _whole_words(digits), texts, logits.softmax(1)


def letters(seed: int, alphabet: str = "abcd", longest: int = 5) -> World:
    """Words of a Markov chain, and two BPE tokenizers that were trained on words of two other chains."""
    generator = torch.Generator().manual_seed(seed)
    first, moves = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((1, 4), (4, 5)))
    words = ["".join(w) for n in range(1, longest + 1) for w in product(alphabet, repeat=n)]
    log_p = [
        _log_prob([alphabet.index(c) for c in w], first.log_softmax(1)[0], moves.log_softmax(1), longest) for w in words
    ]
    student, teacher = (_bpe(alphabet, words, seed * 10 + side) for side in (1, 2))
    texts = tuple(word + END_OF_TEXT for word in words)
    return World(
        texts, torch.stack(log_p).exp().unsqueeze(0), *(Vocabulary.from_tokenizer(t) for t in (student, teacher))
    )


def _log_prob(word: Sequence[int], first: Tensor, moves: Tensor, longest: int) -> Tensor:
    """Column 4 of `moves` ends the word; one of the greatest length ends for certain."""
    found = first[word[0]] + sum(moves[a, b] for a, b in pairwise(word))
    return found if len(word) == longest else found + moves[word[-1], len(moves)]


def _whole_words(tokens: Sequence[str]) -> Tokenizer:
    """A byte-level tokenizer that has these tokens, and takes a number whole where it has it."""
    pieces = ["<s>", *sorted({c for t in tokens for c in t}), "Ċ", *sorted(t for t in tokens if len(t) > 1)]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], ignore_merges=True))
    return _byte_level(tokenizer)


def _bpe(alphabet: str, words: Sequence[str], seed: int) -> Tokenizer:
    """Nine merges learnt from words in random numbers."""
    counts = np.random.default_rng(seed).geometric(0.02, len(words))
    tokenizer = _byte_level(Tokenizer(models.BPE()))
    size = len(alphabet) + 2 + 9
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=[*alphabet, "Ċ"], special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator((word for word, n in zip(words, counts, strict=True) for _ in range(n)), trainer)
    return tokenizer


def _byte_level(tokenizer: Tokenizer) -> Tokenizer:
    cuts = pre_tokenizers.Split(Regex(END_OF_TEXT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


class Side:
    """A world through one tokenizer: every text's ids, and for every place in it the state a model is in there.

    A state is the text so far as tokens; texts that can only end now share one.

    Attributes:
        size: V.
        ids: [N], of every text, the beginning of the text in front.
        states: [N], before each token but the first.
        n_states: S.
        log_probs: float32 [C * S, V], the truth as a model with this tokenizer would say it.
        reached: float64 [C * S], how likely each state is met in a text.
        truth: float64 [C * S, V], the same as `log_probs`, as it is.
        lengths: [N], ids of each text.
    """

    def __init__(self, world: World, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.size = vocabulary, vocabulary.size
        bos = vocabulary.bos_id
        assert bos is not None
        known: dict[tuple[int, ...] | None, int] = {}
        self.ids, self.states = [], []
        for spans in vocabulary.encode_batch(world.texts):
            ids = spans.ids.tolist()
            self.ids.append(np.array([bos, *ids]))
            self.states.append([known.setdefault(tuple(ids[:n]), len(known)) for n in range(len(ids))])
        self._share_dead_ends(known)
        self.states = [np.array(states) for states in self.states]
        self.n_states = 1 + max(int(states.max()) for states in self.states)
        self.lengths = np.array([len(ids) for ids in self.ids])
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._ids = np.concatenate(self.ids)
        self._states = np.concatenate([np.append(states, 0) for states in self.states])
        n_contexts = len(world.probs)
        mass = torch.zeros(n_contexts, self.n_states * self.size, dtype=torch.float64)
        for n, (ids, states) in enumerate(zip(self.ids, self.states, strict=True)):
            at = torch.from_numpy(states * self.size + ids[1:])
            mass.index_add_(1, at, world.probs[:, n : n + 1].expand(-1, len(at)))
        mass = mass.view(n_contexts * self.n_states, self.size)
        self.reached = mass.sum(1)
        self.truth = mass / self.reached.clamp(min=1e-300).unsqueeze(1)
        self.log_probs = self.truth.log().float()
        # A model gives everything some probability; no loss should live off a log of 0 here.
        self.log_probs = self.log_probs.clamp(min=-30.0)

    def _share_dead_ends(self, known: dict[tuple[int, ...] | None, int]) -> None:
        """One state for all that are followed by the end of the text alone."""
        following: dict[int, set[int]] = {}
        for ids, states in zip(self.ids, self.states, strict=True):
            for state, token in zip(states, ids[1:].tolist(), strict=True):
                following.setdefault(state, set()).add(token)
        last = int(self.ids[0][-1])
        dead = {state for state, tokens in following.items() if tokens == {last}}
        kept = sorted(set(following) - dead)
        number = {state: n for n, state in enumerate(kept)} | dict.fromkeys(dead, len(kept))
        self.states = [[number[state] for state in states] for states in self.states]

    def rows(self, contexts: Ints, texts: Ints) -> tuple[Ints, Ints]:
        """The ids of some texts one after the other, and the row of the table that each position reads."""
        _, at = ranges(self._starts[texts], self._starts[texts] + self.lengths[texts])
        rows = self._states[at] + np.repeat(contexts * self.n_states, self.lengths[texts])
        rows[np.cumsum(self.lengths[texts]) - 1] = 0  # after the end of a text nothing is predicted
        return self._ids[at], rows

    def divergence(self, table: Tensor) -> float:
        """KL( truth || student ) in nats a text, the mean over the contexts."""
        n_contexts = len(table) // self.n_states
        each = torch.xlogy(self.truth, self.truth).sum(1) - (self.truth * table.double().log_softmax(1)).sum(1)
        return float((self.reached * each).sum() / n_contexts)


class Study:
    """A world, both sides of it, and students that learn in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.student, self.teacher = Side(world, world.student), Side(world, world.teacher)
        spans = (v.encode_batch(world.texts) for v in (world.student, world.teacher))
        chunks = [
            np.asarray(align_spans(world.student, world.teacher, s, t).chunks) + 1 for s, t in zip(*spans, strict=True)
        ]
        every = [np.arange(1, n) for n in self.student.lengths]
        self._chunks = _Ragged.of(chunks)
        self._own_chunks = _Ragged.of([np.stack([i, i + 1, i, i + 1], 1) for i in every])

    def loss(self, method: str) -> Callable[[Tensor, LogitSignal, ChunkIndex], Tensor]:
        """The total of a method; cross-entropy and the oracle read the text and the twin instead of the teacher."""
        student, teacher = self.world.student, self.world.teacher
        if method == "path-kl":
            return _total(PathKL(build_tries(student, teacher)))
        if method == "gold":
            return _total(GOLD(strict_partition(student, teacher)))
        if method == "uld":
            return _total(ULD(student.size, teacher.size))
        projection = build_projection(student, teacher)
        if method == "h-kl":
            return _total(HKL(relaxed_partition(student, teacher, projection)))
        return _total(PKL(projection, method.removeprefix("p-kl-")))  # type: ignore[arg-type]

    def learn(self, method: str, steps: int = STEPS, seed: int = 0) -> float:
        """KL( truth || student ) of a student that learnt by a method."""
        side, rng = self.student, np.random.default_rng(seed)
        table = torch.zeros(len(side.reached), side.size, requires_grad=True)
        optimizer = torch.optim.Adam([table], RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        total = None if method in ("cross-entropy", "oracle") else self.loss(method)
        own = SameTokenizerKL(side.size)
        cumulative = self.world.probs.cumsum(1).numpy()
        for _ in range(steps):
            contexts = rng.integers(0, len(cumulative), BATCH)
            texts = (cumulative[contexts] < rng.random((BATCH, 1)) * cumulative[contexts, -1:]).sum(1)
            ids, rows = side.rows(contexts, texts)
            logits = table[torch.from_numpy(rows)]
            if method == "cross-entropy":
                loss = self._cross_entropy(logits, ids, texts)
            elif method == "oracle":
                twin = LogitSignal(side.log_probs[torch.from_numpy(rows)], side.size)
                loss = own(logits, twin, self._index(texts, ids, ids, twin=True)).total
            else:
                assert total is not None
                ids_t, rows_t = self.teacher.rows(contexts, texts)
                signal = LogitSignal(self.teacher.log_probs[torch.from_numpy(rows_t)], self.teacher.size)
                loss = total(logits, signal, self._index(texts, ids, ids_t))
            optimizer.zero_grad()
            (loss / BATCH).backward()
            optimizer.step()
            schedule.step()
        return side.divergence(table.detach())

    def _index(self, texts: Ints, ids_s: Ints, ids_t: Ints, twin: bool = False) -> ChunkIndex:
        """The chunks of some texts that lie one after the other; with `twin` every student token is a chunk."""
        lengths_s = self.student.lengths[texts]
        lengths_t = lengths_s if twin else self.teacher.lengths[texts]
        chunks, owner = (self._own_chunks if twin else self._chunks).of_texts(texts)
        at_s, at_t = (np.cumsum(lengths) - lengths for lengths in (lengths_s, lengths_t))
        chunks = chunks + np.stack([at_s, at_s, at_t, at_t], 1)[owner]
        return ChunkIndex.from_chunks(chunks, ids_s, ids_t)

    def _cross_entropy(self, logits: Tensor, ids: Ints, texts: Ints) -> Tensor:
        labels = torch.from_numpy(ids.copy())
        lengths = self.student.lengths[texts]
        labels[torch.from_numpy(np.cumsum(lengths) - lengths)] = -100  # nothing predicts the beginning of a text
        return cross_entropy(logits.unsqueeze(0), labels.unsqueeze(0), self.student.size).total


@dataclass(frozen=True)
class _Ragged:
    """Rows of several texts, one after the other."""

    rows: Ints
    starts: Ints
    lengths: Ints

    @classmethod
    def of(cls, parts: Sequence[Ints]) -> _Ragged:
        lengths = np.array([len(part) for part in parts])
        return cls(np.concatenate(parts), np.cumsum(lengths) - lengths, lengths)

    def of_texts(self, texts: Ints) -> tuple[Ints, Ints]:
        """The rows of some texts, and which of them each is of."""
        owner, at = ranges(self.starts[texts], self.starts[texts] + self.lengths[texts])
        return self.rows[at], owner


def _total(loss: Callable[..., object]) -> Callable[[Tensor, LogitSignal, ChunkIndex], Tensor]:
    return lambda logits, signal, index: loss(logits, signal, index).total  # type: ignore[attr-defined,no-any-return]


LETTER_SEEDS, LETTER_STEPS = (1, 2), 150
LONGER = (4, 12)
_LABELS = {
    "cross-entropy": "cross-entropy",
    "uld": "ULD",
    "gold": "GOLD",
    "h-kl": "H-KL",
    "p-kl-chain": "P-KL, chain",
    "p-kl-mean": "P-KL, mean",
    "p-kl-first": "P-KL, first",
    "path-kl": "path-KL",
    "oracle": "oracle",
}


def world_of(name: str) -> World:
    """`packing`, `splitting` or `letters N`."""
    if name.startswith("letters"):
        return letters(int(name.split()[1]))
    packing, splitting, texts, probs = numbers()
    sides = (packing, splitting) if name == "packing" else (splitting, packing)
    one, other = (Vocabulary.from_tokenizer(tokenizer) for tokenizer in sides)
    return World(texts, probs, one, other)


def _learnt(task: tuple[str, str, int]) -> float:
    """One cell: a world by name, a method, steps."""
    torch.set_num_threads(1)
    world, method, steps = task
    return Study(world_of(world)).learn(method, steps)


def study(columns: Mapping[str, tuple[str, Sequence[str], int]]) -> dict[str, dict[str, float]]:
    """KL in nats a text, by column and method; cells run beside each other on all cores.

    Args:
        columns: by name the world, the methods and the steps.
    """
    cells = [(name, method) for name, (_, methods, _) in columns.items() for method in methods]
    tasks = [(columns[name][0], method, columns[name][2]) for name, method in cells]
    # Spawned and not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        values = list(pool.map(_learnt, tasks))
    found: dict[str, dict[str, float]] = {name: {} for name in columns}
    for (name, method), value in zip(cells, values, strict=True):
        found[name][method] = value
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one object, method to KL in nats (packing)")
    parser.add_argument("--long", action="store_true", help="more steps as well: minutes")
    parser.add_argument("--figure", type=Path, help="write an SVG figure of the table")
    asked = parser.parse_args(arguments)
    if asked.figure is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("a figure needs matplotlib: pip install '.[figures]'")
    columns: dict[str, tuple[str, Sequence[str], int]] = {"packing": ("packing", METHODS, STEPS)}
    if asked.json:
        print(json.dumps(study(columns)["packing"]))
        return
    columns["splitting"] = ("splitting", METHODS, STEPS)
    columns |= {f"letters {seed}": (f"letters {seed}", METHODS, LETTER_STEPS) for seed in LETTER_SEEDS}
    if asked.long:
        few = ("cross-entropy", "path-kl", "oracle")
        columns |= {f"{name}, x {n}": (name, few, n * STEPS) for name in ("packing", "splitting") for n in LONGER}
    begin = time.perf_counter()
    found = study(columns)
    print(_table(found))
    print(f"{(time.perf_counter() - begin):.0f} s")
    if asked.figure is not None:
        draw(found, asked.figure)


def _table(columns: dict[str, dict[str, float]]) -> str:
    """KL in nats a text, as a Markdown table."""
    lines = [" | ".join(["method", *columns]), " | ".join(["---"] * (1 + len(columns)))]
    for method in METHODS:
        cells = [f"{found[method]:.4f}" if method in found else "" for found in columns.values()]
        lines.append(" | ".join([_LABELS[method], *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def draw(columns: dict[str, dict[str, float]], path: Path) -> None:
    """One panel a world, a dot a method, on a logarithmic axis."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "xtoken"  # the same figure gives the same file
    worlds = ("packing", "splitting", f"letters {LETTER_SEEDS[0]}")
    figure, axes = plt.subplots(1, len(worlds), figsize=(10, 3.2), sharey=True, constrained_layout=True)
    for axis, world in zip(axes, worlds, strict=True):
        found = columns[world]
        for place, method in enumerate(reversed(METHODS)):
            own = method == "path-kl"
            axis.plot(
                found[method], place, "D" if own else "o", color="#d55e00" if own else "#0072b2", ms=7 if own else 5
            )
        axis.axvline(found["oracle"], color="#999999", lw=0.8, ls=":")
        axis.set(xscale="log", title=world, xlabel="KL(truth || student), nats a text")
        axis.grid(axis="x", color="#dddddd", lw=0.6)
    axes[0].set_yticks(range(len(METHODS)), [_LABELS[method] for method in reversed(METHODS)])
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
