"""What a report shows of two tokenizers: the audit by class with examples, and W by counts and by a sample of its rows.

Type: `PairFacts`, plain values only, gathered by `pair_facts`. The sample is the same at every call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xtoken.coverage import AuditReport, ClassCoverage, audit
from xtoken.projection import Projection, build_projection
from xtoken.projection.build import FATES, Fate, row_fates
from xtoken.shown import token_text
from xtoken.tokens import Vocabulary
from xtoken.tokens.classes import token_classes

__all__ = ["ClassFacts", "PairFacts", "ProjectionFacts", "SampleRow", "pair_facts"]

_EXAMPLES = 8
# Rows of W that a page holds: enough to browse, and some 150 KB. Exact rows say little, so they get the smaller share.
_ROWS = 600
_EXACT_ROWS = 100
_GRID = 32  # W drawn as so many squares each way
_SEED = 0


@dataclass(frozen=True)
class ClassFacts:
    """One class of tokens of one side: its coverage, and some tokens outside the common set, as text."""

    name: str
    coverage: ClassCoverage
    outside: tuple[str, ...]


@dataclass(frozen=True)
class SampleRow:
    """A row of W.

    Attributes:
        token: the student's id.
        text: what it stands for.
        kind: its class; None for special tokens and unused ids.
        fate: the rule that made the row, in words.
        pieces: the teacher's tokens with their weights, the largest first.
    """

    token: int
    text: str
    kind: str | None
    fate: str
    pieces: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ProjectionFacts:
    """W by counts.

    Attributes:
        shape: (V_S, V_T).
        entries: nonzero weights.
        by_length: rows by their number of entries, 0 for empty ones.
        reached: teacher tokens that some student token is carried to.
        is_learnt: whether it was learnt with the student.
        grid: [32][32], entries by student id (down) and teacher id (across).
        rows: a sample, every rule represented, by student id.
    """

    shape: tuple[int, int]
    entries: int
    by_length: dict[int, int]
    reached: int
    is_learnt: bool
    grid: tuple[tuple[int, ...], ...]
    rows: tuple[SampleRow, ...]

    @property
    def density(self) -> float:
        """The share of all V_S x V_T weights that are not 0."""
        return self.entries / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class PairFacts:
    """Two tokenizers.

    Attributes:
        audit: the whole report.
        student_classes, teacher_classes: of those classes that have tokens.
        projection: W.
        corpus: what the classes were weighed by; None where they were not.
    """

    audit: AuditReport
    student_classes: tuple[ClassFacts, ...]
    teacher_classes: tuple[ClassFacts, ...]
    projection: ProjectionFacts
    corpus: str | None = None


def pair_facts(
    student: Vocabulary,
    teacher: Vocabulary,
    *,
    texts: Iterable[str] | None = None,
    corpus: str | None = None,
    projection: Projection | None = None,
) -> PairFacts:
    """Gathers them.

    Args:
        student, teacher: the vocabularies.
        texts: a corpus, for the audit to weigh the classes by.
        corpus: its name.
        projection: W where it is at hand; built by rule otherwise.
    """
    report = audit(student, teacher, texts=texts)
    w = build_projection(student, teacher) if projection is None else projection
    return PairFacts(
        audit=replace(report, student=student.name, teacher=teacher.name),
        student_classes=_classes(student, report.classes),
        teacher_classes=_classes(teacher, report.teacher_classes),
        projection=_projection_facts(w, student, teacher),
        corpus=corpus if texts is not None else None,
    )


def _classes(vocabulary: Vocabulary, classes: dict[str, ClassCoverage]) -> tuple[ClassFacts, ...]:
    return tuple(
        ClassFacts(name, found, tuple(token_text(vocabulary, i) for i in found.outside[:_EXAMPLES]))
        for name, found in classes.items()
        if found.tokens
    )


def _projection_facts(w: Projection, student: Vocabulary, teacher: Vocabulary) -> ProjectionFacts:
    lengths, counts = np.unique(np.diff(w.indptr), return_counts=True)
    return ProjectionFacts(
        shape=w.shape,
        entries=len(w.cols),
        by_length=dict(zip(lengths.tolist(), counts.tolist(), strict=True)),
        reached=int(w.reachable().sum()),
        is_learnt=bool(w.recipe.get("learnt")),
        grid=_grid(w),
        rows=tuple(_sample(w, student, teacher)),
    )


def _grid(w: Projection) -> tuple[tuple[int, ...], ...]:
    rows, cols, _ = w.to_coo()
    cells = (rows * _GRID // w.shape[0]) * _GRID + cols * _GRID // w.shape[1]
    counts = np.bincount(cells, minlength=_GRID * _GRID).reshape(_GRID, _GRID)
    return tuple(tuple(row) for row in counts.tolist())


def _sample(w: Projection, student: Vocabulary, teacher: Vocabulary) -> list[SampleRow]:
    fates = row_fates(student, teacher).fates
    kinds = token_classes(student)
    return [
        SampleRow(i, token_text(student, i), kinds[i], FATES[fates[i]], _pieces(w, i, teacher)) for i in _chosen(fates)
    ]


def _chosen(fates: Sequence[str]) -> list[int]:
    """Ids by chance, of exact rows so many and of the other rules an equal share each, what one leaves going on."""
    rng = np.random.default_rng(_SEED)
    by_fate: dict[str, NDArray[np.int64]] = {}
    names = np.array(fates)
    for fate in FATES:
        ids = np.flatnonzero(names == fate)
        if len(ids) and fate != Fate.ABSENT:
            by_fate[fate] = rng.permutation(ids)
    chosen = by_fate.pop(Fate.EXACT, np.empty(0, np.int64))[:_EXACT_ROWS].tolist()
    left = _ROWS - len(chosen)
    for place, ids in enumerate(sorted(by_fate.values(), key=len)):
        taken = ids[: left // (len(by_fate) - place)].tolist()
        chosen += taken
        left -= len(taken)
    return sorted(chosen)


def _pieces(w: Projection, row: int, teacher: Vocabulary) -> tuple[tuple[str, float], ...]:
    at = slice(int(w.indptr[row]), int(w.indptr[row + 1]))
    cells = zip(w.values[at].tolist(), w.cols[at].tolist(), strict=True)
    return tuple((token_text(teacher, col), value) for value, col in sorted(cells, key=lambda cell: -cell[0]))
