"""The settings of a run: one YAML file, `--set key=value` on top of it, nothing else.

Types: `RunConfig` and its sections. Laws: a key that is not known is an error that names the nearest known one; a
setting without effect on the run is an error; what is left out takes the paper's recipe. Help and docs are
read off the fields' descriptions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xtoken.errors import XTokenError

__all__ = [
    "CorpusConfig",
    "DataConfig",
    "LossConfig",
    "OptimConfig",
    "OutputConfig",
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "load_config",
    "parse_config",
    "settings",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LossName = Literal["auto", "p-kl", "h-kl", "path-kl", "gold", "uld", "same"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def _short_for(key: str, value: Any) -> Any:
    """A section given as a bare string stands for its main key: `student: PATH` is `student: {model: PATH}`."""
    return {key: value} if isinstance(value, str) else value


class _ModelSection(_Section):
    """A model, however it is used."""

    model: str | None = Field(default=None, description="A model folder or a hub id.")
    revision: str | None = Field(default=None, description="The hub revision: a branch, tag or commit.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return _short_for("model", value)

    @model_validator(mode="after")
    def _revision_needs_a_model(self) -> _ModelSection:
        if self.revision is not None and self.model is None:
            raise ValueError("revision has no effect without model")
        return self


class StudentConfig(_ModelSection):
    """The model that learns."""

    dtype: Dtype = Field(
        default="auto",
        description="Of the weights; auto is float32, which bf16 autocast uses on a GPU without losing updates.",
    )


class TeacherConfig(_ModelSection):
    """One teacher: a model, the loss it teaches by, and how much it counts."""

    dtype: Dtype = Field(default="auto", description="Of the weights; auto is bfloat16 on a GPU and float32 on a CPU.")
    name: str | None = Field(default=None, description="Its name in the logs; by default the last part of model.")
    loss: LossName = Field(default="auto", description="auto audits the two tokenizers and picks p-kl, h-kl or same.")
    weight: Positive = Field(default=1.0, description="Its static weight in the sum over teachers.")
    merge: Literal["chain", "mean", "first"] | None = Field(
        default=None,
        description="How a chunk of several tokens becomes one distribution (default chain); not for path-kl or same.",
    )
    temperature: Positive = Field(default=1.0, description="Softens the predictions of teacher and student alike.")
    top_k: Count | None = Field(default=None, description="For p-kl: teach the k most probable teacher tokens only.")
    ranks: Count | Literal["all"] | None = Field(
        default=None,
        description="For gold, h-kl and uld: how many sorted probabilities to compare one by one (default 1024).",
    )
    context_length: Count | None = Field(
        default=None, description="The longest document in this teacher's tokens; by default that of the data."
    )


class _SourceSection(_Section):
    """Where documents come from."""

    files: list[str] | None = Field(
        default=None, description="Local .txt, .jsonl or .parquet files, folders of them, or glob patterns."
    )
    dataset: str | None = Field(default=None, description="A `datasets` id, or a folder that `datasets` can load.")
    config: str | None = Field(default=None, description="The dataset's configuration name.")
    split: str | None = Field(default=None, description="The dataset's split (default train).")
    revision: str | None = Field(default=None, description="The dataset's hub revision.")
    text_column: str | None = Field(default=None, description="The column or key that holds the text (default text).")
    split_text_by: Literal["line", "paragraph", "document"] | None = Field(
        default=None,
        description="What one document is in a .txt file: a line (default, as in `datasets`), a paragraph between "
        "blank lines, or the file.",
    )
    max_documents: Count | None = Field(default=None, description="Use the first so many documents only.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"files": [value]} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> _SourceSection:
        if self.files is not None and self.dataset is not None:
            raise ValueError("give files or dataset, not both")
        if self.dataset is None:
            for key in ("config", "split", "revision"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} has no effect without dataset")
        if self.dataset is not None and self.split_text_by is not None:
            raise ValueError("split_text_by has no effect with dataset: it is about .txt files")
        return self


class CorpusConfig(_SourceSection):
    """One of several corpora."""

    name: str | None = Field(default=None, description="What messages call it; by default its file or dataset.")
    weight: Positive = Field(
        default=1.0, description="Its share of the student's tokens, against the other corpora's weights."
    )

    @model_validator(mode="after")
    def _has_source(self) -> CorpusConfig:
        if self.files is None and self.dataset is None:
            raise ValueError("a corpus needs files or dataset")
        return self


class DataConfig(_SourceSection):
    """The text to train on."""

    corpora: list[CorpusConfig] = Field(
        default=[], description="Several corpora in place of one, each with the keys above and a weight."
    )
    streaming: bool = Field(
        default=False,
        description="Read, tokenise and align while training, and keep nothing: for more text than a disk holds.",
    )
    shuffle_buffer: Count | None = Field(
        default=None,
        description="With streaming: a document is drawn at random from so many (default 10000; 1 keeps the order).",
    )
    workers: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Processes that tokenise and align; 0 is none. By default one a core (with streaming at most 4), "
        "and none on fewer than 4 cores.",
    )
    context_length: Count = Field(
        default=4096,
        description="The longest document in tokens, of the student and of each teacher; a longer one is cut.",
    )
    append_eos: bool = Field(default=True, description="End every document with the tokenizer's end-of-document token.")
    alignment: Literal["bytes", "dp", "surface"] = Field(
        default="bytes",
        description="How the two tokenizations are aligned: bytes is exact, the others are for comparison.",
    )

    @model_validator(mode="after")
    def _settings_fit(self) -> DataConfig:
        if self.corpora:
            for key in _SourceSection.model_fields:
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} has no effect beside corpora: give it to each of them")
            if self.streaming:
                raise ValueError("streaming takes one source: the shares of corpora are known when all are prepared")
        if self.shuffle_buffer is not None and not self.streaming:
            raise ValueError("shuffle_buffer has no effect without streaming: all of the data is shuffled")
        return self


class LossConfig(_Section):
    """How cross-entropy and the teachers' losses become one number."""

    kd_weight: Literal["auto", "dynamic"] | NonNegative = Field(
        default="auto",
        description="The weight of the teachers' sum; dynamic scales it to the cross-entropy. auto is 1 where every "
        "teacher teaches by path-kl, whose nats are the cross-entropy's own, and dynamic elsewhere.",
    )
    ce_weight: NonNegative = Field(default=1.0, description="The weight of the cross-entropy.")

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossConfig:
        if self.ce_weight == 0 and self.kd_weight == 0:
            raise ValueError("ce_weight and kd_weight are both 0: there is nothing to learn from")
        return self


