"""A batch changes nothing: a document has the same rows, labels and chunks alone and beside others."""

from __future__ import annotations

from typing import Any

import torch

from training import tiny
from xtoken.losses import ChunkIndex
from xtoken.training.collator import Collator
from xtoken.training.data import Side, prepare, side_key
from xtoken.training.texts import texts_from_list

STUDENT, TEACHER = tiny.packed(), tiny.split()
SIDE = side_key(TEACHER)
DATA = prepare(
    texts_from_list(["7", "Ada has 123 coins and 45 pens", "Bo has 9"]), Side(STUDENT, 64), [Side(TEACHER, 64)]
)
EXAMPLES = DATA.__getitems__([0, 1, 2])


def read(batch: dict[str, Any]) -> list[tuple[int, ...]]:
    """Every chunk token as (student id where it is read, id where it is predicted, the same of the teacher's chunk)."""
    index = ChunkIndex.from_tensors(batch["teachers"][SIDE]["index"])
    ids_s, ids_t = batch["input_ids"].flatten(), batch["teachers"][SIDE]["input_ids"].flatten()
    student = [ids_s[index.student_rows], ids_s[index.student_rows + 1], index.student_tokens]
    teacher = [ids_t[index.teacher_rows], ids_t[index.teacher_rows + 1], index.teacher_tokens]
    return [tuple(row) for row in torch.stack(student, 1).tolist()] + [
        tuple(r) for r in torch.stack(teacher, 1).tolist()
    ]


def test_rows_name_the_token_before_and_the_token_itself() -> None:
    for before, at, token in read(Collator()(EXAMPLES)):
        assert at == token
        assert before != -1


def test_a_batch_holds_the_chunks_of_its_documents_and_no_others() -> None:
    alone = [row for example in EXAMPLES for row in read(Collator()([example]))]
    assert sorted(alone) == sorted(read(Collator()(EXAMPLES)))
    together = ChunkIndex.from_tensors(Collator()(EXAMPLES)["teachers"][SIDE]["index"])
    assert together.n_chunks + int(together.dropped) == sum(len(e.teachers[SIDE].chunks) for e in EXAMPLES)


def test_padding_is_masked_unlabelled_and_on_the_right() -> None:
    batch = Collator()(EXAMPLES)
    for row, example in enumerate(EXAMPLES):
        n = len(example.ids)
        assert batch["input_ids"][row, :n].tolist() == batch["labels"][row, :n].tolist() == example.ids.tolist()
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
        assert (batch["labels"][row, n:] == -100).all()


def test_an_eos_that_is_text_stays_labelled_whatever_fills_the_padding() -> None:
    batch = Collator()(EXAMPLES)
    assert (batch["labels"] == 1).sum() == len(EXAMPLES)  # every document's own eos, and no padding


def test_sides_that_nobody_asked_for_are_left_out() -> None:
    assert Collator(())(EXAMPLES)["teachers"] == {}
