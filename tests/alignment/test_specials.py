"""Special tokens around a text: a one-sided one is a single gap to `bytes` and `dp`, and the ruin of `surface`."""

from __future__ import annotations

import numpy as np
import pytest

from small_tokenizers import CORPUS, small
from xtoken.alignment import METHODS, align, align_spans

TEXT = "The quick brown fox jumps over the lazy dog, 123 times."
LONG = " ".join(CORPUS[:40])


@pytest.mark.parametrize("text", [TEXT, LONG], ids=["short", "long"])
def test_a_bos_on_one_side_moves_everything_by_one_and_nothing_else(text: str) -> None:
    student, teacher = small("packing").vocabulary, small("tiktoken").vocabulary
    without = align(student, teacher, text)
    alignment = align(student, teacher, text, add_special_tokens=True)
    assert alignment.student_ids[0] == student.bos_id
    assert alignment.student_gaps.tolist() == [0]
    assert alignment.teacher_gaps.tolist() == []
    assert alignment.chunks.tolist() == (without.chunks + np.array([1, 1, 0, 0])).tolist()


@pytest.mark.parametrize("text", [TEXT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("method", ["bytes", "dp"])
def test_a_bos_on_one_side_costs_one_gap(method: str, text: str) -> None:
    """Counted: `dp` may settle another of its ties otherwise."""
    for student, teacher in (("packing", "tiktoken"), ("tiktoken", "packing")):
        sides = small(student).vocabulary, small(teacher).vocabulary
        without, alignment = (align(*sides, text, method, add_special_tokens=special) for special in (False, True))
        gaps, gaps_without = (len(a.student_gaps) + len(a.teacher_gaps) for a in (alignment, without))
        assert gaps == gaps_without + 1
        assert len(alignment) == len(without)
        assert 0 in (alignment.student_gaps if student == "packing" else alignment.teacher_gaps)


@pytest.mark.parametrize("text", [TEXT, LONG], ids=["short", "long"])
def test_a_bos_on_one_side_puts_everything_into_one_surface_group(text: str) -> None:
    student, teacher = small("packing").vocabulary, small("tiktoken").vocabulary
    assert len(align(student, teacher, text, "surface")) > 10
    alignment = align(student, teacher, text, "surface", add_special_tokens=True)
    assert alignment.chunks.tolist() == [[0, len(alignment.student_ids), 0, len(alignment.teacher_ids)]]


@pytest.mark.parametrize("method", METHODS)
def test_without_being_asked_no_special_token_is_added(method: str) -> None:
    student, teacher = small("packing").vocabulary, small("prefix-space").vocabulary
    alignment = align(student, teacher, TEXT, method)
    assert not set(alignment.student_ids.tolist()) & set(student.roles)
    assert not set(alignment.teacher_ids.tolist()) & set(teacher.roles)


@pytest.mark.parametrize("method", ["bytes", "dp"])
def test_bos_pairs_with_bos_and_eos_with_eos(method: str) -> None:
    """Named differently on the two sides: the role is what they share."""
    prefix_space, unigram, gemma, packing = (
        small(name).vocabulary for name in ("prefix-space", "hf-unigram", "gemma", "packing")
    )
    both = align(prefix_space, unigram, TEXT, method, add_special_tokens=True)
    n, m = len(both.student_ids), len(both.teacher_ids)
    assert [0, 1, 0, 1] in both.chunks.tolist()
    assert [n - 1, n, m - 1, m] in both.chunks.tolist()
    bos = align(gemma, packing, TEXT, method, add_special_tokens=True)
    assert bos.chunks.tolist()[0] == [0, 1, 0, 1]
    assert (bos.student_ends[0], bos.teacher_ends[0]) == (0, 0)


@pytest.mark.parametrize("method", ["bytes", "dp"])
def test_bos_does_not_pair_with_cls(method: str) -> None:
    alignment = align(
        small("prefix-space").vocabulary, small("wordpiece").vocabulary, "the", method, add_special_tokens=True
    )
    assert 0 in alignment.student_gaps
    assert 0 in alignment.teacher_gaps
    assert len(alignment.student_ids) - 1 in alignment.student_gaps
    assert len(alignment.teacher_ids) - 1 in alignment.teacher_gaps


@pytest.mark.parametrize("method", ["bytes", "dp"])
def test_special_tokens_of_an_empty_text_still_pair(method: str) -> None:
    alignment = align(
        small("prefix-space").vocabulary, small("hf-unigram").vocabulary, "", method, add_special_tokens=True
    )
    assert alignment.chunks.tolist() == [[0, 1, 0, 1], [1, 2, 1, 2]]


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_text_has_no_chunks(method: str) -> None:
    alignment = align(small("packing").vocabulary, small("spm-bpe").vocabulary, "", method)
    assert alignment.chunks.shape == (0, 4)
    assert alignment.chunks.dtype == np.int64
    assert len(alignment) == len(alignment.student_gaps) == len(alignment.teacher_gaps) == 0


@pytest.mark.parametrize("method", ["bytes", "dp"])
def test_a_second_bos_is_a_gap(method: str) -> None:
    """A double bos is a classic mistake in a data set; it must not shift what follows."""
    packing, gemma = small("packing").vocabulary, small("gemma").vocabulary
    once, twice = packing.encode(TEXT), packing.encode(TEXT).with_specials([900, 900])
    teacher = gemma.encode(TEXT).with_specials(gemma.prefix_ids)
    alignment = align_spans(packing, gemma, twice, teacher, method)
    single = align_spans(packing, gemma, once, gemma.encode(TEXT), method)
    assert len(alignment.student_gaps) == len(single.student_gaps) + 1
    assert len(alignment) == len(single) + 1
    assert alignment.chunks[1:].tolist() == (single.chunks + np.array([2, 2, 1, 1])).tolist()


def test_markers_nobody_knows_pair_by_their_text_and_their_place() -> None:
    splitting, packing = small("splitting").vocabulary, small("packing").vocabulary
    start, eot = 801, 802  # <|im_start|>, of no role; <|im_end|>, the end of a turn
    spans = splitting.encode("hi")
    same = align_spans(splitting, splitting, spans.with_specials([start], [eot]), spans.with_specials([start], [eot]))
    assert len(same.student_gaps) == 0
    other = align_spans(
        splitting, packing, spans.with_specials([start], [eot]), packing.encode("hi").with_specials([900], [902])
    )
    assert other.student_gaps.tolist() == [0]
    n, m = len(other.student_ids), len(other.teacher_ids)
    assert other.chunks.tolist()[-1] == [n - 1, n, m - 1, m]


def test_special_tokens_in_another_order_do_not_cross() -> None:
    packing = small("packing").vocabulary
    spans = packing.encode("hi")
    one, two = spans.with_specials([], [901, 902]), spans.with_specials([], [902, 901])
    alignment = align_spans(packing, packing, one, two)
    stops = alignment.chunks[:, [1, 3]]
    assert (np.diff(stops, axis=0) > 0).all()
    assert len(alignment.student_gaps) == len(alignment.teacher_gaps) == 1


def test_dropped_white_space_at_the_end_does_not_move_the_eos() -> None:
    """The one side has a token there, the other has none; the eos stands at the end of the text on both."""
    alignment = align(
        small("prefix-space").vocabulary, small("hf-unigram").vocabulary, "fox  ", add_special_tokens=True
    )
    assert alignment.chunks.tolist()[-1][1::2] == [len(alignment.student_ids), len(alignment.teacher_ids)]
    assert alignment.student_ends[-1] == alignment.teacher_ends[-1] == 5
