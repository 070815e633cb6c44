"""A batch's way through the tries, found on the host: which nodes its chunks visit, and what is read where.

numpy only, no loop over chunks but one over depth. Types: `Visits`, the visits to one side's trie; `PathPlan`, both
and what follows from them. Law: visits, swaps, untold tokens and the continuations taken out are those that the
reference finds chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from xtoken.errors import XTokenError
from xtoken.losses.index import ChunkIndex
from xtoken.projection.tries import END, NO_NODE, NO_ROOT, PathTries, Trie, ranges

__all__ = ["Entries", "Members", "PathPlan", "RootSwaps", "Visits", "plan_paths"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_NO_TOKEN = -1


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
class Members:
    """The tokens that reach each visit's node, listed when they are asked for: a node may have thousands.

    Attributes:
        trie: whose nodes they are.
        node: int64 [n], of each visit; `NO_NODE` for none.
        joins_end: int64 [n], the group that counts as END there; `END` for none other.
    """

    trie: Trie
    node: Ints
    joins_end: Ints

    def of(self, visits: slice, group_starts: Ints) -> Entries:
        """Those of some visits.

        Args:
            visits: which.
            group_starts: int64 [n + 1], groups of each visit of all.
        """
        visit, at = _ranges_where(self.trie.member_starts, self.node[visits], NO_NODE)
        group = self.trie.member_groups[at]
        visit += visits.start
        group = np.where(group == self.joins_end[visit], END, group)
        return Entries(visit, self.trie.members[at], group_starts[visit] + group)


@dataclass(frozen=True)
class Visits:
    """Visits to the nodes of one side's trie, chunk by chunk and within a chunk by depth.

    Attributes:
        chunk: int64 [n], rising.
        row: int64 [n], the other side's row that says how the path goes on; no row twice.
        group_starts: int64 [n + 1], groups of each visit; its first group is END.
        is_text: bool [n], whether it is no node at all: a student token that only the text tells of. Its groups are END
            and the token.
        members: tokens of the trie's side that reach the node, to be read at the chunk's first row.
        children: tokens of the other side that go on from it in a group of their own, to be read at `row`.
        swaps: for a visit whose own token was credited to another group, the student's token as the text has it, and
            the group it was credited to. Read where the student's groups are read.
    """

    chunk: Ints
    row: Ints
    group_starts: Ints
    is_text: Bools
    members: Members
    children: Entries
    swaps: Entries


@dataclass(frozen=True)
class RootSwaps:
    """Chunks whose student token, or its class, takes the place of a whole root, or of all tokens cut as it is.

    Attributes:
        chunk: int64 [n], rising.
        placed: the swap of each and the student's tokens that take the place, swap by swap.
        credited: the same of those whose place they take; none where the teacher's token has no root.
    """

    chunk: Ints
    placed: tuple[Ints, Ints]
    credited: tuple[Ints, Ints]


@dataclass(frozen=True)
class PathPlan:
    """A batch of K chunks in the order of the student's rows.

    Attributes:
        first_s, first_t: int64 [K], the first rows.
        student: visits of the student's first tokens to their trie; their rows are the teacher's.
        teacher: visits of the teacher's first tokens to theirs; their rows are the student's.
        root_swaps: see `RootSwaps`.
        stays: int64 [n], for each visit to the teacher's trie the visit to the student's at the same root, which says
            how likely the student's token stopped there; -1 where none does.
        ended_s: for each chunk the teacher's ids that would have continued the previous student token, as [n] chunks
            (rising) and [n] ids; to be taken out of its first row.
        ended_t: the student's ids that would have continued the previous teacher token.
    """

    first_s: Ints
    first_t: Ints
    student: Visits
    teacher: Visits
    root_swaps: RootSwaps
    stays: Ints
    ended_s: tuple[Ints, Ints]
    ended_t: tuple[Ints, Ints]


@dataclass(frozen=True)
class _Side:
    """One side of all chunks: its tokens, how they are spelled, and rows."""

    ids: Ints
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

    def in_order(self, chunks: Ints) -> _Side:
        """The same with the chunks in another order."""
        owner, at = ranges(self.starts[chunks], self.starts[chunks + 1])
        starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(chunks)))])
        return _Side(self.ids[at], self.tokens[at], self.rows[at], starts)


@dataclass(frozen=True)
class _Walk:
    """Visits before their groups are listed; `own` is the token's group, `other` that of the other side's next token.

    Chunk by chunk and within a chunk by depth.
    """

    chunk: Ints
    depth: Ints
    node: Ints
    row: Ints
    own: Ints
    other: Ints
    is_last: Bools

    def at(self, which: Ints | Bools) -> _Walk:
        """Some of the visits."""
        return _Walk(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    @property
    def differs(self) -> Bools:
        """bool [n], whether the other side's token was credited to a group that the token is not in."""
        found: Bools = self.own != self.other
        return found


