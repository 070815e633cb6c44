"""The comparison with the paper: made-up runs give the differences that are worked out here, and none gives none."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.compare import as_csv, as_markdown, compare, main, read_runs
from benchmarks.paper import ROWS, TASKS

from xtoken.errors import XTokenError
from xtoken.evaluation.task_results import Metric, TaskResult, write_results

# Of each task, in percent, with other metrics beside the one that counts.
OURS = {"mmlu": 45.0, "gsm8k": 15.0, "hendrycks_math": 8.0, "winogrande": 63.0, "hellaswag": 62.5}


def result(task: str, percent: float) -> TaskResult:
    column = next(column for column in TASKS if column.task == task)
    right = Metric(column.metric, column.filter, percent / 100, 0.01)
    others = (Metric("acc", "other", 0.9, None), Metric("exact_match", "flexible-extract", 0.8, 0.02))
    return TaskResult(task, "1.0", 3, 100, None, "bfloat16", None, None, "0.4.13", (*others, right))


def run(folder: Path, results: Sequence[TaskResult]) -> Path:
    folder.mkdir(parents=True)
    write_results(folder / "xtoken_tasks.json", folder.name, None, results)
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return run(tmp_path / "qwen-p-kl", [result(task, percent) for task, percent in OURS.items()])


def lines(arguments: Sequence[str]) -> dict[tuple[str, str], dict[str, str]]:
    table = csv.DictReader(io.StringIO(as_csv(compare(read_runs(arguments)))))
    return {(line["row"], line["task"]): line for line in table}


def test_the_differences_are_ours_less_the_papers(whole: Path) -> None:
    found = lines([str(whole)])
    paper = (44.67, 15.54, 7.96, 63.46, 62.63)
    for column, ours, published in zip(TASKS, OURS.values(), paper, strict=True):
        line = found["qwen-p-kl", column.name]
        figures = [float(line[name]) for name in ("ours", "stderr", "paper", "difference")]
        assert figures == pytest.approx([ours, 1.0, published, ours - published])
        assert line["measured_otherwise"] == ""
    average = found["qwen-p-kl", "average"]
    assert [float(average[name]) for name in ("ours", "paper", "difference")] == pytest.approx([38.7, 38.85, -0.15])


def test_the_table_for_people_has_the_same(whole: Path) -> None:
    (line,) = [line for line in as_markdown(compare(read_runs([str(whole)]))).splitlines() if "P-KL |" in line][:1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["Qwen3-4B, P-KL", "45.00 / 44.67 / +0.33"]
    assert cells[2] == "15.00 / 15.54 / -0.54"
    assert cells[-1] == "38.70 / 38.85 / -0.15"


def test_rows_without_a_run_stay_empty(whole: Path) -> None:
    found = lines([str(whole)])
    for row in ROWS:
        if row.key != "qwen-p-kl":
            assert {found[row.key, c.name]["ours"] + found[row.key, c.name]["difference"] for c in TASKS} == {""}
            assert float(found[row.key, "average"]["paper"]) == row.average
    assert found["qwen-h-kl", "MMLU"]["paper"] == ""  # of which the paper gives the average alone
    assert len(found) == len(ROWS) * (len(TASKS) + 1)


def test_a_run_that_lacks_a_task_has_no_average(tmp_path: Path) -> None:
    found = lines([str(run(tmp_path / "base", [result("mmlu", 32.0)]))])
    assert found["base", "MMLU"]["difference"] == "-0.0500"
    assert found["base", "GSM8k"]["ours"] == ""
    assert found["base", "average"]["ours"] == ""


def test_what_was_measured_otherwise_is_starred(tmp_path: Path) -> None:
    five, part = replace(result("mmlu", 32.0), shots=5), replace(result("gsm8k", 5.0), limit=10)
    text = as_markdown(compare(read_runs([str(run(tmp_path / "base", [five, part, result("winogrande", 61.0)]))])))
    assert "32.00* / 32.05" in text
    assert "5.00* / 5.69" in text
    assert "61.00 / 61.48" in text
    assert "base: MMLU: 5 shots" in text
    assert "base: GSM8k: 10 documents of each task" in text


def test_a_folder_may_be_given_for_a_row(tmp_path: Path) -> None:
    folder = run(tmp_path / "mine", [result("mmlu", 40.0)])
    for argument in (f"three={folder}", f"three={folder / 'xtoken_tasks.json'}"):
        assert lines([argument])["three", "MMLU"]["ours"] == "40.0000"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen-pkl", r"'qwen-pkl' is no row \(did you mean 'qwen-p-kl'\?\); give ROW=FOLDER with one of base, "),
        ("base=/nowhere", "cannot read /nowhere/xtoken_tasks.json"),
    ],
)
def test_a_run_that_cannot_be_placed_is_told(name: str, message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        read_runs([name])


def test_two_runs_of_a_row_are_told(whole: Path) -> None:
    with pytest.raises(XTokenError, match="a run for the row qwen-p-kl already"):
        read_runs([str(whole), f"qwen-p-kl={whole}"])


def test_the_table_is_printed_and_written(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(whole), "--markdown", str(tmp_path / "t.md"), "--csv", str(tmp_path / "t.csv")])
    assert capsys.readouterr().out == (tmp_path / "t.md").read_text()
    assert (tmp_path / "t.csv").read_text() == as_csv(compare(read_runs([str(whole)])))


def test_another_metric_may_be_shown(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(whole), "--metric", "GSM8k=exact_match,flexible-extract"])
    assert "80.00 / 15.54 / +64.46" in capsys.readouterr().out
    for wrong, message in (("GSM=acc", "expected one of MMLU, GSM8k"), ("MMLU=f1", "mmlu has no f1; it has acc")):
        with pytest.raises(SystemExit):
            main([str(whole), "--metric", wrong])
        assert message in " ".join(capsys.readouterr().err.split())
