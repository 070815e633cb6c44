"""The cells of a study, and the key of each: a hash of everything that decides it.

Types: `Cell`, one training with what is measured of it; `TeacherTexts`, text that a teacher writes for some of them;
`Reference`, an untrained student or a teacher to hold the others against; `Plan`, all of them. Laws: every setting is
checked before anything runs; equal keys mean equal cells, wherever their files lie; a change to a setting, a seed, a
text or a model's weights is another key.

A swept setting is decided by the sweep, so the cells of the study proper are known when the sweep is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xtoken.config import DataConfig, RunConfig, flat, parse_config
from xtoken.errors import XTokenError
from xtoken.study.config import MethodConfig, StudyConfig, TeacherTextConfig, VariantConfig, check_known
from xtoken.study.names import full_name
from xtoken.study.prints import Prints, hashed

__all__ = ["Cell", "Plan", "Reference", "TeacherAnswers", "TeacherTexts", "merged", "needs_weights"]

Settings = dict[str, Any]
# Changing what a cell measures or how it is trained by the same settings makes old cells another thing.
_FORMAT = "xtoken-study-1"
TEXTS_FOLDER, ANSWERS_FOLDER = "teacher-texts", "teacher-answers"


@dataclass(frozen=True)
class TeacherTexts:
    """Text that a teacher writes.

    Attributes:
        key: of everything that decides it.
        pair: for which pair.
        model: the folder or id of who writes.
        how: the settings of the writing.
        data: the documents whose prompts are continued.
        file: where the text goes.
    """

    key: str
    pair: str
    model: str
    how: TeacherTextConfig
    data: DataConfig
    file: str


@dataclass(frozen=True)
class TeacherAnswers:
    """What a teacher believes of the answers, which every student of the pair is compared with.

    Attributes:
        key: of everything that decides it.
        pair: for which pair.
        model: the teacher's folder or id.
        answers: the path of prompts and answers.
        file: where it goes.
    """

    key: str
    pair: str
    model: str
    answers: str
    file: str


@dataclass(frozen=True)
class Cell:
    """One training, and what is measured of its student.

    Attributes:
        pair, method, variant, stage, seed: its place in the study; variant is None for the method itself, and stage
            `sweep` or `main`.
        settings: of the training, complete.
        learning_rate: of the training, which a sweep may have chosen.
        key: sha256 in hexadecimal, shortened, of everything that decides the cell.
        measures: what is measured.
        swept: the value of the setting that the study sweeps; None without a sweep.
        texts: what a teacher has to write first.
        answers: what the teacher believes of the answers; None where that is not measured.
    """

    pair: str
    method: str
    variant: str | None
    stage: str
    seed: int
    settings: Settings = field(repr=False)
    learning_rate: float
    key: str
    measures: tuple[str, ...]
    swept: Any = None
    texts: TeacherTexts | None = None
    answers: TeacherAnswers | None = None

    @property
    def full_name(self) -> str:
        """The method's name with its variant."""
        return full_name(self.method, self.variant)

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        return parse_config(self.settings).optim.steps


@dataclass(frozen=True)
class Reference:
    """A model as it is, measured as the trained students are.

    Attributes:
        pair: of which pair.
        name: its name among the pair's models; None for the student before training.
        model: its folder or id.
        seed: that an untrained student is drawn from.
        measures: what is measured.
        key: of everything that decides them.
        answers: as for `Cell`.
    """

    pair: str
    name: str | None
    model: str
    seed: int
    measures: tuple[str, ...]
    key: str
    answers: TeacherAnswers | None = None


