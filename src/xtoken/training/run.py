"""A whole run: from settings to a saved student.

`distil` is the Python entry point and what `xtoken train` calls. It loads, audits, aligns, trains and saves; each of
these lives elsewhere, and this file is their order. What is already in memory (models, texts) can be passed in and is
then not named in the config.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xtoken.config import LossConfig, RunConfig, parse_config
from xtoken.errors import DivergedError, XTokenError
from xtoken.losses import PKL
from xtoken.teachers.confidence import Adaptive
from xtoken.training.adapters import add_lora, finished
from xtoken.training.arguments import check_arguments, trainer_arguments
from xtoken.training.callbacks import CheckpointFiles, StopRequest, stop_on_interrupt
from xtoken.training.card import model_card, write_card
from xtoken.training.changes import ingredients
from xtoken.training.compiling import compiled
from xtoken.training.data import DataReport
from xtoken.training.hub import check_push, push_folder
from xtoken.training.inputs import Data, held_out_source, held_out_text, sources_of, training_data
from xtoken.training.learnable import LearntProjection, conclude, projection_file
from xtoken.training.mixture import MixedData
from xtoken.training.models import LoadedModel, no_library_bars
from xtoken.training.output import (
    COPIED,
    TRAINER_STATE,
    check_same_run,
    checkpoint_of,
    checkpoint_step,
    claim_folder,
    clear_folder,
    describe_run,
    last_checkpoint,
    save_student,
)
from xtoken.training.participants import Participants, gather
from xtoken.training.streaming import StreamedData

if TYPE_CHECKING:
    from xtoken.training.evaluate import Evaluation, HeldOut

__all__ = ["RunResult", "TeacherChoice", "cache_folder", "distil"]

log = logging.getLogger(__name__)

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
        student: the trained model, as it was saved; with its adapters still apart where the run was interrupted.
        folder: where it was saved; None where nothing was.
        steps: the optimizer steps behind it, those before a resume included.
        interrupted: whether a signal ended it early; then `checkpoint` is where it goes on, and no student was saved.
        checkpoint: the last one.
        teachers: their losses and the reasons.
        data: what became of the documents.
        log: the lines of metrics, one dict each.
        seconds: of training, loading and alignment not counted.
        projections: the learnable Ws as they came out.
        stop_signal: the number of the signal that interrupted it; None where none did.
        seconds: of training and evaluation; loading and alignment are not counted.
        held_out: what the student was evaluated on; None where it was not.
        evaluations: its bits per byte there, in order of steps.
        best_step: the step with the lowest of them that a checkpoint is kept of.
        student_step: the step that `student` is of: the best one, or the last.
        pushed_to: the address of the repository it was uploaded to; known to the first process alone.
        push_failed: whether it should have been uploaded by this process, and was not.
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
    projections: tuple[LearntProjection, ...] = ()
    stop_signal: int | None = None
    held_out: HeldOut | None = None
    evaluations: tuple[Evaluation, ...] = ()
    best_step: int | None = None
    student_step: int = 0
    pushed_to: str | None = None
    push_failed: bool = False


def distil(
    config: RunConfig | Mapping[str, Any],
    *,
    student: LoadedModel | None = None,
    teachers: Sequence[LoadedModel] = (),
    texts: Sequence[Any] | None = None,
    eval_texts: Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Trains a student on text and on its teachers, and saves it.

    Args:
        config: the settings, or what a YAML file of them would hold.
        student: a loaded student, trained in place; then the config names none.
        teachers: loaded teachers, in order, for those entries of `config.teachers` that name no model.
        texts: documents in memory, then the config names no data: strings, or with `data.format: chat` conversations
            (lists of messages, or objects with `messages`, or with `prompt` and `completion`).
        eval_texts: held-out documents in memory; then the config names none.
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
    sources, held_out = sources_of(config.data, texts), held_out_source(config, eval_texts)
    check_arguments(config)
    if config.output.push_to_hub is not None:
        check_push(config.output.push_to_hub)
    folder = _folder(config, resume=resume, overwrite=overwrite)
    cache = cache_folder()
    with no_library_bars() if quiet else nullcontext():
        participants = gather(config, student, teachers, cache)
    evaluated = held_out_text(held_out, sources, participants)
    data = training_data(sources, participants, cache, progress=not quiet)
    return _Run(participants, data, folder, quiet, evaluated).go(resume=resume, overwrite=overwrite)


@dataclass(frozen=True)
class _Run:
    """Everything made ready."""

    participants: Participants
    data: Data
    folder: Path | None
    quiet: bool
    held_out: HeldOut | None = None

    def go(self, *, resume: bool, overwrite: bool) -> RunResult:
        """Settles where to begin, and trains."""
        checkpoint = None
        if self.folder is not None and resume:
            held_out_key = None if self.held_out is None else self.held_out.key
            check_same_run(self.folder, self.participants.config, self.data.key, self.made_of(), held_out_key)
            checkpoint = last_checkpoint(self.folder)
            log.info("going on from %s" if checkpoint else "nothing to go on from in %s", checkpoint or self.folder)
        with ExitStack() as stack:
            stack.enter_context(no_library_bars())
            folder = self.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xtoken-")))
            stop = stack.enter_context(stop_on_interrupt())
            trainer = self.trainer(folder, stop)
            self.check_saving(trainer)
            self.take_folder(trainer, overwrite=overwrite)
            if self.participants.config.optim.compile:
                stack.enter_context(compiled(trainer.model))
            try:
                return self.train(trainer, checkpoint, stop)
            except DivergedError as error:
                if self.folder is not None:
                    raise
                kept = Path(tempfile.mkdtemp(prefix="xtoken-failure-"))  # the run's own folder goes with the run
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                raise DivergedError(str(error).replace(str(folder), str(kept))) from error

    def check_saving(self, trainer: Any) -> None:
        """Refuses a student that could not be saved as it is asked for."""
        lora = self.participants.config.student.lora
        if (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled) and lora is not None and lora.save == "merged":
            raise XTokenError(
                "adapters cannot be merged into a student that is sharded over processes: set student.lora.save to "
                "adapter, and merge them afterwards (peft's merge_and_unload)"
            )

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
            trainer.state = trainer.state.load_from_json(str(checkpoint / TRAINER_STATE))
            done = checkpoint_step(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            done = int(trainer.state.global_step)
        is_stopped, seconds = stop.asked or stop.is_agreed, time.perf_counter() - began
        interrupted = is_stopped and done < steps
        trainer.accelerator.wait_for_everyone()  # the checkpoints are written
        best = self.best_checkpoint(trainer)
        student_step = done
        if best is not None and not interrupted and self.participants.config.eval.saves_best:
            student_step = checkpoint_step(best)
            if student_step != done:
                log.info("the student saved is that of step %d, the best on held-out text", student_step)
                trainer._load_from_checkpoint(str(best))
        model = trainer.accelerator.unwrap_model(trainer.model)
        is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        # Gathered by all processes together, whichever writes it.
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if is_sharded and not interrupted else None
        if not interrupted:
            model = finished(model, self.participants.config.student.lora)
        if self.folder is not None and not interrupted and trainer.is_world_process_zero():
            save_student(model, self.folder, self.participants.student.tokenizer_files, weights)
        projections = self.projections(student_step, saves=not interrupted and trainer.is_world_process_zero())
        trainer.accelerator.wait_for_everyone()
        result = RunResult(
            student=model,
            folder=self.folder,
            steps=done,
            interrupted=interrupted,
            checkpoint=None if self.folder is None else last_checkpoint(self.folder),
            teachers=self.choices(),
            data=self.data.report,
            log=[line for line in trainer.state.log_history if "ce" in line],
            seconds=seconds,
            projections=projections,
            stop_signal=stop.signal if interrupted else None,
            held_out=self.held_out,
            evaluations=self.evaluations(trainer),
            best_step=None if best is None else checkpoint_step(best),
            student_step=student_step,
        )
        if self.folder is None or interrupted or not trainer.is_world_process_zero():
            return result
        write_card(self.folder, model_card(self.participants.config, result, _versions()))
        address = self.push(self.folder)
        is_asked = self.participants.config.output.push_to_hub is not None
        return replace(result, pushed_to=address, push_failed=is_asked and address is None)

    def push(self, folder: Path) -> str | None:
        """Uploads the finished run where that is asked for; a failure is told and loses nothing."""
        output = self.participants.config.output
        if output.push_to_hub is None:
            return None
        try:
            return push_folder(folder, output.push_to_hub, private=output.private)
        except XTokenError as error:
            again = ["xtoken", "push", str(folder), output.push_to_hub, *(["--private"] if output.private else [])]
            log.error("%s. The student is whole in %s; push it later by: %s", error, folder, shlex.join(again))
            return None

    def best_checkpoint(self, trainer: Any) -> Path | None:
        """The checkpoint with the lowest bits per byte; None where none is kept, or it was removed."""
        step = trainer.state.best_global_step
        if self.folder is None or self.held_out is None or not step:
            return None
        checkpoint = checkpoint_of(self.folder, int(step))
        if checkpoint is None:
            log.warning("the best checkpoint, of step %d, is not in %s any more", step, self.folder)
        return checkpoint

    def evaluations(self, trainer: Any) -> tuple[Evaluation, ...]:
        """The figures so far; a student that did not get better is told."""
        from xtoken.training.evaluate import evaluations

        found = evaluations(trainer.state.log_history)
        before = [each.bits_per_byte for each in found if each.step == 0]
        after = [each.bits_per_byte for each in found if each.step > 0]
        if before and after and not min(after) < before[0]:
            log.warning("bits per byte on held-out text never fell below the %.4f before training", before[0])
        return found

    def projections(self, steps: int, *, saves: bool) -> tuple[LearntProjection, ...]:
        """The learnable Ws, saved in the folder where there is one."""
        folder, found = self.folder if saves else None, []
        for teacher in self.participants.teachers:
            loss, start = teacher.objective.loss, teacher.objective.projection
            if isinstance(loss, PKL) and loss.row_weights is not None and start is not None:
                vocabularies = self.participants.student.vocabulary, teacher.loaded.vocabulary
                found.append(conclude(str(teacher.config.name), loss, start, vocabularies, folder, {"steps": steps}))
        return tuple(found)

    def trainer(self, folder: Path, stop: StopRequest) -> Any:
        # It pulls in the whole of transformers' Trainer: late, so that mistakes in the settings are told at once.
        from xtoken.training.trainer import XTokenTrainer

        config, student = self.participants.config, self.participants.student
        lora, weight = config.student.lora, config.loss.kd_weight
        assert weight != "auto", "`gather` has settled it"
        saves = self.folder is not None
        keeps_best = saves and self.held_out is not None and config.eval.keep_best
        model = student.model
        if lora is not None:
            model = add_lora(model, lora, seed=config.seed, revision=config.student.revision)
        trainer = XTokenTrainer(
            model,
            [teacher.online() for teacher in self.participants.teachers],
            trainer_arguments(config, folder, saves=saves, quiet=self.quiet, keeps_best=keeps_best),
            self.data,
            student_vocab_size=student.vocabulary.size,
            kd_weight=weight,
            ce_weight=config.loss.ce_weight,
            adaptive=_adaptive(config.loss),
            kd_warmup=config.loss.kd_warmup,
            gradient_norms=config.loss.gradient_norms,
            callbacks=[stop, CheckpointFiles(list(student.tokenizer_files))],
        )
        if self.held_out is not None:
            from xtoken.training.evaluate import EvaluateHeldOut

            every, batch_size = config.eval.every, config.eval.batch_size
            trainer.add_callback(
                EvaluateHeldOut(trainer, self.held_out.text, every=every, batch_size=batch_size, keep_best=keeps_best)
            )
        return trainer

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
        return {
            "data": self.data.key,
            "made_of": self.made_of(),
            "held_out": None if self.held_out is None else self.held_out.key,
            COPIED: [
                *(file.name for file in self.participants.student.tokenizer_files),
                *(projection_file(str(t.name)) for t in self.participants.config.teachers if t.projection.learnable),
            ],
            "documents": None if isinstance(self.data, StreamedData) else asdict(self.data.report),
            "teachers": [asdict(choice) for choice in self.choices()],
            "student_fingerprint": self.participants.student.vocabulary.fingerprint,
            "teacher_fingerprints": [t.loaded.vocabulary.fingerprint for t in self.participants.teachers],
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    import transformers

    import xtoken

    return {module.__name__: str(module.__version__) for module in (xtoken, torch, transformers)}


def cache_folder() -> Path:
    """Where W and prepared data are kept: $XTOKEN_CACHE, or ~/.cache/xtoken."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "xtoken")


def _adaptive(loss: LossConfig) -> Adaptive | None:
    if loss.teacher_weights == "static":
        return None
    return Adaptive(loss.teacher_weights, 1.0 if loss.alpha is None else loss.alpha)


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
