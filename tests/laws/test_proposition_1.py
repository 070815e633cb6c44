"""Proposition 1 of X-Token (https://arxiv.org/abs/2605.21699): GOLD's common term pushes every unpaired logit down.

For a student token j in no pair, d L_common / d z_j = p_S[j] * M_C(T), with M_C(T) the teacher's mass on the pairs:
never negative, and the same whatever token the text holds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xtoken.losses import GOLD

from .cases import Case, random_case, value_and_grad


def common_gradient(case: Case) -> torch.Tensor:
    loss = GOLD(case.partition, remainder_weight=0.0)
    _, grad = value_and_grad(loss, case.student_logits, case.signal(), case.index())
    return grad.flatten(0, 1)[case.index().student_rows]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("seed", range(5))
def test_gradient_on_unpaired_tokens(seed: int, dtype: torch.dtype, atol: float) -> None:
    case = random_case(seed, size_s=30, size_t=40, longest=1).to(dtype)
    index = case.index()
    probs_s = case.student_logits[..., :30].double().softmax(-1).flatten(0, 1)[index.student_rows]
    probs_t = case.teacher_logits[..., :40].double().softmax(-1).flatten(0, 1)[index.teacher_rows]
    unpaired = np.setdiff1d(np.arange(30), case.partition.student_ids)
    mass_on_pairs = probs_t[:, case.partition.teacher_ids].sum(-1, keepdim=True)
    grad = common_gradient(case)[:, unpaired]
    torch.testing.assert_close(grad.double(), probs_s[:, unpaired] * mass_on_pairs, rtol=0, atol=atol)
    assert grad.ge(0).all()


def test_the_label_makes_no_difference() -> None:
    case = random_case(3, longest=1)
    before = common_gradient(case)
    case.student_ids[:] = (case.student_ids + 1) % case.sizes[0]
    assert torch.equal(common_gradient(case), before)
