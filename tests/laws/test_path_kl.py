"""Path-KL's own laws: what it is in expectation, where it is exact, and what its pieces are worth by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses import ChunkIndex, PathKL, SameTokenizerKL
from xtoken.losses.fast import walk
from xtoken.losses.fast.path_plan import Entries, PathPlan, Visits, plan_paths
from xtoken.projection.tries import tries_from_pieces
from xtoken.teachers import DenseSignal, LogitSignal, signal_from_logits

from .cases import value_and_grad
from .toy import DIGITS, PAIRS, TRIPLES, batch, chunks_of, cut, induced, process, tries

NESTED = {
    "packs two": (PAIRS, DIGITS),
    "packs three": (TRIPLES, DIGITS),
    "packs some": ((*DIGITS, "01", "10"), DIGITS),
    "splits two": (DIGITS, PAIRS),
    "splits three": (DIGITS, TRIPLES),
    "the same": (DIGITS, DIGITS),
}


class World:
    """Every text of a process, the teacher that writes it, and a student's table of logits by beginning of a text."""

    def __init__(self, student: Sequence[str], teacher: Sequence[str], seed: int) -> None:
        self.student, self.teacher, self.texts = student, teacher, process(seed)
        self.of_student, self.of_teacher = induced(self.texts, student), induced(self.texts, teacher)
        self.states = {beginning: n for n, beginning in enumerate(self.of_student)}
        self.loss = PathKL(tries(student, teacher))

    def random_table(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(len(self.states), len(self.student), dtype=torch.float64, generator=generator)

    def true_table(self) -> Tensor:
        return torch.stack([row.log() for row in self.of_student.values()])

    def divergence(self, table: Tensor) -> Tensor:
        """KL of the distributions over the student's tokens, summed over all beginnings of a text."""
        total = table.new_zeros(())
        for beginning, row in self.of_student.items():
            log_q = table[self.states[beginning]].log_softmax(-1)
            total = total + torch.xlogy(row, row / row.sum()).sum() - row[row > 0] @ log_q[row > 0]
        return total

    def expected(self, table: Tensor, use_reference: bool = False) -> Tensor:
        """The loss over every text the teacher might write, each with its chance."""
        total = table.new_zeros(())
        for text, chance in self.texts.items():
            logits, signal, index = self.inputs(text, table)
            loss = self.loss.reference if use_reference else self.loss
            total = total + chance * loss(logits, signal, index).total
        return total

    def inputs(self, text: str, table: Tensor) -> tuple[Tensor, DenseSignal, ChunkIndex]:
        tokens_s, tokens_t = cut(text, self.student), cut(text, self.teacher)
        rows_s = [table[self.states[tuple(tokens_s[:n])]] for n in range(len(tokens_s))]
        rows_t = [(row := self.of_teacher[tuple(tokens_t[:n])]) / row.sum() for n in range(len(tokens_t))]
        after = torch.zeros_like(rows_s[0]), torch.full_like(rows_t[0], 1 / len(self.teacher))
        chunks = chunks_of(tokens_s, tokens_t)
        ids_s, ids_t = [0, *map(self.student.index, tokens_s)], [0, *map(self.teacher.index, tokens_t)]
        signal = DenseSignal(torch.stack([*rows_t, after[1]]).log())
        return torch.stack([*rows_s, after[0]]), signal, ChunkIndex.from_chunks(chunks, ids_s, ids_t)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", sorted(NESTED))
def test_over_the_teachers_texts_it_is_the_kl_of_the_students_tokens(name: str, seed: int) -> None:
    """Value and gradient, for whole texts: every token of the student, whatever came before it."""
    world = World(*NESTED[name], seed)
    table = world.random_table(seed + 7).requires_grad_()
    exact, expected = world.divergence(table), world.expected(table)
    assert abs(exact - expected) < 1e-8
    slopes = [torch.autograd.grad(value, table)[0] for value in (exact, expected)]
    assert (slopes[0] - slopes[1]).abs().max() < 1e-8
    assert slopes[0].abs().max() > 0.01


@pytest.mark.parametrize("name", sorted(NESTED))
def test_it_is_at_rest_in_the_truth_on_every_text(name: str) -> None:
    world = World(*NESTED[name], seed=3)
    for text in world.texts:
        logits, signal, index = world.inputs(text, world.true_table())
        term, slope = value_and_grad(world.loss, logits, signal, index)
        assert abs(term.total) < 1e-12, text
        assert slope.nan_to_num().abs().max() < 1e-12, text


def test_crossing_tokens_leave_a_bias_and_no_token_untaught() -> None:
    """Both sides pack, but other pairs: not exact any more; the slope still points the right way in every state."""
    world = World((*DIGITS, "01"), (*DIGITS, "10"), seed=0)
    table = world.random_table(1).requires_grad_()
    slopes = [torch.autograd.grad(value, table)[0] for value in (world.divergence(table), world.expected(table))]
    assert 1e-3 < (slopes[0] - slopes[1]).abs().max() < 0.1
    for ours, true in zip(*slopes[::-1], strict=True):
        assert torch.cosine_similarity(ours, true, dim=0) > 0.7


def random_vocabulary(rng: random.Random) -> list[str]:
    words = {"".join(rng.choices("abc", k=rng.randint(2, 4))) for _ in range(rng.randint(0, 9))}
    return [*"abc$", *sorted(words)]


def random_batch(seed: int) -> tuple[PathKL, Tensor, Tensor, ChunkIndex]:
    rng = random.Random(seed)
    student, teacher = random_vocabulary(rng), random_vocabulary(rng)
    texts = ["".join(rng.choices("aabc", k=rng.randint(1, 9))) + "$" for _ in range(3)]
    return PathKL(tries(student, teacher)), *batch(student, teacher, texts, seed)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_reference_for_any_two_vocabularies(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of tokens that nest and cross; whole and top-k teachers; forbidden tokens; blocks of one row and more."""
    loss, student, teacher, index = random_batch(seed)
    if seed % 3 == 1:
        student = student.index_fill(-1, torch.tensor([1]), float("-inf"))
    if seed % 5 == 1:
        teacher = teacher.index_fill(-1, torch.tensor([0, 2]), float("-inf"))
    monkeypatch.setattr(walk, "_CPU_ELEMENTS", (1, 3, 1000)[seed % 3] * max(loss.tries.shape))
    size_t = loss.teacher_vocab_size
    for tau, top_k in ((1.0, None), (2.0, None), (1.0, 2), (1.5, size_t)):
        signal = signal_from_logits(teacher, size_t, tau, top_k)
        term, slope = value_and_grad(loss, student, signal, index)
        expected, expected_slope = value_and_grad(loss.reference, student, signal, index)
        torch.testing.assert_close(term.total, expected.total, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(slope, expected_slope, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(dict(term.metrics), dict(expected.metrics), rtol=1e-10, atol=1e-11)


def batch_with_copies(seed: int) -> tuple[PathKL, Tensor, Tensor, ChunkIndex]:
    """As `random_batch`, with three ids a side that spell what others spell, and one without a cut."""
    rng = random.Random(seed)
    vocabularies = random_vocabulary(rng), random_vocabulary(rng)
    texts = ["".join(rng.choices("aabc", k=rng.randint(1, 9))) + "$" for _ in range(3)]
    *logits, index = batch(*vocabularies, texts, seed, padding=6)
    plain, cuts, spellings, tokens = tries(*vocabularies), [], [], []
    for own, trie, drawn in zip(
        vocabularies, (plain.student, plain.teacher), (index.student_tokens, index.teacher_tokens), strict=True
    ):
        copied = rng.sample(range(len(own)), 3)
        bounds = trie.piece_starts
        own_cuts = [trie.pieces[bounds[i] : bounds[i + 1]].tolist() for i in range(len(own))]
        cuts.append([*own_cuts, *(own_cuts[i] for i in copied), []])
        spellings.append(np.array([*range(len(own)), *copied, len(own) + 3]))
        copies = dict(zip(copied, range(len(own), len(own) + 3), strict=True))
        tokens.append(torch.tensor([copies[t] if t in copies and rng.random() < 0.5 else t for t in drawn.tolist()]))
    index = replace(index, student_tokens=tokens[0], teacher_tokens=tokens[1])
    return PathKL(tries_from_pieces(*cuts, *spellings)), *logits, index


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_reference_where_several_ids_spell_the_same(seed: int) -> None:
    loss, student, teacher, index = batch_with_copies(seed)
    for tau, top_k in ((1.0, None), (1.0, 3)):
        signal = signal_from_logits(teacher, loss.teacher_vocab_size, tau, top_k)
        term, slope = value_and_grad(loss, student, signal, index)
        expected, expected_slope = value_and_grad(loss.reference, student, signal, index)
        torch.testing.assert_close(term.total, expected.total, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(slope, expected_slope, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(dict(term.metrics), dict(expected.metrics), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("seed", range(10))
def test_its_gradient_is_its_slope(seed: int) -> None:
    loss, student, teacher, index = random_batch(seed)
    for top_k in (None, 3):
        signal = signal_from_logits(teacher, loss.teacher_vocab_size, 1.0, top_k)
        leaf = student.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, s=signal: loss(z, s, index).total, leaf)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_not_of_the_text_is_never_negative(seed: int) -> None:
    loss, student, teacher, index = random_batch(seed)
    term = loss(student, signal_from_logits(teacher, loss.teacher_vocab_size), index)
    assert term.metrics["node_kl"] >= -1e-12
    assert term.total - term.metrics["node_kl"] - term.metrics["text_nll"] >= -1e-12


@pytest.mark.parametrize("seed", range(10))
def test_all_of_the_top_k_is_the_whole_signal(seed: int) -> None:
    loss, student, teacher, index = random_batch(seed)
    size_t = loss.teacher_vocab_size
    whole, kept = (signal_from_logits(teacher, size_t, 1.0, top_k) for top_k in (None, size_t))
    one, slope = value_and_grad(loss, student, whole, index)
    other, other_slope = value_and_grad(loss, student, kept, index)
    torch.testing.assert_close(one.total, other.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, other_slope, rtol=1e-12, atol=1e-12)


def test_equal_tokenizers_give_the_same_tokenizer_kl() -> None:
    vocabulary = ("a", "b", "c", "$", "ab", "bc", "abc")
    student, teacher, index = batch(vocabulary, vocabulary, ["abcab$", "aabbc$", "c$"])
    signal = signal_from_logits(teacher, len(vocabulary))
    ours, slope = value_and_grad(PathKL(tries(vocabulary, vocabulary)), student, signal, index)
    plain, plain_slope = value_and_grad(SameTokenizerKL(len(vocabulary)), student, signal, index)
    torch.testing.assert_close(ours.total, plain.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, plain_slope, rtol=1e-12, atol=1e-12)
    assert ours.metrics["node_kl"] == ours.metrics["text_nll"] == 0


def two_digits() -> tuple[PathKL, Tensor, DenseSignal, ChunkIndex]:
    """The student has 2, 20 and an end; the teacher digits. The text is 20 and the end."""
    student, teacher = ("2", "0", "20", "$"), ("2", "0", "$")
    q = torch.tensor([[0.2, 0.1, 0.3, 0.4], [0.1, 0.5, 0.2, 0.2]], dtype=torch.float64)
    p = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.7, 0.1], [0.2, 0.1, 0.7]], dtype=torch.float64)
    index = ChunkIndex.from_chunks([[1, 2, 1, 3], [2, 3, 3, 4]], [3, 2, 3], [2, 0, 1, 2])
    return PathKL(tries(student, teacher)), q.log(), DenseSignal(p.log()), index


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(float(x) * math.log(x / y) for x, y in zip(p, q, strict=True))


def test_by_hand() -> None:
    """Roots 2, 0 and the end; then, after 2, whether 0 follows; then the next chunk, where nothing is to take out."""
    loss, logits, signal, index = two_digits()
    first = kl((0.6, 0.1, 0.3), (0.5, 0.1, 0.4)) + kl((0.7, 0.3), (0.3 / 0.5, 0.2 / 0.5))
    second = kl((0.2, 0.1, 0.7), (0.3, 0.5, 0.2))
    term = loss(logits, signal, index)
    assert term.total.item() == pytest.approx(first + second, abs=1e-12)
    assert term.metrics["node_kl"].item() == pytest.approx(kl((0.7, 0.3), (0.6, 0.4)), abs=1e-12)
    assert int(term.count) == 2


def test_that_a_token_ended_is_said_once() -> None:
    """The text is 2 and the end: after the student's 2 a 0 would have made it 20, so the next label is without 0."""
    loss, logits, signal, _ = two_digits()
    index = ChunkIndex.from_chunks([[1, 2, 1, 2], [2, 3, 2, 3]], [3, 0, 3], [2, 0, 2])
    first = kl((0.6, 0.1, 0.3), (0.5, 0.1, 0.4)) + kl((0.7, 0.3), (0.6, 0.4))
    second = kl((0.2 / 0.3, 0.1 / 0.3), (0.3, 0.2))
    assert loss(logits, signal, index).total.item() == pytest.approx(first + second, abs=1e-12)


def test_a_chunk_that_no_other_follows_says_nothing_of_its_end() -> None:
    """The row after it belongs to a prompt, a gap or padding."""
    loss, logits, signal, _ = two_digits()
    index = ChunkIndex.from_chunks([[1, 2, 1, 2]], [3, 0, 3], [2, 0, 2])
    assert loss(logits, signal, index).total.item() == pytest.approx(kl((0.6, 0.1, 0.3), (0.5, 0.1, 0.4)), abs=1e-12)


def test_where_tokens_cross_the_text_teaches() -> None:
    """ab|c against a|bc. The first token takes the place of the class that `a` was credited to; the second its own."""
    student, teacher = ("a", "b", "c", "ab", "$"), ("a", "b", "c", "bc", "$")
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(3, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    index = ChunkIndex.from_chunks([[1, 3, 1, 3]], [4, 3, 2], [4, 0, 3])
    term = PathKL(tries(student, teacher))(logits, LogitSignal(other, 5), index)
    q, p = logits.softmax(-1), other.softmax(-1)
    roots = kl((p[0, 0], p[0, 1] + p[0, 3], p[0, 2], p[0, 4]), (q[0, 0] + q[0, 3], q[0, 1], q[0, 2], q[0, 4]))
    # After `a`: b goes on, all else is END, and so is bc, by the rule; but the student's token is ab.
    node = kl((p[1, 1], 1 - p[1, 1]), (q[0, 3] / (q[0, 0] + q[0, 3]), q[0, 0] / (q[0, 0] + q[0, 3])))
    swap = -q[0, 3].log() + q[0, 0].log()
    text = -q[1, 2].log()
    assert term.total.item() == pytest.approx(float(roots + node + swap + text), abs=1e-12)
    assert term.metrics["text_nll"].item() == pytest.approx(float(swap + text), abs=1e-12)


def test_mass_on_roots_without_a_student_token_is_left_out_and_told() -> None:
    """A teacher's token that the student cannot spell has no root; the others are normalised."""
    loss = PathKL(tries_from_pieces([[0], [1]], [[0], [1], []], np.arange(2), np.arange(3)))
    p, q = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64), torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    index = ChunkIndex.from_chunks([[1, 2, 1, 2]], [0, 1], [0, 1])
    term = loss(torch.cat([q, q]).log(), DenseSignal(torch.cat([p, p]).log()), index)
    assert term.total.item() == pytest.approx(kl((0.4, 0.6), (0.6, 0.4)), abs=1e-12)
    assert term.metrics["uncovered_mass"].item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("tau", "sigma"), [([[], []], [[], [], []]), ([[0, 1], []], [[], [], [0, 0]]), ([[0]], [[0], []])]
)
def test_vocabularies_with_next_to_nothing_in_common(tau: list[list[int]], sigma: list[list[int]]) -> None:
    """No cut at all, cuts without a common token, and a single token."""
    loss = PathKL(tries_from_pieces(tau, sigma, np.arange(len(tau)), np.arange(len(sigma))))
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, len(x), dtype=torch.float64, generator=generator) for x in (tau, sigma))
    index = ChunkIndex.from_chunks([[1, 2, 1, 2], [2, 3, 2, 4]], [0, 0, len(tau) - 1, 0], [0, 0, 1, 0])
    signal = LogitSignal(teacher, len(sigma))
    term, slope = value_and_grad(loss, student, signal, index)
    expected, expected_slope = value_and_grad(loss.reference, student, signal, index)
    torch.testing.assert_close(term.total, expected.total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-10, atol=1e-12)