class OptimConfig(_Section):
    """The optimizer and its schedule; the defaults are the paper's."""

    learning_rate: Positive = Field(default=5e-5, description="AdamW's peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="After the warm-up.")
    warmup: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        default=0.05, description="The share of the steps that warm up."
    )
    weight_decay: NonNegative = Field(default=0.1, description="AdamW's weight decay, not on biases and norms.")
    max_grad_norm: Positive = Field(default=1.0, description="The gradient's norm is clipped to this.")
    batch_size: Count = Field(default=768, description="Documents in one optimizer step, over all processes.")
    micro_batch_size: Count | None = Field(
        default=None,
        description="Documents in one forward pass of one process (default 1, which needs the least memory).",
    )
    steps: Count = Field(default=30_000, description="Optimizer steps; the data is repeated as often as it takes.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations to save memory.")


class OutputConfig(_Section):
    """What is written, and where."""

    folder: str | None = Field(default=None, description="The folder for the student, its checkpoints and the metrics.")
    save_every: Count = Field(default=1000, description="Steps between checkpoints to resume from.")
    keep_checkpoints: Count = Field(default=1, description="How many checkpoints are kept, the newest.")
    log_every: Count = Field(default=1, description="Steps between lines in metrics.jsonl; each is the mean over them.")
    trackers: list[str] = Field(
        default=[], description="Trackers that transformers knows: tensorboard, wandb, trackio, mlflow and so on."
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return _short_for("folder", value)


class RunConfig(_Section):
    """Everything that decides a run."""

    student: StudentConfig = Field(default_factory=StudentConfig, description="The model that learns.")
    teachers: list[TeacherConfig] = Field(
        default=[], description="The models that teach; none trains the student by cross-entropy alone."
    )
    data: DataConfig = Field(default_factory=DataConfig, description="The text to train on.")
    loss: LossConfig = Field(default_factory=LossConfig, description="How the losses become one number.")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="The optimizer and its schedule.")
    output: OutputConfig = Field(default_factory=OutputConfig, description="What is written, and where.")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Of the data's order and of dropout.")

    @model_validator(mode="after")
    def _settings_have_effect(self) -> RunConfig:
        if not self.teachers and self.loss.kd_weight not in ("auto", "dynamic"):
            raise ValueError("loss.kd_weight has no effect without teachers")
        if not self.teachers and self.data.alignment != "bytes":
            raise ValueError("data.alignment has no effect without teachers")
        if not self.teachers and self.loss.ce_weight == 0:
            raise ValueError("loss.ce_weight is 0 and there are no teachers: there is nothing to learn from")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run's settings from a YAML file.

    Args:
        path: the file.
        overrides: `key=value` with dotted keys, as in `teachers.0.weight=0.5`; a value is YAML.

    Raises:
        XTokenError: an unreadable file, an unknown key, a value out of range.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise XTokenError(f"there is no config file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise XTokenError(f"cannot read the config file {path}: {error}") from None
    except yaml.YAMLError as error:
        raise XTokenError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise XTokenError(f"{path} holds {_kind(raw)}; expected keys such as student, teachers and data")
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, where=str(path))


