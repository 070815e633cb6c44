"""The demo's text: the same for a seed, right where it is clean, wrong as often as asked."""

import hashlib
import re

import pytest

from xtoken.demo.problems import BOXES, ORDERS_IN_A_PROBLEM, PEOPLE, STEPS, Problem, problems
from xtoken.demo.run import HELD_OUT_SEED, TRAINING_TEXT_SEED, Settings

ORDER = re.compile(r"(\d+) more(?: go to \w+)?, in all (\d+)")


def answers(problem: Problem) -> list[tuple[int, int]]:
    """(right, written) of every order in a text, worked out from the text and the table of boxes alone."""
    box = next(count for things, count in BOXES.items() if f" {things} " in problem.text)
    return [(box + int(step), int(written)) for step, written in ORDER.findall(problem.text)]


def test_a_seed_gives_the_same_problems() -> None:
    assert problems(7, 50, noise=0.5) == problems(7, 50, noise=0.5)
    assert problems(7, 50) != problems(8, 50)


def test_the_first_problems_of_a_seed_do_not_depend_on_how_many_are_asked_for() -> None:
    assert problems(7, 20, noise=0.5) == problems(7, 50, noise=0.5)[:20]


def test_the_text_is_pinned() -> None:
    """The shipped teacher and tokenizers were trained on these very texts; changing them asks for make_demo.py."""
    texts = "".join(p.prompt + p.text + p.answer for p in problems(3, 1000, noise=0.5))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "620335edc8e7735d"
    assert problems(0, 1)[0].text == (
        "Vera Evans is a baker in Havana and has screws in boxes of 406. "
        "Greta orders a box and 200 more, in all 606. A box and 200 more go to Lucia, in all 606."
    )


def test_clean_answers_are_right() -> None:
    for problem in problems(3, 500):
        found = answers(problem)
        assert len(found) == ORDERS_IN_A_PROBLEM
        assert all(right == written for right, written in found)
        assert problem.text == f"{problem.prompt}{problem.answer}."
        assert 10 <= int(problem.answer) <= 999


def test_half_of_the_answers_are_wrong_at_noise_one_half() -> None:
    found = [pair for problem in problems(4, 2000, noise=0.5) for pair in answers(problem)]
    share = sum(right != written for right, written in found) / len(found)
    assert share == pytest.approx(0.5, abs=0.03)  # 4 standard deviations of 4,000 draws


def test_the_answer_stays_right_where_the_text_is_wrong() -> None:
    for problem in problems(5, 200, noise=1.0):
        right, written = answers(problem)[-1]
        assert problem.answer == str(right)
        assert written != right
        assert problem.text == f"{problem.prompt}{written}."


def test_noise_changes_answers_and_nothing_else() -> None:
    """So a clean and a noisy text of one seed tell the same stories."""
    blank = [ORDER.sub("", problem.text) for problem in problems(6, 100)]
    assert [ORDER.sub("", problem.text) for problem in problems(6, 100, noise=0.5)] == blank


def test_people_and_boxes_are_tables() -> None:
    texts = [problem.text for problem in problems(9, 500)]
    for name, life in PEOPLE.items():
        of_person = [text for text in texts if name in text]
        assert all(life.trade in text and life.town in text for text in of_person)
    for things, box in BOXES.items():
        assert all(str(box) in text for text in texts if f" {things} " in text)
    assert max(BOXES.values()) + max(STEPS) <= 999


def test_no_held_out_problem_is_in_the_training_text() -> None:
    shipped = Settings()
    trained = {p.prompt for p in problems(TRAINING_TEXT_SEED, shipped.steps * shipped.batch_size, shipped.noise)}
    assert not trained & {p.prompt for p in problems(HELD_OUT_SEED, shipped.held_out)}
