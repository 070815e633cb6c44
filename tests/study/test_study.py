"""Whole studies, far too short to learn anything: what is written, what is run again, what is told."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import xtoken.study.run
from study import small
from xtoken.cli import app
from xtoken.errors import DivergedError
from xtoken.evaluation import bits_per_byte
from xtoken.study.cell import run_job
from xtoken.study.plan import Cell
from xtoken.study.write import Folder
from xtoken.tokens import Vocabulary
from xtoken.training import LoadedModel, distil, load_model


def study(file: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = CliRunner().invoke(app, ["study", str(file), "--out", str(file.parent / "out"), "--jobs", "1", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that are run from here on."""
    found: list[Cell] = []

    def counted(shared: Any, job: Any) -> Any:
        if isinstance(job, Cell):
            found.append(job)
        return run_job(shared, job)

    monkeypatch.setattr(xtoken.study.run, "run_job", counted)
    return found


def on(monkeypatch: pytest.MonkeyPatch, is_it: Callable[[Cell], bool], error: BaseException) -> None:
    """Makes some cells raise."""

    def broken(shared: Any, job: Any) -> Any:
        if isinstance(job, Cell) and is_it(job):
            raise error
        return run_job(shared, job)

    monkeypatch.setattr(xtoken.study.run, "run_job", broken)


def test_a_whole_study(folder: Path, ran: list[Cell]) -> None:
    code, out, err = study(small.write(folder))
    assert code == 0, err
    made = folder / "out"
    results = rows(made / "results.csv")
    names = ["bits_per_byte", "bits_per_byte/numerals", "bits_per_byte/words", "exact_answers"]
    assert [(r["method"], r["seed"], r["measure"]) for r in results] == [
        (method, seed, name) for seed in "01" for method in ("ce", "gold") for name in names
    ]
    lines = [json.loads(line) for line in (made / "results.jsonl").read_text().splitlines()]
    assert [line["value"] for line in lines] == [float(row["value"]) for row in results]
    values = {(r["method"], r["seed"]): float(r["value"]) for r in results if r["measure"] == "bits_per_byte"}
    (summary,) = [r for r in rows(made / "summary.csv") if (r["method"], r["measure"]) == ("ce", "bits_per_byte")]
    assert float(summary["mean"]) == pytest.approx((values["ce", "0"] + values["ce", "1"]) / 2)
    assert (summary["seeds"], summary["unit"], summary["direction"]) == ("2", "bits per byte", "lower")
    (compared,) = [r for r in rows(made / "comparisons.csv") if r["measure"] == "bits_per_byte"]
    assert (compared["method"], compared["baseline"]) == ("gold", "ce")
    differences = [values["gold", seed] - values["ce", seed] for seed in "01"]
    assert float(compared["difference"]) == pytest.approx(sum(differences) / 2)
    assert compared["sentence"].startswith("On p ")
    (asked,) = json.loads((made / "answers.json").read_text())
    assert asked["claims"][0]["left"] == "ce"
    assert f"(a) {asked['verdict']}: is GOLD worse?" in out
    assert json.loads((made / "statistics.json").read_text())["comparisons"] == 4
    assert yaml.safe_load((made / "study.yaml").read_text())["seeds"] == [0, 1]
    machine = json.loads((made / "machine.json").read_text())
    assert machine["cells"] == {"planned": 4, "done": 4, "failed": 0}
    assert machine["seconds"]["cpu"] > 0
    references = json.loads((made / "references.json").read_text())["p"]
    assert set(references) == {"models", "student", "audit"}
    assert set(references["models"]) == {"main", "small"}
    assert references["audit"]["recommended_loss"] == "p-kl"
    record = json.loads(next((made / "cells/p/gold").iterdir()).read_text())
    assert set(record) >= {"pair", "method", "variant", "seed", "stage", "settings", "learning_rate", "status", "log"}
    assert [line["step"] for line in record["log"]] == [1, 2]
    assert "[7/7] p, gold, seed 1" in err
    assert len(ran) == 4


def test_a_cell_is_distil_with_its_settings_and_its_seeds_student(folder: Path) -> None:
    assert study(small.write(folder, methods={"gold": small.raw(folder)["methods"]["gold"], "ce": {}}))[0] == 0
    record = next(
        found
        for file in (folder / "out/cells/p/gold").iterdir()
        if (found := json.loads(file.read_text()))["seed"] == 1
    )
    torch.manual_seed(1)
    drawn = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "student"))
    student = LoadedModel(drawn, Vocabulary.from_pretrained(folder / "student"))
    config = small.raw(folder)["base"] | {"seed": 1, "teachers": [{"loss": "gold"}]}
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
    result = distil(config, student=student, teachers=[load_model(str(folder / "teacher"))], texts=texts, quiet=True)
    held_out = (folder / "held_out.txt").read_text().splitlines()
    expected = bits_per_byte(result.student.eval(), student.vocabulary, held_out, batch_size=8).bits_per_byte
    assert record["measures"]["bits_per_byte"] == pytest.approx(expected, abs=1e-6)


