"""Path-KL: what the teacher says along the text about the student's whole token, by the chain rule.

A token of the student is read as a path: first its **root**, the common token it begins with, then one teacher piece
after the other until it ENDs. The teacher's own distributions along the text say how likely each step of that path is,
so each step is a KL of its own and their sum, over texts the teacher would write, is the KL of the whole token. Where
the teacher's token is the longer one the same holds with the sides exchanged. docs/losses.md has the derivation.

For a chunk of student tokens s_1 .. s_n and teacher tokens t_1 .. t_m, with p_0 and q_0 the distributions at its first
rows, the previous tokens of both sides having ended:

(0) roots:      KL of p_0 and q_0, each summed by root.
(d) student's token: after t_1 .. t_d, while they are its first d pieces, among the student tokens that begin with
                these pieces, which piece comes next, or END. Teacher: its distribution after t_d. Student: q_0 within
                these tokens.
(d) teacher's token: after s_1 .. s_d, while they are its first d pieces, the same with the sides exchanged: p_0 within
                the teacher's tokens that begin with these pieces, against the student's distribution after s_d.

That a token has ended is said once, at its last node: the pieces that would have continued it are taken out of the next
first row, on the side whose row it was. And where the text shows that its own teacher token was credited to a class
that the student's token is not in, or not alone in, the token takes the place of that class: a **swap**, minus
log q(token) plus log q(class). A student token that no teacher token says anything of is taught by the text, minus
log q. Both are rare. They put right what occurred: where tokens cross, teacher tokens that did not occur keep the
rule's credit, and a bias with it.

Law: without swaps never negative, and 0 where all of these agree; for equal tokenizers, no two of whose ids spell the
same, the same-tokenizer KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.fast.passes import Kernel
from xtoken.losses.fast.path_kl import PathKernel, SplitRoots, split_roots
from xtoken.losses.index import ChunkIndex
from xtoken.losses.term import LossTerm
from xtoken.projection.tries import NO_ROOT, PathTries, Trie
from xtoken.teachers.signal import TeacherSignal, TopKSignal, flat_log_probs

__all__ = ["PathKL"]

END = -1  # a group; the others are named by their piece
Cuts = list[tuple[int, ...]]


class PathKL(ChunkLoss):
    """Path-KL between a student and a teacher with different tokenizers; see the module and docs/losses.md.

    In nats a chunk. The student is read at the signal's temperature tau, and the loss is multiplied by tau^2 (the chain
    rule holds at 1). Of a top-k signal the tail counts as one class with all the roots that no kept token has, and as
    END at the nodes.

    Metrics, summed over the chunks: `node_kl` and `text_nll`, the parts of the value that are of nodes, and of swaps
    and tokens taught by the text; `uncovered_mass`, the teacher's mass on roots that the student has no token for,
    left out of the first term.

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
    """A chunk's tokens by their spelling, the student's ids, the rows that predict them and the row after each side."""

    student: list[int]
    teacher: list[int]
    student_ids: list[int]
    student_rows: list[int]
    teacher_rows: list[int]


