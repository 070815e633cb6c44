"""A whole run: from settings to a saved student.

`distil` is the Python entry point and what `xtoken train` calls. It loads, audits, aligns, trains and saves; each of
these lives elsewhere, and this file is their order. What is already in memory (models, texts) can be passed in and is
then not named in the config.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from xtoken.config import DataConfig, OptimConfig, RunConfig, TeacherConfig, parse_config
from xtoken.errors import XTokenError
from xtoken.teachers.online import OnlineTeacher
from xtoken.training.callbacks import CheckpointFiles, StopRequest, stop_on_interrupt
from xtoken.training.data import DataReport, PreparedData, Side, prepare, side_key
from xtoken.training.models import LoadedModel, load_model, max_positions
from xtoken.training.objectives import Objective, make_objective
from xtoken.training.output import (
    check_same_run,
    checkpoint_step,
    claim_folder,
    clear_folder,
    describe_run,
    last_checkpoint,
    save_student,
)
from xtoken.training.texts import TextSource, texts_from_dataset, texts_from_files, texts_from_list

__all__ = ["RunResult", "TeacherChoice", "cache_folder", "distil"]

log = logging.getLogger(__name__)

CACHE_VARIABLE = "XTOKEN_CACHE"
_DEFAULT_MICRO_BATCH = 4  # documents; fits a 1B student with its teacher at 4,096 tokens on an 80 GB GPU, by estimate
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class TeacherChoice:
    """What a teacher teaches by, and why."""

    name: str
    loss: str
    reason: str


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        student: the trained model.
        folder: where it was saved; None where nothing was.
        steps: the optimizer steps behind it, those before a resume included.
        interrupted: whether Ctrl-C ended it early; then `checkpoint` is where it goes on, and no student was saved.
        checkpoint: the last one.
        teachers: their losses and the reasons.
        data: what became of the documents.
        log: the lines of metrics, one dict each.
        seconds: of training, loading and alignment not counted.
    """

    student: Any
    folder: Path | None
    steps: int
    interrupted: bool
    checkpoint: Path | None
    teachers: tuple[TeacherChoice, ...]
    data: DataReport
    log: list[dict[str, Any]]
    seconds: float


