"""Each loss on a 3 x 4 vocabulary, with numbers that can be checked on paper.

One chunk of one token a side unless said. Student p_S = (1/2, 1/4, 1/4) over 3 tokens; teacher p_T = (1/2, 1/4, 1/8,
1/8) over 4.
"""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from xtoken.losses import GOLD, HKL, PKL, ULD, ChunkIndex, SameTokenizerKL
from xtoken.projection import Partition, Projection
from xtoken.teachers import signal_from_logits

STUDENT, TEACHER = (1 / 2, 1 / 4, 1 / 4), (1 / 2, 1 / 4, 1 / 8, 1 / 8)


def logits_of(*rows: tuple[float, ...]) -> Tensor:
    """[1, rows, V], logits whose softmax is the row."""
    return torch.tensor([rows], dtype=torch.float64).log()


def one_chunk(student_tokens: list[int], teacher_tokens: list[int]) -> ChunkIndex:
    """A first token on each side (token 0), then one chunk of the tokens given."""
    chunks = [[1, 1 + len(student_tokens), 1, 1 + len(teacher_tokens)]]
    return ChunkIndex.from_chunks(chunks, [0, *student_tokens], [0, *teacher_tokens])


ONE_TO_ONE = one_chunk([1], [1])


def projection(*entries: tuple[int, int, float]) -> Projection:
    rows, cols, values = zip(*entries, strict=True)
    return Projection.from_coo(np.array(rows), np.array(cols), np.array(values), (3, 4))


# Student token 2 is spread over teacher tokens 1 and 2; teacher token 3 is out of reach.
FULL = projection((0, 0, 1), (1, 1, 1), (2, 1, 0.5), (2, 2, 0.5))
# Student token 2 has no row; teacher tokens 2 and 3 are out of reach.
WITH_EMPTY_ROW = projection((0, 0, 1), (1, 1, 1))


def test_p_kl() -> None:
    # W^T p_S = (1/2, 1/4 + 1/8, 1/8, -) = (1/2, 3/8, 1/8). R = 1/2 + 1/4 + 1/8 = 7/8, so p_T / R = (4/7, 2/7, 1/7).
    # KL = 4/7 log(4/7 : 1/2) + 2/7 log(2/7 : 3/8) + 1/7 log(1/7 : 1/8) = 4/7 log 8/7 + 2/7 log 16/21 + 1/7 log 8/7.
    term = PKL(FULL)(logits_of(STUDENT), signal_from_logits(logits_of(TEACHER), 4), ONE_TO_ONE)
    assert term.total.item() == pytest.approx(5 / 7 * log(8 / 7) + 2 / 7 * log(16 / 21), abs=1e-12)
    assert term.metrics["uncovered_mass"].item() == pytest.approx(1 / 8)
    assert term.count == 1


def test_p_kl_penalises_mass_lost_on_an_empty_row() -> None:
    # W^T p_S = (1/2, 1/4, -, -), of sum 3/4: a quarter is lost. R = 3/4, p_T / R = (2/3, 1/3).
    # KL = 2/3 log(2/3 : 1/2) + 1/3 log(1/3 : 1/4) = log 4/3: the teacher's proportions are met, the lost quarter is
    # not.
    term = PKL(WITH_EMPTY_ROW)(logits_of(STUDENT), signal_from_logits(logits_of(TEACHER), 4), ONE_TO_ONE)
    assert term.total.item() == pytest.approx(log(4 / 3), abs=1e-12)
    assert term.metrics["uncovered_mass"].item() == pytest.approx(1 / 4)


def test_p_kl_on_the_teachers_top_two() -> None:
    # Subset {0, 1}: p = (1/2, 1/4) / (3/4) = (2/3, 1/3). Reachable outside it: column 2 with 1/8 of the student.
    # q = (1/2, 3/8) / (1 - 1/8) = (4/7, 3/7). KL = 2/3 log(2/3 : 4/7) + 1/3 log(1/3 : 3/7) = 2/3 log 7/6 + 1/3 log 7/9.
    term = PKL(FULL, teacher_topk=2)(logits_of(STUDENT), signal_from_logits(logits_of(TEACHER), 4), ONE_TO_ONE)
    assert term.total.item() == pytest.approx(2 / 3 * log(7 / 6) + 1 / 3 * log(7 / 9), abs=1e-12)


