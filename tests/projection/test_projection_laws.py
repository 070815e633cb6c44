"""Laws of W on every pair of families: its shape, its rows, and that a row says what its token says."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest

from small_tokenizers import SMALL, small
from xtoken.errors import XTokenError
from xtoken.projection import Projection, build_projection

PAIRS = list(product(SMALL, SMALL))
KEEPS_TEXT = [name for name in SMALL if name not in ("wordpiece", "spm-nmt", "splitting", "hf-unigram")]


@cache
def projection_of(student: str, teacher: str) -> Projection:
    return build_projection(small(student).vocabulary, small(teacher).vocabulary)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_rows_sum_to_one_or_are_empty_and_shapes_are_tokenizer_sizes(student: str, teacher: str) -> None:
    projection = projection_of(student, teacher)
    assert projection.shape == (len(small(student).table), len(small(teacher).table))
    rows, cols, values = projection.to_coo()
    assert (rows.dtype, cols.dtype, values.dtype) == (np.int64, np.int64, np.float32)
    assert (values > 0).all()
    assert cols.min() >= 0
    assert cols.max() < projection.shape[1]
    dense = np.zeros(projection.shape)
    np.add.at(dense, (rows, cols), values)
    sums = dense.sum(axis=1)
    np.testing.assert_allclose(sums, projection.row_sums(), atol=1e-6)
    assert np.all((np.abs(sums - 1) < 1e-6) | (sums == 0))
    assert ((dense > 0).sum(axis=1) <= 4).all()
    assert len(set(zip(rows.tolist(), cols.tolist(), strict=True))) == len(rows)
    np.testing.assert_array_equal(projection.reachable(), (dense > 0).any(axis=0))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_equal_bytes_have_a_row_of_one(student: str, teacher: str) -> None:
    made_s, made_t = small(student), small(teacher)
    rows, cols, values = projection_of(student, teacher).to_coo()
    by_row: dict[int, list[tuple[int, float]]] = {}
    for r, c, v in zip(rows.tolist(), cols.tolist(), values.tolist(), strict=True):
        by_row.setdefault(r, []).append((c, v))
    spelled_so = {i: spelled for i, spelled in enumerate(made_t.table) if spelled is not None}
    for i, spelled in enumerate(made_s.table):
        if spelled in spelled_so.values():
            ((col, value),) = by_row[i]
            assert (spelled_so[col], value) == (spelled, 1.0)


@pytest.mark.parametrize(("student", "teacher"), [pair for pair in PAIRS if pair[1] in KEEPS_TEXT])
def test_the_pieces_of_a_row_are_the_tokens_own_bytes(student: str, teacher: str) -> None:
    """Where the teacher rewrites nothing. The weights fall, so without repeats they give the order."""
    made_s, made_t = small(student), small(teacher)
    projection = projection_of(student, teacher)
    for i, spelled in enumerate(made_s.table):
        span = slice(*projection.indptr[i : i + 2])
        pieces = [int(c) for c in projection.cols[span][np.argsort(-projection.values[span])]]
        if spelled is not None and pieces:
            joined = made_t.spell(pieces)
            assert joined is not None
            assert joined == spelled or set(joined) <= set(spelled), spelled
            if len(joined) == len(spelled):
                assert joined == spelled


@pytest.mark.parametrize("name", SMALL)
def test_a_tokenizer_onto_itself_is_the_identity_but_for_ids_of_equal_bytes(name: str) -> None:
    projection, table = projection_of(name, name), small(name).table
    rows, cols, values = projection.to_coo()
    assert (values == 1).all()
    by_row = dict(zip(rows.tolist(), cols.tolist(), strict=True))
    for r, c in zip(rows.tolist(), cols.tolist(), strict=True):
        assert table[r] == table[c]
        assert r == c or by_row[c] == c
    if len({t for t in table if t is not None}) == sum(t is not None for t in table):
        np.testing.assert_array_equal(rows, cols)
        np.testing.assert_array_equal(rows, np.arange(len(table)))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_the_recipe_accounts_for_every_row(student: str, teacher: str) -> None:
    projection = projection_of(student, teacher)
    counts = projection.recipe["rows"]
    assert sum(counts.values()) == projection.shape[0]
    empty = ("over_4_pieces", "not_utf8", "unknown_to_teacher", "special_alone", "unused_id")
    assert sum(counts.get(cause, 0) for cause in empty) == int((projection.row_sums() == 0).sum())
    assert (projection.recipe["decay"], projection.recipe["max_pieces"]) == (0.1, 4)


def test_fingerprints_are_those_of_the_two_tokenizers() -> None:
    projection = projection_of("packing", "splitting")
    assert projection.student_fingerprint == small("packing").vocabulary.fingerprint
    assert projection.teacher_fingerprint == small("splitting").vocabulary.fingerprint


def hand_made(**changes: object) -> Projection:
    parts: dict[str, object] = {
        "rows": np.array([0, 0, 2]),
        "cols": np.array([1, 0, 1]),
        "values": np.array([0.25, 0.75, 1.0]),
        "shape": (3, 2),
    }
    return Projection.from_coo(**(parts | changes))  # type: ignore[arg-type]


def test_triplets_come_in_any_order() -> None:
    projection = hand_made()
    assert projection.indptr.tolist() == [0, 2, 2, 3]
    assert projection.cols.tolist() == [0, 1, 1]
    assert projection.values.tolist() == [0.75, 0.25, 1.0]
    assert projection.row_sums().tolist() == [1, 0, 1]
    assert (projection.cols.dtype, projection.values.dtype) == (np.int32, np.float32)


def test_a_matrix_without_entries_is_a_matrix() -> None:
    nothing = np.array([], np.int64)
    projection = hand_made(rows=nothing, cols=nothing, values=np.array([], np.float32))
    assert projection.row_sums().tolist() == [0, 0, 0]
    assert not projection.reachable().any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2, 2)}, "student id 2, outside the student's vocabulary of 2"),
        ({"shape": (3, 1)}, "teacher id 1, outside the teacher's vocabulary of 1"),
        ({"rows": np.array([0, 0, -1])}, "outside the student's vocabulary of 3"),
        ({"cols": np.array([1, -1, 1])}, "outside the teacher's vocabulary of 2"),
        ({"values": np.array([0.25, 0.75, 0.9])}, r"row 2 of W sums to 0\.9"),
        ({"values": np.array([1.25, -0.25, 1.0])}, "not positive"),
        ({"values": np.array([1.0, 0.0, 1.0])}, "not positive"),
        ({"values": np.array([np.nan, 0.75, 1.0])}, "not positive"),
        ({"values": np.array([np.inf, 0.75, 1.0])}, "not positive and finite"),
    ],
)
def test_what_is_no_projection_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        hand_made(**changes)


def test_a_pair_named_twice_is_refused() -> None:
    """Sparse kernels add or overwrite, as they please."""
    with pytest.raises(XTokenError, match="student id 0 with teacher id 1 twice"):
        hand_made(cols=np.array([1, 1, 1]))
