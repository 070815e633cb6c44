"""Holds trained students up to the paper's table: `python -m benchmarks.compare runs/*`.

Reads the xtoken_tasks.json that `xtoken eval --tasks` leaves in a run's folder, and prints a Markdown table: ours, the
paper's, and the difference, in percent, by task and on average. A folder is known for a row by its name
(`runs/qwen-p-kl`), or is given as `ROW=FOLDER`. `--csv FILE` and `--markdown FILE` write the tables as well; of a row
without a run the paper's figures stand alone.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from benchmarks.paper import ROWS, SHOTS, SOURCE, TASKS, Column, Row
from xtoken.errors import XTokenError
from xtoken.evaluation.task_results import TASKS_FILE, TaskResult, read_results
from xtoken.files import write_whole

__all__ = ["Cell", "as_csv", "as_markdown", "compare", "main", "read_runs"]

AVERAGE = "average"


@dataclass(frozen=True)
class Cell:
    """One figure of a row, in percent; None for what there is not.

    Attributes:
        row: of the table.
        column: its name, or `average`.
        ours: measured here.
        stderr: its standard error; none for an average.
        paper: published.
        otherwise: how it was measured, where that is not as the paper's.
    """

    row: Row
    column: str
    ours: float | None
    stderr: float | None
    paper: float | None
    otherwise: str = ""

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper


def read_runs(arguments: Sequence[str]) -> dict[str, tuple[TaskResult, ...]]:
    """Results by the row they belong to.

    Args:
        arguments: folders, or files, named as their rows are; or ROW=FOLDER.

    Raises:
        XTokenError: a name that is no row's; two for one row; no results there.
    """
    found: dict[str, tuple[TaskResult, ...]] = {}
    for argument in arguments:
        key, given, path = argument.partition("=")
        place = Path(path if given else argument)
        key = key if given else (place.parent if place.suffix == ".json" else place).resolve().name
        _check_key(key, argument)
        if key in found:
            raise XTokenError(f"{argument}: there is a run for the row {key} already; give one")
        found[key] = read_results(place if place.suffix == ".json" else place / TASKS_FILE)[1]
    return found


def _check_key(key: str, argument: str) -> None:
    keys = [row.key for row in ROWS]
    if key not in keys:
        near = get_close_matches(key, keys, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise XTokenError(f"{argument}: {key!r} is no row{hint}; give ROW=FOLDER with one of {', '.join(keys)}")


def compare(runs: Mapping[str, Sequence[TaskResult]], columns: Sequence[Column] = TASKS) -> list[Cell]:
    """Every figure of the table, row by row, each row's average last.

    Raises:
        XTokenError: a task was measured without the metric that its column shows.
    """
    cells = []
    for row in ROWS:
        made = [_cell(row, n, column, runs.get(row.key, ())) for n, column in enumerate(columns)]
        values = [cell.ours for cell in made if cell.ours is not None]
        whole = sum(values) / len(values) if len(values) == len(columns) else None
        otherwise = "; ".join(dict.fromkeys(cell.otherwise for cell in made if cell.otherwise))
        cells += [*made, Cell(row, AVERAGE, whole, None, row.average, otherwise if whole is not None else "")]
    return cells


def _cell(row: Row, number: int, column: Column, results: Sequence[TaskResult]) -> Cell:
    paper = row.figures[number] if row.figures else None
    result = next((each for each in results if each.task == column.task), None)
    if result is None:
        return Cell(row, column.name, None, None, paper)
    metric = next((m for m in result.metrics if (m.name, m.filter) == (column.metric, column.filter)), None)
    if metric is None:
        has = ", ".join(m.label for m in result.metrics)
        wanted = column.metric if column.filter is None else f"{column.metric} ({column.filter})"
        raise XTokenError(f"{row.key}: {column.task} has no {wanted}; it has {has}: choose one by --metric")
    stderr = None if metric.stderr is None else 100 * metric.stderr
    return Cell(row, column.name, 100 * metric.value, stderr, paper, _otherwise(column, result))


def _otherwise(column: Column, result: TaskResult) -> str:
    shots = "" if result.shots == SHOTS else f"{result.shots} shots"
    limit = "" if result.limit is None else f"{result.limit} documents of each task"
    different = ", ".join(part for part in (shots, limit) if part)
    return f"{column.name}: {different}" if different else ""


def as_markdown(cells: Sequence[Cell]) -> str:
    """The table for people: `ours / paper / difference` in each cell."""
    names = list(dict.fromkeys(cell.column for cell in cells))
    lines = [f"| run | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for row in dict.fromkeys(cell.row for cell in cells):
        shown = [_shown(cell) for cell in cells if cell.row == row]
        lines.append(f"| {row.label} | {' | '.join(shown)} |")
    notes = {f"{c.row.label}: {c.otherwise}" for c in cells if c.otherwise and c.column != AVERAGE}
    said = [f"Ours / {SOURCE} / the difference, in percent; {SHOTS}-shot."]
    if notes:
        said.append("Starred, measured otherwise: " + "; ".join(sorted(notes)) + ".")
    return "\n".join([*lines, "", *said]) + "\n"


def _shown(cell: Cell) -> str:
    """Nothing where there is nothing."""
    if cell.ours is None and cell.paper is None:
        return ""
    ours = "-" if cell.ours is None else f"{cell.ours:.2f}" + ("*" if cell.otherwise else "")
    paper = "-" if cell.paper is None else f"{cell.paper:.2f}"
    difference = "-" if cell.difference is None else f"{cell.difference:+.2f}"
    return f"{ours} / {paper} / {difference}"


def as_csv(cells: Sequence[Cell]) -> str:
    """A line a figure; what there is not is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "run", "task", "ours", "stderr", "paper", "difference", "measured_otherwise"])
    for cell in cells:
        figures = [cell.ours, cell.stderr, cell.paper, cell.difference]
        numbers = ["" if figure is None else f"{figure:.4f}" for figure in figures]
        writer.writerow([cell.row.key, cell.row.label, cell.column, *numbers, cell.otherwise])
    return text.getvalue()


def _columns(changes: Sequence[str]) -> tuple[Column, ...]:
    """The columns with `NAME=METRIC` or `NAME=METRIC,FILTER` in place of their metrics."""
    chosen = {column.name: column for column in TASKS}
    for change in changes:
        name, _, metric = change.partition("=")
        metric, _, filtered = metric.partition(",")
        if name not in chosen or not metric:
            raise XTokenError(f"--metric {change!r}: expected one of {', '.join(chosen)}, as in HellaSwag=acc")
        chosen[name] = replace(chosen[name], metric=metric, filter=filtered or None)
    return tuple(chosen.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and writes it where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder, named as its row, or ROW=FOLDER")
    parser.add_argument("--metric", action="append", default=[], metavar="NAME=METRIC[,FILTER]")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    asked = parser.parse_args(arguments)
    try:
        cells = compare(read_runs(asked.runs), _columns(asked.metric))
    except XTokenError as error:
        parser.error(str(error))
    print(as_markdown(cells), end="")
    if asked.markdown is not None:
        write_whole(asked.markdown, as_markdown(cells))
    if asked.csv is not None:
        write_whole(asked.csv, as_csv(cells))


if __name__ == "__main__":
    main()