def test_a_token_whose_first_piece_is_no_common_token_is_taught_by_the_text() -> None:
    """abc is ab|c, and ab no token of the student's. The teacher's ab is credited to a, where abc takes its place."""
    student, teacher = ("a", "b", "c", "abc", "$"), ("a", "b", "c", "ab", "$")
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(4, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    index = ChunkIndex.from_chunks([[1, 2, 1, 3]], [4, 3], [4, 3, 2])
    term = PathKL(tries(student, teacher))(logits[:3], LogitSignal(other, 5), index)
    q, p = logits[0].softmax(-1), other[0].softmax(-1)
    roots = kl((p[0] + p[3], p[1], p[2], p[4]), (q[0], q[1], q[2], q[4]))
    assert term.total.item() == pytest.approx(float(roots - q[3].log() + q[0].log()), abs=1e-12)


def test_nothing_without_a_root_is_compared_with_anything_else_without_one() -> None:
    """A token that neither side can cut: the teacher's mass there is left out, the student's token is not taught."""
    loss = PathKL(tries_from_pieces([[0], [1], []], [[0], [1], []], np.arange(3), np.arange(3)))
    p, q = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64), torch.tensor([[0.3, 0.2, 0.5]], dtype=torch.float64)
    index = ChunkIndex.from_chunks([[1, 2, 1, 2]], [0, 1], [0, 1])
    for version in (loss, loss.reference):
        term = version(torch.cat([q, q]).log(), DenseSignal(torch.cat([p, p]).log()), index)
        assert term.total.item() == pytest.approx(kl((0.4, 0.6), (0.3, 0.2)), abs=1e-12)
        assert term.metrics["uncovered_mass"].item() == pytest.approx(0.5, abs=1e-12)


