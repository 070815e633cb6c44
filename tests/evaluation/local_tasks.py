"""Two small tasks in files, one of each kind of answer, as somebody would write them for lm-eval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHOOSE = """\
task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: choose.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
WRITE = """\
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: write.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 8}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: number, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}
"""
GROUP = """\
group: both_kinds
task: [choose]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
metadata: {version: 2.0}
"""

_SUMS = [("Ada", 3, 4), ("Bo", 10, 20), ("Cleo", 5, 5), ("Dan", 100, 7), ("Eve", 60, 61), ("Bo", 7, 70)]
QUESTIONS = [f"{name} has {a} apples and gets {b} more:" for name, a, b in _SUMS]
CHOICES = [" 7 in all", " 30", " books and pens", " 107 in all.", " 121 coins", " 77 more"]


def choices() -> list[dict[str, Any]]:
    """Questions with three choices each and a label that nothing decides."""
    return [
        {"question": question, "choices": [CHOICES[(n + i) % len(CHOICES)] for i in (0, 1, 3)], "label": n % 3}
        for n, question in enumerate(QUESTIONS)
    ]


def write_tasks(folder: Path, choose: Sequence[dict[str, Any]], write: Sequence[dict[str, Any]]) -> Path:
    """A folder of task files; the data files in them are named relative to it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, task, rows in (("choose", CHOOSE, choose), ("write", WRITE, write)):
        (folder / f"{name}.yaml").write_text(task)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "group.yaml").write_text(GROUP)
    return folder
