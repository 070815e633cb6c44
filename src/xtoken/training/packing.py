"""Several documents in one sequence, so that no step is spent on padding.

Types: `PackedData`, sequences by number, each a list of examples or one joined example. A group of documents fits the
context of the student and of every teacher at once. `documents` keeps them apart: positions begin anew, no token sees
another document, nothing is predicted across the border. `concatenate` joins them as pre-training often does: one run
of positions, each document sees those before it, and its first token is predicted from the last one of the document
before. In both a chunk is of one document. Law: every example is in one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xtoken.errors import XTokenError
from xtoken.training.data import Example, PreparedData, TeacherTokens

__all__ = ["Pack", "PackedData", "Packing", "join", "pack"]

Ints = NDArray[np.int64]
Packing = Literal["documents", "concatenate"]
Pack = tuple[Example, ...]

# Sequences that are open at a time: a document goes to the fullest it fits. More fill better and order worse.
_OPEN = 64


def pack(lengths: Mapping[str, Ints], limits: Mapping[str, int]) -> list[list[int]]:
    """Groups of documents, each within every side's limit, best fit first, in the order of their first documents.

    Args:
        lengths: int64 [N] tokens of every document, by side.
        limits: the context of each side.

    Raises:
        XTokenError: a document is longer than a limit.
    """
    sides = sorted(lengths)
    sizes = np.stack([lengths[side] for side in sides], axis=1)
    limit = np.array([limits[side] for side in sides])
    if (sizes > limit).any():
        raise XTokenError(f"document {int((sizes > limit).any(axis=1).argmax())} is longer than a context")
    groups: list[list[int]] = []
    room = np.zeros((0, len(sides)), np.int64)  # of the open groups
    opened: list[int] = []
    for number, size in enumerate(sizes):
        left = room - size
        fits = (left >= 0).all(axis=1)
        if fits.any():
            place = int(np.where(fits, left[:, 0], np.iinfo(np.int64).max).argmin())
            groups[opened[place]].append(number)
            room[place] = left[place]
            continue
        groups.append([number])
        if len(opened) == _OPEN:
            fullest = int(room[:, 0].argmin())
            room, opened = np.delete(room, fullest, axis=0), opened[:fullest] + opened[fullest + 1 :]
        room, opened = np.vstack([room, limit - size]), [*opened, len(groups) - 1]
    return groups


class PackedData:
    """Sequences of several documents, by number: what a DataLoader asks of a dataset.

    Args:
        data: the documents.
        packing: how they share a sequence.
        limits: the context of each side, by `Side.key`; the student's under the empty string.
    """

    def __init__(self, data: PreparedData, packing: Packing, limits: Mapping[str, int]) -> None:
        lengths = data.lengths()
        self.data, self.packing, self.sides, self.report, self.key = data, packing, data.sides, data.report, data.key
        self.made_of, self.epoch = data.made_of, 0
        self.groups = pack(lengths, limits)
        self.fill = float(lengths[""].sum()) / (len(self.groups) * limits[""])

    def __len__(self) -> int:
        return len(self.groups)

    def set_epoch(self, epoch: int) -> None:
        """Says which pass is next."""
        self.epoch = epoch

    def order(self, seed: int, epoch: int) -> Ints:
        """int64 [n], the numbers of the sequences in the order of a pass: another for each seed and each epoch."""
        return np.random.default_rng([seed, epoch]).permutation(len(self))

    def __getitem__(self, index: int) -> Pack | Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Pack | Example]:
        numbers = [number for index in indices for number in self.groups[index]]
        examples = iter(self.data.__getitems__(numbers))
        packs = [tuple(next(examples) for _ in self.groups[index]) for index in indices]
        return [join(pack) for pack in packs] if self.packing == "concatenate" else list(packs)


def join(documents: Sequence[Example]) -> Example:
    """Documents as one: tokens in a row, chunks counted on."""
    sides = documents[0].teachers
    ids = [document.ids for document in documents]
    before = np.cumsum([0, *map(len, ids)])
    teachers = {}
    for side in sides:
        tokens = [document.teachers[side] for document in documents]
        begins = np.cumsum([0, *(len(t.ids) for t in tokens)])
        shifts = [np.array([s, s, b, b]) for s, b in zip(before[:-1], begins[:-1], strict=True)]
        moved = [t.chunks + shift for t, shift in zip(tokens, shifts, strict=True)]
        teachers[side] = TeacherTokens(np.concatenate([t.ids for t in tokens]), np.concatenate(moved))
    scored = None
    if any(document.scored is not None for document in documents):
        each = (np.ones(len(d.ids), bool) if d.scored is None else d.scored for d in documents)
        scored = np.concatenate(list(each))
    numbers = tuple(number for document in documents for number in document.documents)
    return Example(np.concatenate(ids), teachers, scored, numbers, documents[0].corpus)
