"""What a model scored in tasks, and the file that holds it.

Type: `TaskResult`. Law: a file holds figures of one set of weights; those of other weights are dropped when new ones
are written into it, and a task measured again replaces what it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xtoken.errors import XTokenError
from xtoken.files import write_whole

__all__ = ["TASKS_FILE", "Metric", "TaskResult", "read_results", "results_json", "weights_digest", "write_results"]

TASKS_FILE = "xtoken_tasks.json"
_FORMAT, _VERSION = "xtoken-tasks", 1
_CHUNK = 2**24  # bytes read at once


@dataclass(frozen=True)
class Metric:
    """One figure of a task.

    Attributes:
        name: lm-eval's, `acc` say.
        filter: how an answer was read out of the text, where a task has several ways (`strict-match`).
        value: as the task's metric has it: a share of 0 to 1, for most.
        stderr: its standard error over the documents; None where the metric has none.
    """

    name: str
    filter: str | None
    value: float
    stderr: float | None

    @property
    def label(self) -> str:
        """The name, with the filter where there is one."""
        return self.name if self.filter is None else f"{self.name} ({self.filter})"


@dataclass(frozen=True)
class TaskResult:
    """What a model scored in a task, or in a group of tasks together.

    Attributes:
        task: its name in lm-eval.
        version: of the task, as its file states it.
        shots: solved examples before each question; None where the tasks of a group differ.
        documents: how many were scored.
        limit: the most documents taken of each task; None for all.
        dtype: of the weights.
        dataset, dataset_config: where the documents come from; None for a group.
        lm_eval: the version that measured it.
        metrics: in lm-eval's order, its main one first.
        parts: of a group, its tasks.
    """

    task: str
    version: str | None
    shots: int | None
    documents: int
    limit: int | None
    dtype: str
    dataset: str | None
    dataset_config: str | None
    lm_eval: str
    metrics: tuple[Metric, ...]
    parts: tuple[TaskResult, ...] = ()


def results_json(model: str, weights: str | None, results: Sequence[TaskResult]) -> dict[str, Any]:
    """Results as plain JSON types; a value that is not finite is null."""
    tasks = [_without_nan(asdict(result)) for result in results]
    return {"format": _FORMAT, "version": _VERSION, "model": model, "weights": weights, "tasks": tasks}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(file: Path, model: str, weights: str | None, results: Sequence[TaskResult]) -> tuple[TaskResult, ...]:
    """Writes results, beside those of other tasks that the file holds of the same weights.

    Args:
        file: where to; what stands there under this name must be a file of ours.
        model: what the file is to call it.
        weights: `weights_digest`; where it is None, nothing that stood there is kept.
        results: of each task, once.

    Returns:
        All results the file now holds, those kept first.

    Raises:
        XTokenError: another file stands there.
    """
    new = {result.task for result in results}
    there = read_results(file) if file.exists() else (None, ())
    kept = there[1] if weights is not None and there[0] == weights else ()
    together = (*(result for result in kept if result.task not in new), *results)
    write_whole(file, json.dumps(results_json(model, weights, together), indent=2, ensure_ascii=False) + "\n")
    return together


def read_results(file: Path) -> tuple[str | None, tuple[TaskResult, ...]]:
    """The digest of the weights and the results in a file.

    Raises:
        XTokenError: no such file; it is not of this format, or a part of it is not there; a later version wrote it.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise XTokenError(f"cannot read {file}: {error.strerror}") from None
    except ValueError:
        raise XTokenError(f"{file} is not JSON; expected what `xtoken eval --tasks` writes") from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise XTokenError(f"{file} is no file of task results; expected what `xtoken eval --tasks` writes")
    if found.get("version") != _VERSION:
        raise XTokenError(f"{file} has version {found.get('version')} and this xtoken reads {_VERSION}: update it")
    try:
        return found["weights"], tuple(_result(task) for task in found["tasks"])
    except (KeyError, TypeError) as error:
        raise XTokenError(f"{file} is not what `xtoken eval --tasks` wrote: {error!r}") from None


def _result(raw: dict[str, Any]) -> TaskResult:
    metrics = tuple(Metric(**{**m, "value": math.nan if m["value"] is None else m["value"]}) for m in raw["metrics"])
    return TaskResult(**{**raw, "metrics": metrics, "parts": tuple(_result(part) for part in raw["parts"])})


def weights_digest(folder: Path) -> str | None:
    """sha256 of a model folder's weights; None where they are not in safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as content:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest() if files else None
