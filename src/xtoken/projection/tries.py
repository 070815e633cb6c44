"""`PathTries`: how each tokenizer's tokens begin in the other's pieces, as flat arrays.

tau(v) are the teacher's pieces of student token v, sigma(u) the student's pieces of teacher token u. Two tries, one of
all tau(v) and one of all sigma(u): a **node** is a run of leading pieces that at least two tokens share, and its
**groups** are what those tokens do next: each next piece is one, and END, where a token stops there, is another. The
**root** of a student token is the common token that its pieces begin with: itself where both vocabularies have its
bytes; it has none where its first piece is no common token, or where it has no cut. The root of a teacher token is that
of the student's first piece of it. So all student tokens of a root share one node, or are one token.

Pieces are compared by what they spell, so ids of equal bytes are one piece. Law: a node's members are the members of
its groups, each once. Memory: 13 MB for Llama-3 x Qwen3. docs/losses.md has the derivation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken.alignment.bytes import special_key
from xtoken.errors import XTokenError
from xtoken.projection.artifact import Kind, damaged, load_artifact, save_artifact
from xtoken.projection.build import RULES, ids_by_event, row_fates
from xtoken.tokens import Vocabulary

__all__ = ["END", "NO_NODE", "NO_ROOT", "TRIE_RULES", "PathTries", "Trie", "build_tries", "ranges", "tries_from_pieces"]

Ints = NDArray[np.int64]

# Raised when other tries come of the same cuts, so that old ones are not taken for new.
TRIE_RULES = 1

KIND = Kind("xtoken-tries", 1, "tries", "build them with `xtoken.build_tries`", f"{RULES} {TRIE_RULES}")

NO_NODE = -1
NO_ROOT = -1
END = 0  # the group of the tokens that stop at a node; pieces have groups 1, 2, ...


@dataclass(frozen=True)
class Trie:
    """The leading runs of one side's tokens, cut in the other side's pieces. A and B are the sizes of the two.

    Attributes:
        pieces: int64 [P], the pieces of every token of this side, one after the other.
        piece_starts: int64 [A + 1], where each token's begin.
        spelling: int64 [B], of each id of the other side the one id that stands for all of its bytes.
        keys: int64 [N], rising: (node above + 1) * B + piece, for each node the way to it.
        members: int64 [M], tokens of this side, node by node.
        member_groups: int64 [M], the group of each in its node.
        member_starts: int64 [N + 1].
        children: int64 [C], ids of the other side that go on from a node, node by node.
        child_groups: int64 [C], 1 or more.
        child_starts: int64 [N + 1].
        n_groups: int64 [N], groups of each node, END counted whether or not a token stops there.
        has_end: bool [N], whether one does.
    """

    pieces: Ints
    piece_starts: Ints
    spelling: Ints
    keys: Ints
    members: Ints
    member_groups: Ints
    member_starts: Ints
    children: Ints
    child_groups: Ints
    child_starts: Ints
    n_groups: Ints
    has_end: NDArray[np.bool_]

    @property
    def n_tokens(self) -> int:
        """A."""
        return len(self.piece_starts) - 1

    def child(self, nodes: Ints, pieces: Ints) -> Ints:
        """The node that a piece leads to from a node; `NO_NODE` where fewer than two tokens go there.

        Args:
            nodes: int64 [n], `NO_NODE` for the top.
            pieces: int64 [n], ids of the other side by their `spelling`.
        """
        if not len(self.keys):
            return np.full(len(nodes), NO_NODE)
        wanted = (nodes + 1) * len(self.spelling) + pieces
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, place, NO_NODE)

    def group_of(self, nodes: Ints, pieces: Ints) -> Ints:
        """The group that a piece goes to from a node; `END` where no token goes on with it.

        Args:
            nodes: int64 [n].
            pieces: int64 [n], ids of the other side; below 0 for no piece.
        """
        keys, groups = self._child_groups
        if not len(keys):
            return np.full(len(nodes), END)
        wanted = nodes * len(self.spelling) + pieces
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((keys[place] == wanted) & (pieces >= 0), groups[place], END)

    def node_of(self, tokens: Ints) -> Ints:
        """The node where tokens of this side stop; `NO_NODE` where none goes on from there or stops beside them.

        Args:
            tokens: int64 [n].
        """
        node, lengths = np.full(len(tokens), NO_NODE), np.diff(self.piece_starts)[tokens]
        found = lengths > 0
        for depth in range(int(lengths.max(initial=0))):
            on = np.flatnonzero(found & (lengths > depth))
            node[on] = self.child(node[on], self.pieces[self.piece_starts[tokens[on]] + depth])
            found[on] = node[on] != NO_NODE
        return np.where(found, node, NO_NODE)

    @cached_property
    def first_pieces(self) -> Ints:
        """int64 [A], the first piece of every token; -1 where it has none."""
        begins, ends = self.piece_starts[:-1], self.piece_starts[1:]
        found = np.full(len(begins), -1)
        found[ends > begins] = self.pieces[begins[ends > begins]]
        return found

    @cached_property
    def _child_groups(self) -> tuple[Ints, Ints]:
        node = np.repeat(np.arange(len(self.n_groups)), np.diff(self.child_starts))
        keys = node * len(self.spelling) + self.children
        order = np.argsort(keys)
        return keys[order], self.child_groups[order]

    @cached_property
    def branches(self) -> NDArray[np.bool_]:
        """bool [N], whether a node has two groups that a token falls into; at the others there is nothing to learn."""
        branching: NDArray[np.bool_] = self.n_groups - ~self.has_end >= 2
        return branching


@dataclass(frozen=True)
class PathTries:
    """Both tries of a pair of tokenizers, and the roots.

    Attributes:
        student: of the student's tokens in the teacher's pieces.
        teacher: of the teacher's tokens in the student's pieces.
        student_roots: int64 [V_S], the root of each token, counted from 0; `NO_ROOT` where it has none.
        teacher_roots: int64 [V_T], in the same count.
        student_fingerprint, teacher_fingerprint: of the tokenizers; empty for tries made by hand.
    """

    student: Trie
    teacher: Trie
    student_roots: Ints
    teacher_roots: Ints
    student_fingerprint: str = ""
    teacher_fingerprint: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(V_S, V_T)."""
        return len(self.student_roots), len(self.teacher_roots)

    @cached_property
    def students_by_root(self) -> tuple[Ints, Ints]:
        """The student's tokens root by root, and int64 [R + 1] where each root's begin."""
        n_roots = 1 + int(max(self.student_roots.max(initial=NO_ROOT), self.teacher_roots.max(initial=NO_ROOT)))
        order = np.argsort(self.student_roots, kind="stable")
        return order, np.searchsorted(self.student_roots[order], np.arange(n_roots + 1))

    def save(self, path: str | Path) -> None:
        """Writes them as safetensors, to a temporary name first, so that a broken write leaves no file."""
        arrays = {"student_roots": self.student_roots, "teacher_roots": self.teacher_roots}
        for side, trie in (("student", self.student), ("teacher", self.teacher)):
            arrays |= {f"{side}.{f.name}": getattr(trie, f.name) for f in fields(trie)}
        narrow = {name: array if array.dtype == np.bool_ else _narrowed(array) for name, array in arrays.items()}
        save_artifact(path, KIND, narrow, (self.student_fingerprint, self.teacher_fingerprint), {})

    @classmethod
    def load(cls, path: str | Path, student: Vocabulary | None = None, teacher: Vocabulary | None = None) -> PathTries:
        """Reads saved tries, for the pair of tokenizers they were built for.

        Args:
            path: the file.
            student, teacher: the vocabularies they will be used with; one that is given is checked.

        Raises:
            XTokenError: no such file, not one of ours, or built by the rules of another version.
            FingerprintMismatchError: they were built for another tokenizer.
        """
        arrays, metadata = load_artifact(path, KIND, student, teacher)
        try:
            one, other = (_trie(arrays, side) for side in ("student", "teacher"))
            roots = arrays["student_roots"].astype(np.int64), arrays["teacher_roots"].astype(np.int64)
        except KeyError as error:
            raise damaged(path, KIND, error) from None
        return cls(one, other, *roots, metadata["student_fingerprint"], metadata["teacher_fingerprint"])