@dataclass(frozen=True)
class _Visit:
    """A node on the path of a chunk's token.

    Attributes:
        depth: d, how many pieces lead to it.
        row: the row of the other side that says how the path goes on.
        groups: tokens of the longer side by what they do next: a piece, or `END`.
        own: the group that the token is in.
        other: the group of the other side's next token: that of its piece, or END.
        is_last: whether the chunk ends here.
    """

    depth: int
    row: int
    groups: dict[int, list[int]]
    own: int
    other: int
    is_last: bool


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
        names = ("student_tokens", "teacher_tokens", "student_rows", "teacher_rows")
        ids_s, ids_t, rows_s, rows_t = (getattr(index, name).tolist() for name in names)
        found = [
            _Chunk(
                [self.spelled_s[i] for i in ids_s[s0:s1]],
                [self.spelled_t[i] for i in ids_t[t0:t1]],
                ids_s[s0:s1],
                [*rows_s[s0:s1], rows_s[s1 - 1] + 1],
                [*rows_t[t0:t1], rows_t[t1 - 1] + 1],
            )
            for (s0, s1), (t0, t1) in zip(pairwise(starts[0]), pairwise(starts[1]), strict=True)
        ]
        self.chunks = sorted(found, key=lambda chunk: chunk.student_rows[0])

    def term(self) -> LossTerm:
        zero, empty = self.q.sum() * 0, self.q.new_zeros(0)
        found = [self.chunk_terms(k, chunk) for k, chunk in enumerate(self.chunks)]
        roots, nodes, texts, uncovered = (
            (torch.stack([zero + x for x in terms]) for terms in zip(*found, strict=True)) if found else [empty] * 4
        )
        scale = self.temperature**2
        values = scale * (roots + nodes + texts) + zero
        return LossTerm.of(values, node_kl=scale * nodes, text_nll=scale * texts, uncovered_mass=uncovered)

    def chunk_terms(self, k: int, chunk: _Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parts of the value that are of roots, of nodes and of the text; and the uncovered mass."""
        ended_s, ended_t = self.continuations(k)
        q0 = _without(self.q[chunk.student_rows[0]], ended_t)
        p0, tail0 = self.teacher_first(chunk.teacher_rows[0], ended_s)
        root, uncovered = self.root_term(p0, tail0, q0)
        forward, mirror = self.student_visits(k), self.teacher_visits(k)
        nodes = texts = q0.sum() * 0
        goes_on = None  # the chance that the student's token goes on from its root after the teacher's, where known
        for visit in forward:
            label = {piece: self.p_of(visit.row, piece) for piece in visit.groups if piece != END}
            label[END] = (1 - sum(label.values())).clamp(min=0)
            if visit.depth == len(chunk.teacher) == len(chunk.student) == 1:
                goes_on = 1 - label[END]
            mass = {piece: q0[tokens].sum() for piece, tokens in visit.groups.items()}
            nodes = nodes + _node_kl(label, mass)
            if visit.own != visit.other:
                texts = texts + _swap(q0[chunk.student_ids[0]], mass.get(visit.other, nodes * 0))
        begins_so = self.tau[chunk.student[0]][:1] == (chunk.teacher[0],)
        if not begins_so or self.roots_s[chunk.student[0]] == NO_ROOT:
            alike = [i for i, cut in enumerate(self.tau) if begins_so and cut[:1] == (chunk.teacher[0],)]
            texts = texts + _swap(q0[alike or chunk.student_ids[:1]].sum(), self.credited(q0, chunk.teacher[0]))
        alike = [i for i, cut in enumerate(self.tau) if cut == tuple(chunk.teacher)]
        is_wrong = any(visit.own != visit.other for visit in forward)
        if chunk.student_ids[0] in alike and len(alike) > 1 and not is_wrong:
            texts = texts + _swap(q0[chunk.student_ids[0]], q0[alike].sum())
        for visit in mirror:
            mass = {piece: self.q_of(visit.row, piece) for piece in visit.groups if piece != END}
            rest = [i for i, spelling in enumerate(self.spelled_s) if spelling not in mass]
            mass[END] = self.q[visit.row][rest].sum()
            begin_so = {piece: p0[tokens].sum() for piece, tokens in visit.groups.items()}
            if visit.is_last and visit.own != visit.other:
                # The next chunk tells of the student's next token, so here its group only counts as END.
                begin_so, mass = (_merged(x, visit.own, visit.other) for x in (begin_so, mass))
            label = _mirror_label(begin_so, goes_on if visit.depth == 1 else None)
            nodes = nodes + _node_kl(label, mass)
            if not visit.is_last and visit.own != visit.other:
                realised = self.q[visit.row][chunk.student_ids[visit.depth]]
                texts = texts + _swap(realised, mass.get(visit.own, realised * 0))
        told = {visit.depth for visit in mirror}
        for d in range(1, len(chunk.student)):
            if d not in told:
                realised = self.q[chunk.student_rows[d]][chunk.student_ids[d]]
                texts = texts + _swap(realised, torch.ones_like(realised))
        return root, nodes, texts, uncovered

    def credited(self, q0: Tensor, token: int) -> Tensor:
        """The student's mass on the root of a teacher token; 1 where it has none, since then nothing was credited."""
        root = self.roots_t[token]
        of_root = [i for i, r in enumerate(self.roots_s) if r == root]
        return q0.new_ones(()) if root == NO_ROOT else q0[of_root].sum()

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
        uncovered = p0.sum() + tail - covered
        if not covered > 0:
            return q0.sum() * 0, uncovered.detach()
        shares = [(a[root] / covered, b[root]) for root in alive]
        return sum(x * (x.log() - y.log()) for x, y in shares), uncovered.detach()

    def student_visits(self, k: int) -> list[_Visit]:
        """The nodes of the student's first token: the teacher's tokens are its pieces, one after the other."""
        chunk, following = self.chunks[k], self.next_chunk(k)
        after = following.teacher[0] if following else None
        return _visits(self.tau, chunk.student[0], chunk.teacher, after, chunk.teacher_rows)

    def teacher_visits(self, k: int) -> list[_Visit]:
        """The same for the teacher's first token and the student's tokens."""
        chunk, following = self.chunks[k], self.next_chunk(k)
        after = following.student[0] if following else None
        return _visits(self.sigma, chunk.teacher[0], chunk.student, after, chunk.student_rows)

    def next_chunk(self, k: int) -> _Chunk | None:
        """The chunk that begins where this one ends, on both sides."""
        if k + 1 == len(self.chunks):
            return None
        this, other = self.chunks[k], self.chunks[k + 1]
        is_next = other.student_rows[0] == this.student_rows[-1] and other.teacher_rows[0] == this.teacher_rows[-1]
        return other if is_next else None

    def continuations(self, k: int) -> tuple[list[int], list[int]]:
        """The pieces that would have continued the previous tokens: of the student's, the teacher's ids; of the
        teacher's, the student's ids.

        The teacher's label is of texts where the student's token ended, whether or not a node has told of it. What is
        taken out of the student's row is not taught there, so there a node must have told.
        """
        if k == 0 or self.next_chunk(k - 1) is None:
            return [], []
        groups = _groups_of(self.tau, self.tau[self.chunks[k - 1].student[-1]])
        ended_s = set(groups) - {END, self.chunks[k].teacher[0]} if sum(map(len, groups.values())) > 1 else set()
        visits = self.teacher_visits(k - 1)
        last = visits[-1] if visits and visits[-1].is_last and visits[-1].own == END else None
        ended_t = set() if last is None else set(last.groups) - {END, last.other}
        return (
            [i for i, spelling in enumerate(self.spelled_t) if spelling in ended_s],
            [i for i, spelling in enumerate(self.spelled_s) if spelling in ended_t],
        )

    def teacher_first(self, row: int, ended: list[int]) -> tuple[Tensor, Tensor]:
        kept = self.p[row].clone()
        kept[ended] = 0
        whole = kept.sum() + self.tail[row]
        return (kept / whole, self.tail[row] / whole) if whole > 0 else (kept, self.tail[row])

    def p_of(self, row: int, piece: int) -> Tensor:
        return self.p[row][[i for i, spelling in enumerate(self.spelled_t) if spelling == piece]].sum()

    def q_of(self, row: int, piece: int) -> Tensor:
        return self.q[row][[i for i, spelling in enumerate(self.spelled_s) if spelling == piece]].sum()


def _visits(cuts: Cuts, token: int, path: list[int], after: int | None, rows: list[int]) -> list[_Visit]:
    """The nodes along a token's pieces, while the other side's tokens are these pieces.

    Args:
        cuts: of all tokens of the token's side.
        token: the token.
        path: the other side's tokens in the chunk.
        after: its next token, if the next chunk is adjacent; None if it is not.
        rows: its rows, the one after the chunk last.
    """
    found, cut = [], cuts[token]
    for d in range(1, len(path) + 1):
        if cut[:d] != tuple(path[:d]):
            break
        groups = _groups_of(cuts, cut[:d])
        if sum(len(tokens) for tokens in groups.values()) < 2:
            break
        own, is_last = cut[d] if d < len(cut) else END, d == len(path)
        if is_last and (own != END or after is None):
            break  # the text cuts this token in another way, or the row after the chunk is none of the loss's
        taken = after if is_last else path[d]
        other = taken if taken in groups else END
        if len(groups) > 1:
            found.append(_Visit(d, rows[d], groups, own, other, is_last))
        if own != other or own == END:
            break
    return found


def _groups_of(cuts: Cuts, path: tuple[int, ...]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for token, cut in enumerate(cuts):
        if path and cut[: len(path)] == path:
            found.setdefault(cut[len(path)] if len(cut) > len(path) else END, []).append(token)
    return found


def _mirror_label(masses: dict[int, Tensor], goes_on: Tensor | None) -> dict[int, Tensor]:
    """What the teacher's first row says of its tokens that begin with the pieces of a node; empty for nothing.

    Args:
        masses: of these tokens, by group.
        goes_on: how likely the student's token goes on from the same root after the teacher's; None where it cannot,
            or where that is not known.
    """
    whole = sum(masses.values())
    if not whole > 0:
        return {}
    label = {piece: mass / whole for piece, mass in masses.items()}
    if goes_on is not None:  # the label is of the texts where it does not
        stays = 1 - label[END] * goes_on
        if not stays > 0:
            return {}
        label = {piece: mass / stays for piece, mass in label.items() if piece != END}
        label[END] = (1 - sum(label.values(), start=whole * 0)).clamp(min=0)
    return label


def _merged(masses: dict[int, Tensor], own: int, other: int) -> dict[int, Tensor]:
    """One of the two groups is END; the other one joins it."""
    joins = own if other == END else other
    found = {group: mass for group, mass in masses.items() if group != joins}
    if joins in masses:
        found[END] = found[END] + masses[joins]
    return found


def _node_kl(label: dict[int, Tensor], mass: dict[int, Tensor]) -> Tensor:
    """KL over the groups that the student has probability for, both sides normalised there."""
    zero = sum(mass.values()) * 0
    alive = [group for group in label if group in mass and mass[group] > 0]
    whole, all_mass = sum(label[g] for g in alive), sum(m for m in mass.values() if m > 0)
    if not alive or not whole > 0:
        return zero
    shares = [(label[g] / whole, mass[g] / all_mass) for g in alive if label[g] > 0]
    return sum((x * (x.log() - y.log()) for x, y in shares), start=zero)


def _swap(token: Tensor, credited: Tensor) -> Tensor:
    """-log of a token's probability plus log of its class's; 0 where either is impossible."""
    return credited.log() - token.log() if token > 0 and credited > 0 else token * 0 + credited * 0


def _dense(teacher: TeacherSignal) -> tuple[Tensor, Tensor]:
    """The teacher's probabilities [R, V_T], and [R] what a top-k signal leaves out."""
    if not isinstance(teacher, TopKSignal):
        probs = teacher.log_probs.exp()
        return probs, probs.new_zeros(len(probs))
    probs = teacher.log_probs.exp()
    dense = probs.new_zeros(len(probs), teacher.vocab_size)
    return dense.scatter(1, teacher.token_ids, probs), teacher.log_tail.exp()


def _cuts(trie: Trie) -> Cuts:
    return [tuple(trie.pieces[begin:end].tolist()) for begin, end in pairwise(trie.piece_starts.tolist())]


def _by_root(probs: Tensor, roots: Sequence[int]) -> dict[object, Tensor]:
    tokens: dict[int, list[int]] = {}
    for token, root in enumerate(roots):
        if root != NO_ROOT:
            tokens.setdefault(root, []).append(token)
    return {root: probs[ids].sum() for root, ids in tokens.items()}


def _without(probs: Tensor, ids: list[int]) -> Tensor:
    kept = torch.ones_like(probs)
    kept[ids] = 0
    whole = (probs * kept).sum()
    return probs * kept / whole if whole > 0 else probs * kept
