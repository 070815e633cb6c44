"""A whole run: from settings to a saved student.

`distil` is the Python entry point and what `xtoken train` calls. It loads, audits, aligns, trains and saves; each of
these lives elsewhere, and this file is their order. What is already in memory (models, texts) can be passed in and is
then not named in the config.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from xtoken.config import CorpusConfig, DataConfig, RunConfig, parse_config
from xtoken.errors import XTokenError
from xtoken.training.arguments import check_arguments, trainer_arguments
from xtoken.training.callbacks import CheckpointFiles, StopRequest, stop_on_interrupt
from xtoken.training.changes import ingredients
from xtoken.training.data import DataReport, PreparedData, Side, prepare
from xtoken.training.mixture import Corpus, MixedData
from xtoken.training.models import LoadedModel, no_library_bars
from xtoken.training.output import (
    COPIED,
    check_same_run,
    checkpoint_step,
    claim_folder,
    clear_folder,
    describe_run,
    last_checkpoint,
    save_student,
)
from xtoken.training.participants import Participants, gather
from xtoken.training.streaming import DEFAULT_BUFFER, StreamedData
from xtoken.training.texts import TextSource, texts_from_dataset, texts_from_files, texts_from_list

__all__ = ["RunResult", "TeacherChoice", "cache_folder", "distil"]

log = logging.getLogger(__name__)

Data = PreparedData | MixedData | StreamedData

CACHE_VARIABLE = "XTOKEN_CACHE"


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
        XTokenError: anything in the settings, models or data that the caller can mend; a loss that is not finite, told
            with the step.
    """
    config = config if isinstance(config, RunConfig) else parse_config(config)
    sources = _sources(config.data, texts)
    check_arguments(config)
    folder = _folder(config, resume=resume, overwrite=overwrite)
    cache = cache_folder()
    with no_library_bars() if quiet else nullcontext():
        participants = gather(config, student, teachers, cache)
    data = _data(sources, participants, cache, progress=not quiet)
    return _Run(participants, data, folder, quiet).go(resume=resume, overwrite=overwrite)


