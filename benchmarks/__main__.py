"""Runs all benchmarks, each in a process of its own, prints one table and writes benchmarks/results.csv.

    python -m benchmarks [NAME ...]       names: alignment projection losses path_cost step hidden; all by default

Ends with 1 if a figure is past its limit. With names, results.csv is left alone.
"""

from __future__ import annotations

import csv
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import Figure

SUITE = ("alignment", "projection", "losses", "path_cost", "step", "hidden")
RESULTS = Path(__file__).with_name("results.csv")
COLUMNS = ("figure", "value", "limit", "pass", "machine", "versions", "date")


def main(names: list[str]) -> int:
    if unknown := sorted(set(names) - set(SUITE)):
        print(f"no benchmark {unknown[0]!r}: there are {', '.join(SUITE)}", file=sys.stderr)
        return 2
    console, begin, found = _console(), time.perf_counter(), []
    for name in names or SUITE:
        console.print(f"{name} ...", style="dim")
        found += _in_its_own_process(name)
    console.print(_table(found))
    console.print(f"{(time.perf_counter() - begin) / 60:.1f} minutes, {_machine()}")
    if not names:
        _write(found)
        console.print(
            f"written to {RESULTS.relative_to(Path.cwd()) if RESULTS.is_relative_to(Path.cwd()) else RESULTS}"
        )
    return int(not all(figure.passes for figure in found))


def _console() -> Console:
    """As wide as the table wants to be where nobody watches: a log has no edge."""
    return Console() if sys.stdout.isatty() else Console(width=180)


def _in_its_own_process(name: str) -> list[Figure]:
    """The figures of one module: what another left in memory or in threads is none of its business."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        code = f"import sys; from benchmarks.__main__ import run_one; run_one({name!r}, sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        return [Figure(**fields) for fields in json.loads(path.read_text())]


def run_one(name: str, path: str) -> None:
    """Runs one module's figures and leaves them as JSON."""
    figures = importlib.import_module(f"benchmarks.{name}").figures()
    Path(path).write_text(json.dumps([asdict(figure) for figure in figures]))


def _table(figures: list[Figure]) -> Table:
    table = Table("figure", title="Benchmarks", title_justify="left")
    for heading in ("measured", "limit", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("how")
    for figure in figures:
        verdict = "[green]pass[/]" if figure.passes else "[red]FAIL[/]"
        sign = ">=" if figure.at_least else "<="
        table.add_row(
            figure.name,
            _number(figure.value, figure.unit),
            f"{sign} {_number(figure.limit, figure.unit)}",
            verdict,
            figure.note,
        )
    return table


def _number(value: float, unit: str) -> str:
    return f"{value:.3g}{' ' + unit if unit else ''}" if value < 1000 else f"{value:,.0f}{' ' + unit if unit else ''}"


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"{os.cpu_count()} x {model or platform.machine()}"


def _write(figures: list[Figure]) -> None:
    names = ("torch", "transformers", "tokenizers", "numpy")
    versions = " ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for figure in figures:
            name = f"{figure.name} ({figure.unit})" if figure.unit else figure.name
            passes = "true" if figure.passes else "false"
            writer.writerow([name, f"{figure.value:.4g}", f"{figure.limit:g}", passes, _machine(), versions, today])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
