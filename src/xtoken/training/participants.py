"""Who takes part in a run: the student, and each teacher with its model, its settings and its loss in one object.

Models are named in the config or handed over loaded. Contexts are fitted to what the models have positions for,
teachers get a name, and `auto` becomes the loss it stands for, so that what comes out says all that was chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from xtoken.config import DataConfig, RunConfig, StudentConfig, TeacherConfig, parse_config
from xtoken.errors import XTokenError
from xtoken.teachers.online import OnlineTeacher
from xtoken.tokens import Vocabulary
from xtoken.training.data import Side
from xtoken.training.models import LoadedModel, load_model, max_positions
from xtoken.training.objectives import Objective, make_objective
from xtoken.training.templates import ChatTemplate, chat_template_of

__all__ = ["Participants", "Teacher", "gather", "load_teacher"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """A teacher of a run.

    Attributes:
        config: its settings, every choice made.
        loaded: its model and tokenizer.
        objective: its loss, and why that one.
        context_length: the longest document, in its tokens.
        chat: its chat template, where the data are conversations.
    """

    config: TeacherConfig
    loaded: LoadedModel
    objective: Objective
    context_length: int
    chat: ChatTemplate | None = None

    @property
    def side(self) -> Side:
        """Its part in the data."""
        return Side(self.loaded.vocabulary, self.context_length, self.chat)

    def online(self) -> OnlineTeacher:
        """Its part in a training step."""
        return OnlineTeacher(
            str(self.config.name),
            self.loaded.model,
            self.loaded.vocabulary.size,
            self.objective.loss,
            side=self.side.key,
            weight=self.config.weight,
            temperature=self.config.temperature,
            sharded=self.config.sharded,
            is_placed=self.config.device_map is not None or self.config.quantization is not None,
            loss_learning_rate=self.config.projection.learning_rate,
        )


@dataclass(frozen=True)
class Participants:
    """Everyone, and the config in which every choice is made.

    Attributes:
        student: the model that learns.
        teachers: in the order of the config.
        config: what was asked for, with names, losses and contexts as they came out.
        chat: the student's chat template, where the data are conversations.
    """

    student: LoadedModel
    teachers: tuple[Teacher, ...]
    config: RunConfig
    chat: ChatTemplate | None = None

    @property
    def side(self) -> Side:
        """The student's part in the data."""
        return Side(self.student.vocabulary, self.config.data.context_length, self.chat)


def gather(
    config: RunConfig, student: LoadedModel | None, teachers: Sequence[LoadedModel], cache: Path | None
) -> Participants:
    """Loads whoever is not loaded yet and settles what was left open.

    Args:
        config: the run's settings.
        student: a loaded student, or None to load the one the config names.
        teachers: loaded teachers for the config's entries that name no model, in order.
        cache: the folder that keeps W; None builds it anew.

    Raises:
        XTokenError: a model given twice or not at all, or one that cannot be read; a context longer than a model's
            positions; a setting that does not fit a loss; a chat template that is needed and not there.
    """
    unnamed = sum(teacher.model is None for teacher in config.teachers)
    if unnamed != len(teachers):
        raise XTokenError(
            f"{unnamed} of the config's teachers name no model, and {len(teachers)} loaded ones were passed; these "
            "must match"
        )
    learner = _student(config.student, student)
    chat = _chat(config.student, learner, config.data, "student")
    data = _fitted_data(config.data, learner)
    given = iter(teachers)
    settled = []
    for number, settings in enumerate(config.teachers):
        loaded = next(given) if settings.model is None else _load_teacher(settings, f"teachers.{number}")
        settled.append(_settle(settings, number, loaded, learner.vocabulary, data, cache))
    loss = config.loss.model_copy(update={"kd_weight": _kd_weight(config.loss.kd_weight, settled)})
    chosen = config.model_copy(update={"data": data, "teachers": [t.config for t in settled], "loss": loss})
    return Participants(learner, tuple(settled), chosen, chat)


