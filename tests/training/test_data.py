"""Examples: every side of a document ends at one byte, nothing is added twice, and nothing is computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from training import tiny
from xtoken.errors import XTokenError
from xtoken.tokens import Vocabulary
from xtoken.training import data as data_module
from xtoken.training.data import PreparedData, Side, prepare, side_key
from xtoken.training.texts import texts_from_list

STUDENT, TEACHER = tiny.packed(), tiny.split()
TEXTS = st.lists(st.text(alphabet="0123456789 abcé\n世🙂", min_size=1, max_size=60), min_size=1, max_size=4)


def prepared(
    texts: list[str], context_s: int = 128, context_t: int = 128, teacher: Vocabulary = TEACHER, **settings: Any
) -> PreparedData:
    return prepare(texts_from_list(texts), Side(STUDENT, context_s), [Side(teacher, context_t)], **settings)


def spelled(vocabulary: Vocabulary, ids: Any) -> bytes:
    return b"".join(vocabulary.tokens[i] for i in ids)


def test_a_document_stands_between_the_specials_of_each_side() -> None:
    example = prepared(["Ada has 123."])[0]
    (tokens,) = example.teachers.values()
    assert (example.ids[0], example.ids[-1], tokens.ids[0], tokens.ids[-1]) == (0, 1, 0, 1)
    assert spelled(STUDENT, example.ids) == spelled(TEACHER, tokens.ids) == b"Ada has 123."
    # bos with bos, eos with eos: chunks of no bytes
    assert tokens.chunks[0].tolist() == [0, 1, 0, 1]
    assert tokens.chunks[-1].tolist() == [len(example.ids) - 1, len(example.ids), len(tokens.ids) - 1, len(tokens.ids)]


def test_a_text_that_spells_a_special_token_gets_no_second_one() -> None:
    example = prepared(["<s>Ada</s>"])[0]
    assert (example.ids == 0).sum() == (example.ids == 1).sum() == 1
    assert spelled(STUDENT, example.ids) == b"<s>Ada</s>"


def test_an_eos_that_the_tokenizer_adds_itself_is_not_added_again() -> None:
    spec = Tokenizer.from_str(tiny.tokenizer_json(1, 360))
    spec.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    example = prepared(["Ada"], teacher=Vocabulary.from_tokenizer(spec))[0]
    (tokens,) = example.teachers.values()
    assert tokens.ids.tolist().count(1) == example.ids.tolist().count(1) == 1


def test_eos_can_be_left_out() -> None:
    assert prepared(["Ada"], append_eos=False)[0].ids[-1] != 1


@given(TEXTS, st.integers(3, 40), st.integers(3, 40))
def test_a_long_document_ends_at_one_byte_on_both_sides(texts: list[str], context_s: int, context_t: int) -> None:
    try:
        data = prepared(texts, context_s, context_t)
    except XTokenError:  # none of them can be cut: the tokens of a character are longer than the context
        return
    for i in range(len(data)):
        example = data[i]
        (tokens,) = example.teachers.values()
        assert 2 <= len(example.ids) <= context_s
        assert len(tokens.ids) <= context_t
        assert spelled(STUDENT, example.ids) == spelled(TEACHER, tokens.ids)
        assert tokens.chunks[-1].tolist()[1::2] == [len(example.ids), len(tokens.ids)]
        is_whole = example.ids[-1] == 1
        assert is_whole == (tokens.ids[-1] == 1)


def test_cut_documents_are_counted_and_keep_all_that_fits() -> None:
    data = prepared(["1 2 3 4 5", "1 2 3 4 5 6 7 8 9"], context_s=11)
    assert (data.report.documents, data.report.truncated) == (2, 1)
    assert len(data[1].ids) == 11
    assert data.report.bytes == len("1 2 3 4 5") + 10  # 11 tokens: bos and ten bytes


def test_a_teacher_is_cut_for_its_end_token_alone() -> None:
    """The student has no eos, so all of it is kept; the teacher's eos is one token too many."""
    spec = Tokenizer.from_str(tiny.tokenizer_json(1, 360))
    spec.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    ends = Vocabulary.from_tokenizer(spec)
    whole = prepared(["1 2 3 4"], teacher=ends, append_eos=False)
    (tokens,) = whole[0].teachers.values()
    assert (tokens.ids[-1], whole.report.truncated) == (1, 0)
    cut = prepared(["1 2 3 4"], context_t=len(tokens.ids) - 1, teacher=ends, append_eos=False)
    (shorter,) = cut[0].teachers.values()
    assert np.array_equal(shorter.ids, tokens.ids[:-1])
    assert np.array_equal(shorter.chunks, tokens.chunks)
    assert np.array_equal(cut[0].ids, whole[0].ids)
    assert cut.report.truncated == 1


