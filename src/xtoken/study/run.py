"""A whole study: from a file to its folder.

What is done is read off the folder, the rest is given to the pool, and the tables are written again as cells end. Laws:
a finished cell is never run again; a study that was stopped, by whatever, goes on where it was; one that has failures
goes on to its end, and they are tried again when it is run the next time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from xtoken.config import TeacherConfig
from xtoken.errors import XTokenError
from xtoken.study.cell import Job, Outcome, run_job
from xtoken.study.config import StudyConfig, quickened
from xtoken.study.machine import machine
from xtoken.study.plan import Cell, Plan, Reference, TeacherAnswers, TeacherTexts
from xtoken.study.pool import Failure, Pool, default_jobs
from xtoken.study.progress import StudyProgress
from xtoken.study.questions import Answer, Audit
from xtoken.study.statistics import check_scipy
from xtoken.study.write import DONE, FAILED, Folder, Record, sweep_choices

__all__ = ["StudyResult", "default_folder", "describe", "run_study"]

# Tables are made of all cells so far, so not for each of many short ones.
_SECONDS_BETWEEN_TABLES = 5.0


@dataclass(frozen=True)
class StudyResult:
    """What came of a study.

    Attributes:
        folder: where it lies.
        cells: how many it has.
        ran: how many of them were run now.
        failed: what failed, and why.
        answers: to its questions.
    """

    folder: Path
    cells: int
    ran: int
    failed: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...]


def default_folder(study: StudyConfig, *, quick: bool) -> Path:
    """`studies-out/NAME`, or beside it for what `--quick` makes of it, which are other results."""
    return Path("studies-out") / (f"{study.name}-quick" if quick else study.name)


def run_study(
    study: StudyConfig,
    out: Path | None = None,
    *,
    quick: bool = False,
    jobs: int | None = None,
    console: Console | None = None,
) -> StudyResult:
    """Runs what is left of a study.

    Args:
        study: from `load_study`.
        out: its folder; by default `default_folder`.
        quick: run what its section `quick` says.
        jobs: cells at a time; by default one for each core, or one on a GPU.
        console: for progress; by default stderr.

    Raises:
        XTokenError: a mistake in the study, before anything runs; another study at work in its folder.
    """
    check_scipy()
    out = out or default_folder(study, quick=quick)
    asked = quickened(study) if quick else study
    plan = Plan(asked, out)
    check_ahead(plan)
    folder = Folder(out)
    with folder.alone():
        folder.write_study(study)
        run = _Run(plan, folder, jobs or default_jobs(), console or Console(stderr=True, highlight=False), quick=quick)
        return run.go()


def describe(study: StudyConfig, out: Path | None = None, *, quick: bool = False) -> dict[str, Any]:
    """What `run_study` would do: `cells`, `finished`, `steps` that are left, and these by stage.

    Cells that a sweep has still to decide count as not finished.

    Raises:
        XTokenError: as for `run_study`.
    """
    out = out or default_folder(study, quick=quick)
    plan = Plan(quickened(study) if quick else study, out)
    check_ahead(plan)
    stages: dict[str, dict[str, int]] = {}
    sweep = plan.sweep
    records = [_finished(out, cell) for cell in sweep]
    done = [record for record in records if record is not None]
    stages["sweep"] = _stage(sweep, len(sweep), records)
    chosen = sweep_choices(plan.study, done) if plan.study.sweep is not None else {}
    main = plan.main(chosen)
    stages["main"] = _stage(main, plan.main_count, [_finished(out, cell) for cell in main])
    if len(main) < plan.main_count:  # as many steps as those that stand for them
        stages["main"]["steps"] += sum(cell.steps for cell in plan.undecided(chosen))
    total = {key: sum(stage[key] for stage in stages.values()) for key in ("cells", "finished", "steps")}
    return {"folder": str(out), **total, "stages": stages}


def _stage(cells: Sequence[Cell], count: int, records: Sequence[Record | None]) -> dict[str, int]:
    left = [cell for cell, record in zip(cells, records, strict=True) if record is None]
    finished = len(cells) - len(left)
    return {"cells": count, "finished": finished, "steps": sum(cell.steps for cell in left)}


def _finished(out: Path, cell: Cell) -> Record | None:
    if not out.is_dir():
        return None
    record = Folder(out).read(cell)
    return record if record is not None and record["status"] == DONE else None


def check_ahead(plan: Plan) -> None:
    """Reads the answers and makes every loss of a plan once, which finds mistakes and keeps each W for the cells.

    Raises:
        XTokenError: answers that cannot be read; naming the method, a setting without effect on a loss, or a tokenizer
            that cannot be read.
    """
    from xtoken.evaluation.answers import read_answers
    from xtoken.study.measure import vocabulary_of
    from xtoken.training.objectives import make_objective
    from xtoken.training.run import cache_folder

    if plan.study.measures.answers is not None:
        read_answers(plan.study.measures.answers)
    seen = set()
    for where, student, teachers in plan.teachers():
        for teacher in teachers:
            key = json.dumps([student, teacher], sort_keys=True, default=str)
            if key in seen:
                continue
            seen.add(key)
            config = TeacherConfig.model_validate(teacher)
            try:
                make_objective(config, vocabulary_of(student), vocabulary_of(str(config.model)), cache_folder())
            except XTokenError as error:
                raise XTokenError(f"{where}: {error}") from None


class _Run:
    """A study on its way."""

    def __init__(self, plan: Plan, folder: Folder, jobs: int, console: Console, *, quick: bool) -> None:
        self.plan, self.folder, self.jobs, self.console, self.quick = plan, folder, jobs, console, quick
        self.study = plan.study
        # By what they are and not by key: a method without teachers is one training on two pairs, and a row of each.
        self.records: dict[tuple[str, str, str], Record] = {}
        self.failed: list[tuple[str, str]] = []
        self.ran = 0
        self.to_come = 0
        self.began = self.written = time.monotonic()
        self.answers: tuple[Answer, ...] = ()

    def go(self) -> StudyResult:
        sweep = self.plan.sweep
        written: list[TeacherAnswers | TeacherTexts] = [*self.plan.answers, *self.plan.texts]
        first = [job for job in written if not Path(job.file).is_file()]
        references = [one for one in self.plan.references if not self.folder.has_reference(one)]
        self.audit()
        aside = len(first) + len(references)
        total = aside + len(sweep) + self.plan.main_count
        left = self.look(sweep)
        if not left:
            self.look(self.plan.main(self.choices()))
        done = len(self.records)
        self.to_come = total - aside - done
        log = self.folder.path / "workers.log"
        with (
            StudyProgress(self.console, total, done) as progress,
            Pool(run_job, self.study, self.jobs, log) as pool,
        ):
            try:
                self.work(pool, first, progress)
                self.work(pool, [*references, *left], progress)
                before = len(self.records)
                left = self.look(self.plan.main(self.choices()))
                self.to_come = len(left)
                progress.skip(len(self.records) - before)  # a part of the sweep was tried again
                self.work(pool, left, progress)
            finally:
                self.write(progress)
        self.tell_unchosen()
        count = len(sweep) + self.plan.main_count
        return StudyResult(self.folder.path, count, self.ran, tuple(self.failed), self.answers)

    def audit(self) -> None:
        """Asks the audit for its recommendation on each pair, against the teacher that students are measured by."""
        from xtoken.study.measure import vocabulary_of
        from xtoken.training.objectives import choose_loss

        for pair, at in self.study.pairs.items():
            name = self.study.measures.teacher or next(iter(at.models))
            found = choose_loss("auto", vocabulary_of(at.student), vocabulary_of(at.models[name]))
            self.folder.keep_audit(pair, name, Audit(*found))

    def choices(self) -> dict[tuple[str, str], Any]:
        return sweep_choices(self.study, list(self.records.values())) if self.study.sweep is not None else {}

    def look(self, cells: Sequence[Cell]) -> list[Cell]:
        """Takes up what is finished, and gives the rest."""
        left = []
        for cell in cells:
            record = self.folder.read(cell)
            if record is not None and record["status"] == DONE:
                self.records[_place(cell)] = record
            else:
                left.append(cell)
        return left

    def work(self, pool: Pool[StudyConfig], jobs: Sequence[Job], progress: StudyProgress) -> None:
        for job, outcome in pool.outcomes(jobs):
            name = _name(job)
            if isinstance(job, Cell):
                self.records[_place(job)] = self.folder.keep(job, _found(outcome))
                self.ran += 1
                self.to_come -= 1
            elif isinstance(job, Reference) and isinstance(outcome, Outcome):
                self.folder.keep_reference(job, outcome.measures)
            if isinstance(outcome, Failure):
                self.failed.append((name, outcome.message))
                progress.say(f"{name} failed: {outcome.message.strip().splitlines()[-1]}")
            took = f": {outcome.wall_seconds:.1f} s" if isinstance(outcome, Outcome) else ": failed"
            progress.advance(name + took, self.seconds_left())
            if time.monotonic() - self.written > _SECONDS_BETWEEN_TABLES:
                self.write(progress)

    def seconds_left(self) -> float | None:
        """By the mean of the cells that are done: those to come are of the same methods, seed by seed."""
        took = [record["wall_seconds"] for record in self.records.values() if record["status"] == DONE]
        return self.to_come * sum(took) / len(took) / self.jobs if took else None

    def write(self, progress: StudyProgress) -> None:
        records = list(self.records.values())
        self.answers = self.folder.write_tables(self.study, records)
        now = time.monotonic()
        before = self.folder.machine().get("seconds", {}).get("wall", 0.0)
        facts = {
            **machine(),
            "seconds": {
                "wall": round(before + now - self.began, 1),
                "cpu": round(sum(record["cpu_seconds"] for record in records), 1),
            },
            "commits": sorted({record["commit"] for record in records if record.get("commit")}),
            "jobs": self.jobs,
            "quick": self.quick,
            "cells": {
                "planned": len(self.plan.sweep) + self.plan.main_count,
                "done": sum(record["status"] == DONE for record in records),
                "failed": sum(record["status"] == FAILED for record in records),
            },
        }
        self.folder.write_machine(facts)
        self.began = self.written = now

    def tell_unchosen(self) -> None:
        """Methods for which no value of the sweep was trained to the end have no cells of the study proper."""
        if self.study.sweep is None:
            return
        chosen = self.choices()
        for cell in self.plan.undecided(chosen):
            failure = (
                f"{cell.pair}, {cell.full_name}, seed {cell.seed}",
                f"not run: no value of {self.study.sweep.key} was trained to the end by {cell.method} with every seed "
                "of the sweep",
            )
            self.failed.append(failure)


def _place(cell: Cell) -> tuple[str, str, str]:
    return cell.pair, cell.full_name, cell.key


def _name(job: Job) -> str:
    if isinstance(job, TeacherTexts):
        return f"{job.pair}, text written by {job.how.model}"
    if isinstance(job, TeacherAnswers):
        return f"{job.pair}, what its teacher believes of the answers"
    if isinstance(job, Reference):
        return f"{job.pair}, measuring {job.name or 'the student before training'}"
    swept = f", {job.swept}" if job.stage == "sweep" else ""
    return f"{job.pair}, {job.full_name}, {'sweep, ' if swept else ''}seed {job.seed}{swept}"


def _found(outcome: Outcome | Failure) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        nothing: dict[str, Any] = {"measures": {}, "seconds": 0.0, "wall_seconds": 0.0, "cpu_seconds": 0.0, "log": []}
        return {"status": FAILED, "error": outcome.message, **nothing}
    return {"status": DONE, "error": None, **asdict(outcome)}
