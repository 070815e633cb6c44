"""What is gathered of two tokenizers: counts that are the audit's and W's own, and a sample that shows every rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from training import tiny
from xtoken.coverage import audit
from xtoken.projection import Projection, build_projection
from xtoken.projection.build import FATES, Fate, row_fates
from xtoken.report.pair import PairFacts, pair_facts
from xtoken.report.pair_page import audit_page
from xtoken.shown import token_text
from xtoken.tokens import Vocabulary


@pytest.fixture(scope="module")
def pair() -> PairFacts:
    return pair_facts(tiny.packed(), tiny.split(), texts=tiny.documents(5), corpus="five documents")


def test_the_classes_are_the_audits(pair: PairFacts) -> None:
    report = audit(tiny.packed(), tiny.split(), texts=tiny.documents(5))
    assert pair.audit.to_json() == report.to_json()
    for classes, own in ((pair.student_classes, report.classes), (pair.teacher_classes, report.teacher_classes)):
        assert {c.name: c.coverage for c in classes} == {name: c for name, c in own.items() if c.tokens}
    outside = next(c for c in pair.student_classes if c.name == "digits-3")
    assert all(text.isdigit() and len(text) == 3 for text in outside.outside)


def test_w_is_counted_as_it_is(pair: PairFacts) -> None:
    w, found = build_projection(tiny.packed(), tiny.split()), pair.projection
    assert found.entries == len(w.values) == np.sum(found.grid)
    assert found.by_length == dict(Counter(np.diff(w.indptr).tolist()))
    assert found.reached == len(set(w.cols.tolist()))
    assert found.density == found.entries / (w.shape[0] * w.shape[1])
    assert not found.is_learnt


def test_the_sample_shows_every_rule_and_rows_as_they_are(pair: PairFacts) -> None:
    student, teacher = tiny.packed(), tiny.split()
    fates, w = row_fates(student, teacher).fates, build_projection(student, teacher)
    rows = pair.projection.rows
    assert [row.token for row in rows] == sorted({row.token for row in rows})
    assert {row.fate for row in rows} == {FATES[fate] for fate in fates if fate != Fate.ABSENT}
    for row in rows:
        at = slice(int(w.indptr[row.token]), int(w.indptr[row.token + 1]))
        cells = zip(w.cols[at].tolist(), w.values[at].tolist(), strict=True)
        assert dict(row.pieces) == {token_text(teacher, col): value for col, value in cells}
        assert [value for _, value in row.pieces] == sorted((value for _, value in row.pieces), reverse=True)
        assert row.text == token_text(student, row.token)


def test_a_large_sample_is_bounded_and_gives_rare_rules_all_they_have() -> None:
    from xtoken.report.pair import _chosen

    fates = [Fate.EXACT] * 5000 + [Fate.PIECES] * 3000 + [Fate.NOT_UTF8] * 3 + [Fate.ABSENT] * 50
    counts = Counter(fates[i] for i in _chosen(fates))
    assert counts == {Fate.EXACT: 100, Fate.PIECES: 497, Fate.NOT_UTF8: 3}


def test_the_w_that_is_given_is_the_one_shown() -> None:
    student, teacher = tiny.packed(), tiny.split()
    start = build_projection(student, teacher)
    rows, cols, values = start.to_coo()
    recipe = {"learnt": True}
    flat = Projection.from_coo(rows, cols, np.where(values < 1, 1 / np.diff(start.indptr)[rows], 1), start.shape,
                               student_fingerprint=student.fingerprint, teacher_fingerprint=teacher.fingerprint,
                               recipe=recipe)  # fmt: skip
    found = pair_facts(student, teacher, projection=flat).projection
    assert found.is_learnt
    assert {value for row in found.rows for _, value in row.pieces if len(row.pieces) == 2} == {0.5}


@pytest.mark.real
def test_the_page_of_a_real_pair_is_small_and_counts_what_is_published(
    real_vocabulary: Callable[[str], Vocabulary],
) -> None:
    document = audit_page(pair_facts(real_vocabulary("llama-3"), real_vocabulary("qwen3")))
    assert len(document.encode()) < 3_000_000
    for counted in ("109,566 of them stand for the same bytes", "0 of 1,000 (0 %)", "punctuation: 88 of 88 in common"):
        assert counted in document
