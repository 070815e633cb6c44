"""Partition-KL: for every chunk a list of events that both sides can put a probability on, and REST for all the others.

Which events depends on how the two sides cut the chunk:

1:1     the common tokens, each an event. (Where all of the student's tokens are common it has no REST: then the teacher
        is renormalised on them.)
1:N     the student tokens v of N teacher pieces that begin with the N - 1 pieces the text has. Student: q(v). Teacher:
        the probability of these pieces, times that of v's last piece at the last row. Fewer than two: left out.
N:1     the mirror: the teacher's tokens of N student pieces, with the sides exchanged.
N:M     the text of the chunk alone.

So on either side the last token's row says how the events differ, and the tokens before it are a factor common to all
of them: one formula, with a list of ids for each side's last row. REST is what is missing from 1. Law: both sides are
distributions, so the value is never negative, and 0 where they agree; for one vocabulary on 1:1 chunks, the
same-tokenizer KL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.divergence import kl_divergence
from xtoken.losses.fans import Fans, fans_of
from xtoken.losses.hybrid import PartitionLike, paired_ids
from xtoken.losses.index import ChunkIndex
from xtoken.losses.likelihood import log1mexp, log_prob_of, token_log_probs
from xtoken.losses.logspace import NEG_INF, log_normalise, log_sum, segment_ids
from xtoken.losses.merge import check_whole
from xtoken.losses.term import LossTerm
from xtoken.projection.tries import PathTries
from xtoken.teachers.signal import TeacherSignal, TopKSignal, flat_log_probs

__all__ = ["PartitionKL"]

_SIDES = ("student", "teacher")
_FAN_TENSORS = ("keys", "spelling", "starts", "tokens", "pieces")


@dataclass(frozen=True)
class _Events:
    """What is asked of the last rows of K chunks.

    Attributes:
        is_single: bool [K], 1:1 chunks, whose events are the common tokens.
        takes_part: bool [K].
        student_ids, teacher_ids: int64 [K, G], what each event is on either side's last row, of the other chunks.
        inside: bool [K, G], which of them are events.
    """

    is_single: Tensor
    takes_part: Tensor
    student_ids: Tensor
    teacher_ids: Tensor
    inside: Tensor


@dataclass(frozen=True)
class _Side:
    """One side of K chunks.

    Attributes:
        last: [K, V], nats, the distribution that predicts the last token.
        before: [K], nats, the probability of the tokens before it.
    """

    last: Tensor
    before: Tensor

    def log_rest(self, common: Tensor, ids: Tensor, events: _Events) -> Tensor:
        """log of what is missing from 1, [K].

        Args:
            common: bool [V], the common tokens.
            ids: int64 [K, G], of this side.
            events: the chunks'.
        """
        size = self.last.shape[1]
        listed = common.new_zeros(len(ids), size + 1).scatter(1, torch.where(events.inside, ids, size), True)
        is_event = torch.where(events.is_single.unsqueeze(1), common, listed[:, :size])
        inside, outside = (log_sum(torch.where(x, self.last, NEG_INF)) for x in (is_event, ~is_event))
        return log1mexp(self.before + log_prob_of(inside, outside))

    def listed(self, ids: Tensor, events: _Events) -> Tensor:
        """[K, G], nats, the listed events; -inf beside them."""
        return torch.where(events.inside, self.before.unsqueeze(1) + self.last.gather(1, ids), NEG_INF)


class PartitionKL(ChunkLoss):
    """KL over the events of each chunk and REST; see the module.

    In nats a chunk. A 1:N or N:1 chunk with fewer than two candidates takes no part and is not counted. The student is
    read at the signal's temperature tau, and the loss is multiplied by tau^2. It needs a dense signal. The metric
    `rest_mass` is the teacher's probability of REST, summed over the chunks that take part: what is compared as one.

    Args:
        partition: the common tokens; see `xtoken.projection.strict_partition`.
        tries: of the pair; see `xtoken.projection.build_tries`.

    Raises:
        XTokenError: partition and tries are of different vocabularies; the pairs are not one-to-one.

    Source: a draft in NVIDIA's NeMo-RL. Common-Support Distillation, https://arxiv.org/abs/2610.28895, is of this form
    and may weigh chunks that are not 1:1 differently; here every chunk has weight 1.
    """

    student_ids: Tensor
    teacher_ids: Tensor
    student_common: Tensor
    teacher_common: Tensor

    def __init__(self, partition: PartitionLike, tries: PathTries) -> None:
        super().__init__()
        if tuple(partition.shape) != tries.shape:
            raise XTokenError(
                f"the partition is of vocabularies of {tuple(partition.shape)} tokens and the tries of {tries.shape}. "
                "Make both from the same two tokenizers."
            )
        self.student_vocab_size, self.teacher_vocab_size = partition.shape
        for side, ids, size in zip(_SIDES, paired_ids(partition), partition.shape, strict=True):
            self.register_buffer(f"{side}_ids", ids, persistent=False)
            self.register_buffer(f"{side}_common", torch.zeros(size, dtype=torch.bool), persistent=False)
            getattr(self, f"{side}_common")[ids] = True
        self._extents: dict[str, tuple[int, int]] = {}
        for side, trie in zip(_SIDES, (tries.student, tries.teacher), strict=True):
            fans = fans_of(trie)
            self._extents[side] = fans.depth, fans.widest
            for name in _FAN_TENSORS:
                self.register_buffer(f"{side}_fan_{name}", getattr(fans, name), persistent=False)

    def kernel(self) -> None:
        return None

    def check(self, teacher: TeacherSignal, index: ChunkIndex) -> None:
        check_whole(teacher, type(self).__name__)
        super().check(teacher, index)

    def takes_part(self, index: ChunkIndex) -> Tensor:
        named = ("student_tokens", "student_starts", "teacher_tokens", "teacher_starts")
        tokens_s, starts_s, tokens_t, starts_t = (getattr(index, name).to(self.student_ids.device) for name in named)
        n_s, n_t = starts_s.diff(), starts_t.diff()
        _, size_s = self._fans("student").find(tokens_t, starts_t)
        _, size_t = self._fans("teacher").find(tokens_s, starts_s)
        return _takes_part(n_s == 1, n_t == 1, torch.where(n_s == 1, size_s, size_t))

    def reference(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        assert not isinstance(teacher, TopKSignal)  # `check` refuses it
        tau = teacher.temperature
        events = self._events(index)

        def read(rows: Tensor) -> Tensor:
            return flat_log_probs(student_logits, self.student_vocab_size, tau, "student", rows)

        student = _side(read, index.student_rows, index.student_tokens, index.student_starts)
        expert = _side(teacher.log_probs_at, index.teacher_rows, index.teacher_tokens, index.teacher_starts)
        rest_q = student.log_rest(self.student_common, events.student_ids, events).unsqueeze(1)
        rest_p = expert.log_rest(self.teacher_common, events.teacher_ids, events).unsqueeze(1)
        pairs_q = student.last.index_select(1, self.student_ids)
        pairs_p = expert.last.index_select(1, self.teacher_ids)
        listed_q, listed_p = (
            side.listed(ids, events) for side, ids in ((student, events.student_ids), (expert, events.teacher_ids))
        )
        of_pairs = self._of_pairs(torch.cat([pairs_p, rest_p], 1), torch.cat([pairs_q, rest_q], 1))
        of_listed = kl_divergence(torch.cat([listed_p, rest_p], 1), torch.cat([listed_q, rest_q], 1))
        values = tau**2 * torch.where(events.is_single, of_pairs, of_listed)
        return LossTerm.of_some(values, events.takes_part, rest_mass=rest_p.squeeze(1).exp())

    def _of_pairs(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """KL [K] of vectors [K, P + 1] whose last entry is REST."""
        if len(self.student_ids) < self.student_vocab_size:
            return kl_divergence(log_p, log_q)
        # REST is impossible for this student: no gradient moves it, and as an event it would only be a floor.
        return kl_divergence(log_normalise(log_p[:, :-1]), log_q[:, :-1])

    def _fans(self, side: str) -> Fans:
        depth, widest = self._extents[side]
        tensors = {name: getattr(self, f"{side}_fan_{name}") for name in _FAN_TENSORS}
        return Fans(**tensors, depth=depth, widest=widest)

    def _events(self, index: ChunkIndex) -> _Events:
        n_s, n_t = index.student_starts.diff(), index.teacher_starts.diff()
        fan_s, fan_t = self._fans("student"), self._fans("teacher")
        width = max(fan_s.widest, fan_t.widest, 1)
        slots = torch.arange(width, device=n_s.device)
        begins_s, size_s = fan_s.find(index.teacher_tokens, index.teacher_starts)
        begins_t, size_t = fan_t.find(index.student_tokens, index.student_starts)
        tokens_s, pieces_t = fan_s.candidates(begins_s, width)
        tokens_t, pieces_s = fan_t.candidates(begins_t, width)
        last_s = index.student_tokens.index_select(0, index.student_starts[1:] - 1).unsqueeze(1)
        last_t = index.teacher_tokens.index_select(0, index.teacher_starts[1:] - 1).unsqueeze(1)
        # Of an n:m chunk the text alone; the size of a 1:1 chunk's list is not looked at.
        one_s, one_t = n_s == 1, n_t == 1
        size = torch.where(one_s, size_s, torch.where(one_t, size_t, 1))
        is_s, is_t = (one_s & ~one_t).unsqueeze(1), (one_t & ~one_s).unsqueeze(1)
        return _Events(
            one_s & one_t,
            _takes_part(one_s, one_t, size),
            torch.where(is_s, tokens_s, torch.where(is_t, pieces_s, last_s)),
            torch.where(is_s, pieces_t, torch.where(is_t, tokens_t, last_t)),
            slots < size.unsqueeze(1),
        )


def _takes_part(one_s: Tensor, one_t: Tensor, candidates: Tensor) -> Tensor:
    """bool [K]: of the chunks of one token on one side alone, those that have a fan."""
    return (one_s == one_t) | (candidates > 0)


def _side(read: Callable[[Tensor], Tensor], rows: Tensor, tokens: Tensor, starts: Tensor) -> _Side:
    """A side's last rows, and the probability of what stands before them.

    Args:
        read: log-probabilities [n, V] at rows [n].
        rows, tokens: int64 [N].
        starts: int64 [K+1].
    """
    n_chunks, last = len(starts) - 1, starts[1:] - 1
    is_last = torch.zeros_like(rows, dtype=torch.int8).index_fill(0, last, 1)
    earlier = torch.argsort(is_last, stable=True)[: len(rows) - n_chunks]  # as many as shapes tell
    found = read(rows.index_select(0, last))
    factors = token_log_probs(read(rows.index_select(0, earlier)), tokens.index_select(0, earlier))
    chunk = segment_ids(starts, len(rows)).index_select(0, earlier)
    return _Side(found, found.new_zeros(n_chunks).index_add(0, chunk, factors))
