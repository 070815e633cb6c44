"""Mistakes of a caller, and what the message says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xtoken.errors import XTokenError
from xtoken.losses import GOLD, HKL, PKL, ULD, ChunkIndex, SameTokenizerKL
from xtoken.projection import Partition, Projection
from xtoken.teachers import signal_from_logits

W = Projection.from_coo(np.array([0, 1, 2]), np.array([0, 1, 2]), np.ones(3), (3, 4))
PAIRS = Partition(np.array([0]), np.array([1]), (3, 4))
INDEX = ChunkIndex.from_chunks([[1, 2, 1, 2]], [0, 1], [0, 1])
STUDENT, TEACHER = torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)
LOSSES = [PKL(W), GOLD(PAIRS), HKL(PAIRS), ULD(3, 4)]


class Triplets:
    """A projection that nobody has checked."""

    def __init__(self, rows: list[int], cols: list[int], values: list[float]) -> None:
        self.shape, self.triplets = (3, 4), tuple(map(np.array, (rows, cols, values)))

    def to_coo(self) -> tuple[np.ndarray, ...]:
        return self.triplets


class Pairs:
    def __init__(self, student_ids: list[int], teacher_ids: list[int]) -> None:
        self.shape, self.student_ids, self.teacher_ids = (3, 4), np.array(student_ids), np.array(teacher_ids)


@pytest.mark.parametrize("loss", [*LOSSES, SameTokenizerKL(3)], ids=repr)
def test_student_logits_narrower_than_the_tokenizer(loss: torch.nn.Module) -> None:
    with pytest.raises(XTokenError, match="the student's logits have 2 columns, but its tokenizer has 3 tokens"):
        loss(STUDENT[..., :2], signal_from_logits(TEACHER, 4), INDEX)


@pytest.mark.parametrize("loss", [*LOSSES, SameTokenizerKL(3)], ids=repr)
def test_the_signal_of_another_teacher(loss: torch.nn.Module) -> None:
    with pytest.raises(XTokenError, match="covers 2 tokens, but this loss was built for a teacher of"):
        loss(STUDENT, signal_from_logits(TEACHER, 2), INDEX)


@pytest.mark.parametrize("loss", LOSSES[1:], ids=repr)
def test_whole_distributions_cannot_be_had_from_a_top_k_signal(loss: torch.nn.Module) -> None:
    with pytest.raises(XTokenError, match=rf"{type(loss).__name__} compares whole .* the top 2 of 4 tokens.*use P-KL"):
        loss(STUDENT, signal_from_logits(TEACHER, 4, top_k=2), INDEX)


@pytest.mark.parametrize(("student", "teacher"), [([1, 3], [1, 2]), ([1, 2], [1, 3]), ([1, 3], [1, 3])])
def test_the_same_tokenizer_kl_takes_one_to_one_chunks(student: list[int], teacher: list[int]) -> None:
    index = ChunkIndex.from_chunks([[*student, *teacher]], [0, 1, 2], [0, 1, 2])
    logits = torch.zeros(1, 3, 3)
    with pytest.raises(XTokenError, match=r"1 chunks hold . student and . teacher tokens.*use P-KL or H-KL"):
        SameTokenizerKL(3)(logits, signal_from_logits(logits, 3), index)


@pytest.mark.parametrize("top_k", [0, 5])
def test_top_k_outside_the_vocabulary(top_k: int) -> None:
    with pytest.raises(XTokenError, match="between 1 and the teacher's 4 tokens"):
        PKL(W, teacher_topk=top_k)


@pytest.mark.parametrize(
    ("triplets", "message"),
    [
        (Triplets([3], [0], [1.0]), "within its shape 3 x 4"),
        (Triplets([0], [4], [1.0]), "within its shape 3 x 4"),
        (Triplets([0], [0], [-1.0]), "at least 0"),
        (Triplets([1, 1], [0, 1], [0.9, 0.2]), "row 1 of the projection sums to 1.1"),
    ],
)
def test_a_projection_that_is_none(triplets: Triplets, message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        PKL(triplets)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (Pairs([0, 0], [0, 1]), "pairs a student id twice"),
        (Pairs([0, 1], [2, 2]), "pairs a teacher id twice"),
        (Pairs([3], [0]), "student id outside its vocabulary of 3"),
        (Pairs([0], [4]), "teacher id outside its vocabulary of 4"),
        (Pairs([0, 1], [0]), "2 student ids and 1 teacher ids"),
    ],
)
def test_a_partition_that_is_none(pairs: Pairs, message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        GOLD(pairs)


def test_w_is_not_part_of_a_checkpoint() -> None:
    assert not any(loss.state_dict() for loss in LOSSES)


def test_w_moves_with_the_module() -> None:
    assert PKL(W).to("meta").projection.reachable.device.type == "meta"


def test_entries_of_weight_zero_are_no_entries() -> None:
    loss = PKL(Triplets([0, 0, 1], [0, 1, 2], [1.0, 0.0, 1.0]))
    assert loss.projection.reachable.tolist() == [True, False, True, False]
