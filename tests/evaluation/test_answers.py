"""Exact answers, on models whose answers are known; the belief about all numbers, on models that can be enumerated."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from small_tokenizers import small
from xtoken.demo.assets import ASSETS
from xtoken.demo.problems import problems
from xtoken.errors import XTokenError
from xtoken.evaluation.answers import (
    NUMBERS,
    Answer,
    answer_distributions,
    answer_kl,
    exact_answers,
    read_answers,
)
from xtoken.tokens import Vocabulary

PROBLEMS = [Answer(p.prompt, p.answer) for p in problems(77, 40)]


class Scripted(nn.Module):
    """Continues each problem's prompt with the tokens of a given continuation, whatever the batch."""

    def __init__(self, vocabulary: Vocabulary, write: Callable[[Answer], list[int]], extra_columns: int = 0) -> None:
        super().__init__()
        self.width = vocabulary.size + extra_columns
        self.script = {(*vocabulary.prefix_ids, *vocabulary.encode(p.prompt).ids.tolist()): write(p) for p in PROBLEMS}
        self.favoured_padding = extra_columns > 0
        self.device = torch.device("cpu")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        assert attention_mask.all()
        logits = torch.zeros(*input_ids.shape, self.width)
        if self.favoured_padding:
            logits[:, :, -1] = 9.0
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, -1, self.next_token(tuple(ids))] = 1.0
        return SimpleNamespace(logits=logits)

    def next_token(self, ids: tuple[int, ...]) -> int:
        for done in range(5):
            written = self.script.get(ids[: len(ids) - done])
            if written is not None:
                assert list(ids[len(ids) - done :]) == written[:done]
                return written[done]
        raise AssertionError("a prompt that is no problem's: the ids were padded or mixed up")


