"""Path-KL: what the teacher says along the text about the student's whole token, by the chain rule.

A token of the student is read as a path: first its **root**, the common token it begins with, then one teacher piece
after the other until it ENDs. The teacher's own distributions along the text say how likely each step of that path is,
so each step is a KL of its own and their sum, over texts the teacher would write, is the KL of the whole token. Where
the teacher's token is the longer one the same holds with the sides exchanged. docs/losses.md has the derivation.

For a chunk of student tokens s_1 .. s_n and teacher tokens t_1 .. t_m, with p_0 and q_0 the distributions at its first
rows, the previous tokens of both sides having ended:

(0) roots:      KL of p_0 and q_0, each summed by root.
(d) student's token: after t_1 .. t_d, while they are its first d pieces, among the student tokens that begin with
                these pieces, which piece comes next, or END. Teacher: its distribution after t_d, times for d = 1 the
                share alpha of t_1 among the teacher's tokens that begin like it. Student: q_0 within these tokens.
(d) teacher's token: after s_1 .. s_d, while they are its first d pieces, the same with the sides exchanged: p_0 within
                the teacher's tokens that begin with these pieces, against the student's distribution after s_d.

That a token has ended is said once, at its last node: the pieces that would have continued it are taken out of the next
first row, on the side whose row it was. Law: 0 where all of these agree; for equal tokenizers the same-tokenizer KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
from torch import Tensor

from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.fast.passes import Kernel
from xtoken.losses.fast.path_kl import PathKernel, SplitRoots, split_roots
from xtoken.losses.index import ChunkIndex
from xtoken.losses.term import LossTerm
from xtoken.projection.tries import PathTries, Trie
from xtoken.teachers.signal import TeacherSignal, TopKSignal, flat_log_probs

__all__ = ["PathKL"]

END = -1  # a group; the others are named by their piece
Cuts = list[tuple[int, ...]]


class PathKL(ChunkLoss):
    """Path-KL between a student and a teacher with different tokenizers; see the module and docs/losses.md.

    A divergence, in nats a chunk: never negative. The student is read at the signal's temperature tau, and the loss is
    multiplied by tau^2 (the chain rule holds at 1). Of a top-k signal the tail counts as one class with all the roots
    that no kept token has, and as END at the nodes.

    Metrics, summed over the chunks: `node_kl`, the part of the value that is not of roots; `uncovered_mass`, the
    teacher's mass on roots that the student has no token for, left out of the first term; `skipped_chunks`, those whose
    first tokens have different roots, which count 0.

    Args:
        tries: of the pair; see `xtoken.projection.build_tries`.

    Source: ours.
    """

    def __init__(self, tries: PathTries) -> None:
        super().__init__()
        self.student_vocab_size, self.teacher_vocab_size = tries.shape
        self.tries = tries
        # Made from the tries, which live in their own file: a checkpoint should not repeat them.
        for name, tensor in split_roots(tries.student_roots, tries.teacher_roots).tensors().items():
            self.register_buffer(name, tensor, persistent=False)

    def kernel(self) -> Kernel | None:
        return PathKernel(self.tries, SplitRoots(**{f.name: getattr(self, f.name) for f in fields(SplitRoots)}))

    def reference(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        """In plain Python, a chunk at a time: slow, and to be read beside the derivation."""
        return _Reference(self.tries, student_logits, teacher, index).term()


@dataclass(frozen=True)
class _Chunk:
    """A chunk's tokens by their spelling, the rows that predict them and the row after each side's last token."""

    student: list[int]
    teacher: list[int]
    student_rows: list[int]
    teacher_rows: list[int]


@dataclass(frozen=True)
class _Visit:
    """A node on the path of a chunk's token.

    Attributes:
        depth: d, how many pieces lead to it.
        row: the row of the other side that says how the path goes on.
        groups: tokens of the longer side by what they do next: a piece, or `END`.
        merged: a group that counts as another at this visit, because the text shows that the two cannot be told apart:
            the other side's next token is credited to one of them, and the token took the other.
        is_closed: whether END is left out: no token stops here, or what it would say is not known.
        ended: whether the token stopped here.
    """

    depth: int
    row: int
    groups: dict[int, list[int]]
    merged: dict[int, int]
    is_closed: bool
    ended: bool


class _Reference:
    """Path-KL of one batch; every method is a sentence of the module's text."""

    def __init__(self, tries: PathTries, logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> None:
        v_s, _ = tries.shape
        self.tau, self.sigma = _cuts(tries.student), _cuts(tries.teacher)
        self.spelled_s, self.spelled_t = tries.teacher.spelling.tolist(), tries.student.spelling.tolist()
        self.roots_s, self.roots_t = tries.student_roots.tolist(), tries.teacher_roots.tolist()
        self.q = flat_log_probs(logits, v_s, teacher.temperature, "student").exp()
        self.p, self.tail = _dense(teacher)
        self.temperature = teacher.temperature
        starts = index.student_starts.tolist(), index.teacher_starts.tolist()
        flat = [
            getattr(index, name).tolist()
            for name in ("student_tokens", "teacher_tokens", "student_rows", "teacher_rows")
        ]
        self.chunks = []
        for (s0, s1), (t0, t1) in zip(_pairs(starts[0]), _pairs(starts[1]), strict=True):
            tokens_s = [self.spelled_s[i] for i in flat[0][s0:s1]]
            tokens_t = [self.spelled_t[i] for i in flat[1][t0:t1]]
            rows_s, rows_t = flat[2][s0:s1], flat[3][t0:t1]
            self.chunks.append(_Chunk(tokens_s, tokens_t, [*rows_s, rows_s[-1] + 1], [*rows_t, rows_t[-1] + 1]))

    def term(self) -> LossTerm:
        empty = self.q.new_zeros(0)
        found: list[list[Tensor]] = [[], [], [], []]
        zero, one = self.q.sum() * 0, self.q.new_ones(())
        for k, chunk in enumerate(self.chunks):
            terms = (*self.chunk_terms(k, chunk), one - 1) if self.agrees(k) else (zero, zero, zero, one)
            for values, value in zip(found, terms, strict=True):
                values.append(value)
        values, nodes, uncovered, skipped = (torch.stack(x) if x else empty for x in found)
        tau = self.temperature
        return LossTerm.of(
            tau**2 * values + zero, node_kl=tau**2 * nodes, uncovered_mass=uncovered, skipped_chunks=skipped
        )

    def chunk_terms(self, k: int, chunk: _Chunk) -> tuple[Tensor, Tensor, Tensor]:
        """The value, the part of it that is of nodes, and the uncovered mass."""
        ended_s, ended_t = self.continuations(k)
        q0 = _without(self.q[chunk.student_rows[0]], ended_t)
        p0, tail0 = self.teacher_first(chunk.teacher_rows[0], ended_s)
        root, uncovered = self.root_term(p0, tail0, q0)
        forward, mirror = self.student_visits(k), self.teacher_visits(k)
        nodes = q0.sum() * 0
        stays = None  # the student's chance of stopping at its root, by the teacher, where it is known
        for visit in forward:
            alpha = self.share_of_exact(chunk.teacher[0], p0) if visit.depth == 1 else 1.0
            label = {piece: alpha * self.p_of(visit.row, piece) for piece in visit.groups if piece != END}
            label[END] = (1 - sum(label.values())).clamp(min=0)
            mass = {piece: q0[tokens].sum() for piece, tokens in visit.groups.items()}
            label, mass = _merge(label, visit), _merge(mass, visit)
            if visit.depth == len(chunk.teacher) == len(chunk.student) == 1:
                stays = label[END]
            nodes = nodes + _node_kl(label, mass, visit.is_closed)
        for visit in mirror:
            label = {piece: p0[tokens].sum() for piece, tokens in visit.groups.items()}
            whole = sum(label.values())
            if not whole > 0:
                continue
            label = {piece: mass / whole for piece, mass in label.items()}
            if visit.depth == 1 and stays is not None:
                if not stays > 0:
                    continue
                label = {piece: mass / stays for piece, mass in label.items() if piece != END}
                label[END] = (1 - sum(label.values())).clamp(min=0)
            mass = {piece: self.q_of(visit.row, piece) for piece in visit.groups if piece != END}
            mass[END] = 1 - sum(mass.values())
            nodes = nodes + _node_kl(_merge(label, visit), _merge(mass, visit), visit.is_closed)
        return root + nodes, nodes.detach(), uncovered

    def root_term(self, p0: Tensor, tail: Tensor, q0: Tensor) -> tuple[Tensor, Tensor]:
        """KL of the two distributions summed by root, on the roots that the student has probability for."""
        a, b = _by_root(p0, self.roots_t), _by_root(q0, self.roots_s)
        if tail > 0:  # of a top-k signal: one class with the roots that no kept token has
            seen = {root for root, mass in a.items() if mass > 0}
            a = {root: a[root] for root in seen} | {"tail": tail}
            b = {root: b[root] for root in seen if root in b} | {
                "tail": sum((mass for root, mass in b.items() if root not in seen), start=q0.sum() * 0)
            }
        alive = [root for root, mass in a.items() if root in b and b[root] > 0 and mass > 0]
        covered = sum((a[root] for root in alive), start=p0.sum() * 0)
        uncovered = sum(a.values(), start=p0.sum() * 0) - covered
        if not covered > 0:
            return q0.sum() * 0, uncovered.detach()
        shares = [(a[root] / covered, b[root]) for root in alive]
        return sum(x * (x / y).log() for x, y in shares), uncovered.detach()

    def student_visits(self, k: int) -> list[_Visit]:
        """The nodes of the student's first token: the teacher's tokens are its pieces, one after the other."""
        chunk, following = self.chunks[k], self.next_chunk(k)
        after = following.teacher[0] if following else None
        path, rows = chunk.teacher, chunk.teacher_rows
        return _visits(self.tau[chunk.student[0]], path, after, rows, self.tau)

    def teacher_visits(self, k: int) -> list[_Visit]:
        """The same for the teacher's first token and the student's tokens."""
        chunk, following = self.chunks[k], self.next_chunk(k)
        after = following.student[0] if following else None
        found = _visits(self.sigma[chunk.teacher[0]], chunk.student, after, chunk.student_rows, self.sigma)
        is_longer = len(chunk.teacher) == 1 and len(chunk.student) > 1
        if found and found[0].depth == 1 and is_longer and self.is_node(self.tau[chunk.student[0]]):
            # The student had longer tokens too, whose chance the teacher's longer token tells nothing of: whether it
            # went on is not asked, only how.
            found[0] = replace(found[0], is_closed=True)
        return found

    def is_node(self, path: Sequence[int]) -> bool:
        return len(_groups_of(self.tau, tuple(path))) > 1

    def next_chunk(self, k: int) -> _Chunk | None:
        """The chunk that begins where this one ends, on both sides."""
        if k + 1 == len(self.chunks):
            return None
        this, other = self.chunks[k], self.chunks[k + 1]
        is_next = other.student_rows[0] == this.student_rows[-1] and other.teacher_rows[0] == this.teacher_rows[-1]
        return other if is_next else None

    def continuations(self, k: int) -> tuple[list[int], list[int]]:
        """The pieces that would have continued the previous tokens: of the student's token, the teacher's ids, and of
        the teacher's token, the student's."""
        if k == 0 or self.next_chunk(k - 1) is None or not self.agrees(k - 1):
            return [], []
        found = []
        for visits, spelled in (
            (self.student_visits(k - 1), self.spelled_t),
            (self.teacher_visits(k - 1), self.spelled_s),
        ):
            last = visits[-1] if visits and visits[-1].ended else None
            pieces = [] if last is None else [x for x in last.groups if x != END and last.merged.get(x) != END]
            found.append([i for i, spelling in enumerate(spelled) if spelling in pieces])
        return found[0], found[1]

    def agrees(self, k: int) -> bool:
        return bool(self.roots_s[self.chunks[k].student[0]] == self.roots_t[self.chunks[k].teacher[0]])

    def share_of_exact(self, token: int, p0: Tensor) -> Tensor | float:
        """Among the teacher's tokens that begin with this one in the student's eyes, its own share."""
        cut = self.sigma[token]
        groups = _groups_of(self.sigma, cut) if len(cut) == 1 else {}
        whole = sum((p0[tokens].sum() for tokens in groups.values()), start=p0.sum() * 0)
        return p0[groups[END]].sum() / whole if END in groups and whole > 0 else 1.0

    def teacher_first(self, row: int, ended: list[int]) -> tuple[Tensor, Tensor]:
        kept = self.p[row].clone()
        kept[ended] = 0
        whole = kept.sum() + self.tail[row]
        return (kept / whole, self.tail[row] / whole) if whole > 0 else (kept, self.tail[row])

    def p_of(self, row: int, piece: int) -> Tensor:
        return self.p[row][[i for i, spelling in enumerate(self.spelled_t) if spelling == piece]].sum()

    def q_of(self, row: int, piece: int) -> Tensor:
        return self.q[row][[i for i, spelling in enumerate(self.spelled_s) if spelling == piece]].sum()


def _visits(cut: tuple[int, ...], path: list[int], after: int | None, rows: list[int], cuts: Cuts) -> list[_Visit]:
    """The nodes along a token's pieces, while the other side's tokens are these pieces.

    Args:
        cut: the token's pieces.
        path: the other side's tokens in the chunk.
        after: its next token, if the next chunk is adjacent.
        rows: its rows, the one after the chunk last.
        cuts: of all tokens of the token's side.
    """
    found = []
    for d in range(1, len(path) + 1):
        if cut[:d] != tuple(path[:d]) or len(cut[:d]) < d:
            break
        groups = _groups_of(cuts, cut[:d])
        if sum(len(tokens) for tokens in groups.values()) < 2:
            break
        is_closed = END not in groups
        taken = path[d] if d < len(path) else after  # what the other side wrote next
        true = cut[d] if d < len(cut) else END
        if d == len(path) and true != END:
            break  # the text cuts this token in another way
        credited = END if taken not in groups else taken
        merged = {}
        if taken is not None and credited != true:
            into = END if END in (credited, true) else credited
            merged = {x: into for x in (credited, true) if x != into}
            if into == END and is_closed:
                break
        found.append(_Visit(d, rows[d], groups, merged, is_closed, true == END))
        if taken != true:
            break
    return [visit for visit in found if len(visit.groups) > 1]


def _groups_of(cuts: Cuts, path: tuple[int, ...]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for token, cut in enumerate(cuts):
        if path and cut[: len(path)] == path:
            found.setdefault(cut[len(path)] if len(cut) > len(path) else END, []).append(token)
    return found


def _merge(masses: dict[int, Tensor], visit: _Visit) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for group, mass in masses.items():
        into = visit.merged.get(group, group)
        found[into] = found[into] + mass if into in found else mass
    return found


def _node_kl(label: dict[int, Tensor], mass: dict[int, Tensor], is_closed: bool) -> Tensor:
    """KL over the groups that the student has probability for, both sides normalised there."""
    alive = [group for group in label if not (is_closed and group == END) and group in mass and mass[group] > 0]
    whole, all_mass = sum(label[g] for g in alive), sum(mass[g] for g in alive)
    zero = sum(mass.values()) * 0
    if not alive or not whole > 0:
        return zero
    shares = [(label[g] / whole, mass[g] / all_mass) for g in alive if label[g] > 0]
    return sum((x * (x / y).log() for x, y in shares), start=zero)


def _dense(teacher: TeacherSignal) -> tuple[Tensor, Tensor]:
    """The teacher's probabilities [R, V_T], and [R] what a top-k signal leaves out."""
    if not isinstance(teacher, TopKSignal):
        probs = teacher.log_probs.exp()
        return probs, probs.new_zeros(len(probs))
    probs = teacher.log_probs.exp()
    dense = probs.new_zeros(len(probs), teacher.vocab_size)
    return dense.scatter(1, teacher.token_ids, probs), teacher.log_tail.exp()


def _cuts(trie: Trie) -> Cuts:
    bounds = trie.piece_starts.tolist()
    return [tuple(trie.pieces[begin:end].tolist()) for begin, end in _pairs(bounds)]


def _pairs(bounds: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(bounds))


def _by_root(probs: Tensor, roots: Sequence[int]) -> dict[object, Tensor]:
    tokens: dict[int, list[int]] = {}
    for token, root in enumerate(roots):
        tokens.setdefault(root, []).append(token)
    return {root: probs[ids].sum() for root, ids in tokens.items()}


def _without(probs: Tensor, ids: list[int]) -> Tensor:
    kept = torch.ones_like(probs)
    kept[ids] = 0
    whole = (probs * kept).sum()
    return probs * kept / whole if whole > 0 else probs * kept
