"""The tries of a pair: their law, worked examples, real sizes, and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from small_tokenizers import SMALL, small
from xtoken.errors import FingerprintMismatchError, XTokenError
from xtoken.projection import PathTries, build_tries
from xtoken.projection import tries as tries_module
from xtoken.projection.tries import END, NO_NODE, NO_ROOT, Trie, tries_from_pieces
from xtoken.tokens import Vocabulary

PAIRS = [(a, b) for a in sorted(SMALL) for b in sorted(SMALL) if a != b][::7]


@cache
def tries_of(student: str, teacher: str) -> PathTries:
    return build_tries(small(student).vocabulary, small(teacher).vocabulary)


def cut_of(trie: Trie, token: int) -> tuple[int, ...]:
    return tuple(trie.pieces[trie.piece_starts[token] : trie.piece_starts[token + 1]].tolist())


def node_at(trie: Trie, path: tuple[int, ...]) -> int:
    node = np.array([NO_NODE])
    for piece in path:
        node = trie.child(node, np.array([piece]))
        if node[0] == NO_NODE:
            break
    return int(node[0])


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_nodes_are_the_runs_of_pieces_that_two_tokens_share(student: str, teacher: str) -> None:
    pair = tries_of(student, teacher)
    for trie in (pair.student, pair.teacher):
        by_path: dict[tuple[int, ...], list[int]] = {}
        for token in range(trie.n_tokens):
            cut = cut_of(trie, token)
            for depth in range(1, len(cut) + 1):
                by_path.setdefault(cut[:depth], []).append(token)
        shared = {path: tokens for path, tokens in by_path.items() if len(tokens) > 1}
        assert len(shared) == len(trie.keys)
        for path, tokens in shared.items():
            node = node_at(trie, path)
            assert node != NO_NODE
            at = slice(trie.member_starts[node], trie.member_starts[node + 1])
            assert sorted(trie.members[at].tolist()) == tokens
            for token, group in zip(trie.members[at].tolist(), trie.member_groups[at].tolist(), strict=True):
                cut = cut_of(trie, token)
                following = np.array([cut[len(path)] if len(cut) > len(path) else -1])
                assert group == trie.group_of(np.array([node]), following)[0]
            assert trie.has_end[node] == (path in {cut_of(trie, token) for token in tokens})


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_a_root_is_a_common_token_and_its_tokens_begin_with_it(student: str, teacher: str) -> None:
    pair = tries_of(student, teacher)
    one, other = small(student).vocabulary, small(teacher).vocabulary
    common = {cut_of(pair.student, i) for i in range(one.size)}
    for token in np.flatnonzero(pair.student_roots != NO_ROOT).tolist():
        first = cut_of(pair.student, token)[0]
        assert (first,) in common
        same = np.flatnonzero(pair.student_roots == pair.student_roots[token])
        assert {cut_of(pair.student, i)[0] for i in same.tolist()} == {first}
    for token in range(other.size):
        cut = cut_of(pair.teacher, token)
        assert pair.teacher_roots[token] == (pair.student_roots[cut[0]] if cut else NO_ROOT)


def test_digits() -> None:
    """2, 20, 201 and 7 against single digits."""
    pair = tries_from_pieces([[0], [0, 1], [0, 1, 2], [3]], [[0], [], [], [3]], np.arange(4), np.arange(4))
    trie = pair.student
    two, twenty = node_at(trie, (0,)), node_at(trie, (0, 1))
    assert len(trie.keys) == 2
    assert trie.branches[[two, twenty]].all()
    assert trie.group_of(np.array([two, two, two]), np.array([1, 2, -1])).tolist() == [1, END, END]
    assert trie.node_of(np.array([0, 1, 2, 3])).tolist() == [two, twenty, NO_NODE, NO_NODE]
    assert pair.student_roots.tolist() == [0, 0, 0, 1]
    assert pair.teacher_roots.tolist() == [0, NO_ROOT, NO_ROOT, 1]


def test_ids_that_spell_the_same_are_one_piece() -> None:
    """Teacher ids 0 and 1 spell the same; 1 stands for both."""
    pair = tries_from_pieces([[1], [1, 0], [2]], [[0], [0], [2]], np.arange(3), np.array([1, 1, 2]))
    assert cut_of(pair.student, 1) == (1, 1)
    node = pair.student.node_of(np.array([0]))
    at = slice(pair.student.child_starts[node[0]], pair.student.child_starts[node[0] + 1])
    assert sorted(pair.student.children[at].tolist()) == [0, 1]
    assert len(set(pair.student.child_groups[at].tolist())) == 1
    assert pair.teacher_roots[0] == pair.teacher_roots[1] == pair.student_roots[0]


def test_a_piece_that_is_no_token_is_refused() -> None:
    with pytest.raises(XTokenError, match="a student token is cut into an id outside the other vocabulary of 1"):
        tries_from_pieces([[1]], [[0]], np.arange(1), np.arange(1))


def test_they_are_saved_whole_and_for_their_pair_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = small("packing").vocabulary, small("splitting").vocabulary
    pair, path = tries_of("packing", "splitting"), tmp_path / "kept" / "tries.safetensors"
    pair.save(path)
    loaded = PathTries.load(path, one, other)
    for side in ("student", "teacher"):
        for f in fields(Trie):
            np.testing.assert_array_equal(getattr(getattr(loaded, side), f.name), getattr(getattr(pair, side), f.name))
    np.testing.assert_array_equal(loaded.student_roots, pair.student_roots)
    np.testing.assert_array_equal(loaded.teacher_roots, pair.teacher_roots)
    with pytest.raises(FingerprintMismatchError, match="student and teacher are swapped"):
        PathTries.load(path, other, one)
    replace(pair, student_fingerprint="other").save(path)
    with pytest.raises(FingerprintMismatchError, match="the student's tokenizer is"):
        PathTries.load(path, one, other)
    pair.save(path)
    monkeypatch.setattr(tries_module, "KIND", replace(tries_module.KIND, rules="newer"))
    with pytest.raises(XTokenError, match=r"built by other rules .* To get a new one, build them with"):
        PathTries.load(path, one, other)
    with pytest.raises(XTokenError, match="no tries at"):
        PathTries.load(tmp_path / "none.safetensors")


@pytest.mark.real
def test_llama_and_qwen(real_vocabulary: Callable[[str], Vocabulary], tmp_path: Path) -> None:
    student = real_vocabulary("llama-3")
    pair = build_tries(student, real_vocabulary("qwen3"))
    pair.save(tmp_path / "tries.safetensors")
    assert (tmp_path / "tries.safetensors").stat().st_size < 100e6
    two = pair.student.node_of(np.array([student.ids_by_bytes[b"2"]]))
    at = slice(pair.student.member_starts[two[0]], pair.student.member_starts[two[0] + 1])
    assert {student.tokens[i] for i in pair.student.members[at]} == {b"2", *(b"2%d" % n for n in range(10))} | {
        b"2%02d" % n for n in range(100)
    }
