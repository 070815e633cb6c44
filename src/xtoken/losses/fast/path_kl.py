"""Path-KL by hand: one dense KL by root at a chunk's first rows, and small sums along its path.

**Roots.** Most have one token on either side: there the KL is in the student's order, the teacher's probabilities
renamed. The others are summed in small tables, in float64. With a and b the sums by root, R the teacher's mass on the
roots that the student has probability for, and v a student token of root r,

    value = sum (a log a - a log b) / R - log R,      d value / d z_v = q_v - q_v a_r / (b_r R).

**Nodes.** With w the teacher's label of each group, normalised over the groups that the student has mass for, Q_g that
mass, Q its sum, and q_i the student's probability of a token i of the row that Q is read off,

    value = sum w_g (log w_g - log Q_g / Q),          d value / d z_i = q_i / Q - w_g q_i / Q_g,   i in g,

and 0 for i in no group. At the first row the groups are a few tokens each. At a later row END is all other tokens: its
mass is summed over them and not taken from 1, and the gradient there is one number times q.

**Continuations** of the previous tokens get the logit -inf before any softmax; all that follows is then conditional on
these tokens having ended. A teacher's top k are spread over the vocabulary; the tail is one class more, compared with
all roots that no kept token has.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.losses.fast.kernel import KernelResult, Rows, Scratch
from xtoken.losses.fast.p_kl import starts_of, table, weighted_sums
from xtoken.losses.fast.passes import Pass, blocks, read_logits
from xtoken.losses.fast.path_plan import Entries, PathPlan, Visits, plan_paths
from xtoken.losses.index import ChunkIndex
from xtoken.losses.logspace import NEG_INF
from xtoken.projection.tries import NO_ROOT, PathTries
from xtoken.teachers.signal import TeacherSignal, TopKSignal, WholeSignal

__all__ = ["PathKernel", "SplitRoots", "split_roots"]

_NAN, _INF = float("nan"), float("inf")

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SplitRoots:
    """The roots as tensors: those of one token a side, and the X others that the student has a token of.

    Attributes:
        partner: int64 [V_S], the teacher token of each student token that is alone in its root, as that one is; any for
            the others.
        is_alone: float32 [V_S], 1 on these student tokens and 0 elsewhere.
        student_ids: int64, student tokens of the other roots, root by root.
        student_roots: int64, the place of each one's root among them.
        student_starts: int64 [X], where each root's begin.
        teacher_ids, teacher_starts: the same for the teacher's.
    """

    partner: Tensor
    is_alone: Tensor
    student_ids: Tensor
    student_roots: Tensor
    student_starts: Tensor
    teacher_ids: Tensor
    teacher_starts: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def split_roots(student: Ints, teacher: Ints) -> SplitRoots:
    """Splits the roots.

    Args:
        student: int64 [V_S], the root of every student token, `NO_ROOT` for none.
        teacher: int64 [V_T].
    """
    size = 1 + max(student.max(initial=NO_ROOT), teacher.max(initial=NO_ROOT)) - NO_ROOT
    student, teacher, none = student - NO_ROOT, teacher - NO_ROOT, 0
    n_s, n_t = np.bincount(student, minlength=size), np.bincount(teacher, minlength=size)
    n_s[none] = n_t[none] = 0
    alone = (n_s == 1) & (n_t == 1)
    several = (n_s > 0) & ~alone
    teacher_of = np.zeros(size, np.int64)
    teacher_of[teacher] = np.arange(len(teacher))
    place = np.cumsum(several) - 1
    ids_s, ids_t = (
        np.flatnonzero(several[roots])[np.argsort(roots[several[roots]], kind="stable")] for roots in (student, teacher)
    )
    arrays = {
        "partner": np.where(alone[student], teacher_of[student], 0),
        "is_alone": alone[student].astype(np.float32),
        "student_ids": ids_s,
        "student_roots": place[student[ids_s]],
        "student_starts": starts_of(place[student[ids_s]], int(several.sum())),
        "teacher_ids": ids_t,
        "teacher_starts": starts_of(place[teacher[ids_t]], int(several.sum())),
    }
    return SplitRoots(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


@dataclass(frozen=True)
class PathKernel:
    """Path-KL of a pair of tokenizers.

    Attributes:
        tries: on the host, where batches are planned.
        roots: on the device.
    """

    tries: PathTries
    roots: SplitRoots
    takes_top_k: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ("node_kl", "text_nll", "uncovered_mass")

    @property
    def student_vocab_size(self) -> int:
        return self.tries.shape[0]

    @property
    def teacher_vocab_size(self) -> int:
        return self.tries.shape[1]

    def plan(self, index: ChunkIndex) -> Pass:
        return _PathPass(self.roots, self.teacher_vocab_size, plan_paths(self.tries, index))


class _Listed:
    """Numbers sorted by an owner (a visit, a chunk), on the device, with the bounds of any owners' slice at hand."""

    def __init__(self, owner: Ints, n_owners: int, device: torch.device, **numbers: NDArray[np.generic]) -> None:
        self.owner = torch.from_numpy(owner).to(device)
        self.bounds = np.searchsorted(owner, np.arange(n_owners + 1))
        self.numbers = {name: torch.from_numpy(array).to(device) for name, array in numbers.items()}

    def slice_of(self, begin: int, end: int) -> slice:
        """Where the entries of owners [begin, end) lie."""
        return slice(int(self.bounds[begin]), int(self.bounds[end]))


