"""What `xtoken study` left in its folder, read back for the report and for figures.

Only study.yaml must be there: a study is looked at while it runs, and a repository may keep the tables without the
cells. What is not there is named in `absent`, and every other field then holds nothing rather than a guess.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from xtoken.errors import XTokenError
from xtoken.study.names import full_name, split_name
from xtoken.study.questions import Answer, Claim

__all__ = [
    "Cell",
    "Comparison",
    "Measure",
    "Method",
    "Result",
    "StudyFolder",
    "Summary",
    "SweptValue",
    "is_study_folder",
    "read_study",
    "variant_series",
]

T = TypeVar("T")

_FILES = (
    "results.csv",
    "summary.csv",
    "comparisons.csv",
    "sweep.csv",
    "answers.json",
    "references.json",
    "statistics.json",
    "machine.json",
)
# How one base method's variants are joined in a plot: "weight 0.3" is the value 0.3 of the series "weight".
_ENDS_IN_NUMBER = re.compile(r"(?P<stem>(.*[\s=])?)(?P<value>[-+]?\d+(\.\d+)?([eE][-+]?\d+)?)")


class Method(NamedTuple):
    """A method of the study, or one of its variants."""

    base: str
    variant: str = ""

    @property
    def name(self) -> str:
        return full_name(self.base, self.variant)


class Measure(NamedTuple):
    """A measure with its unit, and "lower" or "higher" for the better direction."""

    name: str
    unit: str
    direction: str

    def improvement(self, difference: float) -> float:
        """A difference of two values, with its sign so that more is better."""
        return -difference if self.direction == "lower" else difference


@dataclass(frozen=True)
class Result:
    """One measure of one finished cell."""

    pair: str
    method: Method
    stage: str
    seed: str
    learning_rate: float | None
    measure: str
    value: float
    seconds: float | None


@dataclass(frozen=True)
class Summary:
    """A method's mean over seeds, and the ends of its 95 % interval: None with one seed."""

    pair: str
    method: Method
    measure: Measure
    seeds: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """A method less a baseline, paired by seed; `verdict` is better, worse or undecided.

    `difference` is None where the two have no seed in common: one of them failed.
    """

    pair: str
    measure: str
    method: Method
    baseline: str
    seeds: int
    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    sentence: str


@dataclass(frozen=True)
class SweptValue:
    """The mean, over the sweep's seeds, of the measure that decides; values of any setting are kept as they stand."""

    pair: str
    method: Method
    value: str
    mean: float
    chosen: bool


@dataclass(frozen=True)
class Cell:
    """One training of the study: `error` says why where its status is "failed"."""

    pair: str
    method: Method
    stage: str
    seed: str
    learning_rate: float | None
    status: str
    error: str
    seconds: float | None


