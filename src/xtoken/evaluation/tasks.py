"""Measuring a model in published tasks, or in one's own, through EleutherAI's lm-evaluation-harness (lm-eval).

Types: `LoadedTasks`, the tasks with their documents, and `TaskResult`. This is the only module that knows lm-eval, and
it loads it when a function here runs. Laws: what cannot work is told before a model is loaded; a prompt is tokenized as
training tokenizes a document, with what the tokenizer puts in front by itself exactly once and nothing behind.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xtoken.errors import XTokenError
from xtoken.evaluation.task_results import Metric, TaskResult
from xtoken.teachers.online import check_head
from xtoken.tokens import Vocabulary

__all__ = ["LoadedTasks", "evaluate_tasks", "load_tasks"]

log = logging.getLogger(__name__)

# lm-eval's own seeds, so that the examples in front of a question are those that others draw.
_SEED, _OTHER_SEEDS = 0, 1234
_NEW_TOKENS = 256  # lm-eval's, where a task does not say how many may be generated
_NAMES_SHOWN = 3
_NO_FILTER, _NO_VERSION = "none", "Yaml"  # what lm-eval calls a task without


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their documents, ready to be run.

    Attributes:
        top: names of the groups and tasks that were asked for, in that order; a tag's tasks stand for the tag.
        tasks: lm-eval's tasks by name, those inside groups among them.
        groups: lm-eval's groups by name.
        members: of each group, the names of what is directly in it.
        limit: the most documents of each task; None for all.
    """

    top: tuple[str, ...]
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    members: Mapping[str, Sequence[str]]
    limit: int | None = None


def load_tasks(
    names: Sequence[str], *, shots: int | None = None, limit: int | None = None, include: Path | None = None
) -> LoadedTasks:
    """Finds tasks and reads their documents, from the hub, its cache, or local files.

    Args:
        names: of tasks, groups or tags, as lm-eval or `include` has them.
        shots: solved examples before each question; None for each task's own number.
        limit: the most documents of each task, for a trial.
        include: a folder with task files of one's own; paths in them are relative to it.

    Raises:
        XTokenError: lm-eval is not installed; an unknown name; one task asked for twice; a folder without tasks;
            documents that are not there or may not be read; a number of shots that a task does not take.
    """
    _check_installed()
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise XTokenError("tasks are evaluated in one process; start `xtoken eval` without a launcher")
    manager = _manager(include)
    for name in names:
        _check_name(name, manager.all_tasks, include)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    members: dict[str, Sequence[str]] = {}
    top: list[str] = []
    with _quiet(logging.ERROR), _working_in(include):
        for name in names:
            loaded = _load(manager, name)
            if twice := sorted(tasks.keys() & loaded["tasks"].keys()):
                raise XTokenError(f"the task {twice[0]!r} is asked for twice, once by {name!r}; leave one out")
            inside = {member for inner in loaded["group_map"].values() for member in inner}
            top += [one for one in (*loaded["groups"], *loaded["tasks"]) if one not in inside]
            tasks |= loaded["tasks"]
            groups |= loaded["groups"]
            members |= loaded["group_map"]
    for name, task in tasks.items():
        _check_task(name, task)
        _set_shots(name, task, shots)
    return LoadedTasks(tuple(top), tasks, groups, members, limit)