class _Nodes:
    """One side's visits on the device.

    Attributes:
        n: how many.
        rows: int64 [n].
        by_chunk: the visits by chunk.
        members: to be listed block by block.
        children, swaps: by visit, with `token` and `group`.
        group_visit: int64 [G], the visit of every group.
        group_starts: int64 [n + 1] on the host.
        ends: int64 [n], the group END of each.
        is_end: bool [G].
        is_text: bool [n].
    """

    def __init__(self, visits: Visits, n_chunks: int, device: torch.device) -> None:
        self.n = len(visits.chunk)
        self.rows = torch.from_numpy(visits.row).to(device)
        self.by_chunk = _Listed(visits.chunk, n_chunks, device)
        self.members, self.device = visits.members, device
        self.children, self.swaps = (self._entries(e, device) for e in (visits.children, visits.swaps))
        self.group_starts = visits.group_starts
        group_visit = np.repeat(np.arange(self.n), np.diff(visits.group_starts))
        is_end = np.zeros(int(visits.group_starts[-1]), bool)
        is_end[visits.group_starts[:-1]] = True
        arrays = (group_visit, is_end, visits.group_starts[:-1].copy(), visits.is_text)
        self.group_visit, self.is_end, self.ends, self.is_text = (torch.from_numpy(x).to(device) for x in arrays)

    def _entries(self, entries: Entries, device: torch.device) -> _Listed:
        return _Listed(entries.visit, self.n, device, token=entries.token, group=entries.group)


class _Block:
    """The visits of one side in a block of chunks, with everything counted from the block's own first."""

    def __init__(self, nodes: _Nodes, chunks: slice) -> None:
        at = nodes.by_chunk.slice_of(chunks.start, chunks.stop)
        self.visits, self.n = at, at.stop - at.start
        first, last = int(nodes.group_starts[at.start]), int(nodes.group_starts[at.stop])
        self.n_groups = last - first
        self.chunk = nodes.by_chunk.owner[at] - chunks.start
        self.group_visit = nodes.group_visit[first:last] - at.start
        self.is_end, self.ends = nodes.is_end[first:last], nodes.ends[at] - first
        self.child_at = nodes.children.slice_of(at.start, at.stop)
        self.child_visit = nodes.children.owner[self.child_at] - at.start
        self.child_group = nodes.children.numbers["group"][self.child_at] - first
        members = nodes.members.of(at, nodes.group_starts)
        self.member_visit, self.member_group, self.member_token = (
            torch.from_numpy(x).to(nodes.device)
            for x in (members.visit - at.start, members.group - first, members.token)
        )
        self.swap_at = nodes.swaps.slice_of(at.start, at.stop)
        self.swap_visit = nodes.swaps.owner[self.swap_at] - at.start
        self.swap_group = nodes.swaps.numbers["group"][self.swap_at] - first
        self.swap_token = nodes.swaps.numbers["token"][self.swap_at]

    def by_group(self, values: Tensor, group: Tensor) -> Tensor:
        return values.new_zeros(self.n_groups).index_add_(0, group, values)

    def by_visit(self, values: Tensor) -> Tensor:
        """Sums over each visit's groups."""
        return values.new_zeros(self.n).index_add_(0, self.group_visit, values)