@dataclass(frozen=True)
class StudyFolder:
    """A study's results.

    `absent` names the files that are not there; `settings` is study.yaml and `source` its text; `references`,
    `machine` and `statistics` are the JSON files as they are. `cells` is empty where only the tables were kept.
    """

    path: Path
    settings: Mapping[str, Any]
    source: str
    results: tuple[Result, ...]
    summaries: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]
    sweep: tuple[SweptValue, ...]
    questions: tuple[Answer, ...]
    references: Mapping[str, Any]
    machine: Mapping[str, Any]
    statistics: Mapping[str, Any]
    cells: tuple[Cell, ...]
    absent: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.settings.get("name") or self.path.name)

    @property
    def baselines(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self.settings.get("baselines") or ())

    @property
    def pairs(self) -> tuple[str, ...]:
        """In the order of study.yaml, those with results."""
        return _ordered((s.pair for s in self.summaries), map(str, self.settings.get("pairs") or ()))

    @property
    def measures(self) -> tuple[Measure, ...]:
        return tuple(dict.fromkeys(s.measure for s in self.summaries))

    @property
    def methods(self) -> tuple[Method, ...]:
        """In the order of study.yaml, each followed by its variants."""
        variants = [str(v.get("name")) for v in self.settings.get("variants") or ()]
        bases = _ordered((s.method.base for s in self.summaries), map(str, self.settings.get("methods") or ()))
        found = dict.fromkeys(s.method for s in self.summaries)
        order = {name: place for place, name in enumerate(["", *variants])}
        return tuple(sorted(found, key=lambda m: (bases.index(m.base), order.get(m.variant, len(order)), m.variant)))

    @property
    def failed(self) -> tuple[Cell, ...]:
        """The cells that failed, but for those of earlier settings: results for the same, or a name no longer there."""
        done = {(r.pair, r.method, r.stage, r.seed, r.learning_rate) for r in self.results}
        known = set(map(str, self.settings.get("methods") or ()))
        latest = {(c.pair, c.method, c.stage, c.seed, c.learning_rate): c for c in self.cells if c.status == "failed"}
        return tuple(c for key, c in latest.items() if key not in done and (not known or c.method.base in known))

    def measure(self, name: str) -> Measure | None:
        return next((m for m in self.measures if m.name == name), None)

    def label(self, method: Method) -> str:
        """The method's name for a table or an axis, by the study's `labels`."""
        labels = self.settings.get("labels") or {}
        return labels.get(method.name) or Method(str(labels.get(method.base, method.base)), method.variant).name

    def label_of(self, name: str) -> str:
        """Likewise of a method given as one string, with its variant."""
        base, variant = split_name(name)
        return self.label(Method(base, variant or ""))

    def summary(self, pair: str, measure: str) -> dict[Method, Summary]:
        """The methods' means of one measure, in the study's order."""
        found = {s.method: s for s in self.summaries if s.pair == pair and s.measure.name == measure}
        return {method: found[method] for method in self.methods if method in found}

    def against(self, pair: str, measure: str, baseline: str) -> dict[Method, Comparison]:
        """The methods' differences from a baseline, where there are any, in the study's order."""
        found = {
            c.method: c
            for c in self.comparisons
            if (c.pair, c.measure, c.baseline) == (pair, measure, baseline) and c.difference is not None
        }
        order = {method: place for place, method in enumerate(self.methods)}
        return {m: found[m] for m in sorted(found, key=lambda m: (order.get(m, len(order)), m.name))}

    def reference_values(self, pair: str, measure: str) -> dict[str, float]:
        """What the teachers and the student at the start reach, by name, where that was measured."""
        found: dict[str, float] = {}
        here = self.references.get(pair) or {}
        models = {f"teacher {name}": values for name, values in (here.get("models") or {}).items()}
        for name, values in {**models, "student at the start": here.get("student")}.items():
            value = (values or {}).get(measure)
            if isinstance(value, int | float) and math.isfinite(value):
                found[name] = float(value)
        return found


def variant_series(methods: Iterable[Method]) -> list[list[Method]]:
    """Variants of one method that differ in a number alone, sorted by it: the lines of a trade-off plot."""
    series: dict[tuple[str, str], list[tuple[float, Method]]] = {}
    for method in methods:
        if number := _ENDS_IN_NUMBER.fullmatch(method.variant):
            stem = number["stem"].strip()
            series.setdefault((method.base, stem), []).append((float(number["value"]), method))
    return [[method for _, method in sorted(found)] for found in series.values() if len(found) > 1]


def is_study_folder(path: Path) -> bool:
    """Whether `path` looks like what `xtoken study` writes."""
    return (path / "study.yaml").is_file()


def read_study(folder: str | Path) -> StudyFolder:
    """Reads a study's folder.

    Raises:
        XTokenError: it holds no study.yaml; a file in it cannot be read as what it should be.
    """
    path = Path(folder)
    if not is_study_folder(path):
        raise XTokenError(
            f"{str(path)!r} holds no study.yaml: expected the folder that `xtoken study` wrote (studies-out/NAME)"
        )
    absent = [name for name in _FILES if not (path / name).is_file()]
    cells = tuple(_cells(path / "cells"))
    return StudyFolder(
        path=path,
        settings=_mapping(path / "study.yaml", _read(path / "study.yaml", yaml.safe_load)),
        source=_read(path / "study.yaml", str),
        results=tuple(_table(path / "results.csv", _result)),
        summaries=tuple(_table(path / "summary.csv", _summary)),
        comparisons=tuple(_table(path / "comparisons.csv", _comparison)),
        sweep=tuple(_table(path / "sweep.csv", _swept)),
        questions=_questions(path / "answers.json"),
        references=_object(path / "references.json"),
        machine=_object(path / "machine.json"),
        statistics=_object(path / "statistics.json"),
        cells=cells,
        absent=tuple(absent + ([] if cells else ["cells/"])),
    )


class _Row(NamedTuple):
    """A line of a table, for errors that say where."""

    fields: Mapping[str, str]

    def text(self, column: str) -> str:
        return self.fields[column]

    def maybe(self, column: str) -> float | None:
        return float(self.fields[column]) if self.fields[column] else None

    def number(self, column: str) -> float:
        return float(self.fields[column])

    @property
    def method(self) -> Method:
        return _method(self.fields["method"], self.fields["variant"])


