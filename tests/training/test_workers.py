"""Worker processes change nothing but the time: order, errors and the end of the work are those of one process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from training import tiny
from training.chores import power, read_all
from xtoken.errors import XTokenError
from xtoken.training import data as data_module
from xtoken.training.data import Side, prepare
from xtoken.training.texts import TextSource, texts_from_list
from xtoken.training.workers import default_workers, in_order

SIDES = Side(tiny.packed(), 128), [Side(tiny.split(), 128)]


def none_left() -> bool:
    return not multiprocessing.active_children()


def read_until(last: int) -> Iterator[int]:
    yield from range(last)
    raise XTokenError("cannot read on")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts workers for a handful of documents, four to a batch."""
    monkeypatch.setattr(data_module, "_WORTH_WORKERS", 1)
    monkeypatch.setattr(data_module, "_BATCH", 4)


def test_results_come_in_order_and_nobody_is_left() -> None:
    assert list(in_order(power, 3, range(12), 2)) == [3**n for n in range(12)]
    assert none_left()


def test_the_first_error_in_order_is_raised_after_the_results_before_it() -> None:
    results = in_order(power, 2, [1, 2, 3, 13, 5, 17], 2)
    assert [next(results) for _ in range(3)] == [2, 4, 8]
    with pytest.raises(XTokenError, match="13 brings bad luck"):
        next(results)
    assert none_left()


def test_an_error_of_reading_comes_in_its_turn() -> None:
    results = in_order(power, 2, read_until(2), 2)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(XTokenError, match="cannot read on"):
        next(results)


def test_a_fault_of_ours_comes_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"in power(.|\n)*LookupError: a fault of ours"):
        list(in_order(power, 2, [17], 2))


def test_a_worker_that_dies_is_an_error_and_no_wait() -> None:
    with pytest.raises(XTokenError, match=r"ended before its work was done \(exit code -9.*data\.workers"):
        list(in_order(power, 2, [1, 19, 3, 4], 2))
    assert none_left()


def test_whoever_asks_no_more_leaves_nobody_behind() -> None:
    results = in_order(power, 2, range(10), 2)
    assert next(results) == 1
    results.close()  # type: ignore[attr-defined]
    assert none_left()


def test_ctrl_c_is_not_for_workers() -> None:
    assert list(in_order(power, 1, [23, 1], 2)) == [1, 1]


def test_the_processes_of_a_launcher_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_workers() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")  # two cores each: none
    assert default_workers() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "99")
    assert default_workers() == 1


@pytest.mark.usefixtures("eager")
def test_examples_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    texts = [*tiny.documents(30), "", "7 " * 200, *tiny.documents(10, seed=1)]
    files = []
    for workers in (1, 3):
        made = prepare(texts, *SIDES, cache=tmp_path / str(workers), workers=workers)
        assert (made.report.documents, made.report.empty, made.report.truncated) == (41, 1, 1)
        files.append({file.name: file.read_bytes() for file in (tmp_path / str(workers) / "prepared").iterdir()})
    assert len(files[0]) == 2
    assert files[0] == files[1]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_document_that_fails_in_a_worker_is_named(workers: int, tmp_path: Path) -> None:
    def read() -> Iterator[str]:
        yield from [*tiny.documents(9), "bad \ud800", *tiny.documents(3)]
        raise XTokenError("cannot read on")

    source = TextSource("corpus", "key", read)
    with pytest.raises(XTokenError, match=r"corpus, document 9 \(counting from 0\): .*lone surrogate"):
        prepare(source, *SIDES, workers=workers, cache=tmp_path)
    assert list((tmp_path / "prepared").iterdir()) == []
    assert none_left()


def test_a_little_text_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtoken.training.workers._started", lambda n: pytest.fail(f"started {n} processes"))
    assert prepare(tiny.documents(5), *SIDES, workers=8).report.documents == 5
    monkeypatch.setattr(data_module, "_WORTH_WORKERS", 1)
    with pytest.raises(pytest.fail.Exception, match="started 8 processes"):
        prepare(tiny.documents(5), *SIDES, workers=8)


def test_an_error_of_reading_hides_none_of_an_earlier_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_BATCH", 1)

    def read() -> Iterator[str]:
        yield "bad \ud800"
        raise XTokenError("cannot read on")

    with pytest.raises(XTokenError, match=r"document 0 .*lone surrogate"):
        prepare(TextSource("corpus", "key", read), *SIDES, workers=2)


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts the tests may have it ignored
from training.chores import power
from xtoken.training.workers import in_order
def numbers():
    yield from range(12)
    if "interrupt" in sys.argv:
        signal.raise_signal(signal.SIGINT)
print(len(list(in_order(power, 1, numbers(), 2))))
"""


@pytest.mark.parametrize("argument", ["interrupt", "whole"])
def test_a_script_needs_no_guard_and_ctrl_c_ends_it(tmp_path: Path, argument: str) -> None:
    """The script has no `if __name__ == "__main__"`: run again in a worker, it would start workers without end."""
    (tmp_path / "script.py").write_text(SCRIPT)
    roots = [str(Path(__file__).parents[1]), *sys.path]
    found = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), argument],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if argument == "whole":
        assert (found.returncode, found.stdout) == (0, "12\n"), found.stderr
    else:
        assert found.returncode in (1, -signal.SIGINT, 128 + signal.SIGINT)
        assert found.stderr.rstrip().endswith("KeyboardInterrupt")
        assert found.stderr.count("Traceback") == 1  # the script's own, and none of its workers


def test_a_source_travels() -> None:
    """It can be handed to a worker process, as streaming does."""
    assert list(in_order(read_all, texts_from_list(["a", "b", "c"]).first(2), [0], 2)) == [["a", "b"]]