def parse_config(raw: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Checks settings given as nested mappings.

    Args:
        raw: as a YAML file would hold them.
        where: what an error message calls them.

    Raises:
        XTokenError: an unknown key, with the nearest known one; a value out of range.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in _in_order(error.errors()))
        raise XTokenError(f"{where}: cannot be used as it stands\n{problems}") from None


def settings() -> Iterator[tuple[str, Any, str]]:
    """Every setting as (dotted key, default, description), in the order of the file."""
    yield from _settings_of(RunConfig, "")


def _settings_of(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any, str]]:
    for name, field in section.model_fields.items():
        inner, index = _inner(field.annotation)
        if inner is None:
            yield prefix + name, field.get_default(call_default_factory=True), field.description or ""
        else:
            yield from _settings_of(inner, f"{prefix}{name}.{'N.' if index else ''}")


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that an annotation holds, if any, and whether it holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is list:
        return _inner(get_args(annotation)[0])[0], True
    return None, False


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise XTokenError(f"--set {override!r}: expected key=value, as in --set optim.steps=100")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise XTokenError(f"--set {override!r}: the value is not valid YAML: {error}") from None
    here: Any = raw
    parts = key.split(".")
    for depth, part in enumerate(parts[:-1]):
        here = _step_into(here, part, ".".join(parts[: depth + 1]))
    _assign(here, parts[-1], parsed, key)


def _step_into(here: Any, part: str, path: str) -> Any:
    if isinstance(here, list):
        return here[_index(here, part, path)]
    if not isinstance(here, dict):
        raise XTokenError(f"--set {path}: there is {_kind(here)} above it, which has no keys")
    if here.get(part) is None:
        here[part] = {}
    return here[part]


def _assign(here: Any, part: str, value: Any, path: str) -> None:
    if isinstance(here, list):
        here[_index(here, part, path)] = value
    elif isinstance(here, dict):
        here[part] = value
    else:
        raise XTokenError(f"--set {path}: there is {_kind(here)} above it, which has no keys")


def _index(items: list[Any], part: str, path: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise XTokenError(f"--set {path}: {part!r} is no place in a list of {len(items)} (they count from 0)")
    return int(part)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__} ({value!r})"


def _in_order(problems: Sequence[Any]) -> list[Any]:
    """Where both branches of a union refuse a value, that of the value's own kind first: a word or a number."""
    places = [_path(problem["loc"]) for problem in problems]

    def place_and_kind(problem: Any) -> tuple[int, bool]:
        wants_a_word = problem["type"] == "literal_error"
        return places.index(_path(problem["loc"])), wants_a_word != isinstance(problem.get("input"), str)

    return sorted(problems, key=place_and_kind)


def _explain(problem: Any) -> str:
    """One line for one of pydantic's errors."""
    loc = _path(problem["loc"])
    given = problem.get("input")
    if problem["type"] == "extra_forbidden":
        known = _keys_at(loc[:-1])
        return f"unknown key {'.'.join(loc)}{_nearest(loc[-1], known)}; there are {', '.join(known)}"
    if problem["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"{'.'.join(loc)} is {given!r}{_nearest(str(given), known)}; expected one of {', '.join(known)}"
    if problem["type"] == "model_type":
        return f"{'.'.join(loc)} is {given!r}; expected keys such as {', '.join(_keys_at(loc)[:3])}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{'.'.join(loc)}: {message}" if loc else message
    return f"{'.'.join(loc)} is {given!r}: {message}"


def _path(loc: Sequence[str | int]) -> list[str]:
    """Where the error is, without the branch of a union, which pydantic appends to the key that holds a value."""
    section: type[BaseModel] | None = RunConfig
    path = []
    for part in loc:
        if section is None and isinstance(part, str):
            break
        path.append(str(part))
        if section is not None and isinstance(part, str):
            known = part in section.model_fields
            section = _inner(section.model_fields[part].annotation)[0] if known else None
    return path


def _keys_at(loc: Sequence[str]) -> list[str]:
    """The keys that a section has, found by the path to it."""
    section: type[BaseModel] = RunConfig
    for part in loc:
        if part in section.model_fields:
            section = _inner(section.model_fields[part].annotation)[0] or section
    return list(section.model_fields)


def _nearest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given.lower(), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