def evaluate_tasks(
    model: Any, vocabulary: Vocabulary, tasks: LoadedTasks, *, batch_size: int = 8
) -> tuple[TaskResult, ...]:
    """Runs tasks on a causal LM, on the device it is on, and says what it scored.

    Args:
        model: a Hugging Face causal LM; it is left in evaluation mode.
        vocabulary: its tokenizer.
        tasks: what `load_tasks` gave. They keep their answers, so load them anew for another model.
        batch_size: sequences in a forward pass.

    Returns:
        One result for each of `tasks.top`.

    Raises:
        XTokenError: a tokenizer without bos and eos; a model with too few positions for what a task generates, or too
            small for its tokenizer.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    check_head(model, vocabulary.size, "the model")
    _check_positions(model, tasks)
    random.seed(_SEED)
    np.random.seed(_OTHER_SEEDS)
    torch.manual_seed(_OTHER_SEEDS)
    # Some tasks print, and stdout is for results alone.
    with redirect_stdout(sys.stderr), _counting_cuts():
        with _quiet(logging.ERROR):  # it warns that a model was handed over
            harness = HFLM(pretrained=model, tokenizer=_tokenizer(vocabulary), batch_size=batch_size)
        found = lm_eval.evaluate(
            lm=harness,
            task_dict={"tasks": tasks.tasks, "groups": tasks.groups, "group_map": tasks.members},
            limit=tasks.limit,
            log_samples=False,
        )
    dtype = str(model.dtype).removeprefix("torch.")
    return tuple(_result(name, found, tasks, dtype) for name in tasks.top)


def _check_installed() -> None:
    if find_spec("lm_eval") is None:
        raise XTokenError("tasks need the package lm-eval, which is not installed: pip install 'xtoken[eval]'")


def _manager(include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise XTokenError(f"--include {include}: there is no such folder; expected one with task files (.yaml)")
    if include is not None and not any(include.rglob("*.yaml")):
        raise XTokenError(f"--include {include}: there is no task file (.yaml) in it")
    with _quiet(logging.ERROR):
        return TaskManager(include_path=None if include is None else str(include.resolve()))


def _check_name(name: str, known: Sequence[str], include: Path | None) -> None:
    if name in known:
        return
    near = get_close_matches(name, known, n=_NAMES_SHOWN)
    hint = f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
    where = "lm-eval" if include is None else f"lm-eval or {include}"
    raise XTokenError(
        f"there is no task {name!r}{hint} in {where}; list them with `lm-eval ls tasks`, or give a folder of your own "
        "tasks by --include"
    )


def _load(manager: Any, name: str) -> Any:
    """A task, group or tag with its documents. It raises what datasets, the hub and the task's own code raise."""
    try:
        return manager.load([name])
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise XTokenError(f"cannot load the task {name!r}: {reason}{_way_out(error)}") from error


def _way_out(error: BaseException) -> str:
    """What to do about it, by the kind of error; the cause may lie beneath others."""
    kinds: set[str] = set()
    beneath: BaseException | None = error
    while beneath is not None:
        kinds |= {kind.__name__ for kind in type(beneath).__mro__}
        beneath = beneath.__cause__ or beneath.__context__
    if "gated" in str(error).lower() or "GatedRepoError" in kinds:
        return ". Ask for access on its page on the hub, and log in (hf auth login)."
    if "ModuleNotFoundError" in kinds:
        return ". The task needs that package besides: install it."
    if kinds & {"ConnectionError", "OfflineModeIsEnabled", "DatasetNotFoundError", "LocalEntryNotFoundError"}:
        return (
            ". Its documents come from the hub: run once with a network, after which they are cached; or give the task "
            "as local files by --include."
        )
    return ""


