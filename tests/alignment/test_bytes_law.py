"""The law of `bytes`, on every pair of families and over all of Unicode.

Chunks are monotone, do not overlap, hold a token on each side, and both sides spell the same bytes by tables that this
test has from elsewhere. Where neither side rewrote the text the alignment is the finest there is, without a gap; where
one did, only what it rewrote is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hard_texts import HARD_TEXTS, TRICKY, texts
from small_tokenizers import CORPUS, SMALL, Small, small
from xtoken.alignment import Alignment, align, align_batch, align_spans
from xtoken.tokens import TokenSpans

PAIRS = list(product(SMALL, SMALL))


def check_law(student: Small, teacher: Small, alignment: Alignment) -> None:
    """Monotone, no overlap, no empty side, equal bytes; and gaps are exactly what is in no chunk."""
    ids_s, ids_t = alignment.student_ids.tolist(), alignment.teacher_ids.tolist()
    stop_s = stop_t = 0
    inside_s: set[int] = set()
    inside_t: set[int] = set()
    for s0, s1, t0, t1 in alignment.chunks.tolist():
        assert stop_s <= s0 < s1 <= len(ids_s)
        assert stop_t <= t0 < t1 <= len(ids_t)
        spelled_s, spelled_t = student.spell(ids_s[s0:s1]), teacher.spell(ids_t[t0:t1])
        assert spelled_s is not None, "a token that spells no known text is in a chunk"
        assert spelled_s == spelled_t
        stop_s, stop_t = s1, t1
        inside_s |= set(range(s0, s1))
        inside_t |= set(range(t0, t1))
    assert alignment.student_gaps.tolist() == sorted(set(range(len(ids_s))) - inside_s)
    assert alignment.teacher_gaps.tolist() == sorted(set(range(len(ids_t))) - inside_t)


def finest(pieces_s: Sequence[bytes], pieces_t: Sequence[bytes]) -> list[list[int]]:
    """Every cut at which both sides have spelled the same, by trying all pairs of prefixes."""
    lengths_s = [0, *accumulate(len(piece) for piece in pieces_s)]
    lengths_t = [0, *accumulate(len(piece) for piece in pieces_t)]
    cuts = [(i, j) for i, a in enumerate(lengths_s) for j, b in enumerate(lengths_t) if a == b]
    return [[i, k, j, m] for (i, j), (k, m) in pairwise(cuts)]


def check_pair(student: Small, teacher: Small, spans_s: TokenSpans, spans_t: TokenSpans) -> None:
    alignment = align_spans(student.vocabulary, teacher.vocabulary, spans_s, spans_t)
    check_law(student, teacher, alignment)
    ids_s, ids_t = spans_s.ids.tolist(), spans_t.ids.tolist()
    if student.spell(ids_s) == spans_s.raw == teacher.spell(ids_t):
        expected = finest([student.table[i] or b"" for i in ids_s], [teacher.table[i] or b"" for i in ids_t])
        assert alignment.chunks.tolist() == expected
        assert len(alignment.student_gaps) == len(alignment.teacher_gaps) == 0


def check_text(text: str) -> None:
    spans = {name: small(name).vocabulary.encode(text) for name in SMALL}
    for student, teacher in PAIRS:
        try:
            check_pair(small(student), small(teacher), spans[student], spans[teacher])
        except AssertionError as error:
            raise AssertionError(f"{student} with {teacher} on {text!r}: {error}") from error


@settings(max_examples=150)
@given(texts())
def test_every_pair_on_any_text(text: str) -> None:
    check_text(text)


@pytest.mark.parametrize(
    "text", [*HARD_TEXTS, *CORPUS[:13], "".join(TRICKY), " ".join(TRICKY)], ids=lambda t: ascii(t)[:24]
)
def test_every_pair_on_hard_texts(text: str) -> None:
    check_text(text)


@pytest.mark.parametrize("unit", ["a", "的", "= ", "1"])
def test_long_repetitive_text(unit: str) -> None:
    """NVIDIA's aligner took 13 s for 2,000 tokens of it; this is 50,000 bytes and more."""
    text = unit * (50_000 // len(unit))
    spans = {name: small(name).vocabulary.encode(text) for name in SMALL}
    for student, teacher in (("packing", "splitting"), ("gemma", "spm-bpe"), ("tiktoken", "hf-unigram")):
        alignment = align_spans(small(student).vocabulary, small(teacher).vocabulary, spans[student], spans[teacher])
        check_law(small(student), small(teacher), alignment)
        assert len(alignment.student_gaps) <= 4


@pytest.mark.parametrize("name", SMALL)
def test_a_tokenizer_with_itself_loses_unknown_tokens_alone(name: str) -> None:
    """Whatever it rewrote, it rewrote on both sides."""
    made = small(name)
    for text in HARD_TEXTS:
        alignment = align(made.vocabulary, made.vocabulary, text)
        lost = {i for n in alignment.student_gaps for i in [alignment.student_ids[n]]}
        if not any(made.table[i] is None for i in alignment.student_ids):
            assert not lost, text


def test_a_batch_is_its_texts_one_by_one() -> None:
    student, teacher = small("splitting").vocabulary, small("spm-nmt").vocabulary
    for method in ("bytes", "dp", "surface"):
        batch = align_batch(student, teacher, HARD_TEXTS, method, add_special_tokens=True)
        for text, found in zip(HARD_TEXTS, batch, strict=True):
            one = align(student, teacher, text, method, add_special_tokens=True)
            assert found.chunks.tolist() == one.chunks.tolist()
            assert found.method == method
    assert align_batch(student, teacher, []) == []


# -- only what a tokenizer rewrote is lost -----------------------------------------------------------------------------

# BERT drops the spaces that the others spell, so every word of it differs; it has tests of its own below.
WITH_SPACES = [name for name in SMALL if name != "wordpiece"]
BEFORE, AFTER = "fox the dog and the lazy dog the fox ", " the dog jumps over the lazy fox and the dog"
FIRST = len(b"fox")  # a dummy prefix may change the first word
NEAR = len(b" the fox ")  # tokens of a few characters may reach over a space


def lost(alignment: Alignment) -> set[tuple[int, int]]:
    """The byte spans of all tokens in gaps."""
    found = set()
    for ends, gaps in (
        (alignment.student_ends.tolist(), alignment.student_gaps.tolist()),
        (alignment.teacher_ends.tolist(), alignment.teacher_gaps.tolist()),
    ):
        begins = [0, *ends]
        found |= {(begins[i], ends[i]) for i in gaps}
    return found


@settings(max_examples=100)
@given(st.one_of(st.sampled_from(TRICKY), texts(min_size=1, max_size=3)))
def test_alignment_resumes_right_after_what_was_rewritten(odd: str) -> None:
    text = BEFORE + odd + AFTER
    first, last = len(BEFORE.encode()) - NEAR, len((BEFORE + odd).encode()) + NEAR
    spans = {name: small(name).vocabulary.encode(text) for name in WITH_SPACES}
    for student, teacher in product(WITH_SPACES, WITH_SPACES):
        alignment = align_spans(small(student).vocabulary, small(teacher).vocabulary, spans[student], spans[teacher])
        away = [(a, b) for a, b in lost(alignment) if b > FIRST and not first <= a <= b <= last]
        assert not away, (student, teacher, odd)


def test_words_align_where_a_tokenizer_drops_the_space_before_them() -> None:
    """BERT has no token for the space; the number after it is the same number all the same."""
    student, teacher = small("packing"), small("wordpiece")
    alignment = align(student.vocabulary, teacher.vocabulary, "the 12, 12")
    check_law(student, teacher, alignment)
    lost_s = [student.table[i] for i in alignment.student_ids[alignment.student_gaps]]
    assert lost_s == [b" ", b" "]
    assert alignment.teacher_gaps.tolist() == []


@pytest.mark.parametrize(
    ("student", "teacher", "text", "student_gaps", "teacher_gaps"),
    [
        ("packing", "splitting", "the cafe\u0301 fox", "e\u0301", "é"),
        ("packing", "splitting", "12 \u1112\u1161\u11ab 12", "\u1112\u1161\u11ab", "한"),
        ("packing", "wordpiece", "Hello,world", "H", "h"),
        ("packing", "spm-unknown", " the 犭", "犭", ""),
        ("packing", "spm-nmt", " ①,", "①", "1"),
    ],
)
def test_a_rewritten_character_costs_its_own_group(
    student: str, teacher: str, text: str, student_gaps: str, teacher_gaps: str
) -> None:
    """On both sides the gaps are that character, but for the dummy prefix in front of a text."""
    made_s, made_t = small(student), small(teacher)
    alignment = align(made_s.vocabulary, made_t.vocabulary, text)
    lost_s = b"".join(made_s.table[i] or b"" for i in alignment.student_ids[alignment.student_gaps])
    lost_t = b"".join(made_t.table[i] or b"" for i in alignment.teacher_ids[alignment.teacher_gaps])
    assert lost_s.decode().removeprefix(" the").strip() == student_gaps
    assert lost_t.decode().removeprefix("  the").removeprefix(" the").strip() == teacher_gaps


@pytest.mark.parametrize(
    ("name", "text"), [("spm-bpe", "12 fox"), ("spm-bpe", "的"), ("prefix-space", "的"), ("hf-unigram", "12")]
)
def test_a_dummy_prefix_that_is_a_token_costs_itself_alone(name: str, text: str) -> None:
    made = small(name)
    alignment = align(small("packing").vocabulary, made.vocabulary, text)
    assert alignment.student_gaps.tolist() == []
    assert alignment.teacher_gaps.tolist() == [0]
    assert made.table[alignment.teacher_ids[0]] == b" "


def test_two_dummy_prefixes_pair_up() -> None:
    student, teacher = small("spm-bpe"), small("hf-unigram")
    alignment = align(student.vocabulary, teacher.vocabulary, "12")
    check_law(student, teacher, alignment)
    assert alignment.student_gaps.tolist() == alignment.teacher_gaps.tolist() == []


def test_an_unknown_character_is_never_aligned() -> None:
    """Not even with the unknown token of the same vocabulary at the same place: nobody knows what either stands for."""
    for name in ("spm-unknown", "hf-unigram", "wordpiece"):
        made = small(name)
        for text in ("\U0001749d", "a ½ b", "the \U0001749d the", "\U0001749d\u212a", "犭"):
            for method in ("bytes", "dp"):
                alignment = align(made.vocabulary, made.vocabulary, text, method)
                check_law(made, made, alignment)
