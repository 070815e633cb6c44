"""What a study is: pairs, methods, seeds, measures and questions, read from one YAML file.

Types: `StudyConfig` and its sections. Laws: a key or a name that is not known is an error that gives the nearest known
one; a setting without effect is an error. The settings of methods are those of `xtoken train`; `plan` checks them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from xtoken.config import explained, read_yaml
from xtoken.errors import XTokenError
from xtoken.study.measures import MEASURES, OF_TEXT
from xtoken.study.names import full_name, split_name

__all__ = [
    "ClaimConfig",
    "MeasuresConfig",
    "MethodConfig",
    "PairConfig",
    "QuestionConfig",
    "QuickConfig",
    "StudyConfig",
    "SweepConfig",
    "TeacherTextConfig",
    "TextsConfig",
    "VariantConfig",
    "check_known",
    "load_study",
    "parse_study",
    "quickened",
]

Settings = dict[str, Any]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1)]

# Names become folders, and " @ " stands between a method and its variant.
_NAME = re.compile(r"[^/\\@\s.][^/\\@]*")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class TextsConfig(_Section):
    """Text in local files, to measure on."""

    files: Annotated[list[str], Field(min_length=1)] = Field(description="As in `data.files` of xtoken train.")
    text_column: str | None = Field(default=None, description="The key or column that holds the text (default text).")
    split_text_by: Literal["line", "paragraph", "document"] | None = Field(
        default=None, description="What one document is in a .txt file (default line)."
    )
    max_documents: Count | None = Field(default=None, description="Use the first so many documents only.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"files": [value]} if isinstance(value, str) else value


class PairConfig(_Section):
    """A student, its teachers and their text."""

    student: str = Field(
        description="A model folder or hub id; a folder without weights gets fresh ones, drawn from the cell's seed."
    )
    models: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="The pair's teachers, under the names by which methods call them."
    )
    data: Settings | str = Field(
        default={}, description="The text to train on, as `data` of xtoken train, over that of base."
    )
    set: Settings = Field(default={}, description="Settings of this pair alone, over those of base.")


class TeacherTextConfig(_Section):
    """Sequence-level distillation (Kim and Rush, arXiv 1606.07947): a teacher writes the text to train on."""

    model: str = Field(description="Which of the pair's models writes.")
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="0 takes the most probable token; more draws from the softened distribution."
    )
    max_new_tokens: Count = Field(default=128, description="Of the teacher, for one document.")
    prompt_column: str | None = Field(
        default=None,
        description="The key of the .jsonl that holds what is continued (default prompt, where a document has one, and "
        "else the first half of its text).",
    )
    batch_size: Count = Field(default=64, description="Documents continued at a time.")


class MethodConfig(_Section):
    """What distinguishes a method: settings of `xtoken train`, and these."""

    settings: Settings = Field(default={}, description="Over those of base and of the pair.")
    teacher_text: TeacherTextConfig | None = Field(default=None, description="Train on what a teacher writes.")
    pairs: list[str] | None = Field(default=None, min_length=1, description="The pairs it is for (default all).")

    @model_validator(mode="before")
    @classmethod
    def _settings_lie_beside(cls, value: Any) -> Any:
        """In the file a method's own keys lie beside its settings."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            return value
        own = {key: value[key] for key in ("teacher_text", "pairs") if key in value}
        return {"settings": {key: item for key, item in value.items() if key not in own}, **own}


class VariantConfig(_Section):
    """A change to several methods, each of which then is a method of its own."""

    name: str = Field(description='Makes methods called "METHOD @ NAME".')
    set: Settings = Field(description="Settings over the method's own.")
    methods: Annotated[list[str], Field(min_length=1)] = Field(description="The methods it changes.")
    seeds: Seeds | None = Field(default=None, description="By default the study's.")
    pairs: list[str] | None = Field(default=None, min_length=1, description="The pairs it is for (default all).")


class SweepConfig(_Section):
    """A setting for which each method takes its own best value before the study begins."""

    key: str = Field(default="optim.learning_rate", description="The setting, with dots.")
    values: Annotated[list[Any], Field(min_length=1)] = Field(description="Those that are tried.")
    seeds: Seeds = Field(description="Of the trials; they are best none of the study's.")
    choose_by: str = Field(default="bits_per_byte", description="The measure, on measures.validation.")