def test_p_kl_on_a_subset_still_penalises_lost_mass() -> None:
    # Subset {0}: p = 1. Outside it and reachable: 1/4. q = 1/2 / (1 - 1/4) = 2/3, the rest being the lost row: log 3/2.
    term = PKL(WITH_EMPTY_ROW, teacher_topk=1)(
        logits_of(STUDENT), signal_from_logits(logits_of(TEACHER), 4), ONE_TO_ONE
    )
    assert term.total.item() == pytest.approx(log(3 / 2), abs=1e-12)


def test_p_kl_on_a_top_k_signal() -> None:
    # The signal keeps tokens 0 and 1: the same subset as teacher_topk=2.
    signal = signal_from_logits(logits_of(TEACHER), 4, top_k=2)
    term = PKL(FULL)(logits_of(STUDENT), signal, ONE_TO_ONE)
    assert term.total.item() == pytest.approx(2 / 3 * log(7 / 6) + 1 / 3 * log(7 / 9), abs=1e-12)


def test_p_kl_when_the_top_k_signal_holds_nothing_reachable() -> None:
    signal = signal_from_logits(logits_of((1 / 8, 1 / 8, 1 / 4, 1 / 2)), 4, top_k=2)  # tokens 3 and 2
    assert PKL(WITH_EMPTY_ROW)(logits_of(STUDENT), signal, ONE_TO_ONE).total == 0


def test_p_kl_chain_may_be_negative() -> None:
    # Two teacher tokens; the second has probability 1/4 at its own row, so the teacher's vector is p_T/R * 1/4. With D
    # the 1:1 loss: sum p/4 (log p/4 - log q) = D/4 - 1/4 log 4.
    d = 5 / 7 * log(8 / 7) + 2 / 7 * log(16 / 21)
    teacher = logits_of(TEACHER, (1 / 8, 1 / 8, 1 / 4, 1 / 2))
    term = PKL(FULL)(logits_of(STUDENT), signal_from_logits(teacher, 4), one_chunk([1], [1, 2]))
    assert term.total.item() == pytest.approx(d / 4 - log(4) / 4, abs=1e-12)
    assert term.total < 0


def test_p_kl_chain_on_both_sides() -> None:
    # Two and two: factors 1/2 (student token 0) and 1/4 (teacher token 2). sum p/4 (log p/4 - log q/2) = (D - log 2) /
    # 4.
    d = 5 / 7 * log(8 / 7) + 2 / 7 * log(16 / 21)
    student, teacher = logits_of(STUDENT, (1 / 2, 1 / 4, 1 / 4)), logits_of(TEACHER, (1 / 8, 1 / 8, 1 / 4, 1 / 2))
    term = PKL(FULL)(student, signal_from_logits(teacher, 4), one_chunk([1, 0], [1, 2]))
    assert term.total.item() == pytest.approx((d - log(2)) / 4, abs=1e-12)


def test_p_kl_first_ignores_the_later_tokens() -> None:
    teacher = logits_of(TEACHER, (1 / 8, 1 / 8, 1 / 4, 1 / 2))
    term = PKL(FULL, "first")(logits_of(STUDENT), signal_from_logits(teacher, 4), one_chunk([1], [1, 2]))
    assert term.total.item() == pytest.approx(5 / 7 * log(8 / 7) + 2 / 7 * log(16 / 21), abs=1e-12)


def test_p_kl_mean() -> None:
    # Student: mean of (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2) = (3/8, 1/4, 3/8); projected (3/8, 1/4 + 3/16, 3/16) = (6, 7,
    # 3)/16. Teacher: geometric mean of (1/2, 1/4, 1/8, 1/8) and (1/8, 1/4, 1/2, 1/8) is (2, 2, 2, 1)/8, normalised (2,
    # 2, 2, 1)/7; on the reachable three, 1/3 each. KL = 1/3 (log 16/18 + log 16/21 + log 16/9). Uncovered: 1/7.
    student = logits_of(STUDENT, (1 / 4, 1 / 4, 1 / 2))
    teacher = logits_of(TEACHER, (1 / 8, 1 / 4, 1 / 2, 1 / 8))
    term = PKL(FULL, "mean")(student, signal_from_logits(teacher, 4), one_chunk([1, 0], [1, 2]))
    assert term.total.item() == pytest.approx((log(16 / 18) + log(16 / 21) + log(16 / 9)) / 3, abs=1e-12)
    assert term.metrics["uncovered_mass"].item() == pytest.approx(1 / 7)


