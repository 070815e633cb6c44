"""The folder of a study: a file for each cell, and tables made of them.

Type: `Folder`. Laws: a cell's file is written whole when the cell is done, and says alone all that the tables need; the
tables can be made again from the cells at any time, and are of the cells of one plan, so those of earlier settings may
lie beside them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xtoken.errors import XTokenError
from xtoken.files import write_whole
from xtoken.study.config import StudyConfig
from xtoken.study.machine import commit
from xtoken.study.measures import MEASURES
from xtoken.study.names import full_name, split_name
from xtoken.study.plan import Cell, Reference, merged
from xtoken.study.questions import Answer, Audit, answer, sentence
from xtoken.study.statistics import CONFIDENCE, compare, mean_interval

__all__ = ["Folder", "Record", "sweep_choices"]

Record = dict[str, Any]
DONE, FAILED = "done", "failed"


class Folder:
    """Where a study lies.

    Args:
        path: made where it is missing.

    Raises:
        XTokenError: it is a file, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise XTokenError(f"cannot make the study's folder {path}: {error.strerror}") from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other studies out while this one works: both would train the same cells, and mix their tables.

        A lock on the folder itself, which leaves no file and ends with its process, however that goes; there is none
        on Windows.

        Raises:
            XTokenError: another study is at work in it.
        """
        if sys.platform == "win32":
            yield
            return
        import fcntl

        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise XTokenError(
                f"another study is at work in {self.path}: wait until it is done, or give another folder by --out"
            ) from None
        finally:
            os.close(folder)

    def read(self, cell: Cell) -> Record | None:
        """What came of a cell; None where it never ended, or its file is of no use."""
        found = _json(self._file(cell))
        return found if found is not None and {"status", "measures", "wall_seconds"} <= found.keys() else None

    def keep(self, cell: Cell, found: Mapping[str, Any]) -> Record:
        """Writes a cell down.

        Args:
            cell: what was run.
            found: `status`, `error`, `measures`, `seconds`, `wall_seconds`, `cpu_seconds`, `log`.

        Returns:
            What its file holds.
        """
        record = {
            "pair": cell.pair,
            "method": cell.method,
            "variant": cell.variant,
            "seed": cell.seed,
            "stage": cell.stage,
            "key": cell.key,
            "settings": cell.settings,
            "learning_rate": cell.learning_rate,
            "swept": cell.swept,
            **dict(zip(("commit", "dirty"), commit(), strict=True)),
            **_finite(found),
        }
        file = self._file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, _by_key(record))
        return record

    def _file(self, cell: Cell) -> Path:
        return self.path / "cells" / cell.pair / cell.full_name / f"{cell.key}.json"

    def references(self) -> dict[str, Any]:
        """What `references.json` holds."""
        return _json(self.path / "references.json") or {}

    def keep_reference(self, reference: Reference, measures: Mapping[str, float]) -> None:
        """Writes down what a model of a pair measures."""
        found = self.references()
        of_pair = found.setdefault(reference.pair, {})
        row = {**measures, "key": reference.key}
        if reference.name is None:
            of_pair["student"] = row
        else:
            of_pair.setdefault("models", {})[reference.name] = row
        self._write_json("references.json", found)

    def has_reference(self, reference: Reference) -> bool:
        """Whether it was measured."""
        of_pair = self.references().get(reference.pair, {})
        row = of_pair.get("student") if reference.name is None else of_pair.get("models", {}).get(reference.name)
        return bool(row) and row["key"] == reference.key

    def keep_audit(self, pair: str, teacher: str, audit: Audit) -> None:
        """Writes down what the audit recommends."""
        found = self.references()
        found.setdefault(pair, {})["audit"] = {"teacher": teacher, **asdict(audit)}
        self._write_json("references.json", found)

    def audits(self) -> dict[str, Audit]:
        """What the audit recommends, by pair."""
        rows = {pair: row["audit"] for pair, row in self.references().items() if "audit" in row}
        return {pair: Audit(row["recommended_loss"], row["reason"]) for pair, row in rows.items()}

    def write_study(self, study: StudyConfig) -> None:
        """Writes the study as it was read."""
        write_whole(self.path / "study.yaml", study.to_yaml())

    def write_machine(self, facts: Mapping[str, Any]) -> None:
        """Writes what the study was run with."""
        self._write_json("machine.json", facts)

    def machine(self) -> dict[str, Any]:
        """What `machine.json` holds."""
        return _json(self.path / "machine.json") or {}

    def write_tables(self, study: StudyConfig, records: Sequence[Record]) -> tuple[Answer, ...]:
        """Writes the results, what they come to, and what they say to the study's questions.

        Args:
            study: the study.
            records: of the plan's cells, as far as they ended.

        Returns:
            The answers.
        """
        done = [record for record in records if record["status"] == DONE]
        results = [row for record in done for row in _results(record)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in results)
        write_whole(self.path / "results.jsonl", lines)
        self._write_csv("results.csv", _RESULT, results)
        table = _Table(done)
        self._write_csv("summary.csv", _SUMMARY, _summary(study, table))
        comparisons = list(_comparisons(study, table))
        self._write_csv("comparisons.csv", _COMPARISON, comparisons)
        if study.sweep is not None:
            self._write_csv("sweep.csv", _SWEEP, _sweep_rows(study, done))
        losses = {name: _loss_of(study, name) for name in study.full_names}
        answers = tuple(
            answer(question, table.values, study.label, self.audits(), losses.__getitem__)
            for question in study.questions
        )
        self._write_json("answers.json", [asdict(each) for each in answers])
        self._write_json("statistics.json", _about(comparisons, sum(len(each.claims) for each in answers)))
        return answers

    def _write_json(self, name: str, value: Any) -> None:
        write_whole(self.path / name, json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n")

    def _write_csv(self, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path / name, text.getvalue())


_RESULT = ("pair", "method", "variant", "stage", "seed", "learning_rate", "measure", "value", "seconds")
_SUMMARY = ("pair", "method", "variant", "measure", "unit", "direction", "seeds", "mean", "low", "high")
_COMPARISON = (
    "pair", "measure", "method", "variant", "baseline", "seeds", "difference", "low", "high", "improvement_low",
    "improvement_high", "verdict", "sentence",
)  # fmt: skip
_SWEEP = ("pair", "method", "value", "measure", "seeds", "mean", "chosen")


class _Table:
    """The values of the study proper."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._values: dict[tuple[str, str, str], dict[int, float]] = {}
        for record in records:
            if record["stage"] == "main":
                for measure, value in record["measures"].items():
                    place = record["pair"], full_name(record["method"], record["variant"]), measure
                    self._values.setdefault(place, {})[record["seed"]] = value

    def values(self, pair: str, name: str, measure: str) -> Mapping[int, float]:
        """By seed, of a method by its full name."""
        return self._values.get((pair, name, measure), {})


