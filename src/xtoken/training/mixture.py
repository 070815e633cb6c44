"""Several corpora in one run, each with its share of the tokens.

Types: `Corpus`, prepared documents with a name and a weight; `MixedData`, all of them as one dataset; `EpochSampler`,
the order in which a DataLoader reads a dataset.

A weight is a share of the student's tokens: over an epoch, a corpus gives weight / (sum of weights) of them. An epoch
is as long as it takes to go once through the corpus that lasts longest at its share; the others are repeated. Laws: a
corpus is gone through whole before any of its documents comes again, over the ends of epochs as well; the order depends
on the seed and the epoch and on nothing else, not on how many processes read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from xtoken.training.data import DataReport, Example, PreparedData
from xtoken.training.packing import Pack, PackedData

__all__ = ["Corpus", "EpochSampler", "MixedData", "Ordered"]

Ints = NDArray[np.int64]

# Numbers turned into Python's own at a time: quick, and few enough to hold.
_AT_A_TIME = 1 << 16


class Ordered(Protocol):
    """A dataset that says in which order it is to be read.

    Attributes:
        epoch: which pass is next.
    """

    epoch: int

    def order(self, seed: int, epoch: int) -> Ints:
        """int64 [n], the numbers of the examples of a pass."""
        ...


class EpochSampler(Sampler[int]):
    """A dataset's own order, by the seed and by the epoch that the dataset was told of last, in whole batches.

    Passes follow on one another without a gap, and what an epoch leaves over of its last batch begins the next one. So
    every batch is whole, for any number of processes, and nothing is seen twice before all has been seen once; fewer
    examples than a batch come again within it.

    The epoch comes through the dataset because that is what accelerate tells in every case; it does not reach a sampler
    beneath both its wrappers, which a run of several processes has that is taken up again.

    Args:
        data: a dataset.
        seed: of the order.
        batch: examples in an optimizer step, over all processes.
    """

    def __init__(self, data: Ordered, seed: int, batch: int = 1) -> None:
        self.data = data
        self.seed = seed
        self._size = len(data.order(seed, 0))
        self._length = max(batch, self._size // batch * batch)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        begin = self.data.epoch * self._length
        end = begin + self._length
        for turn in range(begin // self._size, -(-end // self._size)):
            order = self.data.order(self.seed, turn)[max(0, begin - turn * self._size) : end - turn * self._size]
            for start in range(0, len(order), _AT_A_TIME):
                yield from order[start : start + _AT_A_TIME].tolist()


@dataclass(frozen=True)
class Corpus:
    """Prepared documents in a mixture.

    Attributes:
        name: what messages call it.
        data: its examples.
        weight: its share of the tokens, in any unit.
    """

    name: str
    data: PreparedData | PackedData
    weight: float


class MixedData:
    """Several corpora as one dataset: the numbers of a corpus's examples follow on those of the one before it.

    Attributes:
        corpora: in that order.
        draws: how many examples of each are in an epoch.
        key: sha256 in hexadecimal of everything the examples depend on.
        report: what became of the documents of all corpora.
        sides: the `side_key` of every teacher's tokenizer in them.
        epoch: which pass is next.
    """

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self.corpora = tuple(corpora)
        self.draws = _draws(self.corpora)
        self.key = hashlib.sha256(json.dumps([corpus.data.key for corpus in corpora]).encode()).hexdigest()
        self.report = DataReport()
        for corpus in corpora:
            self.report.add(corpus.data.report)
        self.sides = corpora[0].data.sides
        self.epoch = 0
        self._starts = np.cumsum([0, *(len(corpus.data) for corpus in corpora)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example | Pack:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example | Pack]:
        where = np.searchsorted(self._starts, indices, side="right") - 1
        found: dict[int, Example | Pack] = {}
        for number in np.unique(where).tolist():
            mine = [index for index, at in zip(indices, where, strict=True) if at == number]
            local = [index - int(self._starts[number]) for index in mine]
            of_corpus = self.corpora[number].data.__getitems__(local)
            found |= zip(mine, (_of_corpus(one, number) for one in of_corpus), strict=True)
        return [found[index] for index in indices]

    def set_epoch(self, epoch: int) -> None:
        """Says which pass is next."""
        self.epoch = epoch

    def order(self, seed: int, epoch: int) -> Ints:
        """int64 [n], the numbers of the examples of an epoch: the corpora well mixed, each in an order of its own."""
        corpora = np.repeat(np.arange(len(self.draws)), self.draws)
        np.random.default_rng([seed, epoch]).shuffle(corpora)
        found = np.empty(len(corpora), np.int64)
        for number, draws in enumerate(self.draws):
            own = _turns(len(self.corpora[number].data), draws * epoch, draws, [seed, number])
            found[corpora == number] = own + self._starts[number]
        return found

    def shares(self) -> list[float]:
        """Of the student's tokens, for each corpus."""
        total = sum(corpus.weight for corpus in self.corpora)
        return [corpus.weight / total for corpus in self.corpora]

    def repetitions(self, n: int) -> list[float]:
        """How often each corpus is gone through in so many examples of the whole.

        Args:
            n: examples in a run, or any part of one.
        """
        pairs = zip(self.draws, self.corpora, strict=True)
        return [n * draws / sum(self.draws) / len(corpus.data) for draws, corpus in pairs]


def _of_corpus(example: Example | Pack, number: int) -> Example | Pack:
    """The same, saying which corpus it is of."""
    if isinstance(example, tuple):
        return tuple(replace(one, corpus=number) for one in example)
    return replace(example, corpus=number)


def _draws(corpora: Sequence[Corpus]) -> list[int]:
    """Examples of each corpus in an epoch, such that the tokens stand in the ratio of the weights.

    An epoch has `lasts` tokens for each unit of weight, as many as the corpus that lasts longest.
    """
    tokens = [corpus.data.report.student_tokens for corpus in corpora]
    lasts = max(n / corpus.weight for n, corpus in zip(tokens, corpora, strict=True))
    return [
        max(1, round(lasts * corpus.weight / n * len(corpus.data))) for n, corpus in zip(tokens, corpora, strict=True)
    ]


def _turns(size: int, start: int, count: int, seed: list[int]) -> Ints:
    """Part of an endless sequence that goes through 0 .. size - 1 again and again, each time in another order.

    Args:
        size: of the corpus.
        start: where in the sequence to begin.
        count: how much of it.
        seed: of the orders.
    """
    first, last = start // size, (start + count - 1) // size
    turns: list[Any] = [np.random.default_rng([*seed, turn]).permutation(size) for turn in range(first, last + 1)]
    return np.concatenate(turns)[start - first * size :][:count]
