"""A batch's way through the tries, found on the host: which nodes its chunks visit, and what is read where.

numpy only, no loop over chunks but one over depth. Types: `Visits`, the visits to one side's trie; `PathPlan`, both
and what follows from them. Law: the visits, their merged groups and the continuations taken out are those that the
reference finds chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from xtoken.losses.index import ChunkIndex
from xtoken.projection.tries import END, NO_NODE, PathTries, Trie

__all__ = ["Entries", "PathPlan", "Shares", "Visits", "plan_paths"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Instead of a token: not known, and none (END has come).
_UNKNOWN, _NONE = -1, -2


@dataclass(frozen=True)
class Entries:
    """Tokens listed visit by visit.

    Attributes:
        visit: int64 [n], rising.
        token: int64 [n].
        group: int64 [n], counted over all visits: a visit's groups begin at its `group_starts`.
    """

    visit: Ints
    token: Ints
    group: Ints


@dataclass(frozen=True)
class Visits:
    """Visits to the nodes of one side's trie, chunk by chunk and within a chunk by depth.

    Attributes:
        chunk: int64 [n], rising.
        row: int64 [n], the other side's row that says how the path goes on; no row twice.
        group_starts: int64 [n + 1], groups of each visit; its first group is END.
        is_closed: bool [n], whether END is left out.
        members: tokens of the trie's side that reach the node, to be read at the chunk's first row.
        children: tokens of the other side that go on from it in a group of their own, to be read at `row`.
    """

    chunk: Ints
    row: Ints
    group_starts: Ints
    is_closed: Bools
    members: Entries
    children: Entries


@dataclass(frozen=True)
class Shares:
    """For visits of depth 1 to the student's trie: the teacher's tokens that begin like the chunk's first one.

    Attributes:
        visit: int64 [n], a visit to the student's trie, rising.
        token: int64 [n], teacher tokens, to be read at the chunk's first row.
        is_exact: bool [n], whether it is that token itself.
    """

    visit: Ints
    token: Ints
    is_exact: Bools


@dataclass(frozen=True)
class PathPlan:
    """A batch of A chunks that take part, in the order of the student's rows.

    Attributes:
        first_s, first_t: int64 [A], the first rows.
        n_skipped: chunks whose first tokens have different roots; they take no part.
        student: visits of the student's first tokens to their trie; their rows are the teacher's.
        teacher: visits of the teacher's first tokens to theirs; their rows are the student's.
        shares: see `Shares`.
        stays: int64 [n], for each visit to the teacher's trie the visit to the student's whose END says how likely the
            student's token stopped at this root; -1 where none does.
        ended_s: for each chunk the teacher's ids that would have continued the previous student token, as [n] chunks
            (rising) and [n] ids.
        ended_t: the student's ids that would have continued the previous teacher token.
    """

    first_s: Ints
    first_t: Ints
    n_skipped: int
    student: Visits
    teacher: Visits
    shares: Shares
    stays: Ints
    ended_s: tuple[Ints, Ints]
    ended_t: tuple[Ints, Ints]


@dataclass(frozen=True)
class _Side:
    """One side of all chunks: its tokens by their spelling, and rows."""

    tokens: Ints
    rows: Ints
    starts: Ints

    @property
    def first(self) -> Ints:
        return self.tokens[self.starts[:-1]]

    @property
    def lengths(self) -> Ints:
        return np.diff(self.starts)

    @property
    def first_row(self) -> Ints:
        return self.rows[self.starts[:-1]]

    @property
    def row_after(self) -> Ints:
        return self.rows[self.starts[1:] - 1] + 1


@dataclass(frozen=True)
class _Walk:
    """Visits before their groups are listed; `merge_from` joins `merge_to`, both -1 where nothing merges."""

    chunk: Ints
    depth: Ints
    node: Ints
    row: Ints
    merge_from: Ints
    merge_to: Ints
    ended: Bools

    def by_chunk(self, place: Ints) -> _Walk:
        """In the order that chunks have by `place`, and within a chunk by depth."""
        return self.at(np.lexsort((self.depth, place[self.chunk])))

    def at(self, which: Ints | Bools) -> _Walk:
        """Some of the visits."""
        return _Walk(**{f.name: getattr(self, f.name)[which] for f in fields(self)})


_NOTHING = np.zeros(0, np.int64)
_NO_WALK = _Walk(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, np.zeros(0, bool))


def plan_paths(tries: PathTries, index: ChunkIndex) -> PathPlan:
    """Walks every chunk of a batch through both tries.

    Args:
        tries: of the pair.
        index: the chunks; it is copied to the host where it is not there.
    """
    found = {name: tensor.cpu().numpy() for name, tensor in index.tensors().items()}
    student = _Side(tries.teacher.spelling[found["student_tokens"]], found["student_rows"], found["student_starts"])
    teacher = _Side(tries.student.spelling[found["teacher_tokens"]], found["teacher_rows"], found["teacher_starts"])
    agrees = tries.student_roots[student.first] == tries.teacher_roots[teacher.first]
    is_next = np.zeros(len(agrees), bool)  # whether the following chunk begins where this one ends, on both sides
    is_next[:-1] = student.row_after[:-1] == student.first_row[1:]
    is_next[:-1] &= teacher.row_after[:-1] == teacher.first_row[1:]
    kept = np.flatnonzero(agrees)
    kept = kept[np.argsort(student.first_row[kept], kind="stable")]
    place = np.full(len(agrees), -1)
    place[kept] = np.arange(len(kept))
    forward = _walk(tries.student, student.first, teacher, agrees, is_next).by_chunk(place)
    mirror = _walk(tries.teacher, teacher.first, student, agrees, is_next).by_chunk(place)
    one_s, one_t = student.lengths == 1, teacher.lengths == 1
    visits_s = _listed(tries.student, forward, ~tries.student.has_end[forward.node], place)
    is_closed = ~tries.teacher.has_end[mirror.node] | _may_be_longer(
        tries.student, student.first, ~one_s & one_t, mirror
    )
    visits_t = _listed(tries.teacher, mirror, is_closed, place)
    return PathPlan(
        student.first_row[kept],
        teacher.first_row[kept],
        len(agrees) - len(kept),
        visits_s,
        visits_t,
        _shares(tries.teacher, teacher.first, forward),
        _stays(forward, mirror, one_s & one_t),
        _ended(visits_s, forward, place, is_next),
        _ended(visits_t, mirror, place, is_next),
    )


def _walk(trie: Trie, first: Ints, other: _Side, takes_part: Bools, is_next: Bools) -> _Walk:
    """The visits of each chunk's first token, all chunks at once and one depth after the other.

    Args:
        trie: of the side that the token is of.
        first: int64 [K], the token.
        other: the side whose tokens are its pieces.
        takes_part: bool [K].
        is_next: bool [K], whether the next chunk begins where this one ends.
    """
    begin, length = trie.piece_starts[first], np.diff(trie.piece_starts)[first]
    following = np.full(len(first), _UNKNOWN)  # the first token of the next chunk
    following[:-1] = np.where(is_next[:-1], other.first[1:], _UNKNOWN)
    chunk = np.flatnonzero(takes_part & (length > 0))
    node = np.full(len(chunk), NO_NODE)
    found: list[_Walk] = []
    depth = 1
    while len(chunk):
        piece, at = trie.pieces[begin[chunk] + depth - 1], other.starts[chunk] + depth
        node = np.where(other.tokens[at - 1] == piece, trie.child(node, piece), NO_NODE)
        chunk, node, at = (x[node != NO_NODE] for x in (chunk, node, at))
        is_last, stops = other.lengths[chunk] == depth, length[chunk] == depth
        inside = np.minimum(at, len(other.tokens) - 1)
        taken = np.where(is_last, following[chunk], other.tokens[inside])
        row = np.where(is_last, other.row_after[chunk], other.rows[inside])
        true = np.where(stops, _NONE, trie.pieces[np.minimum(begin[chunk] + depth, len(trie.pieces) - 1)])
        credited_group, true_group = trie.group_of(node, taken), trie.group_of(node, true)
        differs = (taken != _UNKNOWN) & (credited_group != true_group)
        into = np.where((credited_group == END) | (true_group == END), END, credited_group)
        out_of = np.where(into == credited_group, true_group, credited_group)
        # A text that cuts the token in another way, or that goes where this node has no group, says nothing here.
        says = ~(is_last & ~stops) & ~(differs & (into == END) & ~trie.has_end[node])
        merge = differs & says
        visit = (
            chunk,
            np.full(len(chunk), depth),
            node,
            row,
            np.where(merge, out_of, -1),
            np.where(merge, into, -1),
            stops,
        )
        found.append(_Walk(*visit).at(says & trie.branches[node]))
        goes_on = says & ~stops & ~is_last & (taken == true)
        chunk, node, depth = chunk[goes_on], node[goes_on], depth + 1
    return _Walk(*(np.concatenate([getattr(w, f.name) for w in found]) for f in fields(_Walk))) if found else _NO_WALK


def _listed(trie: Trie, walk: _Walk, is_closed: Bools, place: Ints) -> Visits:
    """The groups of every visit, token by token."""
    group_starts = np.concatenate([[0], np.cumsum(trie.n_groups[walk.node])])

    def entries(starts: Ints, tokens: Ints, groups: Ints) -> tuple[Ints, Ints, Ints]:
        visit, at = _ranges(starts[walk.node], starts[walk.node + 1])
        group = groups[at]
        return visit, tokens[at], np.where(group == walk.merge_from[visit], walk.merge_to[visit], group)

    visit, token, group = entries(trie.member_starts, trie.members, trie.member_groups)
    members = Entries(visit, token, group_starts[visit] + group)
    visit, token, group = entries(trie.child_starts, trie.children, trie.child_groups)
    apart = group != END
    children = Entries(visit[apart], token[apart], (group_starts[visit] + group)[apart])
    return Visits(place[walk.chunk], walk.row, group_starts, is_closed, members, children)


def _may_be_longer(trie: Trie, first: Ints, is_longer: Bools, walk: _Walk) -> Bools:
    """Visits of a longer teacher token whose first piece begins longer student tokens as well.

    Had the teacher written the short token, the student might have gone on from it: how likely that was is read off
    the row after the short token, which is not there. Whether the teacher goes on is then not asked, only how.
    """
    at = np.flatnonzero((walk.depth == 1) & is_longer[walk.chunk])
    node = trie.node_of(first[walk.chunk[at]])
    found = np.zeros(len(walk.chunk), bool)
    found[at[node != NO_NODE]] = trie.branches[node[node != NO_NODE]]
    return found


def _shares(trie: Trie, first: Ints, walk: _Walk) -> Shares:
    """The teacher's tokens that begin like the chunk's first, where that is a common token and not the only one."""
    visit = np.flatnonzero(walk.depth == 1)
    token = first[walk.chunk[visit]]
    is_common = np.diff(trie.piece_starts)[token] == 1
    visit, token = visit[is_common], token[is_common]
    node = trie.node_of(token)
    visit, node = visit[node != NO_NODE], node[node != NO_NODE]
    owner, at = _ranges(trie.member_starts[node], trie.member_starts[node + 1])
    return Shares(visit[owner], trie.members[at], trie.member_groups[at] == END)


def _stays(forward: _Walk, mirror: _Walk, is_one_to_one: Bools) -> Ints:
    found = np.full(len(mirror.chunk), -1)
    of_chunk = np.full(len(is_one_to_one), -1)
    at = np.flatnonzero(forward.depth == 1)
    of_chunk[forward.chunk[at]] = at
    asked = np.flatnonzero((mirror.depth == 1) & is_one_to_one[mirror.chunk])
    found[asked] = of_chunk[mirror.chunk[asked]]
    return found


def _ended(visits: Visits, walk: _Walk, place: Ints, is_next: Bools) -> tuple[Ints, Ints]:
    """The children of the nodes where a token stopped, by the chunk after it."""
    following = np.full(len(walk.chunk), -1)
    at = np.flatnonzero(walk.ended & is_next[walk.chunk])
    following[at] = place[walk.chunk[at] + 1]
    chunk = following[visits.children.visit]
    order = np.argsort(chunk, kind="stable")
    order = order[chunk[order] >= 0]
    return chunk[order], visits.children.token[order]


def _ranges(begins: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """For ranges [begin, end) the range each number is of, and all numbers."""
    counts = ends - begins
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