def load_teacher(
    model: str | LoadedModel, student: LoadedModel, *, cache: Path | None = None, **settings: Any
) -> Teacher:
    """One teacher for a student, as the `teachers` of a config have it, to be handed to `prepare` and a trainer.

    Args:
        model: a model folder, a hub id, or a loaded model.
        student: whom it is to teach.
        cache: the folder that keeps W; None builds it anew.
        settings: as of an entry of `teachers`: loss (`auto` by default), weight, temperature and so on.

    Returns:
        The teacher: its `side` is what `prepare` needs, its `online()` what `XTokenTrainer` does.

    Raises:
        XTokenError: no model there; an unknown setting, or one that does not fit the loss; a context longer than the
            model's positions.
    """
    given = {} if isinstance(model, LoadedModel) else {"model": model}
    (asked,) = parse_config({"teachers": [{**given, **settings}]}, where=f"teacher {given.get('model', '')}").teachers
    loaded = model if isinstance(model, LoadedModel) else _load_teacher(asked, "teacher")
    return _settle(asked, 0, loaded, student.vocabulary, DataConfig(), cache)


def _kd_weight(
    asked: float | Literal["auto", "dynamic", "gradient"], teachers: Sequence[Teacher]
) -> float | Literal["dynamic", "gradient"]:
    """What `auto` comes to: path-KL is in the cross-entropy's own nats, and falls to 0 where dynamic scaling soars."""
    if asked != "auto":
        return asked
    names = {teacher.objective.name for teacher in teachers}
    return 1.0 if names == {"path-kl"} else "dynamic"


def _chat(
    settings: StudentConfig | TeacherConfig, loaded: LoadedModel, data: DataConfig, who: str
) -> ChatTemplate | None:
    """Its chat template, where the data are conversations."""
    if data.format != "chat":
        return None
    return chat_template_of(loaded.tokenizer_files, loaded.vocabulary, settings.chat_template, who=who)


def _student(settings: StudentConfig, given: LoadedModel | None) -> LoadedModel:
    if given is not None:
        if settings.model is not None:
            raise XTokenError("a loaded student was passed, so student.model has no effect; leave it out")
        return given
    if settings.model is None:
        raise XTokenError("there is no student: name student.model, a folder or a hub id")
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    return load_model(settings.model, who="student", dtype=dtype, **_source(settings))


def _load_teacher(settings: TeacherConfig, who: str) -> LoadedModel:
    auto = "bfloat16" if torch.cuda.is_available() else "float32"
    dtype = auto if settings.dtype == "auto" else settings.dtype
    return load_model(
        str(settings.model),
        who=who,
        dtype=dtype,
        quantization=settings.quantization,
        device_map=settings.device_map,
        **_source(settings),
    )


def _source(settings: StudentConfig | TeacherConfig) -> dict[str, Any]:
    """What is said alike of where a student and a teacher come from."""
    return {name: getattr(settings, name) for name in ("revision", "trust_remote_code", "attention")}


def _fitted_data(data: DataConfig, learner: LoadedModel) -> DataConfig:
    positions = max_positions(learner.model)
    if positions is None or positions >= data.context_length:
        return data
    if "context_length" in data.model_fields_set:
        raise XTokenError(f"data.context_length is {data.context_length}, but the student has {positions} positions")
    log.info("documents are cut to %d tokens, the student's positions", positions)
    return data.model_copy(update={"context_length": positions})


def _settle(
    settings: TeacherConfig,
    number: int,
    loaded: LoadedModel,
    student: Vocabulary,
    data: DataConfig,
    cache: Path | None,
) -> Teacher:
    name = settings.name or (Path(settings.model).name if settings.model else f"teacher-{number}")
    context = _fitted_context(settings, number, name, loaded, data)
    chat = _chat(settings, loaded, data, f"teachers.{number}")
    objective = make_objective(settings, student, loaded.vocabulary, cache)
    log.info("teacher %s teaches by %s: %s", name, objective.name, objective.reason)
    made = settings.model_copy(update={"name": name, "loss": objective.name, "context_length": context})
    return Teacher(made, loaded, objective, context, chat)


def _fitted_context(settings: TeacherConfig, number: int, name: str, loaded: LoadedModel, data: DataConfig) -> int:
    asked, positions = settings.context_length or data.context_length, max_positions(loaded.model)
    if positions is None or positions >= asked:
        return asked
    if settings.context_length is not None:
        raise XTokenError(f"teachers.{number}.context_length is {asked}, but {name} has {positions} positions")
    log.info("documents are cut to %d tokens of %s, its positions", positions, name)
    return positions
