"""Where a loss is zero, where two losses are one, and what changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from xtoken.losses import GOLD, HKL, PKL, ULD, SameTokenizerKL
from xtoken.projection import Partition, Projection
from xtoken.projection.tries import tries_from_pieces
from xtoken.teachers import LogitSignal, TopKSignal

from .cases import LOSSES, MERGES, Case, random_case, renamed_tries, same_tokenizer_case, value_and_grad

SEEDS = range(5)


def renamed_copy(case: Case, seed: int) -> Case:
    """The teacher is the student under a permutation of its vocabulary, with the student's own chunks."""
    size = case.sizes[0]
    name = np.random.default_rng(seed).permutation(size)  # student id s is teacher id name[s]
    logits = torch.empty_like(case.student_logits)
    logits[..., torch.from_numpy(name)] = case.student_logits[..., :size]
    logits[..., size:] = 7.0
    return replace(
        case,
        teacher_logits=logits,
        teacher_ids=name[case.student_ids],
        chunks=tuple(chunks[:, [0, 1, 0, 1]] for chunks in case.chunks),
        projection=Projection.from_coo(np.arange(size), name, np.ones(size), (size, size)),
        partition=Partition(np.arange(size), name, (size, size)),
        tries=tries_from_pieces(
            name[:, None].tolist(), np.argsort(name)[:, None].tolist(), np.arange(size), np.arange(size)
        ),
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"p-kl-mean", "gold-mean", "uld-mean"}))
def test_zero_when_the_teacher_is_the_student_renamed(name: str, seed: int) -> None:
    # Path-KL takes the finest chunks: what lies inside a longer one that both sides cut, only the text tells it.
    longest = 1 if name == "path-kl" else 3
    case = renamed_copy(random_case(seed, size_s=7, size_t=7, longest=longest), seed)
    term, grad = value_and_grad(LOSSES[name](case), case.student_logits, case.signal(), case.index())
    assert abs(term.total.item()) < 1e-12
    if name.endswith("first") or name == "path-kl":
        assert name == "uld-first" or grad.abs().max() < 1e-12  # |x| at 0: rounding decides the sign of its slope


