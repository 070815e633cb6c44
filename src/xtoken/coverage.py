"""The coverage audit: which tokens two vocabularies share, and which loss follows from it.

GOLD and H-KL compare the common tokens C one by one and push every other token of the student down, whatever the text
says (X-Token, Proposition 1). Where C leaves out tokens that matter, numerals above all, that is ruinous, and P-KL is
the loss to take; where it holds them, H-KL does better. The audit counts C by class of token and says which it is.

The rule, ours (the paper states none in numbers): a critical class is unsound when less than `THRESHOLD` of it lies in
C. Critical are the multi-digit numerals of the student; where it has none, the teacher's. One unsound class makes the
recommendation P-KL, otherwise it is H-KL. Real pairs leave no doubt about the threshold: they lie at 0 or at 1.
Source: Sreenivas et al., X-Token, https://arxiv.org/abs/2605.21699, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xtoken.errors import XTokenError
from xtoken.projection.build import Fate, RowFates, row_fates
from xtoken.projection.partition import Partition, partition_of
from xtoken.tokens import Vocabulary
from xtoken.tokens.classes import CLASSES, class_numbers
from xtoken.tokens.families import BYTE_TO_CHAR, Family

__all__ = ["CRITICAL_CLASSES", "THRESHOLD", "AuditReport", "ClassCoverage", "audit"]

CRITICAL_CLASSES = ("digits-2", "digits-3")
THRESHOLD = 0.95


@dataclass(frozen=True)
class ClassCoverage:
    """How much of one class of tokens lies in the common set.

    Attributes:
        tokens: tokens of the class.
        in_common: those in C.
        outside: the ids of the others.
        usage: the share of a corpus's tokens that are of this class; None without a corpus.
        usage_in_common: of those, the share that lies in C; None without a corpus or where it uses none.
    """

    tokens: int
    in_common: int
    outside: tuple[int, ...] = field(repr=False)
    usage: float | None = None
    usage_in_common: float | None = None

    @property
    def coverage(self) -> float:
        """The share in C; 1 for a class without tokens, which lacks nothing."""
        return self.in_common / self.tokens if self.tokens else 1.0


@dataclass(frozen=True)
class AuditReport:
    """What two vocabularies share, and the loss that follows.

    Attributes:
        student, teacher: names.
        student_vocab, teacher_vocab: V_S and V_T.
        common: the pairs of C that stand for text.
        common_special: the pairs of special tokens of equal role, which C holds too.
        classes: coverage of the student's tokens, by class.
        teacher_classes: the same for the teacher's.
        rows: how many rows of W each rule made.
        pieces: rows made of 2, 3 and 4 pieces.
        zero_rows: rows that W leaves empty, by cause.
        published_counting: one-digit and punctuation tokens as the paper counts them; empty unless byte-level.
        recommended_loss: `p-kl` or `h-kl`.
        reason: why, in one sentence.
    """

    student: str
    teacher: str
    student_vocab: int
    teacher_vocab: int
    common: int
    common_special: int
    classes: dict[str, ClassCoverage]
    teacher_classes: dict[str, ClassCoverage]
    rows: dict[str, int]
    pieces: dict[int, int]
    zero_rows: dict[str, int]
    published_counting: dict[str, tuple[int, int]]
    recommended_loss: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {
            "student": self.student,
            "teacher": self.teacher,
            "student_vocab": self.student_vocab,
            "teacher_vocab": self.teacher_vocab,
            "common": self.common,
            "common_special": self.common_special,
            "classes": {name: _class_json(c) for name, c in self.classes.items()},
            "teacher_classes": {name: _class_json(c) for name, c in self.teacher_classes.items()},
            "rows": self.rows,
            "pieces": {str(n): count for n, count in self.pieces.items()},
            "zero_rows": self.zero_rows,
            "published_counting": {
                name: {"tokens": n, "in_common": common} for name, (n, common) in self.published_counting.items()
            },
            "recommended_loss": self.recommended_loss,
            "reason": self.reason,
        }


def audit(
    student: Vocabulary,
    teacher: Vocabulary,
    *,
    texts: Iterable[str] | None = None,
    critical_classes: Sequence[str] = CRITICAL_CLASSES,
) -> AuditReport:
    """Counts what two vocabularies share and recommends a loss.

    Args:
        student, teacher: the vocabularies.
        texts: a corpus; each class is then also weighed by how often the student's tokens of it occur there.
        critical_classes: classes that C must hold for H-KL to be sound.

    Raises:
        XTokenError: a critical class that does not exist.
    """
    if unknown := [name for name in critical_classes if name not in CLASSES]:
        raise XTokenError(f"unknown class {unknown[0]!r}: there are {', '.join(CLASSES)}")
    fates = row_fates(student, teacher)
    strict = partition_of(fates, student, teacher)
    usage = _usage(student, texts) if texts is not None else None
    classes = _coverage(student, strict.student_ids, usage)
    teacher_classes = _coverage(teacher, strict.teacher_ids, None)
    loss, reason = _recommend(classes, teacher_classes, critical_classes)
    if student.is_same_as(teacher):
        reason += "; both are one tokenizer, for which the loss `same` needs no alignment at all"
    rows = fates.counts()
    special = int(student.is_special[strict.student_ids].sum())
    return AuditReport(
        student=student.name,
        teacher=teacher.name,
        student_vocab=student.size,
        teacher_vocab=teacher.size,
        common=len(strict) - special,
        common_special=special,
        classes=classes,
        teacher_classes=teacher_classes,
        rows=rows,
        pieces=fates.piece_counts(),
        zero_rows={cause: rows[cause] for cause in Fate.EMPTY if rows.get(cause)},
        published_counting=_published_counting(student, fates, strict),
        recommended_loss=loss,
        reason=reason,
    )


def _usage(vocabulary: Vocabulary, texts: Iterable[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    counts = np.zeros(vocabulary.size, np.int64)
    for spans in vocabulary.encode_batch(list(texts)):
        counts += np.bincount(spans.ids, minlength=vocabulary.size)
    if not counts.any():
        raise XTokenError("the corpus given to the audit holds no text")
    return counts


def _coverage(vocabulary: Vocabulary, common_ids: Any, usage: Any | None) -> dict[str, ClassCoverage]:
    in_common = np.zeros(vocabulary.size, bool)
    in_common[common_ids] = True
    numbers = class_numbers(vocabulary)
    return {name: _class_coverage(np.flatnonzero(numbers == n), in_common, usage) for n, name in enumerate(CLASSES)}


def _class_coverage(ids: Any, in_common: Any, usage: Any | None) -> ClassCoverage:
    inside = in_common[ids]
    share = share_in_common = None
    if usage is not None:
        used = int(usage[ids].sum())
        share = used / int(usage.sum())
        share_in_common = float(usage[ids[inside]].sum()) / used if used else None
    return ClassCoverage(len(ids), int(inside.sum()), tuple(ids[~inside].tolist()), share, share_in_common)


def _recommend(
    student: dict[str, ClassCoverage], teacher: dict[str, ClassCoverage], critical: Sequence[str]
) -> tuple[str, str]:
    """The rule in the module's docstring."""
    side, classes = ("student", student) if any(student[name].tokens for name in critical) else ("teacher", teacher)
    present = [name for name in critical if classes[name].tokens]
    if not present:
        return "h-kl", f"neither vocabulary has tokens of the critical classes ({', '.join(critical)})"
    facts = "; ".join(f"{name}: {classes[name].in_common} of {classes[name].tokens}" for name in present)
    unsound = [name for name in present if classes[name].coverage < THRESHOLD]
    if unsound:
        return "p-kl", (
            f"{' and '.join(unsound)} of the {side} lie outside the common set ({facts}), and a loss on common tokens "
            "would push them down whatever the text says"
        )
    return "h-kl", f"the common set holds the {side}'s critical classes ({facts})"