def test_a_text_that_the_teacher_has_no_root_for_teaches_alone() -> None:
    """Nothing was credited, so -log q is all that is added."""
    loss = PathKL(tries_from_pieces([[0], [1], []], [[0], [1], []], np.arange(3), np.arange(3)))
    logits = torch.tensor([[0.3, 0.2, 0.5]] * 2, dtype=torch.float64).log().requires_grad_()
    signal = DenseSignal(torch.tensor([[0.2, 0.3, 0.5]] * 2, dtype=torch.float64).log())
    index = ChunkIndex.from_chunks([[1, 2, 1, 2]], [0, 2], [0, 2])
    for version in (loss, loss.reference):
        term, slope = value_and_grad(version, logits.detach(), signal, index)
        assert term.metrics["text_nll"].item() == pytest.approx(-math.log(0.5), abs=1e-12)
        # q - p by root, and q - onehot by the text.
        assert slope[0].tolist() == pytest.approx([0.3 - 0.4 + 0.3, 0.2 - 0.6 + 0.2, 0.5 + 0.5 - 1], abs=1e-12)


@pytest.mark.parametrize("sharpness", [8, 25])
@pytest.mark.parametrize("seed", range(10))
def test_in_float32_it_is_the_reference_in_float64(seed: int, sharpness: int) -> None:
    """Up to probabilities far below the smallest that float32 has; there the gradient is finite at least."""
    loss, student, teacher, index = random_batch(seed)
    signals = (signal_from_logits(x, loss.teacher_vocab_size) for x in (teacher.float(), teacher))
    term, slope = value_and_grad(loss, sharpness * student.float(), next(signals), index)
    expected, expected_slope = value_and_grad(loss.reference, sharpness * student, next(signals), index)
    torch.testing.assert_close(term.total.double(), expected.total, rtol=1e-5, atol=1e-5)
    if sharpness < 20:
        torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-4, atol=1e-5)
    assert slope.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_chunks_is_of_no_account(seed: int) -> None:
    loss, student, teacher, index = random_batch(seed)
    order = torch.randperm(index.n_chunks, generator=torch.Generator().manual_seed(seed)).tolist()
    parts = {}
    for side in ("student", "teacher"):
        starts = getattr(index, f"{side}_starts").tolist()
        at = [range(starts[k], starts[k + 1]) for k in order]
        parts[f"{side}_starts"] = torch.tensor([0, *map(len, at)]).cumsum(0)
        for what in ("rows", "tokens"):
            parts[f"{side}_{what}"] = getattr(index, f"{side}_{what}")[[*chain.from_iterable(at)]]
    signal = signal_from_logits(teacher, loss.teacher_vocab_size)
    for version in (loss, loss.reference):
        term, slope = value_and_grad(version, student, signal, index)
        other, other_slope = value_and_grad(version, student, signal, ChunkIndex(**parts))
        torch.testing.assert_close(other.total, term.total, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other_slope, slope, rtol=1e-12, atol=1e-12)