def test_a_finished_cell_is_not_run_again_and_a_changed_one_is(folder: Path, ran: list[Cell]) -> None:
    file = small.write(folder)
    study(file)
    before = (folder / "out/results.csv").read_text()
    ran.clear()
    code, out, _ = study(file)
    assert (code, ran) == (0, [])
    assert "4 cells, 0 run now" in out
    assert (folder / "out/results.csv").read_text() == before
    methods = small.raw(folder)["methods"]
    methods["gold"]["teachers"][0]["temperature"] = 2.0
    study(small.write(folder, methods=methods, seeds=[0, 1, 2]))
    assert sorted((cell.method, cell.seed) for cell in ran) == [("ce", 2), ("gold", 0), ("gold", 1), ("gold", 2)]


def test_a_cell_that_two_pairs_share_is_in_the_tables_of_both(folder: Path) -> None:
    pair = small.raw(folder)["pairs"]["p"]
    gold = small.raw(folder)["methods"]["gold"]
    pairs = {"p": pair, "q": pair | {"models": {"main": pair["models"]["small"]}}}
    code, _, err = study(small.write(folder, pairs=pairs, methods={"ce": {}, "gold": gold}, seeds=[0]))
    assert code == 0, err
    assert len({file.name for file in (folder / "out/cells").glob("*/ce/*.json")}) == 1, "cross-entropy asks no teacher"
    found = {(r["pair"], r["method"]) for r in rows(folder / "out/summary.csv")}
    assert found == {("p", "ce"), ("p", "gold"), ("q", "ce"), ("q", "gold")}
    assert {r["pair"] for r in rows(folder / "out/comparisons.csv")} == {"p", "q"}
    about = json.loads((folder / "out/statistics.json").read_text())
    assert "about 0 of the 0 with an interval" in about["sentence"], "one seed has none"


def test_a_file_of_no_use_is_a_cell_to_run_and_commits_are_those_of_the_cells(folder: Path, ran: list[Cell]) -> None:
    file = small.write(folder, methods={"ce": {}}, baselines=[], labels={}, questions=[])
    study(file)
    one, other = sorted((folder / "out/cells/p/ce").iterdir())
    one.write_text("{}")
    other.write_text(json.dumps(json.loads(other.read_text()) | {"commit": "0ld"}))
    ran.clear()
    assert study(file)[0] == 0
    assert [cell.key for cell in ran] == [one.stem]
    commits = json.loads((folder / "out/machine.json").read_text())["commits"]
    assert commits == sorted({"0ld", *filter(None, [json.loads(one.read_text())["commit"]])})


@pytest.mark.skipif(sys.platform == "win32", reason="there is no lock on a folder")
def test_two_studies_do_not_work_in_one_folder(folder: Path, ran: list[Cell]) -> None:
    with Folder(folder / "out").alone():
        code, _, err = study(small.write(folder))
    assert (code, ran) == (2, [])
    assert "another study is at work in" in err
    with Folder(folder / "out").alone():
        pass


def test_ctrl_c_loses_the_cell_at_hand_alone(folder: Path, monkeypatch: pytest.MonkeyPatch, ran: list[Cell]) -> None:
    file = small.write(folder)
    with monkeypatch.context() as patched:
        on(patched, lambda cell: (cell.method, cell.seed) == ("ce", 1), KeyboardInterrupt())
        assert study(file)[0] == 130
    assert {(r["method"], r["seed"]) for r in rows(folder / "out/results.csv")} == {("ce", "0"), ("gold", "0")}
    assert study(file)[0] == 0
    assert [(cell.method, cell.seed) for cell in ran] == [("ce", 1), ("gold", 1)]


def test_a_failed_cell_is_recorded_and_tried_again_and_the_others_are_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ran: list[Cell]
) -> None:
    file = small.write(folder)
    with monkeypatch.context() as patched:
        on(patched, lambda cell: (cell.method, cell.seed) == ("gold", 0), DivergedError("step 2: ce is nan"))
        code, _, err = study(file)
    assert code == 1
    assert "p, gold, seed 0: step 2: ce is nan" in err
    assert "1 failed; they are tried again" in err
    found = [json.loads(each.read_text()) for each in (folder / "out/cells/p/gold").iterdir()]
    assert {(f["seed"], f["status"], f["error"]) for f in found} == {
        (0, "failed", "step 2: ce is nan"),
        (1, "done", None),
    }
    (compared,) = [r for r in rows(folder / "out/comparisons.csv") if r["measure"] == "bits_per_byte"]
    assert (compared["seeds"], compared["verdict"]) == ("1", "undecided")
    assert "seed 0 left out" in compared["sentence"]
    assert study(file)[0] == 0
    assert [(cell.method, cell.seed) for cell in ran] == [("gold", 0)]


def test_divergence_is_a_failure_told_without_a_folder_that_is_gone(folder: Path) -> None:
    base = small.raw(folder)["base"]
    base["optim"] |= {"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup": 0.0, "schedule": "constant", "steps": 4}
    code, _, err = study(small.write(folder, base=base, methods={"ce": {}}, baselines=[], labels={}, questions=[]))
    assert code == 1
    assert "not finite" in err or "diverged" in err
    assert "xtoken-failure" not in err