def _published_counting(student: Vocabulary, fates: RowFates, strict: Partition) -> dict[str, tuple[int, int]]:
    """One-digit and punctuation tokens counted as the paper does, on the spelling of byte-level pieces.

    Its 13 one-digit tokens are the spellings `0` to `9` and `²`, `³`, `¹`, which spell the bytes B2, B3 and B9; its 88
    punctuation tokens are a spelling of one character that is not alphanumeric, with or without a space in front: 64
    of ASCII, and 24 whose character spells a byte above 7F. Found by matching the counts; the paper does not say.
    """
    if student.family is not Family.BYTE_LEVEL:
        return {}
    inside = set(strict.student_ids.tolist())
    found = {"digits-1": [0, 0], "punctuation": [0, 0]}
    lengths = student.token_bytes.lengths
    for i in np.flatnonzero((lengths == 1) | (lengths == 2)).tolist():
        content, fate = student.tokens[i], fates.fates[i]
        char = BYTE_TO_CHAR[content[-1]]
        if fate in (Fate.SPECIAL, Fate.SPECIAL_ALONE, Fate.ABSENT) or content not in _spellings(content):
            continue
        name = "digits-1" if char.isdigit() and len(content) == 1 else "" if char.isalnum() else "punctuation"
        if name:
            found[name][0] += 1
            found[name][1] += i in inside
    return {name: (n, common) for name, (n, common) in found.items()}


def _spellings(content: bytes) -> tuple[bytes, ...]:
    """One byte, with or without a space in front."""
    return (content[-1:], b" " + content[-1:])


def _class_json(c: ClassCoverage) -> dict[str, Any]:
    plain: dict[str, Any] = {"tokens": c.tokens, "in_common": c.in_common}
    if c.usage is not None:
        plain |= {"usage": c.usage, "usage_in_common": c.usage_in_common}
    return plain