def _check_task(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise XTokenError(f"the task {name!r} runs code that the model writes, which xtoken does not; leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise XTokenError(f"the task {name!r} shows pictures, and the model reads text; leave it out")


def _set_shots(name: str, task: Any, shots: int | None) -> None:
    own = task.get_config("num_fewshot")
    if own == 0 and shots:
        raise XTokenError(
            f"--shots {shots} has no effect on the task {name!r}, whose file says 0 (its prompt is made without); "
            "evaluate it apart, without --shots"
        )
    task.set_config(key="num_fewshot", value=(own or 0) if shots is None else shots)
    task.set_fewshot_seed(seed=_OTHER_SEEDS)


def _check_positions(model: Any, tasks: LoadedTasks) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, task in tasks.tasks.items():
        if task.get_config("output_type") != "generate_until" or not positions:
            continue
        wanted = (task.get_config("generation_kwargs") or {}).get("max_gen_toks", _NEW_TOKENS)
        if wanted >= positions:
            raise XTokenError(
                f"the task {name!r} generates up to {wanted} tokens, and the model has {positions} positions, with no "
                "room for the prompt; set generation_kwargs.max_gen_toks lower in a task file of your own (--include)"
            )


def _tokenizer(vocabulary: Vocabulary) -> Any:
    """The tokenizer as transformers holds one: what its files say, with the automatic prefix and without a suffix.

    lm-eval takes the tokens of a choice to be what comes after those of the question alone, which an automatic eos
    would break.
    """
    from transformers import PreTrainedTokenizerFast

    if vocabulary.bos_id is None and vocabulary.eos_id is None:
        raise XTokenError(
            "the tokenizer names neither a bos nor an eos token, and lm-eval needs one; name it in "
            "tokenizer_config.json (eos_token)"
        )
    # Decoded as it is: some folders ask for spaces before punctuation to be taken out.
    return PreTrainedTokenizerFast(
        tokenizer_object=vocabulary.to_tokenizer(), clean_up_tokenization_spaces=False, **vocabulary.named_specials
    )


def _result(name: str, found: Mapping[str, Any], tasks: LoadedTasks, dtype: str) -> TaskResult:
    """What lm-eval found for a task, or for a group and everything in it."""
    figures = (found.get("groups") or {}).get(name) or found["results"].get(name) or {}
    parts = tuple(_result(part, found, tasks, dtype) for part in tasks.members.get(name, ()))
    task = tasks.tasks.get(name)
    number = (found.get("versions") or {}).get(name)
    number = None if number == _NO_VERSION else number
    shots = {part.shots for part in parts} if task is None else {task.get_config("num_fewshot")}
    return TaskResult(
        task=name,
        version=None if number is None else str(number),
        shots=shots.pop() if len(shots) == 1 else None,
        documents=sum(part.documents for part in parts) if task is None else int(figures["sample_len"]),
        limit=tasks.limit,
        dtype=dtype,
        dataset=None if task is None else task.DATASET_PATH,
        dataset_config=None if task is None else task.DATASET_NAME,
        lm_eval=version("lm_eval"),
        metrics=tuple(_metrics(figures)),
        parts=parts,
    )


def _metrics(figures: Mapping[str, Any]) -> Iterator[Metric]:
    """lm-eval's keys are `METRIC,FILTER` and `METRIC_stderr,FILTER`."""
    for key, value in figures.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        stderr = figures.get(f"{name}_stderr,{filtered}")
        yield Metric(
            name,
            None if filtered == _NO_FILTER else filtered,
            float(value),
            float(stderr) if isinstance(stderr, (int, float)) else None,
        )


@contextmanager
def _working_in(folder: Path | None) -> Iterator[None]:
    """With a folder as the working directory, to which the data files in task files are relative."""
    if folder is None:
        yield
        return
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _quiet(level: int) -> Iterator[None]:
    """Keeps lm-eval from saying less than `level`."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Cuts(logging.Filter):
    """Counts the messages of prompts that were cut, and lets the others through.

    There is one for each prompt with a choice behind it, but one for each batch of prompts to be answered in writing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        is_cut = "truncat" in record.getMessage().lower()
        self.count += is_cut
        return not is_cut


@contextmanager
def _counting_cuts() -> Iterator[None]:
    """Says at the end how many prompts at least were longer than the model's positions."""
    cuts, logger = _Cuts(), logging.getLogger("lm_eval.models.huggingface")
    logger.addFilter(cuts)
    try:
        yield
    finally:
        logger.removeFilter(cuts)
    if cuts.count:
        log.warning(
            "at least %d prompts were longer than the model's positions, and their beginnings were cut off", cuts.count
        )