@dataclass(frozen=True)
class _NodeKL:
    """KL of the nodes of a block.

    Attributes:
        values: [n], one a visit.
        pull: [G], w_g / Q_g.
        whole: [n], 1 / Q; 0 where there is nothing to learn.
    """

    values: Tensor
    pull: Tensor
    whole: Tensor


def _node_kl(label: Tensor, mass: Tensor, block: _Block) -> _NodeKL:
    """KL over each visit's groups; see the module.

    Args:
        label: [G], at least 0, the teacher's.
        mass: [G], at least 0, the student's.
        block: the visits.
    """
    alive = mass > 0
    label, mass = torch.where(alive, label, 0), torch.where(alive, mass, 0)
    of_label, of_mass = block.by_visit(label), block.by_visit(mass)
    learns = of_label > 0
    w = label / torch.where(learns, of_label, 1)[block.group_visit]
    share = mass / torch.where(of_mass > 0, of_mass, 1)[block.group_visit]
    cross = torch.where(w > 0, w * torch.where(share > 0, share, 1).log(), 0)
    values = block.by_visit(torch.xlogy(w, w) - cross)
    whole = torch.where(learns, 1 / torch.where(of_mass > 0, of_mass, 1), 0)
    return _NodeKL(values, w / torch.where(mass > 0, mass, 1), whole)


@dataclass(frozen=True)
class _Swaps:
    """Swaps of a block: -log q(token) + log Q(class), 0 where either is 0.

    Attributes:
        values: one a swap.
        counts: 1 or 0, whether it does.
        on_token: 1 / q, or 0.
        on_class: 1 / Q, or 0.
    """

    values: Tensor
    counts: Tensor
    on_token: Tensor
    on_class: Tensor

    @classmethod
    def of(cls, token: Tensor, credited: Tensor) -> _Swaps:
        counts = (token > 0) & (credited > 0)
        token, credited = torch.where(counts, token, 1), torch.where(counts, credited, 1)
        on_token, on_class = (torch.where(counts, 1 / x, 0) for x in (token, credited))
        return cls(credited.log() - token.log(), counts.to(token.dtype), on_token, on_class)


@dataclass(frozen=True)
class _RootSwaps:
    """Swaps at the first rows of a block, with their gradient's places: swap, token and probability.

    Attributes:
        chunk: of each swap, counted from the block's first.
        swaps: the swaps.
        placed: what takes the place.
        credited: whose place it takes.
        is_bare: whether that is nothing: -log q alone.
    """

    chunk: Tensor
    swaps: _Swaps
    placed: tuple[Tensor, Tensor, Tensor]
    credited: tuple[Tensor, Tensor, Tensor]
    is_bare: Tensor

    def add_to(self, direct: Tensor, on_probs: Tensor) -> Tensor:
        """Adds the gradient; returns the values by chunk."""
        for (swap, token, probs), pull in ((self.placed, -self.swaps.on_token), (self.credited, self.swaps.on_class)):
            _add_at(direct, self.chunk[swap], token, probs * pull[swap])
        on_probs.index_add_(0, self.chunk, (self.swaps.counts * self.is_bare).to(on_probs.dtype))
        return direct.new_zeros(len(direct)).index_add_(0, self.chunk, self.swaps.values.to(direct.dtype))


