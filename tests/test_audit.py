"""The audit counts what two vocabularies share and says which loss follows; the published counts on the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product

import pytest

from projection.test_worked_examples import byte_level
from small_tokenizers import SMALL, small
from xtoken.coverage import CRITICAL_CLASSES, THRESHOLD, audit
from xtoken.errors import XTokenError
from xtoken.projection import build_projection, strict_partition
from xtoken.tokens import Vocabulary
from xtoken.tokens.classes import CLASSES, class_of

PAIRS = list(product(SMALL, SMALL))
TENS = tuple(str(n).encode() for n in range(10, 100))
HUNDREDS = tuple(str(n).encode() for n in range(100, 1000))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_counts_are_those_of_the_tokens_themselves(student: str, teacher: str) -> None:
    made_s, made_t = small(student), small(teacher)
    report = audit(made_s.vocabulary, made_t.vocabulary)
    shared = {*made_s.table} & {*made_t.table}
    for name in CLASSES:
        members = [i for i, spelled in enumerate(made_s.table) if spelled and class_of(spelled) == name]
        written = made_s.vocabulary.ids_by_bytes
        inside = {i for i in members if made_s.table[i] in shared and written[made_s.vocabulary.tokens[i]] == i}
        found = report.classes[name]
        assert (found.tokens, found.in_common) == (len(members), len(inside))
        assert found.outside == tuple(i for i in members if i not in inside)
        assert found.usage is None
    assert report.common == len(shared - {None})
    assert report.common + report.common_special == len(strict_partition(made_s.vocabulary, made_t.vocabulary))
    assert (report.student_vocab, report.teacher_vocab) == (len(made_s.table), len(made_t.table))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_zero_rows_are_those_of_w_by_cause(student: str, teacher: str) -> None:
    one, other = small(student).vocabulary, small(teacher).vocabulary
    report, projection = audit(one, other), build_projection(one, other)
    assert sum(report.zero_rows.values()) == int((projection.row_sums() == 0).sum())
    assert all(report.zero_rows.values()), "a cause that did not occur is not listed"
    assert report.rows == projection.recipe["rows"]
    assert sum(report.pieces.values()) == report.rows.get("text_pieces", 0)


@pytest.mark.parametrize(
    ("student", "teacher", "loss", "why"),
    [
        ((*TENS, *HUNDREDS), (*TENS, *HUNDREDS), "h-kl", "the common set holds"),
        ((*TENS, *HUNDREDS), (), "p-kl", "digits-2 and digits-3 of the student lie outside"),
        ((*TENS, *HUNDREDS), TENS, "p-kl", "digits-3 of the student lie outside"),
        (TENS, (*TENS, *HUNDREDS), "h-kl", "the student's critical classes (digits-2: 90 of 90)"),
        ((), (), "h-kl", "neither vocabulary has tokens of the critical classes"),
        ((), TENS, "p-kl", "digits-2 of the teacher lie outside"),
        (TENS, TENS[:85], "p-kl", "digits-2: 85 of 90"),
        (TENS, TENS[:86], "h-kl", "digits-2: 86 of 90"),
    ],
    ids=["packs both", "splits", "hundreds", "packs more", "neither", "teacher packs", "below", "above"],
)
def test_the_rule(student: tuple[bytes, ...], teacher: tuple[bytes, ...], loss: str, why: str) -> None:
    report = audit(byte_level(*student), byte_level(*teacher))
    assert report.recommended_loss == loss
    assert why in report.reason


def test_one_tokenizer_is_told() -> None:
    assert "the loss `same`" in audit(byte_level(*TENS), byte_level(*TENS)).reason
    assert "the loss `same`" not in audit(byte_level(*TENS), byte_level(*HUNDREDS)).reason


def test_the_threshold_lies_between_the_two_cases_above() -> None:
    assert 85 / 90 < THRESHOLD <= 86 / 90
    assert CRITICAL_CLASSES == ("digits-2", "digits-3")


def test_other_classes_can_be_critical() -> None:
    student, teacher = byte_level(b" the", b"fox"), byte_level(b" the")
    assert audit(student, teacher).recommended_loss == "h-kl"
    report = audit(student, teacher, critical_classes=["alphabetic"])
    assert report.classes["alphabetic"].coverage == 53 / 54
    assert report.recommended_loss == "h-kl"
    assert (
        audit(byte_level(b"fox", b"dog", b"hen"), byte_level(), critical_classes=["alphabetic"]).recommended_loss
        == "p-kl"
    )


def test_a_class_that_does_not_exist_is_named() -> None:
    packing = small("packing").vocabulary
    with pytest.raises(XTokenError, match="unknown class 'numbers': there are digits-1, "):
        audit(packing, packing, critical_classes=["digits-2", "numbers"])


def test_a_class_without_tokens_lacks_nothing() -> None:
    report = audit(byte_level(), byte_level())
    assert report.classes["digits-3"].tokens == 0
    assert report.classes["digits-3"].coverage == 1


def test_a_corpus_weighs_the_classes() -> None:
    student, teacher = byte_level(b"12", b" the"), byte_level(b" the")
    report = audit(student, teacher, texts=["12", "12", " the", "12"])
    digits, words = report.classes["digits-2"], report.classes["alphabetic"]
    assert (digits.usage, digits.usage_in_common) == (0.75, 0.0)
    assert (words.usage, words.usage_in_common) == (0.25, 1.0)
    assert report.classes["whitespace"].usage == 0
    assert report.classes["whitespace"].usage_in_common is None
    assert sum(c.usage or 0 for c in report.classes.values()) == 1


@pytest.mark.parametrize("texts", [[], [""], iter(())])
def test_a_corpus_without_text_is_refused(texts: object) -> None:
    with pytest.raises(XTokenError, match="holds no text"):
        audit(byte_level(), byte_level(), texts=texts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("student", "teacher"), [("packing", "splitting"), ("wordpiece", "spm-nmt")])
@pytest.mark.parametrize("texts", [None, ["The quick 12 foxes"]])
def test_the_json_has_the_documented_keys(student: str, teacher: str, texts: list[str] | None) -> None:
    report = json.loads(json.dumps(audit(small(student).vocabulary, small(teacher).vocabulary, texts=texts).to_json()))
    documented = {
        "classes",
        "common",
        "student_vocab",
        "teacher_vocab",
        "zero_rows",
        "recommended_loss",
        "reason",
    }
    assert documented <= set(report)
    assert {"digits-1", "digits-2", "digits-3"} <= set(report["classes"])
    assert all({"tokens", "in_common"} <= set(c) for c in report["classes"].values())
    assert all(isinstance(c["tokens"], int) and isinstance(c["in_common"], int) for c in report["classes"].values())
    assert report["recommended_loss"] in ("p-kl", "h-kl")
    assert all(isinstance(count, int) for count in report["zero_rows"].values())


def test_the_papers_own_counting_is_of_byte_level_spellings() -> None:
    assert audit(small("spm-bpe").vocabulary, small("packing").vocabulary).published_counting == {}
    counted = audit(byte_level(), byte_level()).published_counting
    assert counted["digits-1"] == (13, 13), "0 to 9, and the characters that spell the bytes B2, B3 and B9"


# -- the real ones -----------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("teacher", "tens", "hundreds", "loss"),
    [("qwen3", 0, 0, "p-kl"), ("llama-4", 100, 1000, "h-kl"), ("deepseek", 100, 1000, "h-kl")],
)
def test_the_published_counts(
    teacher: str, tens: int, hundreds: int, loss: str, real_vocabulary: Callable[[str], Vocabulary]
) -> None:
    report = audit(real_vocabulary("llama-3"), real_vocabulary(teacher))
    assert (report.classes["digits-2"].tokens, report.classes["digits-2"].in_common) == (100, tens)
    assert (report.classes["digits-3"].tokens, report.classes["digits-3"].in_common) == (1000, hundreds)
    assert (report.classes["digits-1"].tokens, report.classes["digits-1"].in_common) == (10, 10)
    assert report.published_counting == {"digits-1": (13, 13), "punctuation": (88, 88)}
    assert report.recommended_loss == loss
    assert (report.student, report.teacher) == ("llama-3", teacher)


@pytest.mark.real
def test_llama_3_with_qwen_3(real_vocabulary: Callable[[str], Vocabulary]) -> None:
    report = audit(real_vocabulary("llama-3"), real_vocabulary("qwen3"))
    assert report.common == 109_566
    assert report.pieces == {2: 11_792, 3: 4_733, 4: 1_091}
    assert report.zero_rows["over_4_pieces"] == 443
    assert sum(c.tokens for c in report.classes.values()) == 128_000


@pytest.mark.real
def test_mistrals_single_digits_against_llama_3(real_vocabulary: Callable[[str], Vocabulary]) -> None:
    """The splitting side as student: it has no numeral of two digits, so the teacher's decide."""
    report = audit(real_vocabulary("mistral-v1"), real_vocabulary("llama-3"))
    assert report.classes["digits-2"].tokens == 0
    assert report.recommended_loss == "p-kl"
    assert "of the teacher" in report.reason