_NOTHING = np.zeros(0, np.int64)
_NO_WALK = _Walk(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, np.zeros(0, bool))


def plan_paths(tries: PathTries, index: ChunkIndex) -> PathPlan:
    """Walks every chunk of a batch through both tries.

    Args:
        tries: of the pair.
        index: the chunks; it is copied to the host where it is not there.

    Raises:
        XTokenError: a token is outside its vocabulary.
    """
    found = {name: tensor.cpu().numpy() for name, tensor in index.tensors().items()}
    for side, size in zip(("student", "teacher"), tries.shape, strict=True):
        _check_ids(found[f"{side}_tokens"], side, size)
    student, teacher = (
        _Side(
            found[f"{side}_tokens"], spelling[found[f"{side}_tokens"]], found[f"{side}_rows"], found[f"{side}_starts"]
        )
        for side, spelling in (("student", tries.teacher.spelling), ("teacher", tries.student.spelling))
    )
    order = np.argsort(student.first_row, kind="stable")
    if np.any(np.diff(order) < 0):
        student, teacher = student.in_order(order), teacher.in_order(order)
    is_next = np.zeros(len(order), bool)  # whether the following chunk begins where this one ends, on both sides
    is_next[:-1] = student.row_after[:-1] == student.first_row[1:]
    is_next[:-1] &= teacher.row_after[:-1] == teacher.first_row[1:]
    forward = _walk(tries.student, student.first, teacher, is_next)
    mirror = _walk(tries.teacher, teacher.first, student, is_next)

    listed_s, listed_t = _listed(tries.student, forward), _listed(tries.teacher, mirror, joins_end=True)
    begins = student.starts[:-1]
    swapped = np.flatnonzero(forward.differs)
    visits_s = listed_s.visits(
        forward.chunk,
        forward.row,
        (swapped, student.ids[begins[forward.chunk[swapped]]], forward.other[swapped]),
    )
    swapped = np.flatnonzero(mirror.differs & ~mirror.is_last)
    swaps = swapped, student.ids[begins[mirror.chunk[swapped]] + mirror.depth[swapped]], mirror.own[swapped]
    visits_t, place = _with_text(listed_t.visits(mirror.chunk, mirror.row, swaps), student, mirror)
    stays = np.full(len(visits_t.chunk), -1)
    stays[place[: len(mirror.chunk)]] = _stays(forward, mirror, (student.lengths == 1) & (teacher.lengths == 1))
    return PathPlan(
        student.first_row,
        teacher.first_row,
        visits_s,
        visits_t,
        _root_swaps(tries, student, teacher, forward),
        stays,
        _continuations(tries.student, student, teacher.first, is_next),
        _ended(listed_t, mirror, is_next),
    )


def _check_ids(tokens: Ints, side: str, size: int) -> None:
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < size):
        wrong = int(tokens.max() if tokens.min() >= 0 else tokens.min())
        raise XTokenError(
            f"the chunks hold the {side} token {wrong}, but the tries were built for a {side} of {size} tokens"
        )


def _walk(trie: Trie, first: Ints, other: _Side, is_next: Bools) -> _Walk:
    """The visits of each chunk's first token, all chunks at once and one depth after the other.

    Args:
        trie: of the side that the token is of.
        first: int64 [K], the token.
        other: the side whose tokens are its pieces.
        is_next: bool [K], whether the next chunk begins where this one ends.
    """
    begin, length = trie.piece_starts[first], np.diff(trie.piece_starts)[first]
    following = np.full(len(first), _NO_TOKEN)  # the first token of the next chunk
    following[:-1] = np.where(is_next[:-1], other.first[1:], _NO_TOKEN)
    chunk = np.flatnonzero(length > 0)
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
        following_piece = trie.pieces[np.minimum(begin[chunk] + depth, len(trie.pieces) - 1)]
        own = trie.group_of(node, np.where(stops, _NO_TOKEN, following_piece))
        credited = trie.group_of(node, taken)
        visits = _Walk(chunk, np.full(len(chunk), depth), node, row, own, credited, is_last)
        # Else the text cuts the token in another way, or the row after the chunk is none of the loss's.
        says = ~is_last | (stops & is_next[chunk])
        found.append(visits.at(says & trie.branches[node]))
        goes_on = says & ~stops & ~is_last & (own == credited)
        chunk, node, depth = chunk[goes_on], node[goes_on], depth + 1
    if not found:
        return _NO_WALK
    whole = _Walk(*(np.concatenate([getattr(walk, f.name) for walk in found]) for f in fields(_Walk)))
    return whole.at(np.lexsort((whole.depth, whole.chunk)))


