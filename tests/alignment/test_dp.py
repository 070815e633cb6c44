"""The paper's aligner: the optimum of its scores, by a plain reference; and its limit."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from small_tokenizers import small
from xtoken.alignment import align, align_spans, dp
from xtoken.alignment.dp import dp_chunks
from xtoken.errors import XTokenError
from xtoken.tokens import TokenSpans, Vocabulary

# Every word of up to four letters of a two-letter alphabet, so that runs join into tokens in many ways.
WORDS = ["".join(letters) for n in range(1, 5) for letters in product("ab", repeat=n)]


@cache
def words() -> Vocabulary:
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(WORDS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return Vocabulary.from_tokenizer(tokenizer)


def best_score(forms_s: list[bytes | int], forms_t: list[bytes | int]) -> float:
    """The paper's recursion, cell by cell. A special token is a number and joins nothing."""

    def joined(run: list[bytes | int]) -> bytes | None:
        parts = [part for part in run if isinstance(part, bytes)]
        return b"".join(parts) if len(parts) == len(run) else None

    @cache
    def score(i: int, j: int) -> float:
        if i == 0 or j == 0:
            return -1.5 * (i + j)
        s, t = forms_s[i - 1], forms_t[j - 1]
        found = [score(i - 1, j - 1) + (3 if s == t else -3), score(i - 1, j) - 1.5, score(i, j - 1) - 1.5]
        found += [score(i - 1, j - k) + 1.5 * k for k in (2, 3, 4) if k <= j and joined(forms_t[j - k : j]) == s]
        found += [score(i - k, j - 1) + 1.5 * k for k in (2, 3, 4) if k <= i and joined(forms_s[i - k : i]) == t]
        return max(found)

    return score(len(forms_s), len(forms_t))


def spans_of(ids: list[int]) -> TokenSpans:
    """Any tokens at all: the aligner looks at nothing else."""
    return TokenSpans(np.array(ids, np.int64), np.zeros(len(ids), np.int64), None, b"")


SPECIALS = [len(WORDS), len(WORDS) + 1]
ids = st.lists(st.integers(0, len(WORDS) + 1), max_size=9)


@settings(max_examples=300)
@given(ids, ids)
@example([], [0])
@example([WORDS.index("abab")], [0, 1, 0, 1])
@example([0, 1, 0, 1], [WORDS.index("abab")])
@example([0] * 9, [WORDS.index("aaa")] * 3)
@example([0, WORDS.index("abab"), 1], [0, 1, 0, 1])  # a group of four, or two matches
@example([*SPECIALS, 0], [SPECIALS[1], SPECIALS[0], 0])
def test_the_chunks_reach_the_best_score(student_ids: list[int], teacher_ids: list[int]) -> None:
    """A mismatch costs what two gaps cost, so the score of a path is that of its chunks less 1.5 a token left over."""
    vocabulary = words()
    chunks = dp_chunks(vocabulary, vocabulary, spans_of(student_ids), spans_of(teacher_ids)).tolist()
    forms_s: list[bytes | int] = [i if i in vocabulary.roles else vocabulary.tokens[i] for i in student_ids]
    forms_t: list[bytes | int] = [i if i in vocabulary.roles else vocabulary.tokens[i] for i in teacher_ids]
    score, left, stop_s, stop_t = 0.0, len(student_ids) + len(teacher_ids), 0, 0
    for s0, s1, t0, t1 in chunks:
        n, m = s1 - s0, t1 - t0
        assert stop_s <= s0
        assert stop_t <= t0
        assert min(n, m) == 1 <= max(n, m) <= 4
        if n == m == 1:
            assert forms_s[s0] == forms_t[t0]
        else:
            assert b"".join(forms_s[s0:s1]) == b"".join(forms_t[t0:t1])  # type: ignore[arg-type]
        score += 3 if n == m else 1.5 * max(n, m)
        left -= n + m
        stop_s, stop_t = s1, t1
    assert score - 1.5 * left == best_score(forms_s, forms_t)


def test_a_mismatched_pair_is_no_chunk() -> None:
    """NVIDIA's code trains on it; the paper does not."""
    student, teacher = ([WORDS.index(word) for word in side] for side in (("a", "bbbb", "aa"), ("a", "bab", "aa")))
    chunks = dp_chunks(words(), words(), spans_of(student), spans_of(teacher))
    assert chunks.tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]


def test_five_to_one_is_no_group() -> None:
    student, teacher = small("packing"), small("tiktoken")
    for text in ("12345678901234567890", "the quick brown fox jumps over"):
        for s0, s1, t0, t1 in align(student.vocabulary, teacher.vocabulary, text, "dp").chunks.tolist():
            assert (s1 - s0 == 1 and t1 - t0 <= 4) or (t1 - t0 == 1 and s1 - s0 <= 4)


def test_dp_and_bytes_agree_where_chunks_are_one_to_few() -> None:
    student, teacher = small("packing").vocabulary, small("splitting").vocabulary
    text = "Anna has 12 apples and buys 345 more."
    assert align(student, teacher, text, "dp").chunks.tolist() == align(student, teacher, text).chunks.tolist()


def test_a_table_over_the_limit_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    packing, splitting = small("packing").vocabulary, small("splitting").vocabulary
    n = len(packing.encode("the fox"))
    m = len(splitting.encode("the fox"))
    monkeypatch.setattr(dp, "MAX_CELLS", (n + 1) * (m + 1))
    assert len(align(packing, splitting, "the fox", "dp")) > 0
    monkeypatch.setattr(dp, "MAX_CELLS", (n + 1) * (m + 1) - 1)
    with pytest.raises(XTokenError, match=rf"{n} with {m} tokens needs .* cells.*method='bytes', which is linear"):
        align(packing, splitting, "the fox", "dp")


def test_a_method_that_does_not_exist_is_named_with_the_nearest() -> None:
    packing = small("packing").vocabulary
    with pytest.raises(XTokenError, match=r"unknown alignment method 'byte': there are bytes, dp, surface; did you"):
        align(packing, packing, "a", "byte")
    with pytest.raises(XTokenError, match=r"unknown alignment method 'xyzzy': there are bytes, dp, surface$"):
        align(packing, packing, "a", "xyzzy")


def test_spans_of_two_texts_are_refused() -> None:
    packing = small("packing").vocabulary
    with pytest.raises(XTokenError, match="two different texts"):
        align_spans(packing, packing, packing.encode("abc"), packing.encode("abd"))
