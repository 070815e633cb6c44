"""GOLD's first aligner equals growing two buffers of text, written here as it was first shipped."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from hard_texts import HARD_TEXTS, texts
from small_tokenizers import CORPUS, Small, small
from xtoken.alignment import Alignment, align


def grown(student: Small, teacher: Small, alignment: Alignment) -> list[list[int]]:
    """Grow the shorter buffer; flush when they are equal; what is left at the end is one group."""
    surface = [
        [v.contents[i].encode() if i in v.contents else v.tokens[i] for i in ids.tolist()]
        for v, ids in ((student.vocabulary, alignment.student_ids), (teacher.vocabulary, alignment.teacher_ids))
    ]
    groups, start, at, buffers = [], [0, 0], [0, 0], [b"", b""]
    while at[0] < len(surface[0]) or at[1] < len(surface[1]):
        side = 0 if len(buffers[0]) <= len(buffers[1]) else 1
        if at[side] == len(surface[side]):
            side = 1 - side
        buffers[side] += surface[side][at[side]]
        at[side] += 1
        if buffers[0] == buffers[1]:
            groups.append([start[0], at[0], start[1], at[1]])
            start, buffers = list(at), [b"", b""]
    if start[0] < len(surface[0]) and start[1] < len(surface[1]):
        groups.append([start[0], len(surface[0]), start[1], len(surface[1])])
    return groups


@settings(max_examples=80)
@given(texts())
def test_groups_are_those_of_growing_buffers(text: str) -> None:
    for names in (("packing", "splitting"), ("spm-bpe", "packing"), ("gemma", "hf-unigram"), ("wordpiece", "tiktoken")):
        student, teacher = (small(name) for name in names)
        for special in (False, True):
            alignment = align(student.vocabulary, teacher.vocabulary, text, "surface", add_special_tokens=special)
            assert alignment.chunks.tolist() == grown(student, teacher, alignment)


@pytest.mark.parametrize("text", [*CORPUS[:13], *HARD_TEXTS[:12]], ids=lambda t: ascii(t)[:24])
def test_groups_of_two_lossless_vocabularies_are_the_finest(text: str) -> None:
    student, teacher = small("packing").vocabulary, small("tiktoken").vocabulary
    assert align(student, teacher, text, "surface").chunks.tolist() == align(student, teacher, text).chunks.tolist()
