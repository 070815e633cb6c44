"""A study that is over in seconds: tiny models, a few documents, two steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from training import tiny


def answers(n: int, seed: int) -> list[dict[str, str]]:
    """Prompts and their answers, from the documents."""
    found = []
    for text in tiny.documents(n, seed):
        prompt, _, rest = text.rpartition(": ")
        found.append({"prompt": f"{prompt}: ", "answer": rest.split()[0], "text": text})
    return found


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def files(folder: Path) -> None:
    """The models and texts that `study` names, in a folder."""
    tiny.student_folder(folder / "student")
    for weights in (folder / "student").glob("*.safetensors"):
        weights.unlink()
    tiny.teacher_folder(folder / "teacher")
    tiny.student_folder(folder / "small", seed=3)
    (folder / "train.jsonl").write_text(lines(answers(24, 0)))
    (folder / "held_out.txt").write_text("\n".join(tiny.documents(6, 1)))
    (folder / "validation.txt").write_text("\n".join(tiny.documents(6, 2)))
    (folder / "answers.jsonl").write_text(lines(answers(6, 1)))


def raw(folder: Path, **changes: Any) -> dict[str, Any]:
    """A study of two methods and two seeds; a change replaces a section, and None removes it."""
    made: dict[str, Any] = {
        "name": "tiny",
        "base": {"optim": {"steps": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3}},
        "pairs": {
            "p": {
                "student": str(folder / "student"),
                "models": {"main": str(folder / "teacher"), "small": str(folder / "small")},
                "data": {"files": [str(folder / "train.jsonl")]},
            }
        },
        "methods": {"ce": {}, "gold": {"teachers": [{"model": "main", "loss": "gold"}]}},
        "labels": {"ce": "cross-entropy alone", "gold": "GOLD"},
        "seeds": [0, 1],
        "measures": {
            "held_out": {"files": [str(folder / "held_out.txt")]},
            "answers": str(folder / "answers.jsonl"),
            "batch_size": 8,
        },
        "baselines": ["ce"],
        "questions": [
            {"id": "a", "asks": "is GOLD worse?", "claims": [
                {"pair": "p", "measure": "bits_per_byte", "better": "ce", "than": "gold"}
            ]},
        ],
    }  # fmt: skip
    return {key: value for key, value in (made | changes).items() if value is not None}


def write(folder: Path, **changes: Any) -> Path:
    """The study's file, in the folder of its models."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(raw(folder, **changes), sort_keys=False))
    return file