def test_a_token_that_no_vocabulary_has_is_refused() -> None:
    loss, logits, signal, index = two_digits()
    with pytest.raises(XTokenError, match=r"the chunks hold the student token 5, .* a student of 4 tokens"):
        loss(logits, signal, replace(index, student_tokens=index.student_tokens + 2))
    with pytest.raises(XTokenError, match=r"the chunks hold the teacher token -1, .* a teacher of 3 tokens"):
        loss(logits, signal, replace(index, teacher_tokens=index.teacher_tokens - 1))


def test_a_token_that_ended_inside_a_chunk_says_nothing_of_the_next_one() -> None:
    """The teacher's 01 ended before its 1 did; what would have continued it is not what the next chunk is without."""
    pair, student, teacher = tries(DIGITS, TRIPLES), [DIGITS.index(x) for x in "0110"], ["01", "1", "0"]
    ids_s, ids_t = [0, *student], [0, *map(TRIPLES.index, teacher)]
    fine = plan_paths(pair, ChunkIndex.from_chunks([[1, 3, 1, 2], [3, 4, 2, 3], [4, 5, 3, 4]], ids_s, ids_t))
    coarse = plan_paths(pair, ChunkIndex.from_chunks([[1, 4, 1, 3], [4, 5, 3, 4]], ids_s, ids_t))
    assert [x.tolist() for x in fine.ended_t] == [[1, 2], [0, 1]]  # a 0 after 01, a 1 after 1
    assert [x.tolist() for x in coarse.ended_t] == [[], []]


