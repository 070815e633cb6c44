"""The microscope measures what it says: the truth is at 0, and what a method learns is nearer to it than the start."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks import microscope
from benchmarks.microscope import METHODS, Study, letters


@pytest.fixture(scope="module")
def small_study() -> Study:
    return Study(letters(1, longest=3))


def test_the_truth_is_at_zero_and_nothing_else_is(small_study: Study) -> None:
    side = small_study.student
    truth = side.truth.clamp(min=1e-30).log()
    assert side.divergence(truth) == pytest.approx(0, abs=1e-9)
    assert side.divergence(truth + torch.rand(truth.shape)) > 0.01


def test_states_reached_and_their_tokens_add_up(small_study: Study) -> None:
    for side in (small_study.student, small_study.teacher):
        mean_length = sum(
            float(p) * (len(ids) - 1) for p, ids in zip(small_study.world.probs[0], side.ids, strict=True)
        )
        assert float(side.reached.sum()) == pytest.approx(mean_length)
        torch.testing.assert_close(
            side.truth[side.reached > 0].sum(1), torch.ones(int((side.reached > 0).sum())).double()
        )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_repeats(small_study: Study, method: str) -> None:
    first = small_study.learn(method, steps=2)
    assert first == small_study.learn(method, steps=2)
    assert 0 < first < 50


@pytest.mark.parametrize("method", ["cross-entropy", "path-kl", "oracle"])
def test_these_come_nearer_to_the_truth(small_study: Study, method: str) -> None:
    start = small_study.student.divergence(torch.zeros(len(small_study.student.reached), small_study.student.size))
    assert small_study.learn(method, steps=60) < start / 4


def test_json_is_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(microscope, "study", lambda columns: {name: dict.fromkeys(METHODS, 0.5) for name in columns})
    microscope.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(METHODS)
    assert "oracle" in found