@pytest.fixture(params=["student", "teacher"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary.from_pretrained(ASSETS / request.param)


def spelled(vocabulary: Vocabulary, text: str) -> list[int]:
    return [*vocabulary.encode(text).ids.tolist(), *[vocabulary.eos_id or 0] * 4]


def test_right_answers_count(vocabulary: Vocabulary) -> None:
    model = Scripted(vocabulary, lambda p: spelled(vocabulary, f"{p.answer}."))
    assert exact_answers(model, vocabulary, PROBLEMS) == 1.0


def test_wrong_answers_do_not(vocabulary: Vocabulary) -> None:
    model = Scripted(vocabulary, lambda p: spelled(vocabulary, f"{int(p.answer) + 1}."))
    assert exact_answers(model, vocabulary, PROBLEMS) == 0.0


def test_the_share_is_over_all_problems(vocabulary: Vocabulary) -> None:
    right = {p.prompt for p in PROBLEMS[:10]}
    model = Scripted(vocabulary, lambda p: spelled(vocabulary, f"{p.answer if p.prompt in right else 7}."))
    assert exact_answers(model, vocabulary, PROBLEMS) == 0.25


@pytest.mark.parametrize("ending", ["0.", "00"])
def test_a_longer_number_that_begins_like_the_answer_is_wrong(vocabulary: Vocabulary, ending: str) -> None:
    digits = {n: vocabulary.encode(str(n)).ids.tolist() for n in range(10)}
    model = Scripted(
        vocabulary, lambda p: [*(i for c in p.answer + ending[0] for i in digits[int(c)]), *spelled(vocabulary, ".")]
    )
    assert exact_answers(model, vocabulary, PROBLEMS) == 0.0


def test_a_number_written_digit_by_digit_counts() -> None:
    """The student may spell 428 in three tokens though it has one for it; the text is the same."""
    student = Vocabulary.from_pretrained(ASSETS / "student")
    digits = {str(n): int(student.encode(str(n)).ids[0]) for n in range(10)}
    model = Scripted(student, lambda p: [*(digits[c] for c in p.answer), *spelled(student, ".")])
    assert exact_answers(model, student, PROBLEMS) == 1.0


def test_the_end_of_the_document_ends_a_number(vocabulary: Vocabulary) -> None:
    short = [p for p in PROBLEMS if len(p.answer) == 2]
    seven = vocabulary.encode("7").ids.tolist()
    model = Scripted(vocabulary, lambda p: [*vocabulary.encode(p.answer).ids.tolist(), vocabulary.eos_id, *seven * 4])
    assert short
    assert exact_answers(model, vocabulary, short) == 1.0


def test_columns_past_the_tokenizer_are_never_written(vocabulary: Vocabulary) -> None:
    model = Scripted(vocabulary, lambda p: spelled(vocabulary, f"{p.answer}."), extra_columns=3)
    assert exact_answers(model, vocabulary, PROBLEMS) == 1.0


def test_no_problem_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(XTokenError, match="no problem"):
        exact_answers(nn.Identity(), vocabulary, [])


class Digits(nn.Module):
    """Knows each next token's probability by what stands after the prompt alone: a table that a test can add up."""

    def __init__(self, vocabulary: Vocabulary, prompt: str) -> None:
        super().__init__()
        self.vocabulary, self.device = vocabulary, torch.device("cpu")
        self.prompt = [*vocabulary.prefix_ids, *vocabulary.encode(prompt).ids.tolist()]

    def next_probs(self, after: tuple[int, ...]) -> Tensor:
        seed = sum((i + 1) * 31**n for n, i in enumerate(after)) % 10_007
        noise = torch.rand(self.vocabulary.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (6 * noise).softmax(0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        rows = [self.next_probs(tuple(ids[len(self.prompt) :])) for ids in input_ids.tolist()]
        logits = torch.stack(rows).log()[:, None].expand(-1, input_ids.shape[1], -1)
        return SimpleNamespace(logits=logits)


def belief(vocabulary: Vocabulary) -> tuple[Digits, dict[str, float], float]:
    model = Digits(vocabulary, "in all ")
    found = answer_distributions(model, vocabulary, ["in all "])
    assert found.shape == (1, 1111)
    return model, dict(zip(NUMBERS, found[0, :-1].tolist(), strict=True)), float(found[0, -1])


def test_a_teacher_that_splits_digits_is_followed_digit_by_digit() -> None:
    vocabulary = Vocabulary.from_pretrained(ASSETS / "teacher")
    model, probs, rest = belief(vocabulary)
    one, two, eight = (int(vocabulary.encode(c).ids[0]) for c in "128")
    digits = [int(vocabulary.encode(str(n)).ids[0]) for n in range(10)]
    first, second, third = model.next_probs(()), model.next_probs((one,)), model.next_probs((one, two))
    assert probs["128"] == pytest.approx(float(first[one] * second[two] * third[eight]))
    assert probs["12"] == pytest.approx(float(first[one] * second[two] * (1 - third[digits].sum())))
    assert probs["1"] == pytest.approx(float(first[one] * (1 - second[digits].sum())))
    assert rest == pytest.approx(float(1 - first[digits].sum()))


def test_a_student_that_packs_digits_is_asked_once() -> None:
    vocabulary = Vocabulary.from_pretrained(ASSETS / "student")
    model, probs, rest = belief(vocabulary)
    first = model.next_probs(())
    for number in ("7", "12", "07", "128", "999"):
        assert probs[number] == pytest.approx(float(first[int(vocabulary.encode(number).ids[0])]))
    assert rest == pytest.approx(1 - sum(probs.values()))


class OnlyDigits(nn.Module):
    """After anything, each token that begins with a digit, and no other, with one probability."""

    device = torch.device("cpu")

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.logits = torch.tensor([0.0 if content[:1].isdigit() else -40.0 for content in spelled_by(vocabulary)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def spelled_by(vocabulary: Vocabulary) -> list[bytes]:
    return [content or b"" for content in vocabulary.tokens]


def test_a_tokenizer_with_some_numbers_as_a_token_has_a_belief_that_adds_up_to_1() -> None:
    vocabulary = small("packing").vocabulary
    cut = {number: len(vocabulary.encode(number)) for number in NUMBERS}
    assert {cut["20"], cut["25"]} == {1, 2}, "the tokenizer is one that packs some of the numbers"
    (found,) = answer_distributions(OnlyDigits(vocabulary), vocabulary, ["in all "])
    assert found.sum() == pytest.approx(1)


def test_the_kl_is_nothing_for_one_belief_and_the_sum_for_two() -> None:
    teacher, student = torch.rand(2, 3, 1111, dtype=torch.float64).softmax(-1).numpy()
    assert answer_kl(teacher, teacher) == 0
    expected = sum(p * math.log(p / q) for row in zip(teacher, student, strict=True) for p, q in zip(*row, strict=True))
    assert answer_kl(teacher, student) == pytest.approx(expected / 3)
    assert answer_kl(teacher, student) > 0


def test_answers_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "1 + 1 = ", "answer": 2}\n\n{"prompt": "x ", "answer": "07"}\n')
    assert read_answers(path) == [Answer("1 + 1 = ", "2"), Answer("x ", "07")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1: expected"),
        ('{"prompt": "x"}', "prompt and answer"),
        ('{"prompt": "x", "answer": "two"}', "'two'"),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(line)
    with pytest.raises(XTokenError, match=problem):
        read_answers(path)


def test_no_file_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match="cannot read"):
        read_answers(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(XTokenError, match="no answer"):
        read_answers(tmp_path / "empty.jsonl")