def test_a_cut_lies_on_a_chunk_boundary_and_not_inside_a_number() -> None:
    data = prepared(["7 123 345"], context_t=8)  # the teacher's 8 tokens end inside 345
    (tokens,) = data[0].teachers.values()
    assert spelled(STUDENT, data[0].ids) == spelled(TEACHER, tokens.ids) == b"7 123 "


def test_all_teachers_are_cut_at_the_same_byte() -> None:
    third = tiny.split(bos=False)
    source = texts_from_list(["12 345 678 901"])
    data = prepare(source, Side(STUDENT, 128), [Side(TEACHER, 8), Side(third, 9)])
    assert len(data.sides) == 2
    spellings = {spelled(TEACHER, tokens.ids) for tokens in data[0].teachers.values()}
    assert spellings == {spelled(STUDENT, data[0].ids)} == {b"12 345 "}


def test_without_teachers_a_document_is_cut_at_the_context() -> None:
    data = prepare(texts_from_list(["1 2 3 4 5 6 7 8 9"]), Side(STUDENT, 5))
    assert (len(data[0].ids), data.report.truncated, data.sides) == (5, 1, ())


@pytest.mark.parametrize("contexts", [(99, 9), (9, 99)])
def test_teachers_with_one_tokenizer_share_it(contexts: tuple[int, int]) -> None:
    sides = [Side(TEACHER, context) for context in contexts]
    data = prepare(texts_from_list(["Ada 12 123 234 345"]), Side(STUDENT, 99), sides)
    assert data.sides == (side_key(TEACHER),)
    assert len(data[0].teachers[side_key(TEACHER)].ids) <= 9


def test_a_teacher_with_the_students_tokenizer_is_aligned_token_by_token() -> None:
    example = prepared(["né 世界 123"], teacher=STUDENT)[0]
    (tokens,) = example.teachers.values()
    n = len(example.ids)
    assert np.array_equal(tokens.ids, example.ids)
    assert np.array_equal(tokens.chunks, np.stack([np.arange(n), np.arange(n) + 1] * 2, axis=1))


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(XTokenError, match="no document to train on"):
        prepared(texts)


def test_empty_documents_are_skipped_and_counted() -> None:
    report = prepared(["Ada", "", "Bo", "\n"]).report
    assert (report.documents, report.empty) == (2, 2)


def test_a_document_that_cannot_be_encoded_is_named() -> None:
    with pytest.raises(XTokenError, match=r"the given texts, document 1 \(counting from 0\): .*lone surrogate"):
        prepared(["fine", "bad \ud800", "fine"])


def test_the_cache_gives_the_same_examples_without_aligning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tiny.documents(20)
    first = prepared(texts, cache=tmp_path)

    def fail(*_: Any) -> None:
        raise AssertionError("aligned again")

    monkeypatch.setattr(data_module, "align_spans_batch", fail)
    second = prepared(texts, cache=tmp_path)
    assert (second.key, second.report) == (first.key, first.report)
    for a, b in zip(first.__getitems__(list(range(20))), second.__getitems__(list(range(20))), strict=True):
        assert np.array_equal(a.ids, b.ids)
        assert all(np.array_equal(a.teachers[k].chunks, b.teachers[k].chunks) for k in a.teachers)
    with pytest.raises(AssertionError, match="aligned again"):
        prepared([*texts, "new"], cache=tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"append_eos": False}, {"method": "dp"}, {"context_s": 9}, {"context_t": 9}, {"teacher": tiny.split(False)}],
)
def test_the_key_follows_everything_the_examples_depend_on(changed: dict[str, Any]) -> None:
    texts = ["Ada has 12 coins"]
    assert prepared(texts).key == prepared(texts).key
    assert prepared(texts, **changed).key != prepared(texts).key


def test_an_interrupted_preparation_leaves_no_cache(tmp_path: Path) -> None:
    with pytest.raises(XTokenError):
        prepared(["fine", "bad \ud800"], cache=tmp_path)
    assert list((tmp_path / "prepared").iterdir()) == []
