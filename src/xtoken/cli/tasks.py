"""The tasks of `xtoken eval --tasks`: what is printed, and where the figures go."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xtoken.cli.console import err, out, print_json
from xtoken.errors import XTokenError

if TYPE_CHECKING:
    from xtoken.evaluation.task_results import TaskResult
    from xtoken.training.models import LoadedModel

__all__ = ["eval_tasks"]


def eval_tasks(
    model: str,
    load: Callable[[], LoadedModel],
    names: str,
    *,
    shots: int | None,
    limit: int | None,
    include: Path | None,
    batch_size: int,
    file: Path | None,
    as_json: bool,
) -> None:
    """Runs tasks, prints what was scored, and writes it down.

    Args:
        model: a model folder or a hub id.
        load: loads it; called when the tasks are known to be there.
        names: of tasks, with commas between them.
        shots, limit, include, batch_size: as for `xtoken.evaluation.tasks`.
        file: where to write; None for the model's folder and its card. A trial (`limit`) and a model on the hub are
            written nowhere then.
        as_json: print one JSON object instead of a table.

    Raises:
        XTokenError: no names; a place that cannot be written to; and what the tasks and the model raise.
    """
    from xtoken.evaluation.task_results import TASKS_FILE, read_results, results_json, weights_digest, write_results
    from xtoken.evaluation.tasks import evaluate_tasks, load_tasks

    asked = [name.strip() for name in names.split(",") if name.strip()]
    if not asked:
        raise XTokenError(f"--tasks {names!r} names no task; expected names with commas between them: mmlu,gsm8k")
    folder = Path(model).expanduser()
    in_folder = file is None and limit is None and folder.is_dir()
    target = folder / TASKS_FILE if in_folder else file
    if target is not None:
        _check_writable(target)
    tasks = load_tasks(asked, shots=shots, limit=limit, include=include)
    loaded = load()
    results = evaluate_tasks(loaded.model, loaded.vocabulary, tasks, batch_size=batch_size)
    weights = weights_digest(folder) if folder.is_dir() else None
    shown = folder.resolve().name if folder.is_dir() else model
    if as_json:
        print_json(results_json(shown, weights, results))
    else:
        _show(results, model)
    if target is None:
        why = "a trial (--limit)" if limit is not None else "a model that is no folder"
        err().print(f"not written down, for this is {why}; --out FILE writes it", soft_wrap=True)
        return
    before = read_results(target)[1] if target.exists() else ()
    together = write_results(target, shown, weights, results)
    err().print(f"written to {target}", soft_wrap=True)
    if dropped := {each.task for each in before} - {each.task for each in together}:
        whose = "other weights" if weights is not None else "weights that may be others"
        err().print(f"figures of {whose}, now dropped from it: {', '.join(sorted(dropped))}", soft_wrap=True)
    if in_folder:
        _write_card(folder, together)


def _check_writable(file: Path) -> None:
    """Before hours of work, not after."""
    from xtoken.evaluation.task_results import read_results

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XTokenError(f"cannot make the folder {file.parent}: {error.strerror}") from None
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise XTokenError(f"cannot write {file}; give another file by --out")
    if file.exists():
        read_results(file)


def _write_card(folder: Path, results: Sequence[TaskResult]) -> None:
    """Puts the figures into the folder's card, if that is one of ours; those of a trial are kept out of it."""
    from xtoken.files import write_whole
    from xtoken.training.card import CARD_FILE, is_own_card, with_tasks

    card = folder / CARD_FILE
    if is_own_card(card):
        whole = [result for result in results if result.limit is None]
        write_whole(card, with_tasks(card.read_text(encoding="utf-8"), whole))
    elif card.exists():
        err().print(f"{card} is not xtoken's, so it stays as it is", soft_wrap=True)


def _show(results: Sequence[TaskResult], model: str) -> None:
    from rich.table import Table

    table = Table(title=model, title_justify="left")
    for heading in ("task", "metric", "value", "stderr", "n", "shots"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for result in results:
        for metric in result.metrics:
            stderr = "" if metric.stderr is None else f"{metric.stderr:.4f}"
            shots = "" if result.shots is None else str(result.shots)
            table.add_row(result.task, metric.label, f"{metric.value:.4f}", stderr, f"{result.documents:,}", shots)
    out().print(table)
