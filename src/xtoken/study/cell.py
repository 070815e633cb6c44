"""Runs one cell: trains by `distil`, measures the student, and says what came of it.

Law: a cell depends on itself alone, never on the cells that its process ran before. Teachers are loaded once in a
process and shared by its cells; a student is loaded or drawn anew for each.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xtoken.config import TeacherConfig
from xtoken.errors import DivergedError, XTokenError
from xtoken.study.config import StudyConfig
from xtoken.study.measure import Against, keep_beliefs, loaded_model, measure, vocabulary_of
from xtoken.study.plan import Cell, Reference, TeacherAnswers, TeacherTexts, needs_weights
from xtoken.study.teacher_texts import write_teacher_texts
from xtoken.training import LoadedModel, distil
from xtoken.training.models import no_library_bars, tokenizer_files

__all__ = ["Job", "Outcome", "drawn_student", "run_job"]

Job = Cell | Reference | TeacherAnswers | TeacherTexts

# How a teacher is loaded is left to `distil` where its settings say anything about that.
_LOADING = ("revision", "trust_remote_code", "attention", "dtype", "quantization", "device_map", "chat_template")
_LOG_LINES = 100
_TERMINATED = 143  # 128 and the number of SIGTERM, as shells have it


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        measures: by name.
        seconds: of training, evaluation during it included.
        wall_seconds: of all of it.
        cpu_seconds: of this process, over its threads.
        log: at most 100 lines of the training's metrics, spread over it.
    """

    measures: dict[str, float]
    seconds: float
    wall_seconds: float
    cpu_seconds: float
    log: list[dict[str, Any]]


def run_job(study: StudyConfig, job: Job) -> Outcome:
    """Does what a plan asks for.

    Args:
        study: the study.
        job: one of its parts.

    Raises:
        XTokenError: what `distil` and the measures raise.
        KeyboardInterrupt: Ctrl-C ended the training.
    """
    wall, cpu, training, log = time.perf_counter(), time.process_time(), 0.0, list[dict[str, Any]]()
    measures: dict[str, float] = {}
    with no_library_bars():
        if isinstance(job, TeacherTexts):
            write_teacher_texts(job, loaded_model(job.model))
        elif isinstance(job, TeacherAnswers):
            teacher = loaded_model(job.model)
            keep_beliefs(teacher.model, teacher.vocabulary, job.answers, Path(job.file))
        elif isinstance(job, Reference):
            measures = _measured_reference(study, job)
        else:
            measures, training, log = _trained(study, job)
    return Outcome(measures, training, time.perf_counter() - wall, time.process_time() - cpu, _thinned(log))


def _trained(study: StudyConfig, cell: Cell) -> tuple[dict[str, float], float, list[dict[str, Any]]]:
    if cell.texts is not None and not Path(cell.texts.file).is_file():
        raise XTokenError("the text of its teacher was not written; see what failed before")
    settings, student, teachers = _participants(cell)
    try:
        result = distil(settings, student=student, teachers=teachers, quiet=True)
    except DivergedError as error:  # what reproduces the step lies among the temporary files, and goes with them
        raise DivergedError(str(error).partition(", so the training")[0]) from None
    if result.interrupted:
        raise KeyboardInterrupt if result.stop_signal == signal.SIGINT else SystemExit(_TERMINATED)
    model, folder = result.student, study.pairs[cell.pair].student
    found = measure(model, vocabulary_of(folder), cell.measures, _against(study, cell, cell.stage))
    seconds, log = result.seconds, result.log
    del result, model
    _let_go()
    return found, seconds, log


def _participants(cell: Cell) -> tuple[dict[str, Any], LoadedModel | None, Sequence[LoadedModel]]:
    """The settings for `distil`, and whom it is handed loaded: a drawn student, and teachers that are shared."""
    settings = {**cell.settings}
    student, folder = None, str(settings["student"]["model"])
    if needs_weights(folder):
        student = drawn_student(folder, cell.seed)
        settings["student"] = {key: value for key, value in settings["student"].items() if key != "model"}
    entries = [TeacherConfig.model_validate(teacher) for teacher in settings["teachers"]]
    shared = [not set(_LOADING) & entry.model_fields_set for entry in entries]
    settings["teachers"] = [
        {key: value for key, value in teacher.items() if key != "model"} if is_shared else teacher
        for teacher, is_shared in zip(settings["teachers"], shared, strict=True)
    ]
    models = [str(entry.model) for entry, is_shared in zip(entries, shared, strict=True) if is_shared]
    return settings, student, [loaded_model(model) for model in models]


def drawn_student(folder: str, seed: int) -> LoadedModel:
    """A student with fresh weights, the same for the same seed, by the configuration in its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(folder).expanduser()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    return LoadedModel(model, vocabulary_of(folder), tokenizer_files(str(path)))


def _measured_reference(study: StudyConfig, reference: Reference) -> dict[str, float]:
    against = _against(study, reference, "main")
    if needs_weights(reference.model):
        loaded = drawn_student(reference.model, reference.seed)
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    else:
        loaded = loaded_model(reference.model)
    return measure(loaded.model, loaded.vocabulary, reference.measures, against)


def _against(study: StudyConfig, job: Cell | Reference, stage: str) -> Against:
    asked, models = study.measures, study.pairs[job.pair].models
    texts = asked.validation if stage == "sweep" else asked.held_out
    teacher = None if asked.teacher is None else models[asked.teacher]
    believed = None if job.answers is None else job.answers.file
    return Against(texts, asked.answers, teacher, believed, asked.batch_size)


def _thinned(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines spread over all of them, the first and the last included."""
    if len(log) <= _LOG_LINES:
        return list(log)
    places = [round(n * (len(log) - 1) / (_LOG_LINES - 1)) for n in range(_LOG_LINES)]
    return [log[place] for place in places]


def _let_go() -> None:
    """A student and its optimizer hold one another; the next cell needs their memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