class MeasuresConfig(_Section):
    """What is measured of every trained student."""

    validation: TextsConfig | None = Field(default=None, description="Held-out text for the sweep's choice alone.")
    held_out: TextsConfig | None = Field(default=None, description="Held-out text: bits per byte, teacher_kl.")
    teacher: str | None = Field(
        default=None, description="The model, by its name in the pair, that teacher_kl and answer_kl compare with."
    )
    answers: str | None = Field(default=None, description='A .jsonl of {"prompt": ..., "answer": ...}.')
    batch_size: Count = Field(default=64, description="Documents in a forward pass.")

    @model_validator(mode="after")
    def _something(self) -> MeasuresConfig:
        if self.held_out is None and self.answers is None:
            raise ValueError("name held_out or answers: there is nothing to measure on")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The measures of a cell of the study."""
        found = [name for name in OF_TEXT if self.held_out is not None]
        found += ["exact_answers", "answer_kl"] if self.answers is not None else []
        return tuple(name for name in found if self.teacher is not None or "_kl" not in name)


class ClaimConfig(_Section):
    """Something that the data support or do not: one of `better`, `no_better` and `audit_picks`."""

    pair: str = Field(description="On which pair.")
    measure: str = Field(description="By which measure.")
    better: str | None = Field(default=None, description="This method is better than `than`.")
    no_better: str | None = Field(default=None, description="This method is not better than `than` by `margin`.")
    than: str | None = Field(default=None, description="The other method.")
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="For no_better: an improvement that would count, in units of the measure (default 0)."
    )
    audit_picks: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="Of these two methods the one whose loss the audit recommends is the better."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> ClaimConfig:
        given = [key for key in ("better", "no_better", "audit_picks") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of better, no_better and audit_picks; there {_are(given)}")
        if (self.than is None) != (given == ["audit_picks"]):
            raise ValueError("better and no_better need than, and audit_picks does not")
        if self.margin is not None and self.no_better is None:
            raise ValueError("margin has no effect without no_better")
        return self

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods it speaks of."""
        named = self.audit_picks or [self.better or self.no_better or "", self.than or ""]
        return tuple(named)


class QuestionConfig(_Section):
    """A question to the data: it holds where all of its claims do."""

    id: str = Field(description="Short, to refer to it.")
    asks: str = Field(default="", description="In words.")
    claims: Annotated[list[ClaimConfig], Field(min_length=1)] = Field(description="What would have to be so.")

    @model_validator(mode="before")
    @classmethod
    def _id_is_text(cls, value: Any) -> Any:
        return {**value, "id": str(value["id"])} if isinstance(value, dict) and "id" in value else value


class QuickConfig(_Section):
    """What `--quick` changes."""

    seeds: Seeds | None = Field(default=None, description="In place of the study's, and of the variants'.")
    methods: Annotated[list[str], Field(min_length=1)] | None = Field(default=None, description="These alone.")
    pairs: Annotated[list[str], Field(min_length=1)] | None = Field(default=None, description="These alone.")
    set: Settings = Field(default={}, description="Settings over all others.")
    sweep: bool = Field(default=False, description="Whether there is a sweep.")
    variants: bool = Field(default=False, description="Whether there are variants.")


class StudyConfig(_Section):
    """A study."""

    name: str = Field(description="Of the study, and of its folder.")
    base: Settings = Field(default={}, description="Settings of xtoken train that every cell has.")
    pairs: Annotated[dict[str, PairConfig], Field(min_length=1)] = Field(description="By name.")
    methods: Annotated[dict[str, MethodConfig], Field(min_length=1)] = Field(description="By name.")
    labels: dict[str, str] = Field(default={}, description="What tables and sentences call methods.")
    variants: list[VariantConfig] = Field(default=[], description="Changes to several methods.")
    seeds: Seeds = Field(description="Each method is trained once for each.")
    sweep: SweepConfig | None = Field(default=None, description="Runs first.")
    measures: MeasuresConfig = Field(description="What is measured.")
    baselines: list[str] = Field(default=[], description="Methods that every other is compared with.")
    questions: list[QuestionConfig] = Field(default=[], description="Asked of the data at the end.")
    quick: QuickConfig | None = Field(default=None, description="What --quick changes.")
    _overlay: Settings = PrivateAttr(default_factory=dict)

    @property
    def overlay(self) -> Settings:
        """Settings over all others: what `--quick` sets."""
        return self._overlay

    @property
    def full_names(self) -> list[str]:
        """The methods and the variants of them, as tables call them."""
        return [*self.methods, *(full_name(method, v.name) for v in self.variants for method in v.methods)]

    def rows(self) -> Iterator[tuple[str, str, VariantConfig | None]]:
        """Every method and every variant of it, on every pair that it is for."""
        for pair in self.pairs:
            for name, method in self.methods.items():
                if method.pairs is None or pair in method.pairs:
                    yield pair, name, None
            for variant in self.variants:
                for name in variant.methods:
                    allowed = [each for each in (variant.pairs, self.methods[name].pairs) if each is not None]
                    if all(pair in each for each in allowed):
                        yield pair, name, variant

    def to_yaml(self) -> str:
        """The file that `load_study` reads this study from; what was left out stays out."""
        raw = self.model_dump(exclude_unset=True)
        raw["methods"] = {
            name: {**method.get("settings", {}), **{key: item for key, item in method.items() if key != "settings"}}
            for name, method in raw["methods"].items()
        }
        return str(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))

    def label(self, name: str) -> str:
        """What sentences call a method, given by its full name."""
        if name in self.labels:
            return self.labels[name]
        method, variant = split_name(name)
        return full_name(self.labels.get(method, method), variant)

    def seeds_of(self, variant: VariantConfig | None) -> list[int]:
        """For which seeds it is trained."""
        return self.seeds if variant is None or variant.seeds is None else variant.seeds


