"""What chain, mean and first make of a chunk's positions."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from xtoken.errors import XTokenError
from xtoken.losses import GOLD, HKL, PKL, ULD, ChunkIndex
from xtoken.losses.merge import Merge, merge_rows, teacher_chunks
from xtoken.teachers import signal_from_logits

DOUBLE = {"dtype": torch.float64}
ROWS = torch.tensor([[1, 2, 1], [2, 1, 1], [1, 1, 2], [1, 2, 1]], **DOUBLE) / 4
TOKENS, STARTS = torch.tensor([1, 0, 2, 1]), torch.tensor([0, 3, 4])


def merged(merge: Merge, average: str = "arithmetic") -> torch.Tensor:
    return merge_rows(ROWS.log(), TOKENS, STARTS, merge, average).log_vectors.exp()


def test_chain_is_the_first_position_times_the_realised_later_tokens() -> None:
    # Later tokens 0 and 2 have probability 2/4 at their rows: factor 1/4.
    torch.testing.assert_close(merged("chain"), torch.stack([ROWS[0] / 4, ROWS[3]]))


def test_chains_realised_entry_is_the_probability_of_the_whole_span() -> None:
    joint = ROWS[0, TOKENS[0]] * ROWS[1, TOKENS[1]] * ROWS[2, TOKENS[2]]
    torch.testing.assert_close(merged("chain")[0, TOKENS[0]], joint)


def test_first() -> None:
    torch.testing.assert_close(merged("first"), ROWS[[0, 3]])


def test_arithmetic_mean() -> None:
    torch.testing.assert_close(merged("mean"), torch.stack([ROWS[:3].mean(0), ROWS[3]]))


def test_geometric_mean_is_renormalised() -> None:
    # (1 * 2 * 1)^(1/3) = (2 * 1 * 1)^(1/3) = (1 * 1 * 2)^(1/3): all equal.
    torch.testing.assert_close(merged("mean", "geometric"), torch.stack([torch.full((3,), 1 / 3, **DOUBLE), ROWS[3]]))


def test_geometric_mean_of_positions_that_exclude_each_other_has_no_mass() -> None:
    rows = torch.tensor([[0.0, float("-inf")], [float("-inf"), 0.0]], **DOUBLE)
    vectors = merge_rows(rows, torch.tensor([0, 1]), torch.tensor([0, 2]), "mean", "geometric").log_vectors
    assert vectors.isneginf().all()


@pytest.mark.parametrize("merge", get_args(Merge))
def test_a_chunk_of_one_token_is_its_position(merge: Merge) -> None:
    rows = merge_rows(ROWS.log(), TOKENS, torch.arange(5), merge).log_vectors
    torch.testing.assert_close(rows, ROWS.log())


def test_long_chains_keep_their_logarithm() -> None:
    """A span of probability e^-400 is 0 in float32 as a number and -400 as a logarithm."""
    rows = torch.full((400, 2), -1.0)
    chain = merge_rows(rows, torch.zeros(400, dtype=torch.int64), torch.tensor([0, 400]), "chain")
    assert chain.log_factor.tolist() == [-399.0]


def test_a_top_k_signal_gives_a_token_it_left_out_an_equal_share_of_the_tail() -> None:
    # Second teacher token 3 is outside the top 2 of (4, 2, 1, 1)/8: the tail of 2/8 is shared by two tokens, 1/8.
    logits = (torch.tensor([[[2, 4, 1, 1], [4, 2, 1, 1]]], **DOUBLE) / 8).log()
    for token, probability in ((0, 4 / 8), (1, 2 / 8), (3, 1 / 8)):
        index = ChunkIndex.from_chunks([[1, 2, 1, 3]], [0, 0], [0, 1, token])
        chain = teacher_chunks(signal_from_logits(logits, 4, top_k=2), 4, index, "chain")
        torch.testing.assert_close(chain.log_factor.exp(), torch.tensor([probability], **DOUBLE))
        assert chain.log_probs[0].isneginf().tolist() == [False, False, True, True]


def test_mean_needs_a_dense_signal() -> None:
    signal = signal_from_logits(torch.zeros(1, 2, 4), 4, top_k=2)
    with pytest.raises(XTokenError, match="'mean' needs a dense teacher signal"):
        teacher_chunks(signal, 4, ChunkIndex.from_chunks([[1, 2, 1, 2]], [0, 0], [0, 0]), "mean")


def test_an_unknown_merge_is_refused_with_those_there_are() -> None:
    class Pair:
        shape = (2, 2)

    for loss in (PKL, GOLD, HKL):
        with pytest.raises(XTokenError, match="merge is 'median'; it must be one of chain, mean, first"):
            loss(Pair(), "median")
    with pytest.raises(XTokenError, match="one of chain, mean, first"):
        ULD(2, 2, "median")
