"""The shipped miniature: its models are what the study says they are, and its texts are made the same every time."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from xtoken.coverage import audit
from xtoken.evaluation.answers import Answer, exact_answers, read_answers
from xtoken.study.config import load_study, quickened
from xtoken.tokens import Vocabulary

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "studies" / "miniature" / "models"
STUDY = ROOT / "studies" / "miniature" / "study.yaml"
# Of the text that the results in studies/miniature/results were had with.
TRAINING_TEXT = "11ec591c6b56680165af47815cca6a59a1e39ca1fffe2d8c79f81f07c3f7694a"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    script = ROOT / "scripts" / "make_miniature.py"
    subprocess.run([sys.executable, str(script), "texts", "--out", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def answers(texts: Path) -> list[Answer]:
    return read_answers(texts / "answers.jsonl")[:100]


def vocabulary(name: str) -> Vocabulary:
    return Vocabulary.from_pretrained(MODELS / name)


def right(name: str, answers: list[Answer]) -> float:
    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    return exact_answers(model, vocabulary(name), answers)


def test_the_text_is_that_of_the_results(texts: Path) -> None:
    assert hashlib.sha256((texts / "train.jsonl").read_bytes()).hexdigest() == TRAINING_TEXT


def test_half_of_the_training_numbers_are_wrong_and_no_held_out_one_is(texts: Path) -> None:
    def lines(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (texts / f"{name}.jsonl").read_text().splitlines()]

    held_out, whole = lines("held_out"), read_answers(texts / "answers.jsonl")
    assert all(row["text"].startswith(a.prompt + a.answer) for row, a in zip(held_out, whole, strict=True))
    boxes = {thing_before(a.prompt): a.answer for a in whole}
    assert len(boxes) == 48
    written = [(thing_before(row["prompt"]), row["text"][len(row["prompt"]) :]) for row in lines("train")]
    is_right = [re.split(r"\D", rest)[0] == boxes[thing] for thing, rest in written]
    assert sum(is_right) / len(is_right) == pytest.approx(0.5, abs=0.02)


def thing_before(prompt: str) -> str:
    """What the number that a prompt ends before counts."""
    found = re.search(r"(\w+) (by the box of|in boxes of|into boxes of|go by) $", prompt)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", ["splitting", "packing"])
def test_the_main_teachers_know_every_number(name: str, answers: list[Answer]) -> None:
    assert right(name, answers) >= 0.98


def test_the_smaller_teacher_knows_half_and_the_student_none(answers: list[Answer]) -> None:
    assert 0.35 <= right("small", answers) <= 0.7
    assert right("student", answers) <= 0.05


def test_one_pair_is_unsound_and_the_other_sound() -> None:
    student = vocabulary("student")
    splitting, packing = (audit(student, vocabulary(name)) for name in ("splitting", "packing"))
    assert (splitting.recommended_loss, packing.recommended_loss) == ("p-kl", "h-kl")
    assert splitting.classes["digits-3"].in_common == 0
    assert packing.classes["digits-3"].in_common == 1000
    for report in (splitting, packing):  # words are merged differently in both
        assert 0 < report.classes["alphabetic"].in_common < report.classes["alphabetic"].tokens
    assert vocabulary("small").fingerprint == student.fingerprint


def test_the_study_asks_all_nine_questions_and_its_quick_form_some() -> None:
    study = load_study(STUDY)
    assert {question.id[0] for question in study.questions} == set("abcdefghi")
    assert len(study.seeds) >= 5
    asked = {question.id for question in quickened(study).questions}
    assert {"d", "i"} <= asked