def _are(given: Sequence[str]) -> str:
    return f"are {' and '.join(given)}" if given else "is none"


def load_study(path: str | Path) -> StudyConfig:
    """Reads a study from a YAML file.

    Raises:
        XTokenError: an unreadable file; an unknown key or name; a setting without effect.
    """
    raw = read_yaml(path, "study file", "name, pairs, methods and seeds")
    return parse_study(raw, where=str(path))


def parse_study(raw: Mapping[str, Any], where: str = "study") -> StudyConfig:
    """Checks a study given as nested mappings.

    Args:
        raw: as a YAML file would hold it.
        where: what an error message calls it.

    Raises:
        XTokenError: as for `load_study`.
    """
    try:
        study = StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise XTokenError(f"{where}: cannot be used as it stands\n{explained(error, StudyConfig)}") from None
    if mistakes := list(_mistakes(study)):
        lines = "\n".join(f"  {mistake}" for mistake in mistakes)
        raise XTokenError(f"{where}: cannot be used as it stands\n{lines}")
    return study


def check_known(given: str, known: Iterable[str], where: str, what: str) -> str | None:
    """What is wrong with a name, or None.

    Args:
        given: the name.
        known: those there are.
        where: the key that holds it.
        what: what it should name, in the singular.
    """
    names = list(known)
    if given in names:
        return None
    close = difflib.get_close_matches(given, names, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{where}: there is no {what} {given!r}{meant}; there are {', '.join(names) or 'none'}"


def _mistakes(study: StudyConfig) -> Iterator[str]:
    """Names that lead nowhere, and what would have no effect."""
    for key, names in (("pairs", study.pairs), ("methods", study.methods)):
        for name in names:
            if not _NAME.fullmatch(name) or name != name.strip():
                yield f"{key}.{name}: a name becomes a folder, so it has no /, \\ or @ in it and begins with no dot"
    if not _NAME.fullmatch(study.name) or study.name != study.name.strip():
        yield f"name is {study.name!r}, which becomes a folder, so it has no /, \\ or @ in it and begins with no dot"
    unknown = [wrong for wrong in _unknown_names(study) if wrong is not None]
    yield from unknown or _idle(study)
    full_names = study.full_names
    for name in sorted({name for name in full_names if full_names.count(name) > 1}):
        yield f"variants: {name!r} is made twice"
    for where, seeds in _all_seeds(study):
        if len(set(seeds)) != len(seeds):
            yield f"{where}: a seed is named twice, which would count one training as two"
    if study.sweep is not None:
        if study.measures.validation is None:
            yield "sweep: it chooses by measures.validation, which is not there"
        if study.sweep.choose_by.startswith("teacher_kl") and study.measures.teacher is None:
            yield f"sweep.choose_by: {study.sweep.choose_by} needs measures.teacher"
    elif study.measures.validation is not None:
        yield "measures.validation has no effect without sweep: it is for the sweep's choice alone"


def _idle(study: StudyConfig) -> Iterator[str]:
    """What is named twice, and claims that nothing could decide; all names are known."""
    repeated = {
        "baselines": study.baselines,
        "questions": [question.id for question in study.questions],
        "labels": [study.label(name) for name in dict.fromkeys(study.full_names)],
    }
    for where, names in repeated.items():
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{where}: {name!r} is there twice"
    rows = {
        (pair, full_name(method, None if variant is None else variant.name)) for pair, method, variant in study.rows()
    }
    for question in study.questions:
        for number, claim in enumerate(question.claims):
            where = f"question {question.id}, claim {number}"
            if len(set(claim.methods)) == 1:
                yield f"{where}: it holds {claim.methods[0]} against itself"
            for name in claim.methods:
                if (claim.pair, name) not in rows:
                    yield f"{where}: {name} is not trained on pair {claim.pair}"


def _all_seeds(study: StudyConfig) -> Iterator[tuple[str, list[int]]]:
    yield "seeds", study.seeds
    for number, variant in enumerate(study.variants):
        yield f"variants.{number}.seeds", variant.seeds or []
    if study.sweep is not None:
        yield "sweep.seeds", study.sweep.seeds
    if study.quick is not None:
        yield "quick.seeds", study.quick.seeds or []


def _unknown_names(study: StudyConfig) -> Iterator[str | None]:
    methods, full_names, pairs = study.methods, study.full_names, study.pairs
    for number, variant in enumerate(study.variants):
        for name in variant.methods:
            yield check_known(name, methods, f"variants.{number}.methods", "method")
        if not _NAME.fullmatch(variant.name):
            yield f"variants.{number}.name: a name becomes a folder, so it has no /, \\ or @ in it"
        for name in variant.pairs or []:
            yield check_known(name, pairs, f"variants.{number}.pairs", "pair")
    for method, settings in methods.items():
        for name in settings.pairs or []:
            yield check_known(name, pairs, f"methods.{method}.pairs", "pair")
    for name in study.labels:
        yield check_known(name, full_names, "labels", "method")
    for name in study.baselines:
        yield check_known(name, full_names, "baselines", "method")
    if study.sweep is not None:
        yield check_known(study.sweep.choose_by, OF_TEXT, "sweep.choose_by", "measure of text")
    if study.measures.teacher is not None:
        for pair, at in pairs.items():
            yield check_known(study.measures.teacher, at.models, f"measures.teacher, on pair {pair}", "model")
    for question in study.questions:
        for number, claim in enumerate(question.claims):
            where = f"question {question.id}, claim {number}"
            yield check_known(claim.pair, pairs, where, "pair")
            if (wrong := check_known(claim.measure, MEASURES, where, "measure")) is not None:
                yield wrong
            elif claim.measure not in study.measures.names:
                yield f"{where}: {claim.measure} is not measured; measures makes {', '.join(study.measures.names)}"
            for name in claim.methods:
                yield check_known(name, full_names, where, "method")
    if study.quick is not None:
        for name in study.quick.methods or []:
            yield check_known(name, methods, "quick.methods", "method")
        for name in study.quick.pairs or []:
            yield check_known(name, pairs, "quick.pairs", "pair")


def quickened(study: StudyConfig) -> StudyConfig:
    """The study that `--quick` runs: what `quick` leaves of it, with the questions that can still be asked.

    Raises:
        XTokenError: it has no `quick`.
    """
    quick = study.quick
    if quick is None:
        raise XTokenError("--quick: the study has no section quick, which says what is left out")
    methods = {name: m for name, m in study.methods.items() if quick.methods is None or name in quick.methods}
    pairs = {name: p for name, p in study.pairs.items() if quick.pairs is None or name in quick.pairs}
    changes = {
        "methods": {name: m.model_copy(update={"pairs": _left(m.pairs, pairs)}) for name, m in methods.items()},
        "pairs": pairs,
        "seeds": quick.seeds or study.seeds,
        "sweep": study.sweep if quick.sweep else None,
        "variants": [_quick_variant(v, quick, methods, pairs) for v in study.variants if quick.variants],
    }
    made = study.model_copy(update=changes)
    made._overlay = quick.set
    made.variants = [variant for variant in made.variants if variant.methods]
    left = set(made.full_names)
    questions = [_quick_question(question, left, pairs) for question in study.questions]
    rest = {
        "baselines": [name for name in study.baselines if name in left],
        "labels": {name: label for name, label in study.labels.items() if name in left},
        "questions": [question for question in questions if question.claims],
    }
    return made.model_copy(update=rest)


def _left(names: list[str] | None, there: Iterable[str]) -> list[str] | None:
    return None if names is None else [name for name in names if name in set(there)]


def _quick_variant(
    variant: VariantConfig, quick: QuickConfig, methods: Iterable[str], pairs: Iterable[str]
) -> VariantConfig:
    changes = {
        "methods": _left(variant.methods, methods),
        "pairs": _left(variant.pairs, pairs),
        "seeds": variant.seeds if quick.seeds is None else quick.seeds,
    }
    return variant.model_copy(update=changes)


def _quick_question(question: QuestionConfig, left: set[str], pairs: Iterable[str]) -> QuestionConfig:
    claims = [c for c in question.claims if c.pair in set(pairs) and set(c.methods) <= left]
    return question.model_copy(update={"claims": claims})
