"""Examples made while the model trains: the corpus is never read whole, and nothing of it is kept.

`StreamedData` is an endless dataset: pass after pass over the documents, each in another order. Documents go through a
shuffle buffer and are cut into blocks; the processes of a run take turns with the blocks, and the workers of each
tokenise and align its own. Laws: within a pass each document is in one block; the sequence of examples that a process
gets depends on the seed, the buffer and the number of processes, and not on the number of workers; a stream that starts
where another one stood goes on as that one would have.

Each process of a run reads all of the stream and makes examples of its own blocks alone: reading is much cheaper than
tokenising. Starting in the middle reads what came before and passes over it, without tokenising.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from xtoken.errors import XTokenError
from xtoken.files import write_whole
from xtoken.training.conversations import LossOn
from xtoken.training.data import (
    _FORMAT,
    DataReport,
    Example,
    Side,
    _Batch,
    _cut,
    _examples,
    _nothing_to_train_on,
    _Plan,
    _plan_for,
)
from xtoken.training.texts import TextSource
from xtoken.training.workers import default_workers, in_order

__all__ = ["DEFAULT_BUFFER", "Position", "StreamedData", "shuffled"]

DEFAULT_BUFFER = 10_000
# Documents in a block, and about their characters: what a worker does at a time.
_BLOCK = 64
_BLOCK_CHARACTERS = 1 << 20
# One model does not learn from more than so many can tokenise, and the rest of a machine's cores have their own work.
_MOST_WORKERS = 4
# Passes without a single example, for each process, after which there is none to come.
_FRUITLESS = 2

Item = TypeVar("Item")


@dataclass(frozen=True)
class Position:
    """Where a process stands in its sequence of examples.

    Attributes:
        block: of its own blocks, the one that the next example is in; counted from 0 over all passes.
        example: in that block.
    """

    block: int = 0
    example: int = 0


class StreamedData:
    """An endless sequence of examples.

    `XTokenTrainer` reads it through a DataLoader. It is the dataset, and not the DataLoader, that has worker processes:
    theirs are then those of `prepare`, which start at once, are given documents that one process has read and put in
    order, and tell an error as it is.

    Attributes:
        key: sha256 in hexadecimal of everything the examples depend on.
        report: what became of the documents so far, as far as this process got.
        sides: the `side_key` of every teacher's tokenizer in them.
        made_of: as in `PreparedData`.
        position: where it stands; the next iteration begins there.

    Args:
        source: the documents.
        student, teachers, append_eos, method, loss_on: as for `prepare`.
        seed: of the order.
        buffer: how many documents one is drawn from at random; 1 keeps their order.
        workers: processes that tokenise and align; 0 is none, None is one a core, at most 4.
        rank, world: this process and how many there are; each gets other documents.
    """

    def __init__(
        self,
        source: TextSource,
        student: Side,
        teachers: Sequence[Side] = (),
        *,
        append_eos: bool = True,
        method: str = "bytes",
        loss_on: LossOn = "assistant",
        seed: int = 0,
        buffer: int = DEFAULT_BUFFER,
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        plan = _plan_for(student, teachers, append_eos, method, loss_on)
        self.key = plan.key(source)
        self.report = DataReport()
        self.sides = tuple(plan.teachers)
        self.made_of = {"format": _FORMAT, "source": dict(source.made_of)}
        self.position = Position()
        self._blocks = _Blocks(plan, source, seed, buffer, rank, world)
        self._workers = min(_MOST_WORKERS, default_workers()) if workers is None else workers

    def __iter__(self) -> Iterator[Example]:
        """The examples from `position` on.

        Raises:
            XTokenError: what reading and encoding raise; passes without an example; a worker process died.
        """
        passed_over = self.position.example
        blocks = self._blocks.made(self.position.block, self._workers)
        for number in count(self.position.block):
            block = next(blocks)
            self.report.add(block.report)
            if not self.report.documents and block.turn >= _FRUITLESS * self._blocks.world:
                n_read = self.report.empty + self.report.unusable
                raise _nothing_to_train_on(self._blocks.source.name, n_read, self.report)
            for place in range(passed_over, len(block.examples)):
                self.position = Position(number, place + 1)
                yield block.examples[place]
            passed_over = 0

    def save_position(self, folder: Path) -> None:
        """Writes where this process stands into a checkpoint."""
        state = {**asdict(self.position), "processes": self._blocks.world}
        write_whole(self._position_file(folder), json.dumps(state))

    def load_position(self, folder: Path) -> None:
        """Goes on where this process stood when a checkpoint was written.

        Raises:
            XTokenError: the checkpoint says nothing of it, or is of another number of processes.
        """
        file = self._position_file(folder)
        if not file.is_file():
            raise XTokenError(f"{folder} does not say where in the stream this process stood: {file.name} is missing")
        state = json.loads(file.read_text(encoding="utf-8"))
        if (before := state.pop("processes")) != self._blocks.world:
            raise XTokenError(
                f"{folder} is of a run of {before} processes, and this one has {self._blocks.world}: a stream is dealt "
                "out to the processes, so it goes on with as many"
            )
        self.position = Position(**state)

    def _position_file(self, folder: Path) -> Path:
        return folder / f"stream_position_{self._blocks.rank}.json"


@dataclass(frozen=True)
class _Block:
    """What became of a block of documents.

    Attributes:
        turn: the pass it belongs to.
        examples: in order.
        report: of its documents.
    """

    turn: int
    examples: Sequence[Example]
    report: DataReport


@dataclass(frozen=True)
class _Blocks:
    """The blocks of one process: which documents are in them, and what becomes of those."""

    plan: _Plan
    source: TextSource
    seed: int
    buffer: int
    rank: int
    world: int

    def made(self, first: int, workers: int) -> Iterator[_Block]:
        """All blocks from a number on, in order."""
        return in_order(_made, self.plan, islice(self.own(), first, None), workers)

    def own(self) -> Iterator[tuple[int, _Batch]]:
        """This process's blocks of documents, with the pass each belongs to."""
        number = 0
        for turn in count():
            documents = shuffled(enumerate(self.source.read()), self.buffer, np.random.default_rng([self.seed, turn]))
            before = number
            for batch in _cut(self.source.name, documents, _BLOCK, _BLOCK_CHARACTERS):
                if number % self.world == self.rank:
                    yield turn, batch
                number += 1
            if number == before:
                raise _nothing_to_train_on(self.source.name, 0, DataReport())


def _made(plan: _Plan, block: tuple[int, _Batch]) -> _Block:
    turn, batch = block
    return _Block(turn, *_examples(plan, batch))


def shuffled(items: Iterable[Item], buffer: int, rng: np.random.Generator) -> Iterator[Item]:
    """All items, each drawn at random from those that were read and not yet given, at most `buffer` of them."""
    held: list[Item] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        place = int(rng.integers(buffer))
        given, held[place] = held[place], item
        yield given
    for place in rng.permutation(len(held)) if buffer > 1 else range(len(held)):
        yield held[place]