def build_tries(student: Vocabulary, teacher: Vocabulary) -> PathTries:
    """The tries of a pair of tokenizers.

    Args:
        student, teacher: the vocabularies.
    """
    tau, sigma = row_fates(student, teacher, None).pieces, row_fates(teacher, student, None).pieces
    spellings = _spelling(student), _spelling(teacher)
    prints = student.fingerprint, teacher.fingerprint
    return tries_from_pieces(tau, sigma, *spellings, *prints)


def tries_from_pieces(
    tau: Sequence[Sequence[int]],
    sigma: Sequence[Sequence[int]],
    student_spelling: Ints,
    teacher_spelling: Ints,
    student_fingerprint: str = "",
    teacher_fingerprint: str = "",
) -> PathTries:
    """Tries of given cuts.

    Args:
        tau: [V_S], the teacher ids that each student token is cut into; one where they have a token in common, none
            where it has no cut.
        sigma: [V_T], the same the other way.
        student_spelling, teacher_spelling: int64 [V_S], [V_T]; of ids that spell the same, the one that stands for all.
        student_fingerprint, teacher_fingerprint: of the tokenizers.

    Raises:
        XTokenError: a token is cut into an id that the other side does not have.
    """
    for name, cuts, size in (("student", tau, len(sigma)), ("teacher", sigma, len(tau))):
        if any(not 0 <= piece < size for cut in cuts for piece in cut):
            raise XTokenError(f"a {name} token is cut into an id outside the other vocabulary of {size}")
    one, other = _trie_of(tau, teacher_spelling), _trie_of(sigma, student_spelling)
    return PathTries(one, other, *_roots(one, other), student_fingerprint, teacher_fingerprint)


