"""X-Token's table of results, and how each row of it is made here: the one place where the paper's figures stand.

Source: Sreenivas et al., X-Token, arXiv 2605.21699: its main table, its table 3 (W not learned) and its text (losses
reversed). Student Llama-3.2-1B, 3-shot, in percent. Type: `Row`. A row is made by `xtoken train` with a config and
changes to it; the first is the student as it is.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONFIGS", "ROWS", "SOURCE", "TASKS", "Column", "Row", "command", "evaluation", "folder"]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SOURCE = "arXiv 2605.21699"
STUDENT = "meta-llama/Llama-3.2-1B"
SHOTS = 3


@dataclass(frozen=True)
class Column:
    """A column of the table as lm-eval measures it.

    Attributes:
        name: the paper's.
        task: lm-eval's.
        metric: of those the task has. The paper names none.
        filter: how the answer is read out of the text, where there are several ways.
    """

    name: str
    task: str
    metric: str
    filter: str | None = None


# lm-eval's first metric of each, but for HellaSwag. There it is `acc`, and `acc_norm`, which divides by a choice's
# length, is what is commonly published: the paper's 65.08 for the base looks like that one. It is a guess, and --metric
# of `benchmarks.compare` changes it.
TASKS = (
    Column("MMLU", "mmlu", "acc"),
    Column("GSM8k", "gsm8k", "exact_match", "strict-match"),
    Column("MATH", "hendrycks_math", "exact_match"),
    Column("Winogrande", "winogrande", "acc"),
    Column("HellaSwag", "hellaswag", "acc_norm"),
)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        key: the name of its run's folder.
        label: for people.
        figures: the paper's, in percent, as `TASKS`; empty where only the average is given.
        average: of the five.
        config: of the run, in configs/; None for the student as it is.
        changes: what --set changes of it.
    """

    key: str
    label: str
    figures: tuple[float, ...]
    average: float
    config: str | None
    changes: tuple[str, ...] = ()


_QWEN, _PHI = "llama-3.2-1b-from-qwen3-4b", "llama-3.2-1b-from-phi-4-mini"
_NO_TOP_K = "teachers.0.top_k=null"  # which is P-KL's alone

_LEARNT = "teachers.0.projection.learnable=true"


def _by(loss: str, *more: str) -> tuple[str, ...]:
    return (f"teachers.0.loss={loss}", *more)


ROWS = (
    Row("base", "base", (32.05, 5.69, 5.48, 61.48, 65.08), 33.96, None),
    Row("alone", "continued pre-training", (40.50, 10.25, 6.90, 61.60, 63.90), 36.63, "llama-3.2-1b-alone"),
    Row(
        "llama-3b", "Llama-3.2-3B, same tokenizer", (43.83, 12.89, 8.16, 62.70, 64.42), 38.40,
        "llama-3.2-1b-from-llama-3.2-3b",
    ),
    Row("qwen-uld", "Qwen3-4B, ULD", (40.34, 14.56, 4.04, 61.96, 62.93), 36.77, _QWEN, _by("uld", _NO_TOP_K)),
    Row("qwen-gold", "Qwen3-4B, GOLD", (42.56, 2.56, 4.50, 62.95, 62.59), 35.03, _QWEN, _by("gold", _NO_TOP_K)),
    Row("qwen-p-kl", "Qwen3-4B, P-KL", (44.67, 15.54, 7.96, 63.46, 62.63), 38.85, _QWEN, (_LEARNT,)),
    Row("phi-uld", "Phi-4-mini, ULD", (41.43, 17.97, 6.24, 62.59, 63.32), 38.31, _PHI, _by("uld")),
    Row("phi-gold", "Phi-4-mini, GOLD", (43.50, 16.50, 7.80, 62.60, 62.92), 38.66, _PHI, _by("gold")),
    Row("phi-h-kl", "Phi-4-mini, H-KL", (43.93, 19.11, 8.32, 61.87, 62.67), 39.18, _PHI),
    Row(
        "phi-llama", "Phi-4-mini 0.8 + Llama-3.2-3B 0.2", (46.32, 20.39, 9.02, 63.30, 63.38), 40.48,
        "llama-3.2-1b-from-two-teachers",
    ),
    Row(
        "phi-qwen", "Phi-4-mini + Qwen3-4B", (43.98, 14.63, 8.10, 62.74, 63.00), 38.49,
        "llama-3.2-1b-from-phi-and-qwen",
    ),
    Row("three", "all three", (45.86, 19.18, 8.56, 63.61, 63.55), 40.15, "llama-3.2-1b-from-three-teachers"),
    Row("qwen-p-kl-fixed", "Qwen3-4B, P-KL, W not learned", (), 38.37, _QWEN),
    Row("qwen-h-kl", "reversed: Qwen3-4B, H-KL", (), 35.30, _QWEN, _by("h-kl", _NO_TOP_K)),
    Row("phi-p-kl", "reversed: Phi-4-mini, P-KL", (), 37.50, _PHI, _by("p-kl", "teachers.0.top_k=8192")),
)  # fmt: skip


def folder(row: Row) -> str:
    """Where its run is."""
    return f"runs/{row.key}"


def command(row: Row) -> str | None:
    """What trains it, from the root of a clone; None for the student as it is."""
    if row.config is None:
        return None
    changes = [part for change in (*row.changes, f"output.folder={folder(row)}") for part in ("--set", change)]
    return shlex.join(["xtoken", "train", f"configs/{row.config}.yaml", *changes])


def evaluation(row: Row) -> str:
    """What measures it."""
    model = STUDENT if row.config is None else folder(row)
    out = ["--out", f"{folder(row)}/xtoken_tasks.json"] if row.config is None else []
    tasks = ",".join(column.task for column in TASKS)
    return shlex.join(["xtoken", "eval", model, "--tasks", tasks, "--shots", str(SHOTS), *out])