class Plan:
    """What a study will run.

    Args:
        study: the study.
        out: its folder, where teachers' texts go.
    """

    def __init__(self, study: StudyConfig, out: Path) -> None:
        self.study, self.out, self._prints = study, out, Prints()
        _check_models(study)
        for pair, method, variant in self.study.rows():
            self._check(pair, method, variant)
        self._check_differences()

    def _check(self, pair: str, method: str, variant: VariantConfig | None) -> None:
        """Raises for settings that cannot be trained with, naming the method."""
        sweep, seed = self.study.sweep, self.study.seeds_of(variant)[0]
        values = [None] if sweep is None else sweep.values
        for value in values:
            self._run_config(pair, method, variant, value, seed)

    def _check_differences(self) -> None:
        """Raises for what would be another name for the same cells, or the same trial of the sweep twice."""
        values = [None] if self.study.sweep is None else self.study.sweep.values
        seen: dict[tuple[str, tuple[str, ...]], str] = {}
        for pair, method, variant in self.study.rows():
            where, seed = _where(pair, method, variant), self.study.seeds[0]
            keys = tuple(self._cell(pair, method, variant, "main", seed, value).key for value in values)
            if variant is None and len(set(keys)) < len(keys):
                raise XTokenError(
                    f"{where}: the values {', '.join(map(str, values))} of the sweep do not make different cells; name "
                    "each once, and set the key nowhere else"
                )
            if (pair, keys) in seen:
                raise XTokenError(
                    f"{where}: its settings come to those of {seen[pair, keys]}, so that one would be held against "
                    "itself; change one of them, or leave it out"
                )
            seen[pair, keys] = where

    @property
    def texts(self) -> list[TeacherTexts]:
        """What teachers write before anything is trained; each once."""
        value = None if self.study.sweep is None else self.study.sweep.values[0]
        found = [self._settings(*row, value, 0)[1] for row in self.study.rows()]
        return list({texts.key: texts for texts in found if texts is not None}.values())

    @property
    def answers(self) -> list[TeacherAnswers]:
        """What teachers believe of the answers, asked before any student is; one a pair, or none."""
        found = [self._answers(pair, self.study.measures.names) for pair in self.study.pairs]
        return [answers for answers in found if answers is not None]

    def _answers(self, pair: str, measures: tuple[str, ...]) -> TeacherAnswers | None:
        asked = self.study.measures
        if "answer_kl" not in measures or asked.teacher is None or asked.answers is None:
            return None
        model = self.study.pairs[pair].models[asked.teacher]
        key = hashed([_FORMAT, self._prints.model(model), self._prints.file(asked.answers)])
        file = self.out / ANSWERS_FOLDER / f"{key}.safetensors"
        return TeacherAnswers(key, pair, model, asked.answers, str(file))

    @cached_property
    def sweep(self) -> list[Cell]:
        """The cells by which each method's value is chosen; none without a sweep."""
        sweep = self.study.sweep
        if sweep is None:
            return []
        methods = [(pair, method) for pair, method, variant in self.study.rows() if variant is None]
        return [
            self._cell(pair, method, None, "sweep", seed, value)
            for seed in sweep.seeds
            for value in sweep.values
            for pair, method in methods
        ]

    def main(self, chosen: Mapping[tuple[str, str], Any]) -> list[Cell]:
        """The cells of the study proper, seed by seed.

        Args:
            chosen: the sweep's value for each (pair, method); one that has none is left out. Ignored without a sweep.
        """
        rows = list(self.study.rows())
        seeds = list(dict.fromkeys(seed for _, _, variant in rows for seed in self.study.seeds_of(variant)))
        return [
            self._cell(pair, method, variant, "main", seed, chosen.get((pair, method)))
            for seed in seeds
            for pair, method, variant in rows
            if seed in self.study.seeds_of(variant) and (self.study.sweep is None or (pair, method) in chosen)
        ]

    def undecided(self, chosen: Mapping[tuple[str, str], Any]) -> list[Cell]:
        """The cells of the study proper that have no value of the sweep yet, each with the first value it may have."""
        sweep = self.study.sweep
        if sweep is None:
            return []
        return [
            self._cell(pair, method, variant, "main", seed, sweep.values[0])
            for pair, method, variant in self.study.rows()
            for seed in self.study.seeds_of(variant)
            if (pair, method) not in chosen
        ]

    def teachers(self) -> Iterator[tuple[str, str, list[Settings]]]:
        """Of every method on every pair what a message calls it, the student, and the teachers' settings."""
        value = None if self.study.sweep is None else self.study.sweep.values[0]
        for pair, method, variant in self.study.rows():
            settings, _ = self._settings(pair, method, variant, value, 0)
            yield _where(pair, method, variant), settings["student"]["model"], settings["teachers"]

    @property
    def main_count(self) -> int:
        """How many cells the study proper has."""
        return sum(len(self.study.seeds_of(variant)) for _, _, variant in self.study.rows())

    @property
    def references(self) -> list[Reference]:
        """Each pair's models, and its student before training."""
        found = []
        for pair, at in self.study.pairs.items():
            of_models = tuple(name for name in self.study.measures.names if "_kl" not in name)
            for name, model in at.models.items():
                found.append(self._reference(pair, name, model, of_models))
            found.append(self._reference(pair, None, at.student, self.study.measures.names))
        return found

    def _reference(self, pair: str, name: str | None, model: str, measures: tuple[str, ...]) -> Reference:
        seed = self.study.seeds[0]
        made_of = [
            _FORMAT,
            self._prints.model(model),
            None if name else seed,
            self._measured(pair, "main"),
            list(measures),
        ]
        return Reference(pair, name, model, seed, measures, hashed(made_of), self._answers(pair, measures))

    def _cell(self, pair: str, method: str, variant: VariantConfig | None, stage: str, seed: int, value: Any) -> Cell:
        settings, texts = self._settings(pair, method, variant, value, seed)
        config = parse_config(settings)
        sweep = self.study.sweep
        measures = (sweep.choose_by,) if sweep is not None and stage == "sweep" else self.study.measures.names
        made_of = {
            "format": _FORMAT,
            "stage": stage,
            "settings": self._without_places(settings),
            "student": self._prints.model(str(config.student.model)),
            "teachers": [self._prints.model(str(teacher.model)) for teacher in config.teachers],
            "data": self._prints.data(config.data) if texts is None else texts.key,
            "measured": [self._measured(pair, stage), list(measures)],
        }
        name = None if variant is None else variant.name
        rate, answers = config.optim.learning_rate, self._answers(pair, measures)
        return Cell(pair, method, name, stage, seed, settings, rate, hashed(made_of), measures, value, texts, answers)

    def _without_places(self, settings: Settings) -> Any:
        """What settings say beside where files lie; what is in those is hashed apart."""
        config = parse_config(settings).model_dump()
        config["student"].pop("model")
        for teacher in config["teachers"]:
            teacher.pop("model")
            for holder, key in ((teacher, "chat_template"), (teacher["projection"], "file")):
                holder[key] = holder[key] and self._prints.file(holder[key])
        for part in (config["data"], *config["data"]["corpora"]):
            part.pop("files")
        for key in ("output", "eval"):  # they change nothing of the student that is measured
            config.pop(key)
        config["data"].pop("workers")
        return config

    def _measured(self, pair: str, stage: str) -> dict[str, Any]:
        """What the measures depend on."""
        asked = self.study.measures
        teacher = None if asked.teacher is None else self._prints.model(self.study.pairs[pair].models[asked.teacher])
        if stage == "sweep":
            assert asked.validation is not None, "the study was checked"
            return {"text": self._prints.texts(asked.validation), "teacher": teacher}
        text = None if asked.held_out is None else self._prints.texts(asked.held_out)
        return {"text": text, "answers": asked.answers and self._prints.file(asked.answers), "teacher": teacher}

    def _run_config(self, pair: str, method: str, variant: VariantConfig | None, value: Any, seed: int) -> RunConfig:
        settings, texts = self._settings(pair, method, variant, value, seed)
        config = parse_config(settings, where=_where(pair, method, variant))
        if texts is None:
            self._prints.data(config.data)  # missing files are told now
        return config

    def _settings(
        self, pair: str, method: str, variant: VariantConfig | None, value: Any, seed: int
    ) -> tuple[Settings, TeacherTexts | None]:
        """A cell's settings, and what a teacher writes for it."""
        study, at, asked = self.study, self.study.pairs[pair], self.study.methods[method]
        where = _where(pair, method, variant)
        layers = [study.base, at.set, asked.settings, {} if variant is None else variant.set, study.overlay]
        for layer in layers:
            _refuse_ours(layer, where)
        swept = {} if study.sweep is None else _nested(study.sweep.key, value)
        if study.sweep is not None and study.sweep.key in dict(flat(asked.settings)):
            raise XTokenError(f"{where}: it sets {study.sweep.key}, which has no effect: the sweep sets that")
        own = {"student": {"model": at.student}, "data": _long("data", at.data)}
        settings = merged(layers[0], own, layers[1], layers[2], swept, *layers[3:], {"seed": seed})
        settings["teachers"] = _named(settings.get("teachers", []), at.models, where)
        if asked.teacher_text is None:
            return settings, None
        texts = self._texts(pair, asked, settings, where)
        keys = ("files", "text_column", "split_text_by", "max_documents")
        rest = {key: item for key, item in settings["data"].items() if key not in keys}
        return settings | {"data": rest | {"files": [texts.file]}}, texts

    def _texts(self, pair: str, method: MethodConfig, settings: Settings, where: str) -> TeacherTexts:
        how, models = method.teacher_text, self.study.pairs[pair].models
        assert how is not None
        if wrong := check_known(how.model, models, f"{where}: teacher_text.model", "model"):
            raise XTokenError(wrong)
        data = parse_config(settings, where=where).data
        if data.files is None or data.streaming or data.format != "text":
            raise XTokenError(f"{where}: teacher_text continues documents of data.files, of format text, not streamed")
        chosen = how.model_dump(exclude={"model", "batch_size"})
        if how.temperature > 0 and how.batch_size != TeacherTextConfig.model_fields["batch_size"].default:
            chosen["batch_size"] = how.batch_size  # what is drawn depends on which documents are drawn together
        key = hashed([_FORMAT, self._prints.model(models[how.model]), chosen, self._prints.data(data)])
        return TeacherTexts(key, pair, models[how.model], how, data, str(self.out / TEXTS_FOLDER / f"{key}.jsonl"))


