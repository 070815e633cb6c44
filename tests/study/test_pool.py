"""Jobs in processes: each has one outcome, a failure is one, and nothing is left behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.chores import chore
from xtoken.study.pool import Failure, Pool


def done(jobs: list[str], processes: int) -> dict[str, object]:
    with Pool(chore, 7, processes) as pool:
        return dict(pool.outcomes(jobs))


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this process and those it starts put temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", str(folder))
        patched.setattr(tempfile, "tempdir", None)
        yield folder


@pytest.fixture(scope="module")
def in_two(temporary: Path) -> dict[str, object]:
    """One pool of two processes for all: starting them takes seconds."""
    return done(["a", "mistake", "b", "die", "c", "fault", "litter", "last"], 2)


def test_every_job_has_its_outcome(in_two: dict[str, object]) -> None:
    assert sorted(in_two) == ["a", "b", "c", "die", "fault", "last", "litter", "mistake"]
    for job in ("a", "b", "c", "last"):
        pid, said = in_two[job]  # type: ignore[misc]
        assert said == f"{job} 7"
        assert pid != os.getpid()


def test_what_goes_wrong_is_an_outcome_and_the_rest_goes_on(in_two: dict[str, object]) -> None:
    assert in_two["mistake"] == Failure("a mistake")
    assert isinstance(in_two["fault"], Failure)
    assert "RuntimeError: a fault" in in_two["fault"].message
    assert isinstance(in_two["die"], Failure)
    assert "exit code -9" in in_two["die"].message


def test_processes_live_on(in_two: dict[str, object]) -> None:
    """Eight jobs in two processes and the one that took the place of the dead."""
    pids = {outcome[0] for outcome in in_two.values() if not isinstance(outcome, Failure)}  # type: ignore[index]
    assert len(pids) <= 3


def test_no_temporary_file_is_left(in_two: dict[str, object], temporary: Path) -> None:
    assert not isinstance(in_two["litter"], Failure)
    assert list(temporary.rglob("xtoken-*")) == []


def test_one_at_a_time_is_done_here_in_order(temporary: Path) -> None:
    found = done(["b", "mistake", "a", "litter"], 1)
    assert list(found) == ["b", "mistake", "a", "litter"]
    assert found["a"] == (os.getpid(), "a 7")
    assert found["mistake"] == Failure("a mistake")
    assert list(temporary.rglob("xtoken-*")) == []
