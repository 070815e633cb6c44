"""A small finished run for tests of its report: two teachers, held-out text, and hostile text in all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training import tiny
from xtoken.training import distil

# What a text may hold and a page must show as text: an element, an attribute's end, an entity, a template's braces.
HOSTILE = '<script>window.hacked = true</script><img src=x onerror="window.hacked=true"> &lt; \' {0} 12'


def made_run(folder: Path, **changes: Any) -> Path:
    """Trains for a second and gives back the run's folder; `base`, `big` and `kin` beside it are the models.

    Args:
        folder: an empty one.
        changes: of the config's sections.
    """
    documents, held_out = [*tiny.documents(30), HOSTILE], [HOSTILE, *tiny.documents(6, seed=9)]
    (folder / "train.txt").write_text("\n".join(documents), encoding="utf-8")
    (folder / "held_out.txt").write_text("\n".join(held_out), encoding="utf-8")
    raw: dict[str, Any] = {
        "student": {"model": str(tiny.student_folder(folder / "base"))},
        "teachers": [
            {"model": str(tiny.teacher_folder(folder / "big")), "name": "big <b>", "loss": "p-kl"},
            {"model": str(tiny.student_folder(folder / "kin", seed=5)), "loss": "same", "weight": 0.5},
        ],
        "data": {"files": [str(folder / "train.txt")]},
        "optim": {"steps": 4, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-3},
        "eval": {"files": [str(folder / "held_out.txt")], "every": 2},
        "output": {"folder": str(folder / "out")},
    } | changes
    distil(raw, quiet=True)
    return folder / "out"
