"""The output folder: one run to a folder, and a run never lost by accident.

A folder that holds a run is entered only to go on with it or to replace it, and replacing removes what a run wrote and
nothing else: its own files, and those it copied in, which it keeps a list of. The student is saved as a plain Hugging
Face folder. Law: a run goes on only with the settings and the data it began with, and a model that no run of ours wrote
is never written over by --resume.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from xtoken.config import RunConfig, flat, flat_settings
from xtoken.errors import XTokenError
from xtoken.evaluation.task_results import TASKS_FILE
from xtoken.files import write_whole
from xtoken.report.page import is_own_page
from xtoken.training.callbacks import METRICS_FILE
from xtoken.training.card import CARD_FILE, is_own_card
from xtoken.training.changes import what_changed

__all__ = ["check_same_run", "claim_folder", "clear_folder", "describe_run", "last_checkpoint", "save_student"]

CONFIG_FILE = "xtoken_config.yaml"
RUN_FILE = "xtoken_run.json"
REPORT_FILE = "report.html"  # where `xtoken report` puts its page
COPIED = "copied_files"  # the key in RUN_FILE
_CHECKPOINT = "checkpoint-"
FAILURE = "failure-step-"
# Written last of all in a checkpoint, so one that has it whole is whole.
TRAINER_STATE = "trainer_state.json"
# What says that a run was here, and what --overwrite removes.
_TRACES = (
    CONFIG_FILE,
    RUN_FILE,
    METRICS_FILE,
    TASKS_FILE,
    f"{_CHECKPOINT}*",
    f"{FAILURE}*",
    "config.json",
    "generation_config.json",
    "model*.safetensors*",
    "adapter_config.json",
    "adapter_model.safetensors",
)
# May change on the way. The data and the held-out text have keys of their own. Another number of steps stretches the
# schedule, and another micro-batch changes the factors of dynamic scaling: whoever changes them asks for that.
_FREE = (
    "output",
    "data.files",
    "data.dataset",
    "data.workers",
    "data.corpora.N.files",
    "data.corpora.N.dataset",
    "data.corpora.N.name",
    "optim.steps",
    "optim.micro_batch_size",
    "optim.gradient_checkpointing",
    "optim.compile",
    "eval",
)


def claim_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that a run may not enter; makes one that is missing, and removes nothing yet.

    Args:
        folder: the output folder; made where it is missing.
        resume: go on with the run in it.
        overwrite: replace the run in it.

    Raises:
        XTokenError: it holds a run and neither was asked for; both were; there is something to go on with, but no run
            of ours; it is a file or cannot be written.
    """
    if resume and overwrite:
        raise XTokenError("--resume goes on with a run and --overwrite removes it; give one of them")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XTokenError(f"cannot make the output folder {folder}: {error.strerror}") from None
    traces = _traces(folder)
    if traces and not resume and not overwrite:
        raise XTokenError(
            f"the output folder {folder} already holds a run or a model ({traces[0].name}): go on with it by --resume, "
            "replace it by --overwrite, or choose another folder"
        )
    if traces and resume and not _is_run(folder):
        raise XTokenError(
            f"the output folder {folder} holds {traces[0].name}, but not the {RUN_FILE} and {CONFIG_FILE} of a run, so "
            "--resume has nothing to go on with and would write over it: choose another folder, or replace what is "
            "there by --overwrite"
        )