def merged(*layers: Mapping[str, Any]) -> Settings:
    """Settings laid over one another: mappings are merged, anything else, lists too, replaces what is below it."""
    made: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            above, below = _long(key, value), made.get(key)
            made[key] = merged(below, above) if isinstance(below, dict) and isinstance(above, dict) else _copied(above)
    return made


def _copied(value: Any) -> Any:
    return merged(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value


def needs_weights(model: str) -> bool:
    """Whether it is a folder with a config and no weights, whose weights are to be drawn."""
    folder = Path(model).expanduser()
    has_weights = any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))
    return (folder / "config.json").is_file() and not has_weights


def _check_models(study: StudyConfig) -> None:
    """Raises for a model that is not there; what is no folder may be a hub id, which loading tells."""
    for pair, at in study.pairs.items():
        for name, model in {"student": at.student, **{f"models.{name}": m for name, m in at.models.items()}}.items():
            folder, where = Path(model).expanduser(), f"pairs.{pair}.{name}"
            if not folder.exists() and (model.count("/") > 1 or model.startswith((".", "/", "~"))):
                raise XTokenError(f"{where}: there is no model folder {model}")
            is_model = any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))
            if folder.exists() and not is_model:
                raise XTokenError(f"{where}: {model} is no model folder: it has no config.json")
            if name != "student" and needs_weights(model):
                raise XTokenError(f"{where}: {model} has no weights; the student alone may go without")


