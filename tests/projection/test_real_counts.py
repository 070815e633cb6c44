"""Published and measured counts on the real Llama-3 and Qwen3 tokenizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from xtoken.projection import Projection, build_projection, relaxed_partition, strict_partition
from xtoken.tokens import Vocabulary

pytestmark = pytest.mark.real
Get = Callable[[str], Vocabulary]


@pytest.fixture(scope="module")
def projection(real_vocabulary: Get) -> Projection:
    return build_projection(real_vocabulary("llama-3"), real_vocabulary("qwen3"))


def test_rows_by_rule(projection: Projection) -> None:
    """18,434 of Llama-3's 128,000 text tokens have no equal bytes in Qwen3; 375 of them are no UTF-8."""
    rows = projection.recipe["rows"]
    assert rows["exact"] == 109_566
    assert rows["text_pieces"] == 11_792 + 4_733 + 1_091
    assert rows["over_4_pieces"] == 443
    assert rows.get("byte_pieces", 0) + rows.get("not_utf8", 0) == 375
    assert rows["exact"] + 18_434 == 128_000
    assert projection.shape == (128_256, 151_669)


def test_the_tokens_without_equal_bytes_by_the_length_of_their_cut(real_vocabulary: Get) -> None:
    """Counted here from the texts themselves; Qwen puts nothing in front of a text, so `encode` cuts a token too."""
    student, teacher = real_vocabulary("llama-3"), real_vocabulary("qwen3")
    known = set(teacher.tokens)
    missing = [token for token in student.tokens if token and token not in known]
    texts = [token.decode() for token in missing if token.decode("utf-8", "ignore").encode() == token]
    lengths = Counter(len(spans) for spans in teacher.encode_batch(texts))
    assert len(missing) == 18_434
    assert len(missing) - len(texts) == 375
    assert [lengths.pop(n, 0) for n in (1, 2, 3, 4)] == [0, 11_792, 4_733, 1_091]
    assert sum(lengths.values()) == 443


def test_entries_are_the_distinct_pieces(projection: Projection, real_vocabulary: Get) -> None:
    assert projection.recipe["rows"].get("not_utf8", 0) == 0, "Qwen has every byte, so our third rule carries them all"
    widths = np.diff(projection.indptr)
    assert set(widths.tolist()) == {0, 1, 2, 3, 4}
    assert int((widths == 0).sum()) == 443 + projection.recipe["rows"]["special_alone"]


def test_numerals_go_to_their_digits(projection: Projection, real_vocabulary: Get) -> None:
    student, teacher = real_vocabulary("llama-3"), real_vocabulary("qwen3")
    digit = {str(d): teacher.tokens.index(str(d).encode()) for d in range(10)}
    for number in ("42", "207", "999", "100"):
        i = student.tokens.index(number.encode())
        span = slice(*projection.indptr[i : i + 2])
        weights: dict[int, float] = {}
        for n, d in enumerate(number):
            weights[digit[d]] = weights.get(digit[d], 0) + 0.1**n
        total = sum(weights.values())
        found = dict(zip(projection.cols[span].tolist(), projection.values[span].tolist(), strict=True))
        assert found == pytest.approx({c: w / total for c, w in weights.items()}, rel=1e-6)


def test_partitions(projection: Projection, real_vocabulary: Get) -> None:
    student, teacher = real_vocabulary("llama-3"), real_vocabulary("qwen3")
    strict, relaxed = strict_partition(student, teacher), relaxed_partition(student, teacher, projection)
    text = [i for i in strict.student_ids.tolist() if i not in student.roles]
    assert len(text) == 109_566
    assert len(relaxed) >= len(strict)
    kept = set(zip(strict.student_ids.tolist(), strict.teacher_ids.tolist(), strict=True))
    assert kept <= set(zip(relaxed.student_ids.tolist(), relaxed.teacher_ids.tolist(), strict=True))
