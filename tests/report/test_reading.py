"""How two models read a text: the KL by root against a plain one, log-probabilities against the evaluation's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from training import tiny
from xtoken.alignment import align
from xtoken.evaluation import bits_per_byte as evaluated
from xtoken.projection import build_tries
from xtoken.projection.tries import NO_ROOT
from xtoken.report.aligned import aligned_text, bits_per_byte
from xtoken.report.reading import Reader, kl_by_root
from xtoken.training import LoadedModel

TEXTS = [*tiny.documents(4), "Zoë 的 201 🎉"]


@pytest.fixture(scope="module")
def reader() -> Reader:
    student, teacher = tiny.student(), tiny.teacher()
    student.model.eval()
    teacher.model.eval()
    return Reader(student, teacher, build_tries(student.vocabulary, teacher.vocabulary))


def plain_kl(p: list[float], q: list[float], roots_t: list[int], roots_s: list[int]) -> float:
    """The same by dicts and loops."""
    classes = set(roots_s)
    masses = {root: math.fsum(x for x, r in zip(p, roots_t, strict=True) if r == root) for root in classes}
    whole = math.fsum(masses.values())
    own = {root: math.fsum(x for x, r in zip(q, roots_s, strict=True) if r == root) for root in classes}
    return math.fsum(m / whole * math.log(m / whole / own[root]) for root, m in masses.items() if m > 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_kl_by_root_is_that_of_sums_over_dicts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tries = build_tries(tiny.packed(), tiny.split())
    roots_s, roots_t = rng.integers(NO_ROOT, 5, 12), rng.integers(NO_ROOT, 7, 9)
    pair = replace(tries, student_roots=roots_s, teacher_roots=roots_t)
    p, q = (torch.log_softmax(torch.from_numpy(rng.normal(size=(3, n))) * 3, -1) for n in (9, 12))
    found = kl_by_root(p, q, pair)
    for row in range(3):
        plain = plain_kl(p[row].exp().tolist(), q[row].exp().tolist(), roots_t.tolist(), roots_s.tolist())
        assert found[row].item() == pytest.approx(plain, rel=1e-9)


def test_for_one_tokenizer_it_is_the_whole_kl_and_zero_between_equals() -> None:
    vocabulary = tiny.packed()
    tries = build_tries(vocabulary, vocabulary)
    p, q = (torch.log_softmax(torch.randn(2, vocabulary.size, dtype=torch.float64), -1) for _ in range(2))
    whole = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    # Specials of other roles than their own share a class, and ids that spell the same: hence no more than the whole.
    assert (kl_by_root(p, q, tries) <= whole + 1e-9).all()
    assert kl_by_root(p, q, tries).tolist() == pytest.approx(whole.tolist(), rel=0.05)
    assert kl_by_root(p, p, tries).abs().max() < 1e-12


def test_what_the_teacher_alone_can_say_takes_no_part() -> None:
    tries = build_tries(tiny.packed(), tiny.split())
    pair = replace(tries, student_roots=np.array([0, 1]), teacher_roots=np.array([0, 1, 2]))
    q = torch.tensor([[0.25, 0.75]]).log()
    assert kl_by_root(torch.tensor([[0.1, 0.3, 0.6]]).log(), q, pair).item() == pytest.approx(0, abs=1e-6)
    assert kl_by_root(torch.tensor([[0.0, 0.0, 1.0]]).log(), q, pair).item() == 0


def test_the_realised_log_probabilities_are_those_of_the_evaluation(reader: Reader) -> None:
    texts = [reader.read(text) for text in TEXTS]
    for side in ("student", "teacher"):
        loaded: LoadedModel = getattr(reader, side)
        other_way = evaluated(loaded.model, loaded.vocabulary, TEXTS, context_length=128)
        assert bits_per_byte(texts, side) == pytest.approx(other_way.bits_per_byte, rel=1e-5)  # type: ignore[arg-type]


def test_every_chunk_after_the_first_is_measured_and_spells_its_text(reader: Reader) -> None:
    text = reader.read(TEXTS[0])
    chunks = [piece for piece in text.pieces if not piece.is_gap]
    assert "".join(piece.text for piece in chunks) == TEXTS[0]
    assert [piece.measured is not None for piece in chunks] == [False] + [True] * (len(chunks) - 1)  # the bos first
    for piece in chunks[1:]:
        assert piece.measured is not None
        assert piece.measured.kl >= 0
        assert piece.measured.student_log_prob < 0 > piece.measured.teacher_log_prob
        expected = [p for _, p in piece.measured.student_expected]
        assert expected == sorted(expected, reverse=True)
        assert len(expected) == 3


def test_the_likeliest_token_is_the_models_own(reader: Reader) -> None:
    text = reader.read(TEXTS[0])
    spans = reader.student.vocabulary.encode(TEXTS[0]).with_specials(reader.student.vocabulary.prefix_ids)
    with torch.no_grad():
        logits = reader.student.model(torch.from_numpy(spans.ids)[None]).logits[0, :, : reader.student.vocabulary.size]
    place = 0
    for piece in text.pieces:
        if piece.measured is not None:
            best = reader.student.vocabulary.tokens[int(logits[place - 1].argmax())]
            assert piece.measured.student_expected[0][0].encode() == best or not best
        place += len(piece.student)


def test_a_long_text_is_read_to_the_context_and_says_so(reader: Reader) -> None:
    short = replace(reader, context=20)
    text = short.read(" ".join(TEXTS[:4]))
    assert text.is_cut
    assert not reader.read(TEXTS[0]).is_cut
    for side in ("student", "teacher"):
        tokens = sum(len(getattr(piece, side)) for piece in text.pieces)
        assert 10 < tokens <= 20


def test_gaps_stand_between_the_chunks_with_nothing_measured() -> None:
    student, teacher = tiny.packed(), tiny.split(bos=False)
    text = aligned_text(align(student, teacher, "Ada has 12", add_special_tokens=True), student, teacher)
    assert [piece.is_gap for piece in text.pieces][:2] == [True, False]
    assert text.pieces[0].student == ("<s>",)
    assert text.pieces[0].teacher == ()
    assert all(piece.measured is None for piece in text.pieces)