@pytest.mark.parametrize("name", ["p-kl-chain", "p-kl-top-3", "gold-chain"])
def test_chain_is_at_rest_in_the_teacher_on_one_to_one_chunks_only(name: str) -> None:
    """Its vectors do not sum to 1, so on longer chunks the gradient still asks for more of the realised tokens.

    With F the probability of the later tokens, equal on both sides: d / d log F of F * sum p (log F p - log F q) at q =
    p is -F. The later row of a chunk of two with token v gets -F * (onehot(v) - p).
    """
    case = renamed_copy(random_case(1, 7, 7, batch=1), 1)
    case = replace(case, chunks=(np.array([[1, 2, 1, 2], [2, 4, 2, 4]]),))
    _, grad = value_and_grad(LOSSES[name](case), case.student_logits, case.signal(), case.index())
    assert grad[0, [0, 1]].abs().max() < 1e-12  # the rows of both first positions
    probs, later = case.student_logits[0, 2, :7].softmax(-1), case.student_ids[0, 3]
    onehot = torch.nn.functional.one_hot(torch.tensor(later), 7)
    torch.testing.assert_close(grad[0, 2, :7], -probs[later] * (onehot - probs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["p-kl-mean", "gold-mean", "uld-mean"])
def test_mean_is_zero_for_a_renamed_student_on_one_to_one_chunks_only(name: str) -> None:
    """Its two averages differ, so on longer chunks a perfect student is told off too."""
    short, long = (renamed_copy(random_case(1, 7, 7, longest=longest), 1) for longest in (1, 3))
    totals = [LOSSES[name](c)(c.student_logits, c.signal(), c.index()).total.item() for c in (short, long)]
    assert abs(totals[0]) < 1e-12
    assert abs(totals[1]) > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_identity_projection_on_one_to_one_chunks_is_the_same_tokenizer_kl(
    merge: str, temperature: float, seed: int
) -> None:
    case = same_tokenizer_case(seed)
    arguments = case.student_logits, case.signal(temperature), case.index()
    expected, expected_grad = value_and_grad(SameTokenizerKL(case.sizes[0]), *arguments)
    for loss in (PKL(case.projection, merge), GOLD(case.partition, merge)):
        term, grad = value_and_grad(loss, *arguments)
        torch.testing.assert_close(term.total, expected.total, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


def test_same_tokenizer_kl_is_torch_kl_div() -> None:
    case = same_tokenizer_case(3)
    size = case.sizes[0]
    index = case.index()
    log_q = case.student_logits[..., :size].log_softmax(-1).flatten(0, 1)[index.student_rows]
    log_p = case.teacher_logits[..., :size].log_softmax(-1).flatten(0, 1)[index.teacher_rows]
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    term = SameTokenizerKL(size)(case.student_logits, case.signal(), index)
    torch.testing.assert_close(term.total, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("top_k", [None, 1, 4])
def test_p_kl_is_never_negative_where_it_is_a_divergence(seed: int, top_k: int | None) -> None:
    long, short = random_case(seed), random_case(seed, longest=1)
    for case, merge in ((long, "first"), (long, "mean"), (short, "chain")):
        for sequence in range(case.batch):
            part = case.part(slice(sequence, sequence + 1))
            assert PKL(part.projection, merge, top_k)(part.student_logits, part.signal(), part.index()).total >= 0


@pytest.mark.parametrize("seed", range(20))
def test_uld_and_the_same_tokenizer_kl_are_never_negative(seed: int) -> None:
    case, same = random_case(seed), same_tokenizer_case(seed)
    assert ULD(*case.sizes)(case.student_logits, case.signal(), case.index()).total >= 0
    assert SameTokenizerKL(7)(same.student_logits, same.signal(), same.index()).total >= 0


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_renaming_a_vocabulary_changes_nothing(name: str, side: str) -> None:
    case = random_case(11)
    renamed, name_of = rename(case, side, seed=4)
    before, grad_before = value_and_grad(LOSSES[name](case), case.student_logits, case.signal(), case.index())
    after, grad_after = value_and_grad(LOSSES[name](renamed), renamed.student_logits, renamed.signal(), renamed.index())
    torch.testing.assert_close(after.total, before.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dict(after.metrics), dict(before.metrics), rtol=1e-12, atol=1e-12)
    if side == "student":
        grad_after = grad_after[..., name_of]
        grad_before = grad_before[..., : len(name_of)]
    torch.testing.assert_close(grad_after, grad_before, rtol=1e-12, atol=1e-12)


def rename(case: Case, side: str, seed: int) -> tuple[Case, torch.Tensor]:
    size = case.sizes[0 if side == "student" else 1]
    name = np.random.default_rng(seed).permutation(size)
    rows, cols, values = case.projection.to_coo()
    ids_s, ids_t = case.partition.student_ids, case.partition.teacher_ids
    logits = getattr(case, f"{side}_logits").clone()
    logits[..., torch.from_numpy(name)] = logits[..., :size].clone()
    if side == "student":
        rows, ids_s = name[rows], name[ids_s]
    else:
        cols, ids_t = name[cols], name[ids_t]
    changed = {f"{side}_logits": logits, f"{side}_ids": name[getattr(case, f"{side}_ids")]}
    projection = Projection.from_coo(rows, cols, values, case.sizes)
    order = np.argsort(ids_s)
    partition = Partition(ids_s[order], ids_t[order], case.sizes)
    names = [
        name if which == side else np.arange(n) for which, n in zip(("student", "teacher"), case.sizes, strict=True)
    ]
    tries = renamed_tries(case.tries, *names)
    return replace(case, projection=projection, partition=partition, tries=tries, **changed), torch.from_numpy(name)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("seed", SEEDS)
def test_top_k_of_the_whole_vocabulary_is_dense(merge: str, seed: int) -> None:
    case = random_case(seed)
    arguments = case.student_logits, case.signal(), case.index()
    dense, dense_grad = value_and_grad(PKL(case.projection, merge), *arguments)
    whole, whole_grad = value_and_grad(PKL(case.projection, merge, teacher_topk=case.sizes[1]), *arguments)
    torch.testing.assert_close(whole.total, dense.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole_grad, dense_grad, rtol=1e-12, atol=1e-12)


def test_top_k_of_the_whole_vocabulary_is_dense_to_the_bit_where_rows_of_w_are_rounded() -> None:
    """0.9 and 0.1 in float32 do not sum to 1: a divisor of (inside + lost) would differ from 1 by that."""
    case = random_case(5, 4, 4)
    rows, cols, values = np.repeat(np.arange(4), 2), np.array([0, 1, 1, 2, 2, 3, 3, 0]), np.tile([0.9, 0.1], 4)
    projection = Projection.from_coo(rows, cols, values, (4, 4))
    assert projection.row_sums()[0] != 1
    arguments = case.student_logits, case.signal(), case.index()
    dense, whole = PKL(projection)(*arguments), PKL(projection, teacher_topk=4)(*arguments)
    assert torch.equal(dense.total, whole.total)


@pytest.mark.parametrize("merge", ["chain", "first"])
def test_a_top_k_signal_of_the_whole_vocabulary_is_the_dense_one(merge: str) -> None:
    case = random_case(5)
    loss = PKL(case.projection, merge)
    dense, dense_grad = value_and_grad(loss, case.student_logits, case.signal(), case.index())
    whole, whole_grad = value_and_grad(loss, case.student_logits, case.signal(top_k=case.sizes[1]), case.index())
    torch.testing.assert_close(whole.total, dense.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole_grad, dense_grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dict(whole.metrics), dict(dense.metrics), rtol=1e-12, atol=1e-12)


def test_a_top_k_signal_is_compared_on_its_own_tokens() -> None:
    """One-to-one chunks, everything reachable: the same numbers as teacher_topk on the dense signal."""
    case = same_tokenizer_case(2)
    for top_k in (1, 3):
        from_signal = PKL(case.projection)(case.student_logits, case.signal(top_k=top_k), case.index())
        from_loss = PKL(case.projection, teacher_topk=top_k)(case.student_logits, case.signal(), case.index())
        same = SameTokenizerKL(7)(case.student_logits, case.signal(top_k=top_k), case.index())
        torch.testing.assert_close(from_signal.total, from_loss.total, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(same.total, from_loss.total, rtol=1e-12, atol=1e-12)


def test_without_empty_rows_top_k_renormalises_both_sides_in_the_subset() -> None:
    """The paper's form: KL of the two distributions conditioned on the subset."""
    case = same_tokenizer_case(9)
    index = case.index()
    log_q = case.student_logits[..., :7].log_softmax(-1).flatten(0, 1)[index.student_rows]
    log_p = case.teacher_logits[..., :7].log_softmax(-1).flatten(0, 1)[index.teacher_rows]
    kept = log_p.topk(3).indices
    log_p, log_q = (x.gather(1, kept).log_softmax(-1) for x in (log_p, log_q))
    expected = (log_p.exp() * (log_p - log_q)).sum()
    term = PKL(case.projection, teacher_topk=3)(case.student_logits, case.signal(), index)
    torch.testing.assert_close(term.total, expected, rtol=1e-12, atol=1e-12)


def test_uncovered_mass_neither_scales_nor_lifts_the_loss() -> None:
    """Teacher mass is moved to the unreachable token; the rest keeps its proportions, so the loss stays what it was."""
    case = random_case(6, longest=1)
    index, unreachable = case.index(), case.sizes[1] - 1
    logits = case.teacher_logits.clone()
    logits[..., unreachable] += 5
    before = PKL(case.projection)(case.student_logits, case.signal(), index)
    after = PKL(case.projection)(case.student_logits, replace(case, teacher_logits=logits).signal(), index)
    torch.testing.assert_close(after.total, before.total, rtol=1e-12, atol=1e-12)
    assert after.metrics["uncovered_mass"] > before.metrics["uncovered_mass"] + 1


def test_h_kl_is_gold_on_its_partition() -> None:
    case = random_case(8)
    gold, h_kl = (loss(case.partition)(case.student_logits, case.signal(), case.index()) for loss in (GOLD, HKL))
    assert torch.equal(gold.total, h_kl.total)


def test_a_signal_reads_the_same_from_any_leading_shape() -> None:
    case = random_case(4)
    flat = replace(case, teacher_logits=case.teacher_logits.flatten(0, 1))
    for top_k, kind in ((None, LogitSignal), (4, TopKSignal)):
        a, b = case.signal(top_k=top_k), flat.signal(top_k=top_k)
        assert isinstance(a, kind)
        assert torch.equal(a.log_probs, b.log_probs)
