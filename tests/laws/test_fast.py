"""The fast version of every loss is its reference: value, gradient and metrics, at odd shapes and any block size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from xtoken.losses import GOLD, PKL, ULD, ChunkIndex, ChunkLoss, LossTerm
from xtoken.losses.divergence import sorted_l1
from xtoken.losses.fast import walk
from xtoken.losses.fast.kernel import Scratch
from xtoken.losses.fast.largest import _SAMPLE_STEP, _by_threshold, largest
from xtoken.losses.fast.ranked import ranked_l1
from xtoken.losses.merge import Merge
from xtoken.projection import Projection

from .cases import SAME_TOKENIZER, WITHOUT_KERNEL, Case, random_case, same_tokenizer_case, value_and_grad

FAST: dict[str, Callable[[Case], ChunkLoss]] = {
    **{name: make for name, make in SAME_TOKENIZER.items() if name not in WITHOUT_KERNEL},
    **{f"gold-{ranks}-ranks": lambda case, ranks=ranks: GOLD(case.partition, ranks=ranks) for ranks in (1, 3)},
    **{f"uld-{ranks}-ranks": lambda case, ranks=ranks: ULD(*case.sizes, ranks=ranks) for ranks in (1, 3, 8)},
}
SHAPES = {
    "3 x 47": {"size_s": 3, "size_t": 47},
    "47 x 3": {"size_s": 47, "size_t": 3},
    "131 x 127": {"size_s": 131, "size_t": 127},
    "one chunk": {"batch": 1, "n_chunks": 2},
    "long chunks": {"longest": 9, "n_chunks": 3},
    "no padding": {"padding": 0},
}


def assert_is_the_reference(loss: ChunkLoss, case: Case, tau: float, rtol: float, atol: float) -> None:
    assert loss.kernel() is not None
    arguments = case.signal(tau), case.index()
    term, gradient = value_and_grad(loss, case.student_logits, *arguments)
    expected, expected_gradient = value_and_grad(loss.reference, case.student_logits, *arguments)
    torch.testing.assert_close(term.total, expected.total, rtol=rtol, atol=atol)
    torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=atol)
    torch.testing.assert_close(dict(term.metrics), dict(expected.metrics), rtol=rtol, atol=atol)
    assert int(term.count) == int(expected.count)


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(FAST))
def test_it_is_the_reference_at_odd_shapes(name: str, shape: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, tau in ((0, 1.0), (1, 2.5)):
        size = SHAPES[shape].get("size_s", 7)
        case = same_tokenizer_case(seed, size) if name == "same" else random_case(seed, **SHAPES[shape])
        monkeypatch.setattr(walk, "_CPU_ELEMENTS", rows * max(case.sizes))
        assert_is_the_reference(FAST[name](case), case, tau, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(FAST))
def test_it_is_the_reference_in_float32_and_on_bfloat16_logits(name: str) -> None:
    """bf16 logits are raised row by row; against the reference, which raises them whole."""
    for dtype in (torch.float32, torch.bfloat16):
        case = same_tokenizer_case(3, 31) if name == "same" else random_case(3, 31, 37)
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4  # of the gradient, which has the logits' own type
        assert_is_the_reference(FAST[name](case.to(dtype)), case.to(dtype), 1.0, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("sides", ["student", "teacher", "both"])
@pytest.mark.parametrize("name", sorted(FAST))
def test_it_is_the_reference_where_logits_are_minus_infinity(name: str, sides: str) -> None:
    """Also where that gives a realised token probability 0, and with it a whole chain."""
    for seed in range(4):
        case = same_tokenizer_case(seed, 6) if name == "same" else random_case(seed, 6, 6, longest=3)
        forbidden = torch.tensor([1, 3])
        if sides != "teacher":
            case = replace(case, student_logits=case.student_logits.index_fill(-1, forbidden, float("-inf")))
        if sides != "student":
            case = replace(case, teacher_logits=case.teacher_logits.index_fill(-1, forbidden, float("-inf")))
        assert_is_the_reference(FAST[name](case), case, 1.0, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 4, 9])
@pytest.mark.parametrize("within", [None, 1, 3])
@pytest.mark.parametrize("merge", ["chain", "first"])
def test_it_is_the_reference_on_a_top_k_signal(merge: Merge, within: int | None, top_k: int) -> None:
    for seed, tau in ((0, 1.0), (1, 2.0), (2, 0.5)):
        case = random_case(seed, 7, 9)
        forbidden = case.teacher_logits.index_fill(-1, torch.tensor([0, 2, 4]), float("-inf"))
        for each in (case, replace(case, teacher_logits=forbidden)):
            arguments = each.signal(tau, top_k), each.index()
            loss = PKL(each.projection, merge, within)
            term, gradient = value_and_grad(loss, each.student_logits, *arguments)
            expected, expected_gradient = value_and_grad(loss.reference, each.student_logits, *arguments)
            torch.testing.assert_close(term.total, expected.total, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(dict(term.metrics), dict(expected.metrics), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 7, 60])
def test_a_sampled_threshold_is_enough_on_ordinary_rows(k: int) -> None:
    """Else topk does it all, which is as right and ten times as slow."""
    rows = torch.randn(20, 4000, generator=torch.Generator().manual_seed(0))
    assert _by_threshold(rows, k, rank=k // _SAMPLE_STEP + 12) is not None


@pytest.mark.parametrize("k", [1, 7, 60])
def test_the_largest_by_a_sampled_threshold_are_the_largest(k: int) -> None:
    """Also where the sample says nothing: all large columns between the sampled ones, all of them equal, or -inf."""
    generator = torch.Generator().manual_seed(k)
    rows = torch.randn(6, 4000, generator=generator)
    rows[1, ::16] = 100 + torch.randn(250, generator=generator)  # only sampled columns are large
    rows[2, ::16] = -100  # only the others are
    rows[3] = 1.0
    rows[4, 50:] = float("-inf")
    for values in (rows, rows[:1], rows[1:2], rows[2:3], rows[4:5]):
        found = largest(values, k)
        assert found.shape == (len(values), k)
        assert all(len(set(row)) == k for row in found.tolist())
        torch.testing.assert_close(values.gather(1, found).sort(1).values, values.topk(k).values.sort(1).values)


@pytest.mark.parametrize("name", sorted(FAST))
def test_an_empty_batch_has_a_total_a_count_and_every_metric(name: str) -> None:
    case = same_tokenizer_case() if name == "same" else random_case()
    loss, signal, nothing = FAST[name](case), case.signal(), ChunkIndex.from_chunks([], [], [])
    term, gradient = value_and_grad(loss, case.student_logits, signal, nothing)
    assert term.total == 0
    assert int(term.count) == 0
    assert gradient.eq(0).all()
    assert term.metrics.keys() == loss(case.student_logits, signal, case.index()).metrics.keys()


def test_a_projection_of_zero_rows_alone_and_one_without_a_remainder() -> None:
    case = random_case(2, 5, 5)
    some = np.arange(2)
    for rows, cols in ((some[:0], some[:0]), (some, some[::-1]), (np.arange(5), np.arange(5)[::-1])):
        projection = Projection.from_coo(rows, cols, np.ones(len(rows)), (5, 5))
        for merge in ("chain", "first"):
            assert_is_the_reference(PKL(projection, merge), case, 1.0, rtol=1e-10, atol=1e-12)


def test_rows_that_lose_part_of_their_mass() -> None:
    """A projection made by hand may have rows below 1; only `xtoken.projection.Projection` refuses them."""

    class Lossy:
        shape = (5, 4)

        def to_coo(self) -> tuple[np.ndarray, ...]:
            return np.array([0, 1, 2, 2, 4]), np.array([0, 1, 1, 2, 2]), np.array([0.5, 1, 0.25, 0.5, 0.125])

    assert_is_the_reference(PKL(Lossy()), random_case(2, 5, 4), 1.0, rtol=1e-10, atol=1e-12)


def test_probabilities_far_below_the_smallest_float_in_the_remainder() -> None:
    """A column fed by several student tokens, all of them at e^-300: the sum is taken in float64."""
    case = random_case(1, 6, 6, longest=1)
    logits = case.student_logits.clone()
    logits[..., 1:] -= 300
    case = replace(case, student_logits=logits)
    single = case.to(torch.float32)
    loss = PKL(case.projection)
    exact, exact_gradient = value_and_grad(loss.reference, case.student_logits, case.signal(), case.index())
    term, gradient = value_and_grad(loss, single.student_logits, single.signal(), single.index())
    assert exact.total > 100
    torch.testing.assert_close(term.total.double(), exact.total, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top", [None, 5])
@pytest.mark.parametrize("gap", [600, 700, 708, 712, 730, 744, 760])
def test_where_a_sum_in_the_remainder_runs_out_of_numbers_all_stays_finite(gap: float, top: int | None) -> None:
    """1 / q is inf where q is denormal; such a column counts as one without probability."""
    case = random_case(1, 6, 6, longest=1)
    logits = case.student_logits.clone()
    logits[..., 1:] -= gap
    term, gradient = value_and_grad(PKL(case.projection, teacher_topk=top), logits, case.signal(), case.index())
    assert term.total.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", sorted(FAST))
def test_a_nan_is_seen_and_not_swallowed(name: str) -> None:
    for side in ("student", "teacher"):
        case = same_tokenizer_case(1) if name == "same" else random_case(1)
        logits = getattr(case, f"{side}_logits").clone()
        logits[0, 1:] = float("nan")
        broken = replace(case, **{f"{side}_logits": logits})
        assert FAST[name](case)(broken.student_logits, broken.signal(), case.index()).total.isnan()


# -- ranks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 5, 12, 40])
@pytest.mark.parametrize("sizes", [(12, 30), (30, 12), (20, 20)])
def test_few_ranks_are_below_the_exact_distance_by_no_more_than_they_say(ranks: int, sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = ((3 * torch.randn(200, n, dtype=torch.float64, generator=generator)).softmax(-1) for n in sizes)
    exact, no_error = sorted_l1(p, q)
    assert no_error.eq(0).all()
    reference, error = sorted_l1(p, q, ranks)
    found = ranked_l1(p, q, ranks, Scratch(p.device, p.dtype))
    for values, bound in ((reference, error), (found.values, found.bound)):
        assert (values <= exact + 1e-12).all()
        assert (exact <= values + bound + 1e-12).all()
    torch.testing.assert_close(found.values, reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.bound, error, rtol=1e-12, atol=1e-12)
    if ranks >= max(sizes):
        torch.testing.assert_close(found.values, exact, rtol=1e-12, atol=1e-12)


def test_the_bound_is_met_where_the_rests_have_nothing_in_common() -> None:
    """One side's rest lies on many ranks, the other's on few: what is compared as a whole cancels."""
    p = torch.tensor([[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    values, error = sorted_l1(p, q, 1)
    assert values == 0
    torch.testing.assert_close(sorted_l1(p, q)[0], torch.tensor([0.8], dtype=torch.float64))
    assert error == 1


def test_the_loss_reports_what_its_ranks_leave_out() -> None:
    case = random_case(4, 40, 50)
    arguments = case.student_logits, case.signal(2.0), case.index()
    for loss, exact in (
        (ULD(40, 50, ranks=2), ULD(40, 50, ranks=None)),
        (GOLD(case.partition, ranks=2, remainder_weight=0.5), GOLD(case.partition, ranks=None, remainder_weight=0.5)),
    ):
        few, all_of_them = loss(*arguments), exact(*arguments)
        assert isinstance(few, LossTerm)
        assert all_of_them.metrics["rank_error"] == 0
        assert few.total < all_of_them.total <= few.total + few.metrics["rank_error"]