def _is_run(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file() and (folder / CONFIG_FILE).is_file()


def clear_folder(folder: Path) -> None:
    """Removes a run and nothing else; to be called when nothing can go wrong any more before the new one."""
    card = [folder / CARD_FILE] if is_own_card(folder / CARD_FILE) else []
    report = [folder / REPORT_FILE] if is_own_page(folder / REPORT_FILE) else []
    for trace in [*_traces(folder), *_copied(folder), *card, *report]:
        if trace.is_dir():
            shutil.rmtree(trace)
        else:
            trace.unlink()


def _traces(folder: Path) -> list[Path]:
    return [trace for pattern in _TRACES for trace in sorted(folder.glob(pattern))]


def _copied(folder: Path) -> list[Path]:
    """The files that the run in a folder copied there, by its own list."""
    if not (folder / RUN_FILE).is_file():
        return []
    try:
        names = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get(COPIED, [])
    except ValueError:  # broken off or edited: then nothing is known of them
        return []
    return [folder / name for name in names if Path(name).name == name and (folder / name).is_file()]


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step that was written to its end."""
    whole = [path.parent for path in folder.glob(f"{_CHECKPOINT}*/{TRAINER_STATE}") if _is_json(path)]
    numbered = [path for path in whole if path.name.removeprefix(_CHECKPOINT).isdigit()]
    return max(numbered, key=checkpoint_step, default=None)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def checkpoint_of(folder: Path, step: int) -> Path | None:
    """The checkpoint of a step; None where it is missing or was not written to its end."""
    checkpoint = folder / f"{_CHECKPOINT}{step}"
    return checkpoint if _is_json(checkpoint / TRAINER_STATE) else None


def checkpoint_step(checkpoint: Path) -> int:
    """The step a checkpoint was written after."""
    return int(checkpoint.name.removeprefix(_CHECKPOINT))


def describe_run(folder: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
    """Writes the resolved config, which starts the same run again, and the facts that came of it.

    Args:
        folder: the output folder.
        config: with every choice made.
        facts: plain JSON types; `data` is the key of the prepared data, `made_of` its `ingredients`, `copied_files`
            what `save_student` copies.
    """
    resolved = yaml.safe_dump(config.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)
    write_whole(folder / CONFIG_FILE, resolved)
    write_whole(folder / RUN_FILE, json.dumps(facts, indent=2) + "\n")


def check_same_run(
    folder: Path, config: RunConfig, data_key: str, made_of: Mapping[str, Any], held_out_key: str | None = None
) -> None:
    """Refuses to go on with a run under other settings, on other data, or with another text held out.

    Args:
        folder: the output folder.
        config: with every choice made.
        data_key: of the prepared data.
        made_of: its `ingredients`.
        held_out_key: of the held-out text; None where nothing is evaluated.

    Raises:
        XTokenError: what changed, with both values.
    """
    if not _is_run(folder):  # the folder was empty, or `claim_folder` would have refused it
        return
    before = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    old, new = dict(flat(before)), dict(flat_settings(config))
    changed = [key for key in {**old, **new} if not _is_free(key) and old.get(key) != new.get(key)]
    facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    if changed:
        lines = "\n".join(f"  {key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in changed)
        raise XTokenError(
            f"the run in {folder} was started with other settings; --resume cannot go on with these\n{lines}"
        )
    if facts["data"] != data_key:
        lines = "\n".join(f"  {change}" for change in what_changed(facts.get("made_of"), made_of))
        raise XTokenError(
            f"the run in {folder} was started on other data, so --resume would train on the wrong documents\n{lines}\n"
            "Restore the data, or start anew with --overwrite."
        )
    evaluated_on = facts.get("held_out")
    if evaluated_on is not None and held_out_key != evaluated_on:
        raise XTokenError(
            f"the run in {folder} is evaluated on other held-out text, or in another eval.context_length, so its best "
            "figure so far would not compare. Restore the eval section and its files, or start anew with --overwrite."
        )


def _is_free(key: str) -> bool:
    """Whether a setting may change on the way; a place in a list does not matter for that."""
    return re.sub(r"\.\d+(?=\.|$)", ".N", key).startswith(_FREE)


def save_student(
    model: Any, folder: Path, tokenizer_files: Sequence[Path], weights: Mapping[str, Any] | None = None
) -> None:
    """Saves a model folder that plain transformers loads: safetensors, config, and the tokenizer's own files.

    Args:
        model: a Hugging Face model, or a `peft.PeftModel`, of which the adapter is saved.
        folder: where to.
        tokenizer_files: copied as they are.
        weights: whole, of a model that is sharded over processes; None for its own.
    """
    model.save_pretrained(folder, **({} if weights is None else {"state_dict": _without_tied(model, weights)}))
    for file in tokenizer_files:
        shutil.copy(file, folder / file.name)


def _without_tied(model: Any, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Each weight under the first of its names: gathering makes a copy for every name of a tied one."""
    first: dict[int, str] = {}
    named = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: weight for name, weight in weights.items() if named.get(name, name) == name}
