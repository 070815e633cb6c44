"""Every loss equals its definition, worked out a second time in plain Python: dicts, loops, no shared code."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtoken.losses import GOLD, PKL, ULD, SameTokenizerKL

from .cases import MERGES, Case, random_case, same_tokenizer_case

Dist = dict[int, float]


def softmax(logits: list[float], size: int, tau: float) -> Dist:
    scaled = [z / tau for z in logits[:size]]
    top = max(scaled)
    weights = [math.exp(z - top) for z in scaled]
    return {i: w / sum(weights) for i, w in enumerate(weights)}


def merged(dists: list[Dist], tokens: list[int], merge: str, geometric: bool) -> tuple[Dist, float]:
    """A distribution and the factor it is multiplied by."""
    if merge == "mean" and geometric:
        raw = {i: math.prod(d[i] for d in dists) ** (1 / len(dists)) for i in dists[0]}
        return {i: x / sum(raw.values()) for i, x in raw.items()}, 1.0
    if merge == "mean":
        return {i: sum(d[i] for d in dists) / len(dists) for i in dists[0]}, 1.0
    factor = math.prod(d[t] for d, t in zip(dists[1:], tokens[1:], strict=True)) if merge == "chain" else 1.0
    return dists[0], factor


def chunk_pairs(case: Case, merge: str, tau: float) -> list[tuple[tuple[Dist, float], tuple[Dist, float]]]:
    """Student's and teacher's merged distribution of every chunk; token i is predicted at position i-1."""
    size_s, size_t = case.sizes
    student, teacher = case.student_logits.tolist(), case.teacher_logits.tolist()
    pairs = []
    for b, chunks in enumerate(case.chunks):
        for s0, s1, t0, t1 in chunks.tolist():
            if s0 == 0 or t0 == 0:
                continue
            dists_s = [softmax(student[b][i - 1], size_s, tau) for i in range(s0, s1)]
            dists_t = [softmax(teacher[b][i - 1], size_t, tau) for i in range(t0, t1)]
            side_s = merged(dists_s, case.student_ids[b][s0:s1].tolist(), merge, geometric=False)
            side_t = merged(dists_t, case.teacher_ids[b][t0:t1].tolist(), merge, geometric=True)
            pairs.append((side_s, side_t))
    return pairs


def p_kl_by_hand(case: Case, merge: str, tau: float, top_k: int | None) -> tuple[float, float]:
    entries = list(zip(*(a.tolist() for a in case.projection.to_coo()), strict=True))
    reachable = {col for _, col, _ in entries}
    loss = uncovered = 0.0
    for (p_s, factor_s), (p_t, factor_t) in chunk_pairs(case, merge, tau):
        projected: Dist = dict.fromkeys(reachable, 0.0)
        for row, col, value in entries:
            projected[col] += value * p_s[row]
        ranked = sorted(reachable, key=lambda t: -p_t[t])
        subset = ranked if top_k is None else ranked[:top_k]
        outside = sum(projected[t] for t in reachable if t not in subset)
        mass = sum(p_t[t] for t in subset)
        for t in subset:
            p, q = factor_t * p_t[t] / mass, factor_s * projected[t] / (1 - outside)
            loss += tau**2 * p * math.log(p / q)
        uncovered += sum(p for t, p in p_t.items() if t not in reachable)
    return loss, uncovered


def sorted_distance(a: list[float], b: list[float]) -> float:
    width = max(len(a), len(b))
    a, b = (sorted(x, reverse=True) + [0.0] * (width - len(x)) for x in (a, b))
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def gold_by_hand(case: Case, merge: str, tau: float) -> tuple[float, float]:
    pairs = list(zip(case.partition.student_ids.tolist(), case.partition.teacher_ids.tolist(), strict=True))
    paired_s, paired_t = {s for s, _ in pairs}, {t for _, t in pairs}
    common = remainder = 0.0
    for (p_s, factor_s), (p_t, factor_t) in chunk_pairs(case, merge, tau):
        vector_s, vector_t = ({i: f * p for i, p in d.items()} for d, f in ((p_s, factor_s), (p_t, factor_t)))
        common += sum(vector_t[t] * math.log(vector_t[t] / vector_s[s]) for s, t in pairs)
        remainder += sorted_distance(
            [p for i, p in vector_s.items() if i not in paired_s], [p for i, p in vector_t.items() if i not in paired_t]
        )
    return tau**2 * common, tau**2 * remainder


def uld_by_hand(case: Case, merge: str, tau: float) -> float:
    return tau**2 * sum(
        sorted_distance([fs * p for p in p_s.values()], [ft * p for p in p_t.values()])
        for (p_s, fs), (p_t, ft) in chunk_pairs(case, merge, tau)
    )


CASES = st.builds(
    random_case,
    seed=st.integers(0, 2**32 - 1),
    size_s=st.integers(2, 9),
    size_t=st.integers(3, 9),
    batch=st.integers(1, 3),
    n_chunks=st.integers(1, 6),
    longest=st.integers(1, 4),
    padding=st.integers(0, 3),
)
TEMPERATURES = st.sampled_from([1.0, 2.0, 0.5])
few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(CASES, st.sampled_from(MERGES), TEMPERATURES, st.sampled_from([None, 1, 2, 3]))
def test_p_kl(case: Case, merge: str, tau: float, top_k: int | None) -> None:
    loss = PKL(case.projection, merge, top_k)
    term = loss(case.student_logits, case.signal(tau), case.index())
    total, uncovered = p_kl_by_hand(case, merge, tau, top_k)
    assert term.total.item() == pytest.approx(total, rel=1e-9, abs=1e-9)
    assert term.metrics["uncovered_mass"].item() == pytest.approx(uncovered, rel=1e-9, abs=1e-12)
    assert term.count.item() == len(chunk_pairs(case, merge, tau))


@few
@given(CASES, st.sampled_from(MERGES), TEMPERATURES)
def test_gold(case: Case, merge: str, tau: float) -> None:
    term = GOLD(case.partition, merge, common_weight=0.7, remainder_weight=0.3)(
        case.student_logits, case.signal(tau), case.index()
    )
    common, remainder = gold_by_hand(case, merge, tau)
    assert term.metrics["common"].item() == pytest.approx(common, rel=1e-9, abs=1e-9)
    assert term.metrics["remainder"].item() == pytest.approx(remainder, rel=1e-9, abs=1e-9)
    assert term.total.item() == pytest.approx(0.7 * common + 0.3 * remainder, rel=1e-9, abs=1e-9)


@few
@given(CASES, st.sampled_from(MERGES), TEMPERATURES)
def test_uld(case: Case, merge: str, tau: float) -> None:
    term = ULD(*case.sizes, merge)(case.student_logits, case.signal(tau), case.index())
    assert term.total.item() == pytest.approx(uld_by_hand(case, merge, tau), rel=1e-9, abs=1e-9)


@few
@given(st.builds(same_tokenizer_case, seed=st.integers(0, 2**32 - 1), size=st.integers(3, 9)), TEMPERATURES)
def test_same_tokenizer(case: Case, tau: float) -> None:
    term = SameTokenizerKL(case.sizes[0])(case.student_logits, case.signal(tau), case.index())
    by_hand = sum(
        p_t[i] * math.log(p_t[i] / p_s[i]) for (p_s, _), (p_t, _) in chunk_pairs(case, "first", tau) for i in p_t
    )
    assert term.total.item() == pytest.approx(tau**2 * by_hand, rel=1e-9, abs=1e-12)