@dataclass(frozen=True)
class _Listing:
    """Members of some visits, and children as (visit, token, group within the visit)."""

    n_groups: Ints
    members: Members
    children: tuple[Ints, Ints, Ints]

    def visits(self, chunk: Ints, row: Ints, swaps: tuple[Ints, Ints, Ints]) -> Visits:
        starts = np.concatenate([[0], np.cumsum(self.n_groups)])
        entries = (Entries(visit, token, starts[visit] + group) for visit, token, group in (self.children, swaps))
        return Visits(chunk, row, starts, np.zeros(len(chunk), bool), self.members, *entries)


def _listed(trie: Trie, walk: _Walk, joins_end: bool = False) -> _Listing:
    """The groups of every visit, token by token.

    With `joins_end` the group of the next chunk's first token counts as END where the token ended all the same: that
    token is told of by its own chunk.
    """
    joining = np.where(joins_end & walk.is_last & walk.differs, walk.other, END)
    visit, at = ranges(trie.child_starts[walk.node], trie.child_starts[walk.node + 1])
    token, group = trie.children[at], trie.child_groups[at]
    apart = group != joining[visit]
    children = visit[apart], token[apart], group[apart]
    return _Listing(trie.n_groups[walk.node], Members(trie, walk.node, joining), children)