def _split(name: str) -> dict[str, str | None]:
    method, variant = split_name(name)
    return {"method": method, "variant": variant}


def _results(record: Record) -> list[dict[str, Any]]:
    shared = {name: record[name] for name in _RESULT if name in record}
    return [{**shared, "measure": name, "value": value} for name, value in record["measures"].items()]


def _places(study: StudyConfig) -> Iterable[tuple[str, str, str]]:
    return ((pair, name, m) for pair in study.pairs for m in study.measures.names for name in study.full_names)


def _summary(study: StudyConfig, table: _Table) -> Iterable[dict[str, Any]]:
    for pair, name, measure in _places(study):
        values = list(table.values(pair, name, measure).values())
        if values:
            found, about = mean_interval(values), MEASURES[measure]
            row = {"pair": pair, **_split(name), "measure": measure, "unit": about.unit, "direction": about.direction}
            yield {**row, "seeds": found.n, "mean": found.mean, "low": found.low, "high": found.high}


def _comparisons(study: StudyConfig, table: _Table) -> Iterable[dict[str, Any]]:
    for pair, name, measure in _places(study):
        for baseline in study.baselines:
            found = compare(MEASURES[measure], table.values(pair, name, measure), table.values(pair, baseline, measure))
            if name == baseline or found.difference is None:
                continue
            _, low, high = found.improvement
            yield {
                "pair": pair,
                "measure": measure,
                **_split(name),
                "baseline": baseline,
                "seeds": len(found.seeds),
                "difference": found.difference.mean,
                "low": found.difference.low,
                "high": found.difference.high,
                "improvement_low": low,
                "improvement_high": high,
                "verdict": found.verdict,
                "sentence": sentence(pair, study.label(name), study.label(baseline), found),
            }


