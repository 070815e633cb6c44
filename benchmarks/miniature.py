"""The miniature study's results as tables, from the CSV in the repository: `python -m benchmarks.miniature`.

`--write` puts them into README.md and studies/miniature/README.md, between their markers. A figure is the mean over the
seeds with half of its 95 % interval.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xtoken.study import StudyConfig, load_study
from xtoken.study.names import full_name

__all__ = ["BLOCKS", "in_document", "main", "tables"]

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "studies" / "miniature"
README, DETAILS = ROOT / "README.md", STUDY / "README.md"

_SHORT = ("exact_answers", "bits_per_byte")
_ALL = (*_SHORT, "bits_per_byte/numerals", "bits_per_byte/words", "answer_kl", "teacher_kl")
_HEADINGS = {
    "exact_answers": "exact answers, %",
    "bits_per_byte": "bits per byte",
    "bits_per_byte/numerals": "on numerals",
    "bits_per_byte/words": "on words",
    "answer_kl": "KL of the answer",
    "teacher_kl": "KL of the next byte",
}
_WORDS = {"holds": "holds", "fails": "does not hold", "undecided": "undecided"}


@dataclass(frozen=True)
class Run:
    """One of the studies: its file, the folder of its results, and what a heading calls it."""

    file: str
    folder: str
    seeds: str


RUNS = (
    Run("study.yaml", "results", "5 seeds"),
    Run("replication.yaml", "replication", "10 others"),
    Run("one-rate.yaml", "one-rate", "the 10, one rate"),
)

Row = dict[str, str]
Results = dict[tuple[str, str, str], Row]


def read(folder: str) -> Results:
    """Rows of summary.csv by pair, method with its variant, and measure."""
    with (STUDY / folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        return {(r["pair"], full_name(r["method"], r["variant"]), r["measure"]): r for r in csv.DictReader(file)}


def answers(folder: str) -> list[dict[str, Any]]:
    """What became of the questions."""
    found: list[dict[str, Any]] = json.loads((STUDY / folder / "answers.json").read_text(encoding="utf-8"))
    return found


def main_table() -> str:
    """Every method on both pairs, the task and the text."""
    study, results = load_study(STUDY / "study.yaml"), read("results")
    columns = [(pair, measure) for pair in study.pairs for measure in _SHORT]
    headings = [f"{pair}: {_HEADINGS[measure]}" for pair, measure in columns]
    return _table(study, results, list(study.methods), columns, headings)


def pair_table(pair: str, study_file: str, folder: str) -> str:
    """Every method and variant on one pair, by all measures."""
    study, results = load_study(STUDY / study_file), read(folder)
    columns = [(pair, measure) for measure in _ALL]
    names = [name for name in study.full_names if any((pair, name, measure) in results for measure in _ALL)]
    return _table(study, results, names, columns, [_HEADINGS[measure] for measure in _ALL])


def _table(
    study: StudyConfig,
    results: Results,
    names: Sequence[str],
    columns: Sequence[tuple[str, str]],
    headings: Sequence[str],
) -> str:
    lines = [f"| method | {' | '.join(headings)} |", "|" + "---|" * (len(headings) + 1)]
    for name in names:
        cells = [_cell(results.get((pair, name, measure))) for pair, measure in columns]
        lines.append(f"| {study.label(name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    scale, digits = (100, 1) if row["measure"] == "exact_answers" else (1, 3)
    mean = f"{scale * float(row['mean']):.{digits}f}"
    return f"{mean} ± {scale * (float(row['high']) - float(row['mean'])):.{digits}f}" if row["high"] else mean


def questions() -> str:
    """A line for each question, with the verdict of each run."""
    runs = [{question["id"]: question for question in answers(run.folder)} for run in RUNS]
    asked = {name: question["asks"] for found in reversed(runs) for name, question in found.items()}
    lines = [f"| | asked of the data | {' | '.join(run.seeds for run in RUNS)} |", "|---" * (2 + len(RUNS)) + "|"]
    for name in sorted(asked):
        verdicts = [_WORDS[found[name]["verdict"]] if name in found else "" for found in runs]
        lines.append(f"| {name} | {asked[name]} | {' | '.join(verdicts)} |")
    return "\n".join(lines) + "\n"


def claims(folder: str) -> str:
    """Each question with the sentences that decide it."""
    return "\n".join(_claims_of(question) for question in answers(folder))


def _claims_of(question: dict[str, Any]) -> str:
    sentences = "".join(f"  * {claim['sentence']} ({_WORDS[claim['verdict']]})\n" for claim in question["claims"])
    return f"* **{question['id']}: {question['asks']}: {_WORDS[question['verdict']]}.**\n{sentences}"


def made_by(folder: str) -> str:
    """The machine and the commit."""
    found = json.loads((STUDY / folder / "machine.json").read_text(encoding="utf-8"))
    commits = ", ".join(commit[:12] for commit in found["commits"])
    return (
        f"Commit {commits}, {found['date'][:10]}; {found['cpu']}, {found['cores']} cores, "
        f"{found['seconds']['cpu'] / 60:.0f} minutes of CPU; Python {found['python']}, torch {found['torch']}, "
        f"transformers {found['transformers']}.\n"
    )


BLOCKS: dict[tuple[Path, str], Callable[[], str]] = {
    (README, "results"): main_table,
    (README, "questions"): questions,
    **{(DETAILS, f"machine, {run.folder}"): partial(made_by, run.folder) for run in RUNS},
    **{(DETAILS, f"questions, {run.folder}"): partial(claims, run.folder) for run in RUNS},
    **{
        (DETAILS, f"{pair}, {run.folder}"): partial(pair_table, pair, run.file, run.folder)
        for pair in ("splits-digits", "packs-digits")
        for run in RUNS
    },
}


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)


def tables() -> Iterator[tuple[Path, str, str]]:
    """Each document, the name of its block, and what should stand there."""
    for (document, name), made in BLOCKS.items():
        yield document, name, made()


def in_document(document: Path, name: str) -> str:
    """What stands there."""
    found = _block(name).search(document.read_text(encoding="utf-8"))
    return found[0] if found else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, and writes them into the documents with `--write`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.miniature", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the documents")
    asked = parser.parse_args(arguments)
    for document, name, made in tables():
        print(f"{document.relative_to(ROOT)}, {name}\n\n{made}")
        if asked.write:
            text = document.read_text(encoding="utf-8")
            document.write_text(_block(name).sub(lambda _, made=made: made, text), encoding="utf-8")


if __name__ == "__main__":
    main()
