"""Strict KL, ALM and partition-KL: each is its definition, counts what takes part, and is at rest in the teacher."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given

from xtoken.errors import XTokenError
from xtoken.losses import ALM, ChunkIndex, PartitionKL, SameTokenizerKL, StrictKL
from xtoken.losses.fans import fans_of
from xtoken.losses.likelihood import binary, log1mexp, token_log_probs
from xtoken.projection import Partition
from xtoken.projection.tries import tries_from_pieces
from xtoken.teachers import signal_from_logits

from . import toy
from .cases import BASELINES, Case, pairs_of_text, random_case, same_tokenizer_case, value_and_grad
from .test_definitions import CASES, TEMPERATURES, Dist, few, softmax

# Student and teacher: all of 1:1, 1:n, n:1 and n:m are among these.
WORLDS = {
    "packing": (toy.TRIPLES, toy.DIGITS),
    "splitting": (toy.DIGITS, toy.TRIPLES),
    "crossing": (toy.TRIPLES, toy.PAIRS),
    "crossing back": (toy.PAIRS, toy.TRIPLES),
}
TEXTS = ["".join(text) + "$" for n in (1, 2, 3, 4, 5) for text in product("01", repeat=n)][::3]


def partition_of(student: tuple[str, ...], teacher: tuple[str, ...]) -> Partition:
    common = [token for token in student if token in teacher]
    sizes = len(student), len(teacher)
    return Partition(*(np.array([v.index(token) for token in common]) for v in (student, teacher)), sizes)


def partition_kl(student: tuple[str, ...], teacher: tuple[str, ...]) -> PartitionKL:
    return PartitionKL(partition_of(student, teacher), toy.tries(student, teacher))


def chunks_of(case: Case, tau: float) -> list[tuple[list[Dist], list[Dist], list[int], list[int]]]:
    """Of every chunk with rows to predict it, the distributions at its tokens and the tokens, on both sides."""
    found = []
    for b, chunks in enumerate(case.chunks):
        for s0, s1, t0, t1 in chunks.tolist():
            if min(s0, t0) > 0:
                sides = (case.student_logits[b], case.sizes[0], s0, s1), (case.teacher_logits[b], case.sizes[1], t0, t1)
                dists = ([softmax(z[i - 1].tolist(), size, tau) for i in range(a, e)] for z, size, a, e in sides)
                found.append((*dists, case.student_ids[b, s0:s1].tolist(), case.teacher_ids[b, t0:t1].tolist()))
    return found


@few
@given(CASES, TEMPERATURES)
def test_strict_is_the_kl_on_the_teachers_top_common_tokens(case: Case, tau: float) -> None:
    partition, total, count, uncovered = pairs_of_text(case), 0.0, 0, 0.0
    partner = dict(zip(partition.student_ids.tolist(), partition.teacher_ids.tolist(), strict=True))
    for dists_s, dists_t, tokens_s, tokens_t in chunks_of(case, tau):
        if len(tokens_s) != 1 or len(tokens_t) != 1 or partner.get(tokens_s[0]) != tokens_t[0]:
            continue
        kept = sorted(partner, key=lambda s: -dists_t[0][partner[s]])[:2]
        mass_s, mass_t = sum(dists_s[0][s] for s in kept), sum(dists_t[0][partner[s]] for s in kept)
        shares = [(dists_t[0][partner[s]] / mass_t, dists_s[0][s] / mass_s) for s in kept]
        total += tau**2 * sum(p * math.log(p / q) for p, q in shares)
        uncovered += 1 - sum(dists_t[0][t] for t in partner.values())
        count += 1
    term = StrictKL(partition, top_k=2)(case.student_logits, case.signal(tau), case.index())
    assert term.total.item() == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert term.metrics["uncovered_mass"].item() == pytest.approx(uncovered, rel=1e-9, abs=1e-9)
    assert term.count.item() == count


@pytest.mark.parametrize("likelihood_temperature", [1.0, 7.0])
@few
@given(CASES, TEMPERATURES)
def test_alm_is_the_binary_kl_of_the_likelihoods(likelihood_temperature: float, case: Case, tau: float) -> None:
    total = 0.0
    for *dists, tokens_s, tokens_t in chunks_of(case, tau):
        q, p = (
            math.prod(d[i] for d, i in zip(side, tokens, strict=True)) ** (1 / likelihood_temperature)
            for side, tokens in zip(dists, (tokens_s, tokens_t), strict=True)
        )
        total += tau**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    term = ALM(*case.sizes, likelihood_temperature)(case.student_logits, case.signal(tau), case.index())
    assert term.total.item() == pytest.approx(total, rel=1e-7, abs=1e-9)
    assert term.count == case.index().n_chunks


def partition_kl_by_hand(
    vocabularies: tuple[tuple[str, ...], tuple[str, ...]], logits: tuple[torch.Tensor, torch.Tensor], tau: float
) -> tuple[float, Counter[str]]:
    """The total, and how many chunks of each kind take part, straight from the strings of `TEXTS`."""
    total, kinds = 0.0, Counter[str]()
    for b, text in enumerate(TEXTS):
        cuts = [toy.cut(text, v) for v in vocabularies]
        for bounds in toy.chunks_of(*cuts):
            # Chunks count from the token in front of the text, which has row 0.
            tokens = [cut[a - 1 : e - 1] for cut, a, e in zip(cuts, bounds[::2], bounds[1::2], strict=True)]
            rows = [
                [softmax(z[b, i - 1].tolist(), len(v), tau) for i in range(a, e)]
                for z, v, a, e in zip(logits, vocabularies, bounds[::2], bounds[1::2], strict=True)
            ]
            events, kind = events_of(tokens, vocabularies)
            if kind in ("1:n", "n:1") and len(events) < 2:
                continue
            probs = [[chance(path[side], rows[side], vocabularies[side]) for path in events] for side in (0, 1)]
            (*q, rest_q), (*p, rest_p) = ([*side, 1 - sum(side)] for side in probs)
            if kind == "1:1" and len(events) == len(vocabularies[0]):  # the student has no other token
                p, rest_p, rest_q = [x / sum(p) for x in p], 0.0, 1.0
            shares = zip([*p, rest_p], [*q, rest_q], strict=True)
            total += tau**2 * sum(x * math.log(x / y) for x, y in shares if x > 1e-15)
            kinds[kind] += 1
    return total, kinds


def events_of(
    tokens: list[list[str]], vocabularies: tuple[tuple[str, ...], tuple[str, ...]]
) -> tuple[list[tuple[list[str], list[str]]], str]:
    """The events of a chunk, each as the student's and the teacher's tokens, and its kind."""
    (student, teacher), (v_s, v_t) = tokens, vocabularies
    if len(student) == len(teacher) == 1:
        return [([token], [token]) for token in v_s if token in v_t], "1:1"
    if len(student) == 1:
        cuts = {v: toy.cut(v, v_t) for v in v_s if v not in v_t}
        return [([v], cut) for v, cut in cuts.items() if is_beside(cut, teacher)], "1:n"
    if len(teacher) == 1:
        cuts = {u: toy.cut(u, v_s) for u in v_t if u not in v_s}
        return [(cut, [u]) for u, cut in cuts.items() if is_beside(cut, student)], "n:1"
    return [(student, teacher)], "n:m"


def is_beside(cut: list[str], path: list[str]) -> bool:
    return len(cut) == len(path) and cut[:-1] == path[:-1]


def chance(path: list[str], rows: list[Dist], vocabulary: tuple[str, ...]) -> float:
    return math.prod(row[vocabulary.index(token)] for row, token in zip(rows, path, strict=True))


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("name", WORLDS)
def test_partition_kl_is_the_kl_over_the_events_written_out(name: str, tau: float) -> None:
    student, teacher = WORLDS[name]
    logits_s, logits_t, index = toy.batch(student, teacher, TEXTS)
    term = partition_kl(student, teacher)(logits_s, signal_from_logits(logits_t, len(teacher), tau), index)
    total, kinds = partition_kl_by_hand((student, teacher), (logits_s, logits_t), tau)
    assert term.total.item() == pytest.approx(total, rel=1e-9)
    assert term.count.item() == sum(kinds.values())
    expected = {"packing": "1:n", "splitting": "n:1", "crossing": "n:m", "crossing back": "n:m"}[name]
    assert kinds[expected] > 3
    assert kinds["1:1"] > 3


def test_a_fan_of_one_candidate_is_left_out_of_sum_and_count() -> None:
    """Of the student's two tokens of two pieces, "00" stands beside "01"; without "01" it stands alone."""
    two, one = ("0", "1", "$", "00", "01"), ("0", "1", "$", "00")
    counts = []
    for student in (two, one):
        logits_s, logits_t, index = toy.batch(student, toy.DIGITS, ["00$"])
        term = partition_kl(student, toy.DIGITS)(logits_s, signal_from_logits(logits_t, 3), index)
        counts.append((index.n_chunks, int(term.count)))
        assert partition_kl(student, toy.DIGITS).count(index) == term.count
    assert counts == [(2, 2), (2, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_fans_are_the_tokens_that_share_all_pieces_but_the_last(seed: int) -> None:
    case = random_case(seed, size_s=60, size_t=12)
    trie = case.tries.student
    cuts = [tuple(c.tolist()) for c in np.split(trie.pieces, trie.piece_starts[1:-1])]
    fans = fans_of(trie)
    rng = np.random.default_rng(seed)
    paths = [rng.integers(0, 4, rng.integers(1, 7)).tolist() for _ in range(200)] + [list(c) for c in cuts if c]
    starts = torch.from_numpy(np.cumsum([0, *map(len, paths)]))
    begins, sizes = fans.find(torch.tensor([i for path in paths for i in path]), starts)
    assert sizes.max() > 1
    for path, begin, size in zip(paths, begins.tolist(), sizes.tolist(), strict=True):
        beside = [
            i for i, cut in enumerate(cuts) if len(path) > 1 and is_beside(list(cut), path) and cuts.count(cut) == 1
        ]
        assert sorted(fans.tokens[begin : begin + size].tolist()) == (beside if len(beside) > 1 else [])


def toy_arguments(name: str, dtype: torch.dtype, tau: float = 1.0) -> tuple[PartitionKL, tuple]:
    student, teacher = WORLDS[name]
    logits_s, logits_t, index = toy.batch(student, teacher, TEXTS)
    signal = signal_from_logits(logits_t.to(dtype), len(teacher), tau)
    return partition_kl(student, teacher), (logits_s.to(dtype), signal, index)


@pytest.mark.parametrize("name", WORLDS)
def test_the_gradient_of_fans_is_the_slope(name: str) -> None:
    loss, (logits, signal, index) = toy_arguments(name, torch.float64, 2.0)
    some = logits[-4:].clone().requires_grad_()  # of the longest texts
    assert torch.autograd.gradcheck(lambda x: loss(torch.cat([logits[:-4], x]), signal, index).total, some)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", WORLDS)
def test_fans_in_low_precision_are_near_float64(name: str, dtype: torch.dtype, rtol: float) -> None:
    loss, low = toy_arguments(name, dtype)
    term, grad = value_and_grad(loss, *low)
    double = low[0].double(), signal_from_logits(low[1].logits.double(), loss.teacher_vocab_size), low[2]
    exact, exact_grad = value_and_grad(loss, *double)
    torch.testing.assert_close(term.total.double(), exact.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("sides", ["student", "teacher"])
@pytest.mark.parametrize("name", WORLDS)
def test_impossible_tokens_in_fans_give_a_finite_loss_and_gradient(name: str, sides: str) -> None:
    student, teacher = WORLDS[name]
    logits_s, logits_t, index = toy.batch(student, teacher, TEXTS)
    (logits_s if sides == "student" else logits_t)[..., [1]] = float("-inf")
    term, grad = value_and_grad(
        partition_kl(student, teacher), logits_s, signal_from_logits(logits_t, len(teacher)), index
    )
    assert term.total.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_they_are_at_rest_in_the_teacher(name: str) -> None:
    case = same_tokenizer_case(3)
    case = replace(case, teacher_logits=case.student_logits)
    term, grad = value_and_grad(BASELINES[name](case), case.student_logits, case.signal(), case.index())
    assert abs(term.total.item()) < 1e-12
    assert grad.abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_they_are_never_negative(name: str, seed: int) -> None:
    case = random_case(seed)
    for sequence in range(case.batch):
        part = case.part(slice(sequence, sequence + 1))
        assert BASELINES[name](case)(part.student_logits, part.signal(), part.index()).total >= 0


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_partition_kl_and_strict_of_one_vocabulary_are_the_same_tokenizer_kl(tau: float) -> None:
    case = same_tokenizer_case(5)
    arguments = case.student_logits, case.signal(tau), case.index()
    expected, expected_grad = value_and_grad(SameTokenizerKL(7), *arguments)
    # The text's tokens are those of the student on both sides, so that every chunk is of a pair.
    for loss in (PartitionKL(case.partition, case.tries), StrictKL(case.partition, top_k=7)):
        term, grad = value_and_grad(loss, *arguments)
        torch.testing.assert_close(term.total, expected.total, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)
        assert term.count == expected.count


def test_strict_on_a_top_k_signal_is_strict_with_that_k() -> None:
    case = same_tokenizer_case(6)
    from_signal = StrictKL(case.partition)(case.student_logits, case.signal(top_k=3), case.index())
    from_loss = StrictKL(case.partition, top_k=3)(case.student_logits, case.signal(), case.index())
    torch.testing.assert_close(from_signal.total, from_loss.total, rtol=1e-12, atol=1e-12)


def test_strict_leaves_out_a_chunk_of_two_tokens_that_are_no_pair() -> None:
    """One token each, but of other bytes: an unknown piece, or a second id of the same bytes."""
    logits = torch.randn(1, 4, 3, dtype=torch.float64)
    index = ChunkIndex.from_chunks([[1, 2, 1, 2], [2, 3, 2, 3]], [0, 1, 2, 0], [0, 1, 1, 0])
    loss, signal = StrictKL(Partition(np.arange(3), np.arange(3), (3, 3))), signal_from_logits(torch.zeros(1, 4, 3), 3)
    assert loss.takes_part(index).tolist() == [True, False]
    term, grad = value_and_grad(loss, logits, signal, index)
    assert term.count == 1
    assert grad[0, 1].eq(0).all()  # the row of the chunk left out
    assert grad[0, 0].abs().max() > 0


@pytest.mark.parametrize("name", ["alm", "alm-as-it-is"])
def test_alm_does_not_see_how_a_chunk_is_cut(name: str) -> None:
    """The student writes "x" of probability 1/6 in one token, or in two of 1/2 and 1/3."""
    teacher = signal_from_logits(torch.tensor([[[0.2, 0.8], [0.5, 0.5]]], dtype=torch.float64).log(), 2)
    one = torch.tensor([[[5 / 6, 1 / 6], [0.5, 0.5], [0.5, 0.5]]], dtype=torch.float64).log()
    two = torch.tensor([[[1 / 2, 1 / 2], [2 / 3, 1 / 3], [0.5, 0.5]]], dtype=torch.float64).log()
    loss = ALM(2, 2, 1.0 if name == "alm-as-it-is" else 100.0)
    whole = loss(one, teacher, ChunkIndex.from_chunks([[1, 2, 1, 2]], [0, 1, 0], [0, 1]))
    parts = loss(two, teacher, ChunkIndex.from_chunks([[1, 3, 1, 2]], [0, 1, 1], [0, 1]))
    torch.testing.assert_close(whole.total, parts.total, rtol=1e-12, atol=0)
    assert whole.total > 0


@pytest.mark.parametrize("make", [lambda: ALM(3, 3, 1.0), lambda: ALM(3, 3)], ids=["as it is", "raised"])
def test_a_student_surer_than_float32_can_say_still_hears_that_the_teacher_is_not(make) -> None:  # type: ignore[no-untyped-def]
    """Its probability rounds to 1, what is missing to 0; the gradient of the KL is the teacher's 1 - P all the same."""
    logits = torch.tensor([[[30.0, 0.0, 0.0]]])
    teacher = torch.tensor([[[3.0, 0.0, 0.0]]])
    index = ChunkIndex.from_chunks([[1, 2, 1, 2]], [0, 0], [0, 0])
    assert logits.softmax(-1)[0, 0, 0] == 1
    term, grad = value_and_grad(make(), logits, signal_from_logits(teacher, 3), index)
    exact, exact_grad = value_and_grad(make(), logits.double(), signal_from_logits(teacher.double(), 3), index)
    torch.testing.assert_close(term.total.double(), exact.total, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.double()[..., 0], exact_grad[..., 0], rtol=1e-4, atol=0)
    assert grad[0, 0, 0] > 1e-4


def test_log_of_one_minus_exp_is_exact_at_both_ends() -> None:
    x = torch.tensor([-1e-30, -1e-8, -0.5, -math.log(2), -1.0, -50.0, -1e4, float("-inf"), 0.0])
    exact = torch.log(-torch.expm1(x.double()))
    torch.testing.assert_close(log1mexp(x).double(), exact, rtol=1e-5, atol=1e-7)
    leaf = x.clone().requires_grad_()
    binary(leaf).masked_fill(binary(leaf).detach().isinf(), 0).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_a_likelihood_near_one_is_taken_from_what_is_missing() -> None:
    rows = torch.tensor([[0.0, -40.0, -50.0], [-0.7, -0.7, -9.0]]).log_softmax(-1)
    found = token_log_probs(rows, torch.tensor([0, 1]))
    assert found[0].item() == pytest.approx(-math.exp(-40), rel=1e-4)
    assert found[1] == rows[1, 1]


def test_what_they_cannot_be_made_of_is_refused() -> None:
    pairs = Partition(np.arange(2), np.arange(2), (3, 3))
    other = tries_from_pieces([[0], [1]], [[0], [1]], np.arange(2), np.arange(2))
    with pytest.raises(XTokenError, match="top_k is 0; it must be at least 1"):
        StrictKL(pairs, top_k=0)
    with pytest.raises(XTokenError, match="no token in common"):
        StrictKL(Partition(np.zeros(0, np.int64), np.zeros(0, np.int64), (3, 3)))
    with pytest.raises(XTokenError, match=r"likelihood_temperature is 0\.0; it must be above 0"):
        ALM(3, 3, 0.0)
    with pytest.raises(XTokenError, match="Make both from the same two tokenizers"):
        PartitionKL(pairs, other)
    case = random_case(1)
    with pytest.raises(XTokenError, match="PartitionKL compares whole distributions"):
        PartitionKL(case.partition, case.tries)(case.student_logits, case.signal(top_k=3), case.index())
