"""The shift, the drop of first tokens, and the bookkeeping of the flat rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xtoken.errors import XTokenError
from xtoken.losses import PKL, ChunkIndex
from xtoken.projection import Projection
from xtoken.teachers import signal_from_logits

CHUNKS = np.array([[0, 1, 0, 2], [1, 3, 2, 3], [4, 5, 3, 6]])
STUDENT_IDS, TEACHER_IDS = [10, 11, 12, 13, 14], [20, 21, 22, 23, 24, 25]


def test_a_token_is_predicted_by_the_row_before_it() -> None:
    index = ChunkIndex.from_chunks(CHUNKS, STUDENT_IDS, TEACHER_IDS)
    assert index.student_rows.tolist() == [0, 1, 3]
    assert index.student_tokens.tolist() == [11, 12, 14]
    assert index.student_starts.tolist() == [0, 2, 3]
    assert index.teacher_rows.tolist() == [1, 2, 3, 4]
    assert index.teacher_tokens.tolist() == [22, 23, 24, 25]
    assert index.teacher_starts.tolist() == [0, 1, 4]
    assert index.n_chunks == 2
    assert index.dropped == 1


@pytest.mark.parametrize("chunk", [[0, 1, 3, 4], [3, 4, 0, 1]])
def test_a_first_token_on_either_side_drops_the_chunk(chunk: list[int]) -> None:
    index = ChunkIndex.from_chunks([chunk, [4, 5, 4, 5]], STUDENT_IDS, TEACHER_IDS)
    assert index.n_chunks == index.dropped == 1
    assert index.student_tokens.tolist() == [14]


def test_the_loss_reads_the_rows_that_predict_and_no_other() -> None:
    """Rows 1 (student) and 2 (teacher) are the only ones that agree: one place off, and this is not 0."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 4, 3, dtype=torch.float64, generator=generator)
    teacher = torch.randn(1, 5, 3, dtype=torch.float64, generator=generator)
    teacher[0, 2] = student[0, 1]
    identity = Projection.from_coo(np.arange(3), np.arange(3), np.ones(3), (3, 3))
    index = ChunkIndex.from_chunks([[2, 3, 3, 4]], [0, 1, 2, 0], [2, 1, 0, 2, 1])
    assert PKL(identity)(student, signal_from_logits(teacher, 3), index).total.abs() < 1e-12


def test_the_chain_takes_each_later_token_from_the_row_before_it() -> None:
    """Both sides hold tokens (1, 2); the student's factor is p(2 | row 1), read from its own row."""
    student = torch.zeros(1, 3, 3, dtype=torch.float64)
    student[0, 1] = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()
    teacher = torch.zeros(1, 2, 3, dtype=torch.float64)
    identity = Projection.from_coo(np.arange(3), np.arange(3), np.ones(3), (3, 3))
    index = ChunkIndex.from_chunks([[1, 3, 1, 2]], [0, 1, 2], [0, 1])
    # sum over three tokens of 1/3 (log 1/3 - log (1/3 * 1/2)) = log 2.
    total = PKL(identity)(student, signal_from_logits(teacher, 3), index).total
    torch.testing.assert_close(total, torch.tensor(2.0, dtype=torch.float64).log())


def test_offsets_move_rows_and_nothing_else() -> None:
    plain = ChunkIndex.from_chunks(CHUNKS, STUDENT_IDS, TEACHER_IDS)
    moved = ChunkIndex.from_chunks(CHUNKS, STUDENT_IDS, TEACHER_IDS, student_offset=100, teacher_offset=1000)
    assert (moved.student_rows - plain.student_rows).eq(100).all()
    assert (moved.teacher_rows - plain.teacher_rows).eq(1000).all()
    for name in ("student_tokens", "student_starts", "teacher_tokens", "teacher_starts", "dropped"):
        assert torch.equal(getattr(moved, name), getattr(plain, name))


def test_cat_adds_chunks_and_changes_none() -> None:
    a = ChunkIndex.from_chunks(CHUNKS, STUDENT_IDS, TEACHER_IDS)
    b = ChunkIndex.from_chunks(CHUNKS[1:], STUDENT_IDS, TEACHER_IDS, 5, 6)
    both = ChunkIndex.cat([a, b])
    assert both.n_chunks == 4
    assert both.dropped == 1
    assert both.student_starts.tolist() == [0, 2, 3, 5, 6]
    assert both.teacher_starts.tolist() == [0, 1, 4, 5, 8]
    assert both.student_rows.tolist() == [0, 1, 3, 5, 6, 8]
    assert ChunkIndex.cat([ChunkIndex.cat([]), a]).student_starts.tolist() == a.student_starts.tolist()


def test_nothing_gives_no_chunks() -> None:
    for index in (ChunkIndex.cat([]), ChunkIndex.from_chunks(np.zeros((0, 4), np.int64), STUDENT_IDS, TEACHER_IDS)):
        assert index.n_chunks == 0
        assert index.student_starts.tolist() == index.teacher_starts.tolist() == [0]
        assert all(tensor.dtype == torch.int64 for tensor in index.tensors().values())


def test_tensors_and_back() -> None:
    index = ChunkIndex.from_chunks(CHUNKS, STUDENT_IDS, TEACHER_IDS)
    again = ChunkIndex.from_tensors({**index.tensors(), "something_else": torch.zeros(1)})
    assert again.tensors().keys() == index.tensors().keys()
    assert all(torch.equal(value, again.tensors()[name]) for name, value in index.tensors().items())
    assert index.to("meta").student_rows.device.type == "meta"


def test_a_missing_tensor_is_named() -> None:
    tensors = ChunkIndex.cat([]).tensors()
    del tensors["teacher_starts"]
    with pytest.raises(XTokenError, match=r"missing: \['teacher_starts'\]"):
        ChunkIndex.from_tensors(tensors)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ([2, 2, 1, 2], r"chunk 1 has the student tokens \[2, 2\) of a sequence of 5"),
        ([2, 3, 3, 2], r"chunk 1 has the teacher tokens \[3, 2\) of a sequence of 6"),
        ([4, 6, 1, 2], r"chunk 1 has the student tokens \[4, 6\) of a sequence of 5"),
        ([-1, 1, 1, 2], r"chunk 1 has the student tokens \[-1, 1\)"),
    ],
)
def test_a_chunk_that_is_none_is_refused(chunk: list[int], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        ChunkIndex.from_chunks([[1, 2, 1, 2], chunk], STUDENT_IDS, TEACHER_IDS)


def test_a_student_token_in_two_chunks_is_refused() -> None:
    """In whatever order they come; the teacher's may be shared, since nothing is written to its rows."""
    for chunks in ([[1, 3, 1, 2], [2, 4, 2, 3]], [[2, 4, 2, 3], [1, 3, 1, 2]]):
        with pytest.raises(XTokenError, match="student token 2 is in two chunks"):
            ChunkIndex.from_chunks(chunks, [0] * 5, [0] * 5)
    assert ChunkIndex.from_chunks([[1, 2, 1, 3], [2, 3, 2, 4]], [0] * 5, [0] * 5).n_chunks == 2