def test_the_plan_of_a_batch_is_the_plans_of_its_sequences() -> None:
    """Whatever a plan lists, counted from where the sequence's own rows, chunks, visits and groups begin."""
    texts = ["0110$", "1$", "10010$"]
    for vocabularies in ((TRIPLES, DIGITS), (DIGITS, TRIPLES), (TRIPLES, PAIRS)):
        pair = tries(*vocabularies)
        _, _, whole = batch(*vocabularies, texts)
        length_s, length_t = (2 + max(len(cut(text, v)) for text in texts) for v in vocabularies)
        plans = [plan_paths(pair, batch(*vocabularies, [text])[2]) for text in texts]
        bases = [(b * length_s, b * length_t) for b in range(len(texts))]
        expected: dict[str, list[int]] = {}
        chunks = 0
        counted = {"student": [0, 0], "teacher": [0, 0]}  # visits and groups so far
        for plan, (row_s, row_t) in zip(plans, bases, strict=True):
            found = {"first_s": plan.first_s + row_s, "first_t": plan.first_t + row_t}
            for side, row in (("student", row_t), ("teacher", row_s)):
                visits, (n, groups) = getattr(plan, side), counted[side]
                found |= {f"{side} chunk": visits.chunk + chunks, f"{side} row": visits.row + row}
                found |= {f"{side} text": visits.is_text, f"{side} groups": np.diff(visits.group_starts)}
                for name, entries in entries_of(visits).items():
                    found |= {f"{side} {name} visit": entries.visit + n, f"{side} {name} token": entries.token}
                    found[f"{side} {name} group"] = entries.group + groups
                counted[side] = [n + len(visits.chunk), groups + int(visits.group_starts[-1])]
            n = counted["student"][0] - len(plan.student.chunk)
            found["stays"] = np.where(plan.stays < 0, -1, plan.stays + n)
            for name in ("ended_s", "ended_t"):
                chunk, token = getattr(plan, name)
                found |= {f"{name} chunk": chunk + chunks, f"{name} token": token}
            found["swaps"] = plan.root_swaps.chunk + chunks
            for name in ("placed", "credited"):
                found[name] = getattr(plan.root_swaps, name)[1]
            for name, numbers in found.items():
                expected.setdefault(name, []).extend(numbers.tolist())
            chunks += len(plan.first_s)
        assert listed(plan_paths(pair, whole)) == expected
        assert expected["student members token"] or expected["teacher members token"]


def entries_of(visits: Visits) -> dict[str, Entries]:
    members = visits.members.of(slice(0, len(visits.chunk)), visits.group_starts)
    return {"members": members, "children": visits.children, "swaps": visits.swaps}


def listed(plan: PathPlan) -> dict[str, list[int]]:
    found = {"first_s": plan.first_s, "first_t": plan.first_t, "stays": plan.stays, "swaps": plan.root_swaps.chunk}
    for side in ("student", "teacher"):
        visits = getattr(plan, side)
        found |= {f"{side} chunk": visits.chunk, f"{side} row": visits.row}
        found |= {f"{side} text": visits.is_text, f"{side} groups": np.diff(visits.group_starts)}
        for name, entries in entries_of(visits).items():
            for what in ("visit", "token", "group"):
                found[f"{side} {name} {what}"] = getattr(entries, what)
    for name in ("ended_s", "ended_t"):
        found[f"{name} chunk"], found[f"{name} token"] = getattr(plan, name)
    for name in ("placed", "credited"):
        found[name] = getattr(plan.root_swaps, name)[1]
    return {name: numbers.tolist() for name, numbers in found.items()}
