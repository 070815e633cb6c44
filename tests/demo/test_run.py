"""`run_demo` end to end, far too short to learn anything: what it returns, prints and writes."""

import json
from pathlib import Path

import pytest

from xtoken.demo.run import METHODS, Settings, run_demo

BRIEF = Settings(steps=2, batch_size=4, held_out=8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTOKEN_CACHE", str(tmp_path / "cache"))


def test_results_are_returned_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run_demo(tmp_path / "out", BRIEF)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert tuple(row["method"] for row in results) == METHODS == ("ce", "gold", "p-kl", "path-kl")
    for row in results:
        assert set(row) == {"method", "bits_per_byte", "accuracy", "seconds"}
        assert set(row["bits_per_byte"]) == {"all", "numerals"}
        assert 0 <= row["accuracy"] <= 1
        assert row["bits_per_byte"]["all"] > 0
    printed = capsys.readouterr().out
    assert "digits-3: 0 of 1000" in printed
    assert "recommends p-kl" in printed
    for row in results:
        assert f"{row['bits_per_byte']['numerals']:.3f}" in printed


def test_methods_differ_and_a_run_repeats() -> None:
    results = run_demo(None, BRIEF)
    assert len({row["bits_per_byte"]["numerals"] for row in results}) == len(METHODS)
    again = run_demo(None, BRIEF)
    assert [row["bits_per_byte"] for row in again] == [row["bits_per_byte"] for row in results]


def test_nothing_is_written_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run_demo(None, BRIEF)
    assert list(here.iterdir()) == []