def test_temperature() -> None:
    # Logits twice those of p_S and p_T, read at tau = 2, are p_S and p_T; the loss is 2^2 times as large.
    signal = signal_from_logits(2 * logits_of(TEACHER), 4, temperature=2.0)
    term = PKL(FULL)(2 * logits_of(STUDENT), signal, ONE_TO_ONE)
    assert term.total.item() == pytest.approx(4 * (5 / 7 * log(8 / 7) + 2 / 7 * log(16 / 21)), abs=1e-12)
    assert term.metrics["uncovered_mass"].item() == pytest.approx(1 / 8)


@pytest.mark.parametrize("loss", [GOLD, HKL])
def test_gold_and_h_kl(loss: type[GOLD]) -> None:
    # Pairs 0-0 and 1-2. Common: 1/2 log(1/2 : 1/2) + 1/8 log(1/8 : 1/4) = -1/8 log 2.
    # Remainders: student (1/4), teacher (1/4, 1/8): |1/4 - 1/4| + |0 - 1/8| = 1/8.
    pairs = Partition(np.array([0, 1]), np.array([0, 2]), (3, 4))
    term = loss(pairs)(logits_of(STUDENT), signal_from_logits(logits_of(TEACHER), 4), ONE_TO_ONE)
    assert term.metrics["common"].item() == pytest.approx(-log(2) / 8, abs=1e-12)
    assert term.metrics["remainder"].item() == pytest.approx(1 / 8, abs=1e-12)
    assert term.total.item() == pytest.approx(1 / 8 - log(2) / 8, abs=1e-12)


def test_gold_weights() -> None:
    pairs = Partition(np.array([0, 1]), np.array([0, 2]), (3, 4))
    loss = GOLD(pairs, common_weight=3.0, remainder_weight=0.5)
    term = loss(logits_of(STUDENT), signal_from_logits(logits_of(TEACHER), 4), ONE_TO_ONE)
    assert term.total.item() == pytest.approx(-3 * log(2) / 8 + 1 / 16, abs=1e-12)


def test_gold_chain() -> None:
    # The teacher's vector is p_T / 4 = (1/8, 1/16, 1/32, 1/32). Common: 1/8 log(1/8 : 1/2) + 1/32 log(1/32 : 1/4)
    # = -1/4 log 2 - 3/32 log 2. Remainders: (1/4) and (1/16, 1/32): 3/16 + 1/32 = 7/32.
    pairs = Partition(np.array([0, 1]), np.array([0, 2]), (3, 4))
    teacher = logits_of(TEACHER, (1 / 8, 1 / 8, 1 / 4, 1 / 2))
    term = GOLD(pairs)(logits_of(STUDENT), signal_from_logits(teacher, 4), one_chunk([1], [1, 2]))
    assert term.total.item() == pytest.approx(-11 / 32 * log(2) + 7 / 32, abs=1e-12)


def test_uld() -> None:
    # Sorted: (1/2, 1/4, 1/4, 0) and (1/2, 1/4, 1/8, 1/8): 0 + 0 + 1/8 + 1/8.
    term = ULD(3, 4)(logits_of(STUDENT), signal_from_logits(logits_of(TEACHER), 4), ONE_TO_ONE)
    assert term.total.item() == pytest.approx(1 / 4, abs=1e-12)


def test_same_tokenizer() -> None:
    # p_T = (1/4, 1/2, 1/4): 1/4 log(1/4 : 1/2) + 1/2 log(1/2 : 1/4) + 1/4 log 1 = 1/4 log 2.
    signal = signal_from_logits(logits_of((1 / 4, 1 / 2, 1 / 4)), 3)
    term = SameTokenizerKL(3)(logits_of(STUDENT), signal, ONE_TO_ONE)
    assert term.total.item() == pytest.approx(log(2) / 4, abs=1e-12)


def test_same_tokenizer_on_a_top_k_signal() -> None:
    # p_T = (1/8, 1/2, 3/8), its top two: (4/7, 3/7) on tokens 1 and 2; p_S there: (1/2, 1/2).
    signal = signal_from_logits(logits_of((1 / 8, 1 / 2, 3 / 8)), 3, top_k=2)
    term = SameTokenizerKL(3)(logits_of(STUDENT), signal, ONE_TO_ONE)
    assert term.total.item() == pytest.approx(4 / 7 * log(8 / 7) + 3 / 7 * log(6 / 7), abs=1e-12)