def _where(pair: str, method: str, variant: VariantConfig | None) -> str:
    return f"method {full_name(method, None if variant is None else variant.name)!r} on pair {pair!r}"


def _long(key: str, value: Any) -> Any:
    """A section in its short form, made long so that it can be merged."""
    main = {"student": "model", "data": "files", "eval": "files", "output": "folder"}.get(key)
    if main is None or not isinstance(value, str):
        return value
    return {main: [value] if main == "files" else value}


def _refuse_ours(layer: Mapping[str, Any], where: str) -> None:
    """Raises for settings that the study itself decides."""
    given = {key for key, _ in flat(merged(layer))}
    ours = {
        "student.model": "the pair names the student",
        "seed": "seeds names them",
        "output.folder": "a study keeps no students",
        "output.push_to_hub": "a study keeps no students",
    }
    for key, why in ours.items():
        if key in given:
            raise XTokenError(f"{where}: {key} has no effect in a study: {why}")


def _nested(key: str, value: Any) -> Settings:
    made: Any = value
    for part in reversed(key.split(".")):
        made = {part: made}
    return dict(made)


def _named(teachers: Any, models: Mapping[str, str], where: str) -> list[Any]:
    """The teachers with the folders that their names stand for."""
    if not isinstance(teachers, list):
        return [teachers]  # for parse_config to refuse
    found: list[Any] = []
    for number, given in enumerate(teachers):
        teacher = {"model": given} if isinstance(given, str) else given
        if not isinstance(teacher, dict):
            found.append(teacher)
            continue
        name = teacher.get("model")
        if name is None:
            raise XTokenError(f"{where}: teachers.{number} names no model; there are {', '.join(models)}")
        if wrong := check_known(str(name), models, f"{where}: teachers.{number}.model", "model"):
            raise XTokenError(wrong)
        found.append({"name": str(name), **teacher, "model": models[str(name)]})
    return found
