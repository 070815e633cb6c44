"""Exact answers, on models whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from xtoken.demo.accuracy import exact_answers
from xtoken.demo.assets import ASSETS
from xtoken.demo.problems import Problem, problems
from xtoken.errors import XTokenError
from xtoken.tokens import Vocabulary

PROBLEMS = problems(77, 40)


class Scripted(nn.Module):
    """Continues each problem's prompt with the tokens of a given continuation, whatever the batch."""

    def __init__(self, vocabulary: Vocabulary, write: Callable[[Problem], list[int]], extra_columns: int = 0) -> None:
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
