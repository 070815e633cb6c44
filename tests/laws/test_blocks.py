"""Walking the chunks in blocks changes nothing but the memory."""

from __future__ import annotations

import pytest
import torch

from xtoken.losses import in_blocks
from xtoken.losses.blocks import chunks_per_block

from .cases import SAME_TOKENIZER, random_case, same_tokenizer_case, value_and_grad


@pytest.mark.parametrize("chunks", [1, 2, 5, 1000])
@pytest.mark.parametrize("name", sorted(set(SAME_TOKENIZER) - {"path-kl"}))  # whose chunks read the next one
def test_blocks_are_the_loss_itself(name: str, chunks: int) -> None:
    case = same_tokenizer_case() if name == "same" else random_case(longest=4)
    loss, signal, index = SAME_TOKENIZER[name](case), case.signal(2.0), case.index()
    whole, gradient = value_and_grad(loss, case.student_logits, signal, index)
    blocked, own = value_and_grad(
        lambda logits, signal, index: in_blocks(loss, logits, signal, index, chunks), case.student_logits, signal, index
    )
    torch.testing.assert_close(blocked.total, whole.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own, gradient, rtol=1e-12, atol=1e-12)
    assert int(blocked.count) == int(whole.count) == int(loss.count(index))
    assert blocked.metrics.keys() == whole.metrics.keys()
    for metric, value in whole.metrics.items():
        torch.testing.assert_close(blocked.metrics[metric], value, rtol=1e-12, atol=1e-12)


def test_what_comes_from_above_is_honoured() -> None:
    case = random_case()
    loss, signal, index = SAME_TOKENIZER["p-kl-chain"](case), case.signal(), case.index()
    leaf = case.student_logits.clone().requires_grad_()
    (3 * in_blocks(loss, 2 * leaf, signal, index, 2).total).backward()
    expected = case.student_logits.clone().requires_grad_()
    (3 * loss(2 * expected, signal, index).total).backward()
    torch.testing.assert_close(leaf.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_no_gradient_is_made_where_none_is_asked_for() -> None:
    case = random_case()
    loss, signal, index = SAME_TOKENIZER["p-kl-chain"](case), case.signal(), case.index()
    with torch.no_grad():
        term = in_blocks(loss, case.student_logits, signal, index, 2)
    assert not term.total.requires_grad
    torch.testing.assert_close(term.total, loss(case.student_logits, signal, index).total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_gradient_has_the_logits_own_type(dtype: torch.dtype) -> None:
    case = random_case().to(dtype)
    loss = SAME_TOKENIZER["p-kl-chain"](case)
    leaf = case.student_logits.clone().requires_grad_()
    in_blocks(loss, leaf, case.signal(), case.index(), 2).total.backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype


class _LargestBlock(torch.nn.Module):
    """Remembers the most rows a loss was handed at once."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss, self.rows = loss, 0

    def forward(self, logits, signal, index):  # type: ignore[no-untyped-def]
        self.rows = max(self.rows, logits.shape[0])
        return self.loss(logits, signal, index)


def test_a_loss_sees_the_rows_of_one_block_alone() -> None:
    case = random_case(batch=4, n_chunks=8, longest=2)
    spy = _LargestBlock(SAME_TOKENIZER["p-kl-chain"](case))
    in_blocks(spy, case.student_logits.requires_grad_(), case.signal(), case.index(), 3)
    assert 3 <= spy.rows <= 6


def test_real_sizes_take_many_blocks() -> None:
    assert chunks_per_block(128_256, 151_669) < 4096 / 16
    assert chunks_per_block(2**40, 2**40) == 1