def _with_text(visits: Visits, student: _Side, walk: _Walk) -> tuple[Visits, Ints]:
    """The visits and the later student tokens that none of them tells of, in the order of their rows; and the place of
    each, the visits' first."""
    is_told = np.zeros(len(student.tokens), bool)
    is_told[student.starts[:-1]] = True
    inside = ~walk.is_last
    is_told[student.starts[walk.chunk[inside]] + walk.depth[inside]] = True
    untold = np.flatnonzero(~is_told)
    chunk = np.concatenate([visits.chunk, np.repeat(np.arange(len(student.lengths)), student.lengths)[untold]])
    row = np.concatenate([visits.row, student.rows[untold]])
    n, n_text = len(visits.chunk), len(untold)
    order = np.argsort(row, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    n_groups = np.concatenate([np.diff(visits.group_starts), np.full(n_text, 2)])[order]
    starts = np.concatenate([[0], np.cumsum(n_groups)])

    def moved(entries: Entries, *, also: bool = False) -> Entries:
        visit, token = entries.visit, entries.token
        group = entries.group - visits.group_starts[visit]
        if also:
            visit = np.concatenate([visit, np.arange(n, n + n_text)])
            token, group = np.concatenate([token, student.ids[untold]]), np.concatenate([group, np.ones(n_text, int)])
        by_visit = np.argsort(place[visit], kind="stable")
        visit = place[visit][by_visit]
        return Entries(visit, token[by_visit], starts[visit] + group[by_visit])

    members, none = visits.members, np.full(n_text, NO_NODE)
    found = Visits(
        chunk[order],
        row[order],
        starts,
        np.concatenate([visits.is_text, np.ones(n_text, bool)])[order],
        Members(
            members.trie,
            np.concatenate([members.node, none])[order],
            np.concatenate([members.joins_end, np.full(n_text, END)])[order],
        ),
        moved(visits.children, also=True),
        moved(visits.swaps),
    )
    return found, place


def _root_swaps(tries: PathTries, student: _Side, teacher: _Side, forward: _Walk) -> RootSwaps:
    """Where the teacher's token is not the first piece of the student's, or that piece is no root, or several tokens
    have all its pieces."""
    trie, first_s, first_t = tries.student, student.first, teacher.first
    begins_so = trie.first_pieces[first_s] == first_t
    members, starts = tries.students_by_root
    root = tries.teacher_roots[first_t]
    # In place of a class of its own a token changes nothing.
    is_alone = (tries.student_roots[first_s] == root) & (root != NO_ROOT)
    is_alone[is_alone] = np.diff(starts)[root[is_alone]] == 1
    swapped = np.flatnonzero((~begins_so | (tries.student_roots[first_s] == NO_ROOT)) & ~is_alone)
    root, node = root[swapped], trie.child(np.full(len(swapped), NO_NODE), first_t[swapped])
    node = np.where(begins_so[swapped], node, NO_NODE)  # its nodes tell its tokens apart
    owner, at = _ranges_where(trie.member_starts, node, NO_NODE)
    alone = np.flatnonzero(node == NO_NODE)
    placed = np.concatenate([owner, alone]), np.concatenate([trie.members[at], _first_ids(student, swapped[alone])])
    owner, at = _ranges_where(starts, root, NO_ROOT)
    credited = owner, members[at]

    chunk, of_alike, alike = _cut_alike(trie, student, teacher, forward)
    n = len(swapped)
    chunk, order = np.concatenate([swapped, chunk]), np.argsort(np.concatenate([swapped, chunk]), kind="stable")
    place = np.argsort(order, kind="stable")
    more = np.arange(n, len(chunk)), _first_ids(student, chunk[n:])
    return RootSwaps(chunk[order], _by_swap(placed, more, place), _by_swap(credited, (of_alike + n, alike), place))


def _first_ids(side: _Side, chunks: Ints) -> Ints:
    return side.ids[side.starts[chunks]]


def _ranges_where(starts: Ints, number: Ints, missing: int) -> tuple[Ints, Ints]:
    """`ranges` of the numbered stretches, none for one that is missing."""
    begins, ends = np.zeros_like(number), np.zeros_like(number)
    has = number != missing
    begins[has], ends[has] = starts[number[has]], starts[number[has] + 1]
    return ranges(begins, ends)


def _by_swap(one: tuple[Ints, Ints], other: tuple[Ints, Ints], place: Ints) -> tuple[Ints, Ints]:
    """Two lists of swaps and tokens as one, in the order of the swaps' places."""
    swap, token = (np.concatenate(pair) for pair in zip(one, other, strict=True))
    order = np.argsort(place[swap], kind="stable")
    return place[swap][order], token[order]


def _cut_alike(trie: Trie, student: _Side, teacher: _Side, forward: _Walk) -> tuple[Ints, Ints, Ints]:
    """Chunks whose student token is all of their teacher's tokens, as other student tokens are, and all of these.

    Byte-fallback pieces, or letters that the teacher does not tell apart. By the place of their chunk.
    """
    node = trie.node_of(student.first)
    is_whole = (node != NO_NODE) & (np.diff(trie.piece_starts)[student.first] == teacher.lengths)
    is_whole[forward.chunk[forward.differs]] = False
    chunk = np.flatnonzero(is_whole)
    owner, at = ranges(teacher.starts[chunk], teacher.starts[chunk + 1])
    piece = trie.pieces[trie.piece_starts[student.first[chunk]][owner] + at - teacher.starts[chunk][owner]]
    is_cut_so = np.ones(len(chunk), bool)
    is_cut_so[owner[piece != teacher.tokens[at]]] = False
    chunk = chunk[is_cut_so]
    owner, at = ranges(trie.member_starts[node[chunk]], trie.member_starts[node[chunk] + 1])
    stops = trie.member_groups[at] == END
    owner, member = owner[stops], trie.members[at[stops]]
    several = np.bincount(owner, minlength=len(chunk)) > 1
    kept = several[owner]
    return chunk[several], (np.cumsum(several) - 1)[owner[kept]], member[kept]


def _stays(forward: _Walk, mirror: _Walk, is_one_to_one: Bools) -> Ints:
    found = np.full(len(mirror.chunk), -1)
    of_chunk = np.full(len(is_one_to_one), -1)
    at = np.flatnonzero(forward.depth == 1)
    of_chunk[forward.chunk[at]] = at
    asked = np.flatnonzero((mirror.depth == 1) & is_one_to_one[mirror.chunk])
    found[asked] = of_chunk[mirror.chunk[asked]]
    return found


def _continuations(trie: Trie, student: _Side, first_t: Ints, is_next: Bools) -> tuple[Ints, Ints]:
    """The teacher's ids that go on from each chunk's last student token, but for what the text took, by the chunk after
    it.

    The label of a first row is of texts where that token ended, whether or not a node has told of its end.
    """
    chunk = np.flatnonzero(is_next)
    node = trie.node_of(student.tokens[student.starts[chunk + 1] - 1])
    chunk, node = chunk[node != NO_NODE] + 1, node[node != NO_NODE]
    taken = trie.group_of(node, first_t[chunk])
    owner, at = ranges(trie.child_starts[node], trie.child_starts[node + 1])
    kept = trie.child_groups[at] != taken[owner]
    return chunk[owner[kept]], trie.children[at[kept]]


def _ended(listing: _Listing, walk: _Walk, is_next: Bools) -> tuple[Ints, Ints]:
    """The children of the nodes where a teacher's token stopped, but for what the text took, by the chunk after it.

    Only where a node has told that it stopped: what is taken out of the student's row is not taught there.
    """
    visit, token, group = listing.children
    counts = (walk.own == END) & walk.is_last & is_next[walk.chunk]
    kept = counts[visit] & (group != walk.other[visit])
    return walk.chunk[visit[kept]] + 1, token[kept]