def distil(
    config: RunConfig | Mapping[str, Any],
    *,
    student: LoadedModel | None = None,
    teachers: Sequence[LoadedModel] = (),
    texts: Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Trains a student on text and on its teachers, and saves it.

    Args:
        config: the settings, or what a YAML file of them would hold.
        student: a loaded student, trained in place; then the config names none.
        teachers: loaded teachers, in order, for those entries of `config.teachers` that name no model.
        texts: documents in memory; then the config names no data.
        resume: go on from the last checkpoint in the output folder, or begin where there is none.
        overwrite: replace the run in the output folder.
        quiet: no progress bars.

    Returns:
        The student and how it went. Without `output.folder` nothing is written.

    Raises:
        XTokenError: anything in the settings, models or data that the caller can mend.
    """
    config = config if isinstance(config, RunConfig) else parse_config(config)
    source = _source(config.data, texts)
    if config.data.max_documents is not None:
        source = source.first(config.data.max_documents)
    _check_trackers(config.output.trackers)
    _batches(config.optim)  # mistakes that cost nothing to find are told before anything is loaded
    folder = _folder(config, resume, overwrite)
    cache = cache_folder()
    with _no_library_bars() if quiet else nullcontext():
        learner = _student(config, student)
        config, pairs = _teachers(config, learner, teachers)
    objectives = [make_objective(c, learner.vocabulary, loaded.vocabulary, cache) for c, loaded in pairs]
    for (c, _), objective in zip(pairs, objectives, strict=True):
        log.info("teacher %s teaches by %s: %s", c.name, objective.name, objective.reason)
    data = prepare(
        source,
        Side(learner.vocabulary, config.data.context_length),
        [Side(loaded.vocabulary, c.context_length or config.data.context_length) for c, loaded in pairs],
        append_eos=config.data.append_eos,
        method=config.data.alignment,
        cache=cache,
        progress=not quiet,
    )
    _tell(data.report)
    if folder is not None and overwrite:
        clear_folder(folder)
    return _Run(config, learner, pairs, objectives, data, folder, quiet).go(resume)


@dataclass(frozen=True)
class _Run:
    """Everything made ready."""

    config: RunConfig
    learner: LoadedModel
    pairs: list[tuple[TeacherConfig, LoadedModel]]
    objectives: list[Objective]
    data: PreparedData
    folder: Path | None
    quiet: bool

    def go(self, resume: bool) -> RunResult:
        checkpoint = None
        if self.folder is not None:
            if resume:
                check_same_run(self.folder, self.resolved(), self.data.key)
                checkpoint = last_checkpoint(self.folder)
                log.info("going on from %s" if checkpoint else "nothing to go on from in %s", checkpoint or self.folder)
            describe_run(self.folder, self.resolved(), self.facts())
        with ExitStack() as stack:
            stack.enter_context(_no_library_bars())
            folder = self.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xtoken-")))
            return self.train(folder, checkpoint, stack.enter_context(stop_on_interrupt()))

    def train(self, folder: Path, checkpoint: Path | None, stop: StopRequest) -> RunResult:
        from xtoken.training.trainer import (
            XTokenTrainer,
        )  # pulls in the whole Trainer: late, so that mistakes show first

        trainer = XTokenTrainer(
            self.learner.model,
            self.online_teachers(),
            _arguments(self.config, folder, saves=self.folder is not None, quiet=self.quiet),
            self.data,
            student_vocab_size=self.learner.vocabulary.size,
            kd_weight=self.config.loss.kd_weight,
            ce_weight=self.config.loss.ce_weight,
            callbacks=[stop, CheckpointFiles(list(self.learner.tokenizer_files))],
        )
        steps, began = self.config.optim.steps, time.perf_counter()
        if checkpoint is not None and checkpoint_step(checkpoint) >= steps:
            log.info("the run is at step %d of %d already", checkpoint_step(checkpoint), steps)
            trainer._load_from_checkpoint(str(checkpoint))
            done = checkpoint_step(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            done = int(trainer.state.global_step)
        interrupted = stop.asked and done < steps
        if self.folder is not None and not interrupted and trainer.is_world_process_zero():
            save_student(trainer.accelerator.unwrap_model(trainer.model), self.folder, self.learner.tokenizer_files)
        return RunResult(
            student=self.learner.model,
            folder=self.folder,
            steps=done,
            interrupted=interrupted,
            checkpoint=None if self.folder is None else last_checkpoint(self.folder),
            teachers=self.choices(),
            data=self.data.report,
            log=[line for line in trainer.state.log_history if "ce" in line],
            seconds=time.perf_counter() - began,
        )

    def online_teachers(self) -> list[OnlineTeacher]:
        return [
            OnlineTeacher(
                str(config.name),
                loaded.model,
                loaded.vocabulary.size,
                objective.loss,
                side=side_key(loaded.vocabulary),
                weight=config.weight,
                temperature=config.temperature,
            )
            for (config, loaded), objective in zip(self.pairs, self.objectives, strict=True)
        ]

    def choices(self) -> tuple[TeacherChoice, ...]:
        named = zip(self.pairs, self.objectives, strict=True)
        return tuple(TeacherChoice(str(config.name), o.name, o.reason) for (config, _), o in named)

    def resolved(self) -> RunConfig:
        """The config with every choice made: `auto` is what it came to."""
        chosen = [c.model_copy(update={"loss": o.name}) for (c, _), o in zip(self.pairs, self.objectives, strict=True)]
        return self.config.model_copy(update={"teachers": chosen})

    def facts(self) -> dict[str, Any]:
        import transformers

        import xtoken

        return {
            "data": self.data.key,
            "documents": asdict(self.data.report),
            "teachers": [asdict(choice) for choice in self.choices()],
            "student_fingerprint": self.learner.vocabulary.fingerprint,
            "teacher_fingerprints": [loaded.vocabulary.fingerprint for _, loaded in self.pairs],
            "versions": {m.__name__: m.__version__ for m in (xtoken, torch, transformers)},
        }


def cache_folder() -> Path:
    """Where W and prepared data are kept: $XTOKEN_CACHE, or ~/.cache/xtoken."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "xtoken")


def _source(data: DataConfig, texts: Sequence[str] | None) -> TextSource:
    named = data.files is not None or data.dataset is not None
    if texts is not None:
        if named or data.text_column is not None or data.split_text_by is not None:
            raise XTokenError("texts were passed, so the data section's files, dataset and columns have no effect")
        return texts_from_list(texts)
    if data.files is not None:
        return texts_from_files(data.files, text_column=data.text_column, split_by=data.split_text_by)
    if data.dataset is None:
        raise XTokenError("there is no data: name data.files (local text) or data.dataset (a `datasets` id)")
    return texts_from_dataset(
        data.dataset, config=data.config, split=data.split, revision=data.revision, text_column=data.text_column
    )


def _folder(config: RunConfig, resume: bool, overwrite: bool) -> Path | None:
    if config.output.folder is None:
        if resume or overwrite:
            raise XTokenError("--resume and --overwrite have no effect without output.folder")
        return None
    folder = Path(config.output.folder).expanduser()
    for model in (config.student.model, *(teacher.model for teacher in config.teachers)):
        if model is not None and Path(model).expanduser().resolve() == folder.resolve():
            raise XTokenError(f"the output folder {folder} is the folder of a model of this run; choose another")
    claim_folder(folder, resume=resume, overwrite=overwrite)
    return folder


def _student(config: RunConfig, given: LoadedModel | None) -> LoadedModel:
    settings = config.student
    if given is not None:
        if settings.model is not None:
            raise XTokenError("a loaded student was passed, so student.model has no effect; leave it out")
        return given
    if settings.model is None:
        raise XTokenError("there is no student: name student.model, a folder or a hub id")
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    return load_model(settings.model, who="student", revision=settings.revision, dtype=dtype)


def _teachers(
    config: RunConfig, learner: LoadedModel, given: Sequence[LoadedModel]
) -> tuple[RunConfig, list[tuple[TeacherConfig, LoadedModel]]]:
    """Every teacher with its settings, contexts shortened to what the models have positions for."""
    unnamed = sum(teacher.model is None for teacher in config.teachers)
    if unnamed != len(given):
        raise XTokenError(
            f"{unnamed} of the config's teachers name no model, and {len(given)} loaded ones were passed: pass as many"
        )
    remaining = iter(given)
    loaded = [next(remaining) if c.model is None else _load_teacher(c, n) for n, c in enumerate(config.teachers)]
    config = config.model_copy(update={"data": _fitted_data(config.data, learner)})
    pairs = [
        (_fitted_teacher(c, n, one, config.data), one)
        for n, (c, one) in enumerate(zip(config.teachers, loaded, strict=True))
    ]
    return config.model_copy(update={"teachers": [c for c, _ in pairs]}), pairs


def _load_teacher(config: TeacherConfig, number: int) -> LoadedModel:
    dtype = config.dtype if config.dtype != "auto" else "bfloat16" if torch.cuda.is_available() else "float32"
    return load_model(str(config.model), who=f"teachers.{number}", revision=config.revision, dtype=dtype)


def _fitted_data(data: DataConfig, learner: LoadedModel) -> DataConfig:
    positions = max_positions(learner.model)
    if positions is None or positions >= data.context_length:
        return data
    if "context_length" in data.model_fields_set:
        raise XTokenError(f"data.context_length is {data.context_length}, but the student has {positions} positions")
    log.info("documents are cut to %d tokens, the student's positions", positions)
    return data.model_copy(update={"context_length": positions})


def _fitted_teacher(config: TeacherConfig, number: int, loaded: LoadedModel, data: DataConfig) -> TeacherConfig:
    name = config.name or (Path(config.model).name if config.model else f"teacher-{number}")
    context, positions = config.context_length or data.context_length, max_positions(loaded.model)
    if positions is not None and positions < context:
        if config.context_length is not None:
            raise XTokenError(f"teachers.{number}.context_length is {context}, but {name} has {positions} positions")
        log.info("documents are cut to %d tokens of %s, its positions", positions, name)
        context = positions
    return config.model_copy(update={"name": name, "context_length": context})


@contextmanager
def _no_library_bars() -> Iterator[None]:
    """Keeps transformers from drawing a bar for every file it reads or writes, through ours."""
    from transformers.utils import logging as bars

    was_on = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            bars.enable_progress_bar()


def _tell(report: DataReport) -> None:
    log.info("%d documents, %d bytes, %d student tokens", report.documents, report.bytes, report.student_tokens)
    for count, what in (
        (report.truncated, "longer than the context were cut, on every side at the same byte"),
        (report.empty, "without text were skipped"),
        (report.unusable, "that cannot be trained on were skipped"),
    ):
        if count:
            log.info("%d documents %s", count, what)


def _arguments(config: RunConfig, folder: Path, *, saves: bool, quiet: bool) -> Any:
    """The Trainer's arguments."""
    from transformers import TrainingArguments

    optim, output, on_gpu = config.optim, config.output, torch.cuda.is_available()
    micro, accumulation = _batches(optim)
    # Newer releases call it activation checkpointing.
    fields = TrainingArguments.__dataclass_fields__
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=optim.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=optim.learning_rate,
        lr_scheduler_type=_SCHEDULES[optim.schedule],
        warmup_steps=math.ceil(optim.warmup * optim.steps),
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        seed=config.seed,
        bf16=on_gpu and torch.cuda.is_bf16_supported() and config.student.dtype in ("auto", "float32"),
        logging_steps=output.log_every,
        logging_nan_inf_filter=False,  # it waits for the device at every micro-batch, and hides what it finds
        save_strategy="steps" if saves else "no",
        save_steps=output.save_every,
        save_total_limit=output.keep_checkpoints,
        report_to=output.trackers or "none",
        disable_tqdm=quiet,
        dataloader_pin_memory=on_gpu,
        **{checkpointing: optim.gradient_checkpointing},
    )


def _check_trackers(names: Sequence[str]) -> None:
    """The Trainer would find out only after everything is loaded.

    Raises:
        XTokenError: a tracker that transformers does not know, or whose package is not installed.
    """
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise XTokenError(
                f"there is no tracker {name!r}{hint}; there are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
            )
        if name not in get_available_reporting_integrations():
            raise XTokenError(f"the tracker {name!r} is not installed; install its package, or leave it out")


def _batches(optim: OptimConfig) -> tuple[int, int]:
    """Documents in one forward pass, and passes in a step, of one process.

    Raises:
        XTokenError: they do not divide evenly.
    """
    from accelerate import PartialState

    processes = PartialState().num_processes
    share, rest = divmod(optim.batch_size, processes)
    if rest:
        raise XTokenError(f"optim.batch_size {optim.batch_size} does not divide among {processes} processes")
    micro = optim.micro_batch_size or max(n for n in range(1, _DEFAULT_MICRO_BATCH + 1) if share % n == 0)
    if share % micro:
        raise XTokenError(
            f"optim.batch_size {optim.batch_size} over {processes} processes is {share} documents each, which is not a "
            f"multiple of optim.micro_batch_size {micro}"
        )
    return micro, share // micro
