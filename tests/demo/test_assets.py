"""What the demo ships: two tokenizers that cut numbers differently, and a teacher that knows its sums."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from xtoken.alignment import align
from xtoken.coverage import audit
from xtoken.demo.assets import ASSETS
from xtoken.demo.problems import problems
from xtoken.evaluation.answers import Answer, exact_answers
from xtoken.tokens import Vocabulary

NUMERALS = {width: [f"{n:0{width}d}" for n in range(10**width)] for width in (1, 2, 3)}
# Other seeds than those of the tokenizers, the teacher, the demo's training text and its held-out problems.
FRESH = 12345


@pytest.fixture(scope="module")
def student() -> Vocabulary:
    return Vocabulary.from_pretrained(ASSETS / "student")


@pytest.fixture(scope="module")
def teacher() -> Vocabulary:
    return Vocabulary.from_pretrained(ASSETS / "teacher")


def pieces(vocabulary: Vocabulary, text: str) -> list[bytes]:
    return [vocabulary.tokens[i] for i in vocabulary.encode(text).ids]


@pytest.mark.parametrize("width", NUMERALS)
def test_the_student_has_every_numeral_of_up_to_three_digits(student: Vocabulary, width: int) -> None:
    for numeral in NUMERALS[width]:
        assert pieces(student, numeral) == [numeral.encode()]


def test_the_teacher_splits_digits_one_by_one(teacher: Vocabulary) -> None:
    assert pieces(teacher, "1024 and 77") == [b"1", b"0", b"2", b"4", b" and", b" ", b"7", b"7"]
    assert not [token for token in teacher.tokens if token.isdigit() and len(token) > 1]


def test_a_number_never_shares_a_token_with_a_space(student: Vocabulary, teacher: Vocabulary) -> None:
    for vocabulary in (student, teacher):
        mixed = [token for token in vocabulary.tokens if any(48 <= b < 58 for b in token) and not token.isdigit()]
        assert mixed == []


def test_the_audit_finds_no_longer_numeral_in_common(student: Vocabulary, teacher: Vocabulary) -> None:
    report = audit(student, teacher)
    classes = [report.classes[f"digits-{width}"] for width in NUMERALS]
    assert [(found.tokens, found.in_common) for found in classes] == [(10, 10), (100, 0), (1000, 0)]
    assert report.recommended_loss == "p-kl"


def test_chunks_of_both_shapes_occur(student: Vocabulary, teacher: Vocabulary) -> None:
    """1:n by numbers and by words that only the student has whole, n:1 by words that only the teacher has."""
    shapes = set()
    for problem in problems(FRESH, 50):
        alignment = align(student, teacher, problem.text)
        for s0, s1, t0, t1 in alignment.chunks.tolist():
            content = b"".join(student.tokens[i] for i in alignment.student_ids[s0:s1])
            shapes.add((min(s1 - s0, 2), min(t1 - t0, 2), content.isdigit()))
    assert {(1, 1, False), (1, 2, True), (1, 2, False), (2, 1, False)} <= shapes


def test_only_the_student_begins_a_text_by_itself(student: Vocabulary, teacher: Vocabulary) -> None:
    assert student.prefix_ids == (student.bos_id,)
    assert teacher.prefix_ids == ()
    assert student.suffix_ids == teacher.suffix_ids == ()
    assert None not in (student.eos_id, teacher.eos_id)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_transformers_reads_the_tokenizer_as_its_file_says(side: str) -> None:
    """AutoTokenizer puts another pre-tokenizer in place of the file's for some values of tokenizer_class."""
    ours = Tokenizer.from_file(str(ASSETS / side / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(ASSETS / side)
    for problem in problems(FRESH, 300):
        assert theirs(problem.text)["input_ids"] == ours.encode(problem.text).ids


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_model_and_tokenizer_have_one_size(side: str) -> None:
    config = json.loads((ASSETS / side / "config.json").read_text())
    assert config["vocab_size"] == Vocabulary.from_pretrained(ASSETS / side).size


def test_the_student_comes_without_weights_and_the_teacher_within_4_mb() -> None:
    weights = [path for path in ASSETS.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt")]
    assert weights == [ASSETS / "teacher" / "model.safetensors"]
    assert weights[0].stat().st_size <= 4_000_000


def test_the_teacher_is_right_on_fresh_problems(teacher: Vocabulary) -> None:
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "teacher").eval()
    assert model.dtype == torch.float32
    assert exact_answers(model, teacher, [Answer(p.prompt, p.answer) for p in problems(FRESH, 100)]) >= 0.95