def test_the_sweep_runs_first_and_each_method_takes_its_best(folder: Path, ran: list[Cell]) -> None:
    measures = small.raw(folder)["measures"] | {"validation": str(folder / "validation.txt")}
    sweep = {"values": [1e-6, 3e-2], "seeds": [100]}
    assert study(small.write(folder, measures=measures, sweep=sweep, seeds=[0]))[0] == 0
    assert [cell.stage for cell in ran] == 4 * ["sweep"] + 2 * ["main"]
    tried = rows(folder / "out/sweep.csv")
    for method in ("ce", "gold"):
        best = min((r for r in tried if r["method"] == method), key=lambda r: float(r["mean"]))
        assert best["chosen"] == "True"
        (cell,) = [cell for cell in ran if cell.stage == "main" and cell.method == method]
        assert cell.learning_rate == float(best["value"])


def test_a_method_that_no_swept_value_suits_is_told_and_the_others_are_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = small.raw(folder)["measures"] | {"validation": str(folder / "validation.txt")}
    on(monkeypatch, lambda cell: (cell.method, cell.stage) == ("gold", "sweep"), DivergedError("diverged"))
    file = small.write(folder, measures=measures, sweep={"values": [1e-3], "seeds": [100]}, seeds=[0])
    code, _, err = study(file)
    assert code == 1
    assert "p, gold, seed 0: not run: no value of optim.learning_rate was trained to the end by gold" in err
    assert {r["method"] for r in rows(folder / "out/summary.csv")} == {"ce"}
    monkeypatch.undo()
    monkeypatch.setenv("XTOKEN_CACHE", str(folder / "cache"))
    code, out, err = study(file)
    assert (code, "4 cells, 2 run now" in out) == (0, True)
    assert "[4/4] p, gold, seed 0" in err, "the cell of cross-entropy was done before, and counts"


def test_a_teacher_writes_the_text_and_every_measure_is_made(folder: Path) -> None:
    methods = {"ce": {}, "sequence": {"teacher_text": {"model": "main", "max_new_tokens": 4}}}
    measures = small.raw(folder)["measures"] | {"teacher": "main"}
    code, _, err = study(small.write(folder, methods=methods, measures=measures, seeds=[0], labels={}, questions=[]))
    assert code == 0, err
    (file,) = (folder / "out/teacher-texts").iterdir()
    written = [json.loads(line) for line in file.read_text().splitlines()]
    read = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in written] == [row["prompt"] for row in read]
    assert all(row["text"].startswith(row["prompt"]) for row in written)
    measured = {r["measure"] for r in rows(folder / "out/results.csv") if r["method"] == "sequence"}
    assert measured == {
        "bits_per_byte", "bits_per_byte/numerals", "bits_per_byte/words", "teacher_kl", "teacher_kl/numerals",
        "exact_answers", "answer_kl",
    }  # fmt: skip


def test_a_dry_run_says_what_is_left_and_writes_nothing(folder: Path, ran: list[Cell]) -> None:
    file = small.write(folder)
    code, out, _ = study(file, "--dry-run")
    assert (code, ran) == (0, [])
    assert "main: 4 cells, 0 finished, 8 steps left" in out
    assert not (folder / "out").exists()
    study(file)
    (folder / "out/cells/p/ce").joinpath(sorted(os.listdir(folder / "out/cells/p/ce"))[0]).unlink()
    assert "in all: 4 cells, 3 finished, 2 steps left" in study(file, "--dry-run")[1]


def test_quick_runs_what_it_says_in_a_folder_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ran: list[Cell]
) -> None:
    monkeypatch.chdir(folder)
    quick = {"seeds": [5], "methods": ["ce"], "set": {"optim": {"steps": 1}}}
    file = small.write(folder, quick=quick)
    result = CliRunner().invoke(app, ["study", str(file), "--quick", "--jobs", "1"])
    assert result.exit_code == 0, result.stderr
    assert [(cell.method, cell.seed, cell.steps) for cell in ran] == [("ce", 5, 1)]
    assert (folder / "studies-out/tiny-quick/summary.csv").is_file()


def test_a_mistake_in_a_loss_is_found_before_anything_runs(folder: Path, ran: list[Cell]) -> None:
    methods = {"ce": {}, "gold": {"teachers": [{"model": "main", "loss": "same"}]}}
    code, _, err = study(small.write(folder, methods=methods))
    assert code == 2
    assert "method 'gold' on pair 'p': loss 'same' needs one tokenizer for both" in " ".join(err.split())
    assert ran == []
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_no_process_and_goes_on(folder: Path, ran: list[Cell]) -> None:
    file = small.write(folder, seeds=list(range(6)))
    process = subprocess.Popen(
        [sys.executable, "-m", "xtoken", "study", str(file), "--out", str(folder / "out"), "--jobs", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("out/cells/p/*/*.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(folder.glob("out/cells/p/*/*.json")))
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlives the study"
        time.sleep(0.05)
    assert study(file)[0] == 0
    assert len(ran) == 12 - finished
