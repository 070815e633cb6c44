"""The KL to the teacher by the next byte: laws, and a hand-made sum over two tokenizers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from training import tiny
from xtoken.errors import XTokenError
from xtoken.evaluation.teacher_kl import END, teacher_kl
from xtoken.tokens import Vocabulary

TEXTS = tiny.documents(6)
STUDENT, TEACHER = tiny.packed(), tiny.split()
STUDENT_MODEL = tiny.llama(STUDENT.size + 3).eval()
TEACHER_MODEL = tiny.llama(TEACHER.size, seed=5).eval()


def next_bytes(model: torch.nn.Module, vocabulary: Vocabulary, text: str) -> dict[int, torch.Tensor]:
    """By the number of bytes read: float64 [257], one document, one token at a time."""
    prefix = list(vocabulary.prefix_ids) or ([] if vocabulary.bos_id is None else [vocabulary.bos_id])
    spans = vocabulary.encode(text)
    with torch.no_grad():
        logits = model(torch.tensor([[*prefix, *spans.ids.tolist()]])).logits[0, :, : vocabulary.size].double()
    found = {}
    for place, end in enumerate([0, *spans.ends.tolist()]):
        row = len(prefix) + place - 1
        if row < 0:
            continue
        summed = torch.zeros(257, dtype=torch.float64)
        for content, p in zip(vocabulary.tokens, logits[row].softmax(0), strict=True):
            summed[content[0] if content else END] += p
        found[end] = summed
    return found


def by_hand(texts: list[str]) -> list[tuple[str, float]]:
    """What follows a boundary, and the KL there."""
    found = []
    for text in texts:
        of_student, of_teacher = (
            next_bytes(STUDENT_MODEL, STUDENT, text),
            next_bytes(TEACHER_MODEL, TEACHER, text),
        )
        for at in sorted(of_student.keys() & of_teacher.keys()):
            p, q = of_teacher[at], of_student[at]
            kl = sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True) if a > 0)
            found.append((text.encode()[at : at + 2].decode("latin-1"), kl))
    return found


def test_it_is_the_mean_over_the_boundaries_that_both_share() -> None:
    expected = by_hand(TEXTS)
    found = teacher_kl(STUDENT_MODEL, STUDENT, TEACHER_MODEL, TEACHER, TEXTS, batch_size=4)
    assert found.boundaries == len(expected)
    assert found.total == pytest.approx(sum(kl for _, kl in expected) / len(expected), rel=1e-4)
    numerals = [kl for following, kl in expected if following[:1].isdigit()]
    words = [kl for following, kl in expected if following.removeprefix(" ")[:1].isalpha()]
    assert numerals
    assert found.classes["numerals"] == pytest.approx(sum(numerals) / len(numerals), rel=1e-4)
    assert found.classes["words"] == pytest.approx(sum(words) / len(words), rel=1e-4)


def test_a_model_is_no_distance_from_itself() -> None:
    found = teacher_kl(STUDENT_MODEL, STUDENT, STUDENT_MODEL, STUDENT, TEXTS)
    assert found.total == 0
    assert found.boundaries > sum(len(STUDENT.encode(text)) for text in TEXTS)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_changes_nothing(batch_size: int) -> None:
    whole, parts = (
        teacher_kl(STUDENT_MODEL, STUDENT, TEACHER_MODEL, TEACHER, TEXTS, batch_size=n) for n in (8, batch_size)
    )
    assert parts.total == pytest.approx(whole.total, rel=1e-5)


class Sure(torch.nn.Module):
    """A model whose distributions are all but one token each."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.config, self.device = model, model.config, model.device

    def forward(self, **inputs: Any) -> Any:
        found = self.model(**inputs)
        found.logits = found.logits * 1e5
        return found


def test_what_the_student_rounds_to_0_has_a_finite_kl() -> None:
    found = teacher_kl(Sure(STUDENT_MODEL), STUDENT, TEACHER_MODEL, TEACHER, TEXTS)
    assert 10 < found.total < 149 * math.log(2)


def test_no_text_is_refused() -> None:
    with pytest.raises(XTokenError, match="no text"):
        teacher_kl(STUDENT_MODEL, STUDENT, TEACHER_MODEL, TEACHER, ["", ""])