def sweep_choices(study: StudyConfig, records: Sequence[Record]) -> dict[tuple[str, str], Any]:
    """The best value of the sweep for each (pair, method), of those that were trained to the end with every seed.

    Args:
        study: the study.
        records: of the sweep's cells.
    """
    best: dict[tuple[str, str], tuple[float, Any]] = {}
    for row in _sweep_means(study, records):
        place, score = (row["pair"], row["method"]), row["mean"] * MEASURES[row["measure"]].sign
        if place not in best or score > best[place][0]:
            best[place] = score, row["value"]
    return {place: value for place, (_, value) in best.items()}


def _sweep_rows(study: StudyConfig, records: Sequence[Record]) -> list[dict[str, Any]]:
    chosen = sweep_choices(study, records)
    return [
        {**row, "chosen": chosen[row["pair"], row["method"]] == row["value"]} for row in _sweep_means(study, records)
    ]


def _sweep_means(study: StudyConfig, records: Sequence[Record]) -> Iterable[dict[str, Any]]:
    assert study.sweep is not None
    measure, seeds = study.sweep.choose_by, set(study.sweep.seeds)
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for record in records:
        if record["stage"] == "sweep" and record["status"] == DONE:
            place = record["pair"], record["method"], json.dumps(record["swept"])
            found.setdefault(place, {})[record["seed"]] = record["measures"][measure]
    for (pair, method, value), by_seed in found.items():
        if by_seed.keys() == seeds:
            mean = mean_interval(list(by_seed.values())).mean
            row = {"pair": pair, "method": method, "value": json.loads(value), "measure": measure}
            yield {**row, "seeds": len(seeds), "mean": mean}


def _loss_of(study: StudyConfig, name: str) -> str:
    """The loss that a method's first teacher teaches by, as its settings have it."""
    method, variant = split_name(name)
    changes = [each.set for each in study.variants if each.name == variant and method in each.methods]
    teachers = merged(study.base, study.methods[method].settings, *changes).get("teachers") or []
    first = teachers[0] if teachers else {}
    return str(first.get("loss", "auto")) if isinstance(first, dict) else "auto"


def _about(comparisons: Sequence[Mapping[str, Any]], claims: int) -> dict[str, Any]:
    """How the intervals are to be read; a comparison of one seed has none, and cannot be called anything by chance."""
    n = sum(row["low"] is not None for row in comparisons)
    by_chance = (1 - CONFIDENCE) * n
    return {
        "confidence": CONFIDENCE,
        "interval": "Student's t over seeds; differences are paired by seed",
        "comparisons": len(comparisons),
        "claims": claims,
        "correction": "none",
        "sentence": (
            f"{len(comparisons)} comparisons with baselines were made, and {claims} for the questions, each at 95 % "
            f"and without a correction for their number: were there no difference anywhere, about {by_chance:.0f} of "
            f"the {n} with an interval would be called better or worse by chance."
        ),
    }


def _by_key(record: Record) -> str:
    """JSON with a line for each key, and for each line of the log, which is most of it."""
    log = ",\n".join(json.dumps({name: _rounded(value) for name, value in line.items()}) for line in record["log"])
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items() if key != "log"
    ]
    return "{\n" + ",\n".join(lines) + f',\n"log": [\n{log}\n]' + "}\n"


def _rounded(value: Any) -> Any:
    """To what a curve shows of it."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
