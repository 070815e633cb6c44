"""What a teacher's logits become."""

from __future__ import annotations

import pytest
import torch

from xtoken.errors import XTokenError
from xtoken.teachers import LogitSignal, TopKSignal, signal_from_logits

LOGITS = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


def test_dense_is_the_softmax_of_the_tokenizers_columns_at_the_temperature() -> None:
    signal = signal_from_logits(LOGITS, 6, temperature=2.0)
    assert isinstance(signal, LogitSignal)
    assert (signal.vocab_size, signal.temperature) == (6, 2.0)
    torch.testing.assert_close(signal.log_probs, (LOGITS[..., :6].flatten(0, 1) / 2).log_softmax(-1))


def test_top_k_keeps_the_largest_of_the_full_distribution_and_the_mass_of_the_rest() -> None:
    dense, signal = signal_from_logits(LOGITS, 6), signal_from_logits(LOGITS, 6, top_k=4)
    assert isinstance(signal, TopKSignal)
    torch.testing.assert_close(signal.log_probs, dense.log_probs.sort(-1, descending=True).values[:, :4])
    assert torch.equal(dense.log_probs.gather(1, signal.token_ids), signal.log_probs)
    torch.testing.assert_close(signal.log_probs.exp().sum(-1) + signal.log_tail.exp(), torch.ones(6))


def test_a_tail_too_small_for_one_minus_the_rest_is_still_exact() -> None:
    logits = torch.tensor([[0.0, -40.0, -41.0]])
    signal = signal_from_logits(logits, 3, top_k=1)
    torch.testing.assert_close(signal.log_tail, torch.tensor([-40.0, -41.0]).logsumexp(0, keepdim=True))


def test_top_k_of_everything_has_no_tail() -> None:
    assert signal_from_logits(LOGITS, 6, top_k=6).log_tail.isneginf().all()


def test_bfloat16_is_raised_before_the_softmax() -> None:
    signal = signal_from_logits(LOGITS.bfloat16(), 6)
    torch.testing.assert_close(signal.log_probs, LOGITS.bfloat16()[..., :6].float().flatten(0, 1).log_softmax(-1))


@pytest.mark.parametrize("top_k", [0, 7])
def test_top_k_outside_the_vocabulary_is_refused(top_k: int) -> None:
    with pytest.raises(XTokenError, match="between 1 and the teacher's 6 tokens"):
        signal_from_logits(LOGITS, 6, top_k=top_k)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(XTokenError, match="must be above 0"):
        signal_from_logits(LOGITS, 6, temperature)


def test_logits_narrower_than_the_tokenizer_are_refused() -> None:
    with pytest.raises(XTokenError, match="the teacher's logits have 8 columns, but its tokenizer has 9 tokens"):
        signal_from_logits(LOGITS, 9)
