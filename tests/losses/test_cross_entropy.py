"""Cross-entropy: worked by hand, and the sum behind transformers' own loss."""

from __future__ import annotations

from math import log

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from xtoken.errors import XTokenError
from xtoken.losses import cross_entropy


def test_by_hand() -> None:
    # Rows predict (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2); labels 1 and 2 follow token 0: -log 1/4 - log 1/2 = 3 log 2.
    logits = torch.tensor([[[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 4, 1 / 2], [1, 1, 1]]]).log()
    term = cross_entropy(logits, torch.tensor([[0, 1, 2]]))
    assert term.total.item() == pytest.approx(3 * log(2))
    assert term.count == 2


def test_labels_are_those_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, generator=generator)
    labels = torch.randint(0, 5, (2, 6), generator=generator)
    labels[0, :3] = labels[1, 4] = -100
    term = cross_entropy(logits, labels)
    torch.testing.assert_close(term.mean(), ForCausalLMLoss(logits, labels, vocab_size=5))
    assert term.count == (labels[:, 1:] != -100).sum()


def test_head_padding_is_cut_off() -> None:
    logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([logits, torch.full((1, 4, 3), 50.0)], -1)
    labels = torch.tensor([[0, 1, 2, 3]])
    assert torch.equal(cross_entropy(wide, labels, 5).total, cross_entropy(logits, labels).total)


def test_bfloat16_is_summed_in_float32() -> None:
    logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    labels = torch.tensor([[0, 1, 2, 3]])
    total = cross_entropy(logits, labels).total
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), cross_entropy(logits.double(), labels).total, rtol=1e-5, atol=0)


def test_no_label_is_zero_with_a_gradient() -> None:
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    term = cross_entropy(logits, torch.full((1, 3), -100))
    term.mean().backward()
    assert term.mean() == 0
    assert logits.grad.eq(0).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(XTokenError, match=r"labels of shape \(1, 2\) do not fit logits of shape \(1, 3, 4\)"):
        cross_entropy(torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(XTokenError, match=r"have 4 columns, but its tokenizer has 5 tokens"):
        cross_entropy(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64), 5)