class _Ended:
    """The continuations to take out of first rows."""

    def __init__(self, chunk: Ints, token: Ints, n_chunks: int, device: torch.device) -> None:
        self.tokens = _Listed(chunk, n_chunks, device, token=token)
        self.rows = _Listed(np.unique(chunk), n_chunks, device)

    def at(self, chunks: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Row and token of each in a block of chunks, and the rows that have any."""
        entries, rows = (listed.slice_of(chunks.start, chunks.stop) for listed in (self.tokens, self.rows))
        begin = chunks.start
        return self.tokens.owner[entries] - begin, self.tokens.numbers["token"][entries], self.rows.owner[rows] - begin


class _PathPass:
    """Path-KL over one batch."""

    def __init__(self, roots: SplitRoots, teacher_vocab_size: int, found: PathPlan) -> None:
        n_chunks, device = len(found.first_s), roots.partner.device
        self.roots, self.teacher_vocab_size = roots, teacher_vocab_size
        self.first_s, self.first_t = (torch.from_numpy(x).to(device) for x in (found.first_s, found.first_t))
        self.student, self.teacher = (_Nodes(v, n_chunks, device) for v in (found.student, found.teacher))
        self.later = self.teacher.rows
        swaps = found.root_swaps
        self.root_swaps = _Listed(swaps.chunk, n_chunks, device)
        self.placed, self.credited = (
            _Listed(swap, len(swaps.chunk), device, token=token) for swap, token in (swaps.placed, swaps.credited)
        )
        self.is_bare = torch.from_numpy(np.diff(self.credited.bounds) == 0).to(device)
        self.stays = torch.from_numpy(found.stays).to(device)
        self.ended_s, self.ended_t = (_Ended(*pair, n_chunks, device) for pair in (found.ended_s, found.ended_t))

    def prepare(self, student: WholeSignal, teacher: TeacherSignal, scratch: Scratch, size: int) -> None:
        self._said = _read(self.student, teacher, scratch, size).children
        read = _read(self.teacher, student, scratch, size, with_rest=True)
        self._going_on, self._swapped_in, self._rest = read.children, read.swaps, read.rest
        self._on_rest, self._on_children = torch.zeros_like(self._rest), torch.zeros_like(self._going_on)
        self._on_swapped_in = torch.zeros_like(self._swapped_in)

    def evaluate(self, at: slice, student: Rows, teacher: Rows, scratch: Scratch) -> KernelResult:
        row, token, touched = self.ended_t.at(at)
        is_alive = _end_previous(student, row, token, touched)[touched] > 0
        student.log_probs[touched, 0] = torch.where(is_alive, student.log_probs[touched, 0], NEG_INF)
        probs_t, tail, total = _teacher_probs(teacher, *self.ended_s.at(at), self.teacher_vocab_size, scratch)
        own, others = _Block(self.student, at), _Block(self.teacher, at)
        label = self._label(own)
        inside = _probs_at(student, own.chunk[own.member_visit], own.member_token)
        mass = own.by_group(inside, own.member_group)
        forward = _node_kl(label, mass, own)
        swaps = _Swaps.of(_probs_at(student, own.chunk[own.swap_visit], own.swap_token), mass[own.swap_group])
        mirror, mirror_swaps = self._mirror(others, probs_t, own, label)
        root_swaps = self._root_swaps(at, student)
        roots = _root_kl(self.roots, student, probs_t, tail, scratch)
        direct, on_probs = roots.direct, (roots.reached > 0).to(roots.values.dtype)
        texts = root_swaps.add_to(direct, on_probs)

        nodes = torch.zeros_like(roots.values)
        is_text = self.teacher.is_text[others.visits]
        nodes.index_add_(0, own.chunk, forward.values.to(nodes.dtype))
        nodes.index_add_(0, others.chunk, torch.where(is_text, 0, mirror.values).to(nodes.dtype))
        texts.index_add_(0, others.chunk, torch.where(is_text, mirror.values, 0).to(nodes.dtype))
        texts.index_add_(0, own.chunk[own.swap_visit], swaps.values.to(nodes.dtype))
        texts.index_add_(0, others.chunk[others.swap_visit], mirror_swaps.values.to(nodes.dtype))

        on_group = own.by_group(swaps.on_class, own.swap_group) - forward.pull
        by_member = inside * (forward.whole[own.member_visit] + on_group[own.member_group])
        _add_at(direct, own.chunk[own.member_visit], own.member_token, by_member)
        _add_at(direct, own.chunk[own.swap_visit], own.swap_token, -swaps.counts)
        uncovered = (total - roots.reached).clamp_(min=0)
        parts = {"node_kl": nodes, "text_nll": texts}
        values = roots.values + nodes + texts
        return KernelResult(values, direct, on_probs, None, parts, {"uncovered_mass": uncovered})

    def later_gradient(self, at: slice, probs: Tensor, scale: float | Tensor) -> None:
        # Where END's mass is below what this type holds, its tokens' gradient is lost, and no number is infinite.
        largest = 1 / torch.finfo(probs.dtype).tiny
        probs.mul_((scale * self._on_rest[at].clamp(-largest, largest)).to(probs.dtype).unsqueeze(1))
        place, entries = _places(self.teacher.children, at)
        probs[place] = (scale * self._on_children[entries]).to(probs.dtype)
        (row, token), entries = _places(self.teacher.swaps, at)
        _add_at(probs, row, token, scale * self._on_swapped_in[entries])

    def _root_swaps(self, at: slice, student: Rows) -> _RootSwaps:
        """The swaps with a whole root."""
        swaps = self.root_swaps.slice_of(at.start, at.stop)
        chunk, n = self.root_swaps.owner[swaps] - at.start, swaps.stop - swaps.start
        read = []
        for listed in (self.placed, self.credited):
            (swap, token), _ = _places(listed, swaps)
            probs = _probs_at(student, chunk[swap], token)
            read.append((swap, token, probs, probs.new_zeros(n).index_add_(0, swap, probs)))
        placed, credited = read
        is_bare = self.is_bare[swaps]  # nothing was credited, so nothing is taken back
        found = _Swaps.of(placed[3], torch.where(is_bare, 1, credited[3]))
        return _RootSwaps(chunk, found, placed[:3], credited[:3], is_bare)

    def _label(self, own: _Block) -> Tensor:
        """[G], what the teacher says of the student's tokens: its distribution after the pieces so far."""
        label = own.by_group(self._said[own.child_at], own.child_group)
        label[own.ends] = (1 - own.by_visit(label)).clamp_(min=0)
        return label

    def _mirror(self, others: _Block, probs_t: Tensor, own: _Block, label_s: Tensor) -> tuple[_NodeKL, _Swaps]:
        """The nodes of the teacher's tokens, and their gradient at the student's later rows."""
        mass_t = others.by_group(
            _wide(probs_t[others.chunk[others.member_visit], others.member_token]), others.member_group
        )
        begins = others.by_visit(mass_t)
        label = mass_t / torch.where(begins > 0, begins, 1)[others.group_visit]
        # Where the student might have gone on from the same root, the label is of the texts where it did not.
        stays = self.stays[others.visits]
        known = stays >= 0
        goes_on = 1 - _taken(label_s[own.ends], stays - own.visits.start)
        chance = torch.where(known, 1 - label[others.ends] * goes_on, 1)
        label = label / torch.where(chance > 0, chance, 1)[others.group_visit]
        goes_on = others.by_visit(label.index_fill(0, others.ends, 0))
        label[others.ends] = torch.where(known, (1 - goes_on).clamp_(min=0), label[others.ends])
        label = label * ((chance > 0) & (begins > 0))[others.group_visit]
        is_text = self.teacher.is_text[others.visits][others.group_visit]
        label = torch.where(is_text, (~others.is_end).to(label.dtype), label)

        going_on = self._going_on[others.child_at]
        mass = others.by_group(going_on, others.child_group)
        mass[others.ends] = self._rest[others.visits]
        found = _node_kl(label, mass, others)
        swaps = _Swaps.of(self._swapped_in[others.swap_at], mass[others.swap_group])
        on_group = others.by_group(swaps.on_class, others.swap_group) - found.pull
        self._on_rest[others.visits] = found.whole + on_group[others.ends]
        on_children = going_on * (found.whole[others.child_visit] + on_group[others.child_group])
        self._on_children[others.child_at] = on_children
        self._on_swapped_in[others.swap_at] = -swaps.counts
        return found, swaps


@dataclass(frozen=True)
class _RootKL:
    """The roots of K chunks: values, the gradient but for q, and the teacher's mass that was compared."""

    values: Tensor
    direct: Tensor
    reached: Tensor


def _root_kl(roots: SplitRoots, student: Rows, probs_t: Tensor, tail: Tensor | None, scratch: Scratch) -> _RootKL:
    """KL by root; `student.log_probs` is overwritten.

    Args:
        roots: of the pair.
        student: first rows.
        probs_t: [K, V_T].
        tail: [K], of a top-k signal, what is in none of the columns of `probs_t`.
        scratch: for the result.
    """
    k, v_s = student.logits.shape
    log_q = student.log_probs
    b_of = table(log_q, roots.student_ids).exp_()  # [tokens, K], and summed [X, K]
    b = weighted_sums(b_of, _all(b_of), roots.student_starts, torch.ones_like(b_of[:, 0]))
    a_of = table(probs_t, roots.teacher_ids)
    a = weighted_sums(a_of, _all(a_of), roots.teacher_starts, torch.ones_like(a_of[:, 0]))
    b = b.masked_fill_(b < torch.finfo(b.dtype).tiny, 0)  # else 1 / b is none
    unseen = None if tail is None else a == 0
    a = a.masked_fill_(b == 0, 0)

    moved = torch.gather(probs_t, 1, roots.partner.expand(k, -1), out=scratch.take("moved", k, v_s))
    moved.mul_(roots.is_alone)
    aside = None if tail is None else torch.where(moved == 0, roots.is_alone, 0)
    moved.mul_(torch.gt(log_q, NEG_INF, out=scratch.take("alive", k, v_s, dtype=torch.bool)))
    # p log p without xlogy, which takes a CPU four times as long; at the smallest number it is 0 as good as at 0.
    own = torch.clamp(moved, min=torch.finfo(moved.dtype).tiny, out=scratch.take("own", k, v_s))
    own = own.log_().mul_(moved).sum(dim=1)
    cross = log_q.nan_to_num_(nan=_NAN, posinf=_INF, neginf=0.0).mul_(moved).sum(dim=1)
    reached = moved.sum(dim=1) + a.sum(dim=0).to(moved.dtype)
    own = own + torch.xlogy(a, a).sum(dim=0).to(moved.dtype)
    cross = cross + torch.xlogy(a, b).sum(dim=0).to(moved.dtype)
    ratio = torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)
    if tail is not None and aside is not None and unseen is not None:
        mass = (student.probs * aside).sum(dim=1) + torch.where(unseen, b, 0).sum(dim=0).to(moved.dtype)
        counts = (tail > 0) & (mass > 0)
        tail, mass = torch.where(counts, tail, 0), torch.where(counts, mass, 1)
        own, cross, reached = own + torch.xlogy(tail, tail), cross + torch.xlogy(tail, mass), reached + tail
        pull = tail / mass
        moved.addcmul_(student.probs * aside, pull.unsqueeze(1))
        ratio = torch.where(unseen, pull.to(ratio.dtype), ratio)
    moved.scatter_(1, roots.student_ids.expand(k, -1), b_of.mul_(ratio[roots.student_roots]).t().to(moved.dtype))

    learns = reached > 0
    reached_or_one = torch.where(learns, reached, 1)
    values = torch.where(learns, (own - cross) / reached_or_one - reached_or_one.log(), 0)
    moved.mul_(-torch.where(learns, 1 / reached_or_one, 0).unsqueeze(1))
    return _RootKL(values, moved, reached)