def _table(path: Path, convert: Callable[[_Row], T]) -> Iterable[T]:
    """The lines of a CSV file, none where there is no file."""
    if not path.is_file():
        return
    for number, fields in enumerate(_read(path, lambda text: list(csv.DictReader(io.StringIO(text)))), 2):
        try:
            yield convert(_Row({key: value or "" for key, value in fields.items()}))
        except KeyError as error:
            raise XTokenError(f"{str(path)!r} has no column {error}: it is not what `xtoken study` wrote") from None
        except ValueError as error:
            raise XTokenError(f"{str(path)!r}, row {number}: {error}") from None


def _result(row: _Row) -> Result:
    return Result(
        pair=row.text("pair"),
        method=row.method,
        stage=row.text("stage"),
        seed=row.text("seed"),
        learning_rate=row.maybe("learning_rate"),
        measure=row.text("measure"),
        value=row.number("value"),
        seconds=row.maybe("seconds"),
    )


def _summary(row: _Row) -> Summary:
    return Summary(
        pair=row.text("pair"),
        method=row.method,
        measure=Measure(row.text("measure"), row.text("unit"), row.text("direction")),
        seeds=int(row.text("seeds")),
        mean=row.number("mean"),
        low=row.maybe("low"),
        high=row.maybe("high"),
    )


def _comparison(row: _Row) -> Comparison:
    return Comparison(
        pair=row.text("pair"),
        measure=row.text("measure"),
        method=row.method,
        baseline=row.text("baseline"),
        seeds=int(row.text("seeds")),
        difference=row.maybe("difference"),
        low=row.maybe("low"),
        high=row.maybe("high"),
        verdict=row.text("verdict"),
        sentence=row.text("sentence"),
    )


def _swept(row: _Row) -> SweptValue:
    return SweptValue(
        pair=row.text("pair"),
        method=Method(row.text("method")),
        value=row.text("value"),
        mean=row.number("mean"),
        chosen=row.text("chosen") == "True",
    )


def _questions(path: Path) -> tuple[Answer, ...]:
    if not path.is_file():
        return ()
    try:
        return tuple(
            Answer(q["id"], q.get("asks") or "", q["verdict"], tuple(_claim(c) for c in q["claims"]))
            for q in _read(path, json.loads)
        )
    except (KeyError, TypeError) as error:
        raise XTokenError(f"{str(path)!r} is not what `xtoken study` wrote: {error!r}") from None


def _claim(found: Mapping[str, Any]) -> Claim:
    texts = {key: str(found.get(key) or "") for key in ("sentence", "verdict", "pair", "measure", "left", "right")}
    numbers = {key: _finite(found.get(key)) for key in ("difference", "low", "high")}
    return Claim(**texts, **numbers, seeds=_count(found.get("seeds")))  # type: ignore[arg-type]


def _cells(folder: Path) -> Iterable[Cell]:
    """Every cell's outcome, without its log: the folder may hold hundreds."""
    for path in sorted(folder.rglob("*.json")):
        found = _object(path)
        yield Cell(
            pair=str(found.get("pair") or ""),
            method=_method(str(found.get("method") or ""), str(found.get("variant") or "")),
            stage=str(found.get("stage") or ""),
            seed=str(found.get("seed", "")),
            learning_rate=_finite(found.get("learning_rate")),
            status=str(found.get("status") or ""),
            error=str(found.get("error") or ""),
            seconds=_finite(found.get("seconds")),
        )


def _method(name: str, variant: str) -> Method:
    """The name "gold @ weight 0.3" may stand in the method's column with or without a variant beside it."""
    return Method(name.removesuffix(f" @ {variant}") if variant else name, variant)


def _read(path: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, json.JSONDecodeError) as error:
        raise XTokenError(f"cannot read {str(path)!r}: {error}") from None


def _object(path: Path) -> Mapping[str, Any]:
    return _mapping(path, _read(path, json.loads)) if path.is_file() else {}


def _mapping(path: Path, found: object) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise XTokenError(f"{str(path)!r}: expected names with values, found {type(found).__name__}")
    return found


def _ordered(found: Iterable[str], wanted: Iterable[str]) -> tuple[str, ...]:
    """What was found, first in the order wanted and then as met."""
    there = dict.fromkeys(found)
    return tuple(dict.fromkeys([*(name for name in wanted if name in there), *there]))


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _count(value: Any) -> int:
    """How many seeds, given as a number or as the seeds themselves."""
    return len(value) if isinstance(value, Sequence) else int(value or 0)