@dataclass(frozen=True)
class _Run:
    """Everything made ready."""

    participants: Participants
    data: Data
    folder: Path | None
    quiet: bool

    def go(self, *, resume: bool, overwrite: bool) -> RunResult:
        """Settles where to begin, and trains."""
        checkpoint = None
        if self.folder is not None and resume:
            check_same_run(self.folder, self.participants.config, self.data.key, self.made_of())
            checkpoint = last_checkpoint(self.folder)
            log.info("going on from %s" if checkpoint else "nothing to go on from in %s", checkpoint or self.folder)
        with ExitStack() as stack:
            stack.enter_context(no_library_bars())
            folder = self.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xtoken-")))
            stop = stack.enter_context(stop_on_interrupt())
            trainer = self.trainer(folder, stop)
            self.take_folder(trainer, overwrite=overwrite)
            return self.train(trainer, checkpoint, stop)

    def take_folder(self, trainer: Any, *, overwrite: bool) -> None:
        """Writes into the folder for the first time: the first process does, when all have looked into it."""
        trainer.accelerator.wait_for_everyone()
        if self.folder is not None and trainer.is_world_process_zero():
            if overwrite:
                clear_folder(self.folder)
            describe_run(self.folder, self.participants.config, self.facts())
        trainer.accelerator.wait_for_everyone()

    def train(self, trainer: Any, checkpoint: Path | None, stop: StopRequest) -> RunResult:
        """Runs the Trainer from a checkpoint or from the start, and saves the student unless it was stopped."""
        steps, began = self.participants.config.optim.steps, time.perf_counter()
        if checkpoint is not None and checkpoint_step(checkpoint) >= steps:  # the Trainer would make one step more
            log.info("the run is at step %d of %d already", checkpoint_step(checkpoint), steps)
            trainer._load_from_checkpoint(str(checkpoint))
            done = checkpoint_step(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            done = int(trainer.state.global_step)
        interrupted, seconds = stop.asked and done < steps, time.perf_counter() - began
        student = self.participants.student
        if self.folder is not None and not interrupted and trainer.is_world_process_zero():
            save_student(trainer.accelerator.unwrap_model(trainer.model), self.folder, student.tokenizer_files)
        trainer.accelerator.wait_for_everyone()
        return RunResult(
            student=student.model,
            folder=self.folder,
            steps=done,
            interrupted=interrupted,
            checkpoint=None if self.folder is None else last_checkpoint(self.folder),
            teachers=self.choices(),
            data=self.data.report,
            log=[line for line in trainer.state.log_history if "ce" in line],
            seconds=seconds,
        )

    def trainer(self, folder: Path, stop: StopRequest) -> Any:
        # It pulls in the whole of transformers' Trainer: late, so that mistakes in the settings are told at once.
        from xtoken.training.trainer import XTokenTrainer

        config, student = self.participants.config, self.participants.student
        weight = config.loss.kd_weight
        assert weight != "auto", "`gather` has settled it"
        return XTokenTrainer(
            student.model,
            [teacher.online() for teacher in self.participants.teachers],
            trainer_arguments(config, folder, saves=self.folder is not None, quiet=self.quiet),
            self.data,
            student_vocab_size=student.vocabulary.size,
            kd_weight=weight,
            ce_weight=config.loss.ce_weight,
            callbacks=[stop, CheckpointFiles(list(student.tokenizer_files))],
        )

    def choices(self) -> tuple[TeacherChoice, ...]:
        return tuple(
            TeacherChoice(str(teacher.config.name), teacher.objective.name, teacher.objective.reason)
            for teacher in self.participants.teachers
        )

    def made_of(self) -> dict[str, Any]:
        """What the data's key is made of."""
        parts = [corpus.data for corpus in self.data.corpora] if isinstance(self.data, MixedData) else [self.data]
        teachers = {str(teacher.config.name): teacher.loaded.vocabulary for teacher in self.participants.teachers}
        return ingredients([part.made_of for part in parts], self.participants.student.vocabulary, teachers)

    def facts(self) -> dict[str, Any]:
        """What the resolved config does not say."""
        import transformers

        import xtoken

        return {
            "data": self.data.key,
            "made_of": self.made_of(),
            COPIED: [file.name for file in self.participants.student.tokenizer_files],
            "documents": None if isinstance(self.data, StreamedData) else asdict(self.data.report),
            "teachers": [asdict(choice) for choice in self.choices()],
            "student_fingerprint": self.participants.student.vocabulary.fingerprint,
            "teacher_fingerprints": [t.loaded.vocabulary.fingerprint for t in self.participants.teachers],
            "versions": {module.__name__: module.__version__ for module in (xtoken, torch, transformers)},
        }


def cache_folder() -> Path:
    """Where W and prepared data are kept: $XTOKEN_CACHE, or ~/.cache/xtoken."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "xtoken")


def _sources(data: DataConfig, texts: Sequence[str] | None) -> list[TextSource]:
    """One for each corpus, in order."""
    if texts is not None:
        if any((data.files, data.dataset, data.text_column, data.split_text_by, data.corpora)):
            raise XTokenError("texts were passed, so the data section's files, dataset and columns have no effect")
        source = texts_from_list(texts)
        return [source if data.max_documents is None else source.first(data.max_documents)]
    if data.files is None and data.dataset is None and not data.corpora:
        raise XTokenError("there is no data: name data.files (local text) or data.dataset (a `datasets` id)")
    parts: Sequence[DataConfig | CorpusConfig] = data.corpora or [data]
    return [_source(part, data.streaming) for part in parts]


def _source(data: DataConfig | CorpusConfig, streaming: bool) -> TextSource:
    if data.files is not None:
        source = texts_from_files(
            data.files, text_column=data.text_column, split_by=data.split_text_by, streaming=streaming
        )
    else:
        source = texts_from_dataset(
            str(data.dataset),
            config=data.config,
            split=data.split,
            revision=data.revision,
            text_column=data.text_column,
            streaming=streaming,
        )
    return source if data.max_documents is None else source.first(data.max_documents)


def _folder(config: RunConfig, *, resume: bool, overwrite: bool) -> Path | None:
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


def _data(sources: Sequence[TextSource], participants: Participants, cache: Path, *, progress: bool) -> Data:
    """The examples: prepared, prepared and mixed, or made while training."""
    config = participants.config
    settings = config.data
    student = Side(participants.student.vocabulary, settings.context_length)
    teachers = [teacher.side for teacher in participants.teachers]
    if not teachers:
        log.info("no teachers: the student is trained by cross-entropy alone")
    if settings.streaming:
        return StreamedData(
            sources[0],
            student,
            teachers,
            append_eos=settings.append_eos,
            method=settings.alignment,
            seed=config.seed,
            buffer=settings.shuffle_buffer or DEFAULT_BUFFER,
            workers=settings.workers,
            rank=int(os.environ.get("RANK") or 0),  # as launchers set it; `trainer_arguments` checks WORLD_SIZE
            world=int(os.environ.get("WORLD_SIZE") or 1),
        )
    prepared = [
        prepare(
            source,
            student,
            teachers,
            append_eos=settings.append_eos,
            method=settings.alignment,
            cache=cache,
            progress=progress,
            workers=settings.workers,
        )
        for source in sources
    ]
    data: PreparedData | MixedData = prepared[0]
    if settings.corpora:
        names = [one.name or source.name for one, source in zip(settings.corpora, sources, strict=True)]
        weights = [one.weight for one in settings.corpora]
        data = MixedData([Corpus(*corpus) for corpus in zip(names, prepared, weights, strict=True)])
        _tell_mixture(data, config.optim.steps * config.optim.batch_size)
    _tell_report(data.report)
    return data


def _tell_mixture(data: MixedData, examples: int) -> None:
    """Logs what the weights come to in a run of so many examples."""
    shares, repetitions = data.shares(), data.repetitions(examples)
    for corpus, share, repetition in zip(data.corpora, shares, repetitions, strict=True):
        log.info(
            "%s: %.1f %% of the tokens; each of its %d documents is seen %.2f times",
            *(corpus.name, 100 * share, len(corpus.data), repetition),
        )


def _tell_report(report: DataReport) -> None:
    log.info("%d documents, %d bytes, %d student tokens", report.documents, report.bytes, report.student_tokens)
    for count, what in (
        (report.truncated, "longer than the context were cut, on every side at the same byte"),
        (report.empty, "without text were skipped"),
        (report.unusable, "that cannot be trained on were skipped"),
    ):
        if count:
            log.info("%d documents %s", count, what)
