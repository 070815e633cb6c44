"""A learnable W: the fast gradient by its log-weights is autograd's, rows keep their sums, a fixed W costs nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses import PKL, Lesson, LossTerm, Multipliers, dynamic_scale, in_blocks, losses_from_hidden
from xtoken.losses.cross_entropy import targets_of
from xtoken.losses.fast import hidden as hidden_module
from xtoken.losses.fast import walk
from xtoken.projection import Projection
from xtoken.teachers import Head, HeadSignal, TeacherSignal

from .cases import MERGES, Case, random_case

FAST = {
    "chain": {"merge": "chain"},
    "first": {"merge": "first"},
    "top-3": {"teacher_topk": 3},
    "top-1": {"teacher_topk": 1},
}


def lossy(projection: Projection) -> Projection:
    """The same W without a third of some rows' mass; made past the checks of `Projection`, whose rows sum to 1."""
    rows, cols, values = projection.to_coo()

    class Lossy:
        shape = projection.shape

        def to_coo(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return rows, cols, np.where(rows % 3 == 1, 2 / 3, 1) * values.astype(np.float64)

    return Lossy()  # type: ignore[return-value]


def learnable(case: Case, seed: int = 0, moved: float = 1.0, loses: bool = False, **settings: object) -> PKL:
    """Its log-weights in float64 and away from the start."""
    loss = PKL(lossy(case.projection) if loses else case.projection, learnable=True, **settings).double()
    generator = torch.Generator().manual_seed(seed)
    weights = loss.row_weights.log_weights
    with torch.no_grad():
        weights.add_(moved * torch.randn(len(weights), dtype=weights.dtype, generator=generator))
    return loss


def impossible(case: Case) -> Case:
    """Some tokens that a model gives no probability; a chain may be impossible, and a column without probability."""
    student, teacher = case.student_logits.clone(), case.teacher_logits.clone()
    student[:, ::3, 1:4] = teacher[:, ::2, 2] = float("-inf")
    return replace(case, student_logits=student, teacher_logits=teacher)


def gradients(loss: PKL, function: object, case: Case, signal: TeacherSignal) -> tuple[LossTerm, Tensor, Tensor]:
    leaf = case.student_logits.detach().requires_grad_()
    term = function(leaf, signal, case.index())  # type: ignore[operator]
    return term, *torch.autograd.grad(term.total, [leaf, loss.row_weights.log_weights])


def assert_equal(found: tuple[LossTerm, Tensor, Tensor], expected: tuple[LossTerm, Tensor, Tensor]) -> None:
    torch.testing.assert_close(found[0].total, expected[0].total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loses", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("name", FAST)
def test_the_gradient_by_hand_is_that_of_the_reference(
    name: str, rows: int, loses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, sizes in enumerate([(7, 9), (31, 17), (5, 40)]):
        case = random_case(seed, *sizes)
        monkeypatch.setattr(walk, "_CPU_ELEMENTS", rows * max(case.sizes))
        loss = learnable(case, seed, loses=loses, **FAST[name])
        for batch, tau in ((case, 1.0), (impossible(case), 1.7)):
            signal = batch.signal(tau)
            expected = gradients(loss, loss.reference, batch, signal)
            assert_equal(gradients(loss, loss, batch, signal), expected)
            assert expected[2].abs().max() > 1e-3


def test_a_top_k_signal_teaches_w_too() -> None:
    case = random_case(3)
    loss = learnable(case)
    signal = case.signal(1.3, top_k=4)
    assert_equal(gradients(loss, loss, case, signal), gradients(loss, loss.reference, case, signal))


@pytest.mark.parametrize("merge", MERGES)
def test_the_gradient_by_w_is_that_of_finite_differences(merge: str) -> None:
    case = random_case(1, 4, 5, batch=1, n_chunks=3)
    loss = learnable(case, merge=merge)
    signal, index = case.signal(1.3), case.index()
    found = gradients(loss, loss, case, signal)[2]
    weights, step = loss.row_weights.log_weights, 1e-5
    for i in range(len(weights)):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                weights[i] += sign * step
                sides.append(loss.reference(case.student_logits, signal, index).total)
                weights[i] -= sign * step
        assert found[i] == pytest.approx(float(sides[0] - sides[1]) / (2 * step), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("merge", MERGES)
def test_blocks_of_the_reference_add_up(merge: str) -> None:
    case = random_case(2)
    loss = learnable(case, merge=merge)
    signal, parameters = case.signal(), list(loss.parameters())

    def cut(logits: Tensor, teacher: TeacherSignal, index: object) -> LossTerm:
        return in_blocks(loss.reference, logits, teacher, index, chunks=4, parameters=parameters)  # type: ignore[arg-type]

    assert_equal(gradients(loss, cut, case, signal), gradients(loss, loss.reference, case, signal))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("is_dynamic", [True, False])
def test_from_hidden_states_w_gets_the_terms_own_multiplier(
    is_dynamic: bool, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lessons learn a W each and a third has none; small blocks make the weighed walk go twice."""
    case = random_case(0, 11, 13)
    monkeypatch.setattr(walk, "_CPU_ELEMENTS", 3 * max(case.sizes))
    monkeypatch.setattr(hidden_module, "_HEAD_ELEMENTS", 2**27 if at_once else 6 * max(case.sizes))
    losses = [learnable(case, 0), PKL(case.projection), learnable(case, 1, merge="first")]
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(*shape, 5, dtype=torch.float64, generator=generator)
        for shape in (case.student_logits.shape[:2], case.student_logits.shape[2:])
    )
    targets = targets_of(torch.from_numpy(case.student_ids))
    flat, leaf = case.teacher_logits.flatten(0, 1), hidden.requires_grad_()
    eye = Head(torch.eye(flat.shape[1], dtype=flat.dtype), None, None)
    signals = [case.signal(1.4), case.signal(), HeadSignal(flat, eye, case.sizes[1], 0.9)]
    shares, learnt = (0.3, 0.2, 0.5), [losses[0].row_weights.log_weights, losses[2].row_weights.log_weights]

    def weigh(text: LossTerm, terms: object) -> Multipliers:
        kd = sum(share * term.total for share, term in zip(shares, terms, strict=True))  # type: ignore[call-overload]
        factor = dynamic_scale(text.total, kd)
        return Multipliers(torch.ones_like(factor), [factor * share for share in shares])

    terms = [loss.reference(leaf @ weight.T, s, case.index()) for loss, s in zip(losses, signals, strict=True)]
    logits = (leaf @ weight.T).flatten(0, 1)[:, : case.sizes[0]]
    text = LossTerm.of(torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none"))
    fixed = Multipliers(torch.tensor(1.0).double(), [torch.tensor(share).double() for share in (0.4, 0.7, 0.1)])
    multipliers = weigh(text, terms) if is_dynamic else fixed
    total = text.total + sum(m * term.total for m, term in zip(multipliers.lessons, terms, strict=True))
    expected = torch.autograd.grad(total, [leaf, *learnt])

    lessons = [Lesson(loss.kernel(), s, case.index()) for loss, s in zip(losses, signals, strict=True)]
    found = losses_from_hidden(
        leaf, Head(weight, None, None), targets, case.sizes[0], lessons, weigh if is_dynamic else fixed
    )
    for mine, theirs in zip(torch.autograd.grad(3 * found.loss, [leaf, *learnt]), expected, strict=True):
        torch.testing.assert_close(mine, 3 * theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FAST)
def test_at_the_start_it_is_the_given_w(name: str) -> None:
    case = random_case(5)
    fixed, moving = PKL(case.projection, **FAST[name]), PKL(case.projection, learnable=True, **FAST[name])
    arguments = case.student_logits, case.signal(), case.index()
    torch.testing.assert_close(moving(*arguments).total, fixed(*arguments).total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moving.projection.values, fixed.projection.values, rtol=1e-6, atol=0)
    assert float(moving.row_weights.drift().max()) == 0


def test_rows_keep_their_sums_and_single_entries_their_weight() -> None:
    case = random_case(6, 20, 15)
    loss = learnable(case, moved=0.0, loses=True)
    before = loss.projection
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        loss(case.student_logits, case.signal(), case.index()).total.backward()
        optimizer.step()
    after = loss.projection

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(case.sizes[0], dtype=torch.float64).index_add(0, loss.rows, values)

    torch.testing.assert_close(sums(after.values), sums(before.values), rtol=1e-12, atol=1e-12)
    assert (after.values - before.values).abs().max() > 0.1
    single = torch.bincount(loss.rows, minlength=case.sizes[0])[loss.rows] == 1
    assert single.any()
    assert torch.equal(after.values[single], before.values[single])
    assert len(loss.row_weights.log_weights) == int((~single).sum())


def test_a_rows_gradient_sums_to_0() -> None:
    case = random_case(7, 20, 15)
    loss = learnable(case)
    gradient = gradients(loss, loss, case, case.signal())[2]
    _, row = loss.rows[loss.row_weights.at].unique(return_inverse=True)
    sums = torch.zeros(int(row.max()) + 1, dtype=torch.float64).index_add(0, row, gradient)
    assert sums.abs().max() < 1e-12 < gradient.abs().max()


def test_drift_is_the_share_of_mass_that_moved() -> None:
    rows, cols, values = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 2, 0, 2]), np.array([0.25, 0.75, 1, 0.5, 0.5])
    loss = PKL(Projection.from_coo(rows, cols, values, (3, 3)), learnable=True)
    with torch.no_grad():
        loss.row_weights.log_weights.copy_(torch.tensor([0.75, 0.25, 0.5, 0.5]).log())
    torch.testing.assert_close(loss.row_weights.drift(), torch.tensor([0.5, 0.0]))
    assert loss.row_weights.rows.tolist() == [0, 2]


def test_a_weight_that_has_all_but_vanished_can_come_back() -> None:
    """e^-300 is no float32; its column has no other source, and the gradient is that of log space all the same."""
    projection = Projection.from_coo(np.array([0, 0]), np.array([0, 1]), np.array([0.5, 0.5]), (1, 2))
    case = random_case(0, 1, 2, batch=1)
    case = replace(case, projection=projection, student_logits=case.student_logits.float())
    loss = PKL(projection, learnable=True)
    with torch.no_grad():
        loss.row_weights.log_weights.copy_(torch.tensor([0.0, -300.0]))
    for function in (loss, loss.reference):
        term, _, by_weights = gradients(loss, function, case, case.signal())
        assert 100 < term.total.item() < float("inf")
        assert float(by_weights[1]) < -0.1


def test_a_fixed_w_has_nothing_to_learn_and_none_without_pieces_can() -> None:
    case = random_case(0)
    fixed = PKL(case.projection)
    assert list(fixed.parameters()) == []
    assert fixed.kernel().learnt is None  # type: ignore[union-attr]
    term = fixed(case.student_logits.requires_grad_(), case.signal(), case.index())
    assert term.total.requires_grad
    every = np.arange(4)
    with pytest.raises(XTokenError, match="no row of this projection has two entries"):
        PKL(Projection.from_coo(every, every, np.ones(4), (4, 4)), learnable=True)


def test_without_gradients_none_is_made() -> None:
    case = random_case(0)
    loss = learnable(case)
    with torch.no_grad():
        assert loss.kernel().learnt is None  # type: ignore[union-attr]
        assert not loss(case.student_logits, case.signal(), case.index()).total.requires_grad
    assert loss(case.student_logits.detach(), case.signal(), case.index()).total.requires_grad