def _end_previous(rows: Rows, row: Tensor, token: Tensor, touched: Tensor) -> Tensor:
    """Takes tokens out of some rows; returns [K], 0 for a row that had no other and is one of zeros now, else 1."""
    rows.logits[row, token] = NEG_INF
    dead = rows.logits.index_select(0, touched).amax(dim=1) == NEG_INF
    rows.logits[touched, 0] = torch.where(dead, 0, rows.logits[touched, 0])  # a softmax needs one
    rows.probs[touched, 0] = torch.where(dead, 0, rows.probs[touched, 0])
    total = rows.probs.new_ones(len(rows.probs))
    total[touched] = torch.where(dead, 0.0, 1.0).to(total.dtype)
    return total


def _teacher_probs(
    rows: Rows, row: Tensor, token: Tensor, touched: Tensor, vocab_size: int, scratch: Scratch
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The teacher's first rows [K, V_T] without these tokens, a top-k signal's tail [K], and the sums of both."""
    if rows.token_ids is None:
        total = _end_previous(rows, row, token, touched)
        return rows.probs, None, total
    assert rows.log_tail is not None
    probs, tail = _spread(rows.logits.exp(), rows.token_ids, vocab_size, scratch, 0.0), rows.log_tail.exp()
    probs[row, token] = 0
    whole = probs.sum(dim=1) + tail
    total, whole = (whole > 0).to(whole.dtype), torch.where(whole > 0, whole, 1)
    return probs.div_(whole.unsqueeze(1)), tail / whole, total


def _spread(kept: Tensor, token_ids: Tensor, vocab_size: int, scratch: Scratch, elsewhere: float) -> Tensor:
    """A top-k signal's columns in a whole vocabulary."""
    rows = scratch.take("spread", len(kept), vocab_size).fill_(elsewhere)
    return rows.scatter_(1, token_ids, kept)


def _all(numbers: Tensor) -> Tensor:
    return torch.arange(len(numbers), device=numbers.device)


@dataclass(frozen=True)
class _Read:
    """What was read off the rows of some visits, as probabilities: the children's, the swapped in, all but children."""

    children: Tensor
    swaps: Tensor
    rest: Tensor


def _read(nodes: _Nodes, signal: TeacherSignal, scratch: Scratch, size: int, with_rest: bool = False) -> _Read:
    """Reads every visit's row; only the children's without `with_rest`."""
    lengths = len(nodes.children.owner), *((len(nodes.swaps.owner), nodes.n) if with_rest else (0, 0))
    found = _Read(*(torch.empty(n, dtype=_wide_type(scratch.device), device=scratch.device) for n in lengths))
    for at in blocks(nodes.n, size):
        log_p = _log_probs(signal, nodes.rows[at], scratch)
        place, entries = _places(nodes.children, at)
        found.children[entries] = log_p[place].to(found.children.dtype)
        if with_rest:
            swapped, where = _places(nodes.swaps, at)
            found.swaps[where] = log_p[swapped].to(found.swaps.dtype)
            log_p[place] = NEG_INF
            found.rest[at] = log_p.logsumexp(dim=1).to(found.rest.dtype)
    return _Read(found.children.exp_(), found.swaps.exp_(), found.rest.exp_())


def _places(listed: _Listed, at: slice) -> tuple[tuple[Tensor, Tensor], slice]:
    """Row and column of the entries of some visits in a matrix of their rows, and where these entries lie."""
    entries = listed.slice_of(at.start, at.stop)
    return (listed.owner[entries] - at.start, listed.numbers["token"][entries]), entries


def _probs_at(student: Rows, row: Tensor, token: Tensor) -> Tensor:
    """Single probabilities of the first rows, wide: an exponential of what float32 still tells apart."""
    return _wide(student.log_probs[row, token]).exp_()


def _add_at(matrix: Tensor, row: Tensor, column: Tensor, values: Tensor) -> None:
    """Adds to single entries, some of which may be named twice."""
    matrix.view(-1).index_add_(0, row * matrix.shape[1] + column, values.to(matrix.dtype))


def _log_probs(signal: TeacherSignal, rows: Tensor, scratch: Scratch) -> Tensor:
    """[n, V]; of a top-k signal -inf where it says nothing."""
    if isinstance(signal, TopKSignal):
        kept = signal.log_probs.index_select(0, rows).to(scratch.dtype)
        return _spread(kept, signal.token_ids.index_select(0, rows), signal.vocab_size, scratch, NEG_INF)
    logits = read_logits(signal, rows, scratch, "later")
    return torch.log_softmax(logits, -1, out=scratch.take("later log_probs", *logits.shape))


def _wide_type(device: torch.device) -> torch.dtype:
    """float64 where the device has it (Apple's has not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(values: Tensor) -> Tensor:
    return values.to(_wide_type(values.device))


def _taken(values: Tensor, at: Tensor) -> Tensor:
    """values[at], any value where `at` is below 0."""
    return values[at.clamp(min=0)] if len(values) else values.new_ones(len(at))
