"""Partitions are one-to-one; the relaxed holds the strict; a collision goes to the larger weight, then the lower id."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from small_tokenizers import SMALL, small
from xtoken.errors import FingerprintMismatchError, XTokenError
from xtoken.projection import Partition, Projection, build_projection, relaxed_partition, strict_partition

from .test_worked_examples import byte_level

PAIRS = list(product(SMALL, SMALL))


def pairs_of(partition: Partition) -> list[tuple[int, int]]:
    return list(zip(partition.student_ids.tolist(), partition.teacher_ids.tolist(), strict=True))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_strict_pairs_are_equal_bytes_and_all_of_them(student: str, teacher: str) -> None:
    made_s, made_t = small(student), small(teacher)
    partition = strict_partition(made_s.vocabulary, made_t.vocabulary)
    pairs = pairs_of(partition)
    assert partition.shape == (len(made_s.table), len(made_t.table))
    assert len(partition) == len(pairs) == len({s for s, _ in pairs}) == len({t for _, t in pairs})
    assert partition.student_ids.tolist() == sorted(partition.student_ids.tolist())
    text = {(s, t) for s, t in pairs if made_s.table[s] is not None}
    shared = ({*made_s.table} & {*made_t.table}) - {None}
    assert {made_s.table[s] for s, _ in text} == shared
    assert all(made_s.table[s] == made_t.table[t] for s, t in text)
    assert len(text) == len(shared)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_special_pairs_share_a_role(student: str, teacher: str) -> None:
    one, other = small(student).vocabulary, small(teacher).vocabulary
    special = [(s, t) for s, t in pairs_of(strict_partition(one, other)) if s in one.roles]
    assert all(t in other.roles and one.roles[s] is other.roles[t] for s, t in special)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_the_relaxed_partition_grows_the_strict_one(student: str, teacher: str) -> None:
    one, other = small(student).vocabulary, small(teacher).vocabulary
    projection = build_projection(one, other)
    strict, relaxed = strict_partition(one, other), relaxed_partition(one, other, projection)
    assert set(pairs_of(strict)) <= set(pairs_of(relaxed))
    assert relaxed.shape == strict.shape
    assert pairs_of(relaxed) == greedy(projection, strict)


def greedy(projection: Projection, strict: Partition) -> list[tuple[int, int]]:
    """The rules, pair by pair: each student token's best column, the best claim to each column, strict ones first."""
    taken_s, taken_t = set(strict.student_ids.tolist()), set(strict.teacher_ids.tolist())
    rows, cols, values = (a.tolist() for a in projection.to_coo())
    best: dict[int, tuple[float, int]] = {}
    for r, c, v in zip(rows, cols, values, strict=True):
        if r not in taken_s:
            best[r] = max(best.get(r, (0.0, 0)), (v, -c))
    claims: dict[int, tuple[float, int]] = {}
    for r, (v, minus_c) in best.items():
        if -minus_c not in taken_t:
            claims[-minus_c] = max(claims.get(-minus_c, (0.0, -(10**9))), (v, -r))
    return sorted(pairs_of(strict) + [(-minus_r, c) for c, (_, minus_r) in claims.items()])


def hand_made(rows: list[tuple[int, int, float]], student: object, teacher: object) -> Projection:
    r, c, v = (np.array(part) for part in zip(*rows, strict=True))
    return Projection.from_coo(
        r,
        c,
        v,
        (student.size, teacher.size),  # type: ignore[attr-defined]
        student_fingerprint=student.fingerprint,  # type: ignore[attr-defined]
        teacher_fingerprint=teacher.fingerprint,  # type: ignore[attr-defined]
    )


def test_on_a_collision_the_larger_weight_wins_then_the_lower_id() -> None:
    student, teacher = byte_level(b"aa", b"ab", b"ac", b"ad"), byte_level(b"xx", b"yy", b"zz")
    w = hand_made(
        [(256, 256, 0.6), (256, 257, 0.4), (257, 256, 0.9), (257, 257, 0.1), (258, 257, 1.0), (259, 257, 1.0)],
        student,
        teacher,
    )
    assert pairs_of(relaxed_partition(student, teacher, w))[256:] == [(257, 256), (258, 257)]


def test_a_strict_pair_stays_whatever_claims_its_teacher_token() -> None:
    student, teacher = byte_level(b"aa"), byte_level()
    w = hand_made([(256, 97, 1.0)], student, teacher)
    assert pairs_of(relaxed_partition(student, teacher, w)) == [(i, i) for i in range(256)]


def test_of_two_equal_weights_the_lower_teacher_id_is_the_match() -> None:
    student, teacher = byte_level(b"aa"), byte_level(b"xx", b"yy")
    w = hand_made([(256, 257, 0.5), (256, 256, 0.5)], student, teacher)
    assert pairs_of(relaxed_partition(student, teacher, w))[-1] == (256, 256)


def test_of_several_ids_with_equal_bytes_the_one_that_texts_get_is_paired() -> None:
    """Byte fallback spells single characters twice, and only the piece that is no byte piece is ever written."""
    spm, packing = small("spm-bpe"), small("packing")
    for student, teacher in ((spm, packing), (packing, spm)):
        pairs = dict(pairs_of(strict_partition(student.vocabulary, teacher.vocabulary)))
        for text in "a.,(0":
            (s,), (t,) = student.vocabulary.retokenize([text])[0], teacher.vocabulary.retokenize([text])[0]
            assert pairs[s] == t, text


def test_a_w_of_another_pair_is_refused() -> None:
    packing, splitting = small("packing").vocabulary, small("splitting").vocabulary
    projection = build_projection(packing, splitting)
    with pytest.raises(FingerprintMismatchError, match="another pair"):
        relaxed_partition(splitting, packing, projection)
    with pytest.raises(FingerprintMismatchError, match="another pair"):
        relaxed_partition(packing, small("tiktoken").vocabulary, projection)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ([0, 0], [0, 1], "student id twice"),
        ([0, 1], [1, 1], "teacher id twice"),
        ([0, 3], [0, 1], "student id outside the vocabulary of 3"),
        ([0, 1], [0, 2], "teacher id outside the vocabulary of 2"),
        ([-1, 1], [0, 1], "student id outside"),
        ([0], [0, 1], "1 student and 2 teacher ids"),
    ],
)
def test_what_is_no_partition_is_refused(student: list[int], teacher: list[int], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        Partition(np.array(student), np.array(teacher), (3, 2))


def test_a_partition_may_be_empty() -> None:
    nothing = np.array([], np.int64)
    assert len(Partition(nothing, nothing, (3, 2))) == 0