def _spelling(vocabulary: Vocabulary) -> Ints:
    by_bytes, by_event = vocabulary.ids_by_bytes, ids_by_event(vocabulary)
    found = np.arange(vocabulary.size, dtype=np.int64)
    for i, content in enumerate(vocabulary.tokens):
        if content:
            found[i] = by_bytes[content]
    for i in vocabulary.roles:
        found[i] = by_event[special_key(vocabulary, i)]
    return found


def _trie_of(cuts: Sequence[Sequence[int]], spelling: Ints) -> Trie:
    """Level by level: the tokens that reach a node go on to the nodes of their next pieces, while two share one."""
    size = len(spelling)
    lengths = np.array([len(cut) for cut in cuts], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    pieces = spelling[np.fromiter(chain.from_iterable(cuts), np.int64, count=int(starts[-1]))]
    tokens, above = np.flatnonzero(lengths > 0), np.full(int((lengths > 0).sum()), NO_NODE)
    keys: list[Ints] = []
    at: list[Ints] = []  # node, token and next piece (END's is -1) of every membership
    depth = n_nodes = 0
    while len(tokens):
        wanted = (above + 1) * size + pieces[starts[tokens] + depth]
        found, inverse, counts = np.unique(wanted, return_inverse=True, return_counts=True)
        number = np.where(counts >= 2, n_nodes + np.cumsum(counts >= 2) - 1, NO_NODE)
        keys.append(found[counts >= 2])
        n_nodes += len(keys[-1])
        shared = number[inverse] != NO_NODE
        tokens, above, depth = tokens[shared], number[inverse][shared], depth + 1
        goes_on = lengths[tokens] > depth
        following = np.where(goes_on, pieces[np.minimum(starts[tokens] + depth, len(pieces) - 1)], -1)
        at.append(np.stack([above, tokens, following]))
        tokens, above = tokens[goes_on], above[goes_on]
    # Keys fall into levels, each later level's above all of the earlier ones', so they rise as they stand.
    key_of = np.concatenate(keys) if keys else np.zeros(0, np.int64)
    node, token, following = np.concatenate(at, axis=1) if at else np.zeros((3, 0), np.int64)
    order = np.lexsort((token, following, node))
    node, token, following = node[order], token[order], following[order]
    return Trie(pieces, starts, spelling, key_of, **_groups(node, token, following, n_nodes, spelling))


def _groups(node: Ints, token: Ints, following: Ints, n_nodes: int, spelling: Ints) -> dict[str, Any]:
    """The arrays of members and children, from memberships sorted by node and next piece."""
    first = np.ones(len(node), bool)
    first[1:] = (node[1:] != node[:-1]) | (following[1:] != following[:-1])
    is_child = first & (following >= 0)
    running = np.cumsum(is_child)
    member_starts = np.searchsorted(node, np.arange(n_nodes + 1))
    before = np.concatenate([[0], running])[member_starts[:-1]]  # children of earlier nodes
    groups = np.where(following >= 0, running - before[node], END)
    n_groups = np.concatenate([[0], running])[member_starts[1:]] - before + 1
    has_end = np.zeros(n_nodes, bool)
    has_end[node[following < 0]] = True
    # All ids that spell a child's piece go on from the node.
    by_spelling = np.argsort(spelling, kind="stable")
    lows, highs = (np.searchsorted(spelling[by_spelling], following[is_child], side) for side in ("left", "right"))
    child, place = ranges(lows, highs)
    return {
        "members": token,
        "member_groups": groups,
        "member_starts": member_starts,
        "children": by_spelling[place],
        "child_groups": groups[is_child][child],
        "child_starts": np.searchsorted(node[is_child][child], np.arange(n_nodes + 1)),
        "n_groups": n_groups,
        "has_end": has_end,
    }


def ranges(begins: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """For ranges [begin, end) the range each number is of, and all numbers."""
    counts = ends - begins
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + np.repeat(begins - (np.cumsum(counts) - counts), counts)


def _roots(one: Trie, other: Trie) -> tuple[Ints, Ints]:
    """The root of every token of either side, counted from 0 in the order of the teacher's ids."""
    v_t = other.n_tokens
    first_s, first_t = one.first_pieces, other.first_pieces
    is_common = np.zeros(v_t, bool)  # of the teacher's ids, one a spelling
    alone = np.flatnonzero(np.diff(one.piece_starts) == 1)
    is_common[first_s[alone]] = True
    number = np.where(is_common, np.cumsum(is_common) - 1, NO_ROOT)
    student = np.where(first_s >= 0, number[first_s], NO_ROOT)
    return student, np.where(first_t >= 0, student[first_t], NO_ROOT)


def _narrowed(array: Ints) -> NDArray[Any]:
    """int32 where that holds every number (keys may not fit)."""
    fits = not len(array) or (array.min() >= -(2**31) and array.max() < 2**31)
    return array.astype(np.int32) if fits else array


def _trie(arrays: Mapping[str, NDArray[Any]], side: str) -> Trie:
    found: dict[str, Any] = {f.name: arrays[f"{side}.{f.name}"] for f in fields(Trie)}
    return Trie(**{name: array if array.dtype == np.bool_ else array.astype(np.int64) for name, array in found.items()})
