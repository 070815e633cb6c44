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
    "EvalConfig",
    "LoraConfig",
    "LossConfig",
    "OptimConfig",
    "OutputConfig",
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "explained",
    "flat",
    "flat_settings",
    "load_config",
    "parse_config",
    "read_yaml",
    "settings",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LossName = Literal["auto", "p-kl", "h-kl", "path-kl", "gold", "uld", "same", "strict", "alm", "partition-kl"]
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
    trust_remote_code: bool = Field(
        default=False, description="Run the Python code that the model's folder or repository brings along."
    )
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        default=None, description="The implementation of attention; by default transformers chooses."
    )
    chat_template: str | None = Field(
        default=None,
        description="For data.format chat: a file with a Jinja template, in place of the one in the model's folder.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return _short_for("model", value)

    @model_validator(mode="after")
    def _loading_needs_a_model(self) -> _ModelSection:
        for key in ("revision", "trust_remote_code", "attention", "quantization", "device_map"):
            if self.model is None and getattr(self, key, None):
                raise ValueError(f"{key} has no effect without model")
        return self


class LoraConfig(_Section):
    """Low-rank adapters (Hu et al., LoRA, arXiv 2106.09685) that learn in place of the student's weights."""

    rank: Count = Field(
        default=16, description="Of the adapters; where any of these is set, adapters learn and the weights stay."
    )
    alpha: Positive = Field(default=32.0, description="What adapters add is scaled by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Of what adapters are given.")
    target_modules: list[str] | None = Field(
        default=None,
        min_length=1,
        description="The layers that get one, by the ends of their names; by default every linear layer but the head.",
    )
    save: Literal["merged", "adapter"] = Field(
        default="merged",
        description="What is saved at the end: the weights with the adapters added in, or the adapters alone, which "
        "need the student's model to load.",
    )


class StudentConfig(_ModelSection):
    """The model that learns."""

    lora: LoraConfig | None = Field(default=None, description="Adapters that learn in place of the weights.")

    dtype: Dtype = Field(
        default="auto",
        description="Of the weights; auto is float32, which bf16 autocast uses on a GPU without losing updates.",
    )


class ProjectionConfig(_Section):
    """W, the matrix between the vocabularies of a teacher and the student."""

    file: str | None = Field(
        default=None, description="For p-kl and h-kl: a saved W to start from; by default it is built by rule."
    )
    learnable: bool = Field(default=False, description="For p-kl: learn W's weights with the student.")
    learning_rate: Positive | None = Field(
        default=None, description="For a learnable W: its peak learning rate (default 1e-2)."
    )

    @model_validator(mode="after")
    def _rate_needs_learning(self) -> ProjectionConfig:
        if self.learning_rate is not None and not self.learnable:
            raise ValueError("learning_rate has no effect without learnable")
        return self


class TeacherConfig(_ModelSection):
    """One teacher: a model, the loss it teaches by, and how much it counts."""

    dtype: Dtype = Field(default="auto", description="Of the weights; auto is bfloat16 on a GPU and float32 on a CPU.")
    sharded: bool = Field(
        default=False,
        description="Spread its weights over the processes of the run, instead of a copy in each; slower, and smaller.",
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        default=None, description="Hold the weights in so few bits (bitsandbytes, on a CUDA GPU); dtype then computes."
    )
    device_map: str | dict[str, int | str] | None = Field(
        default=None,
        description="Where the weights lie: auto spreads them over all GPUs, or a device for each module; by default "
        "beside the student.",
    )
    name: str | None = Field(default=None, description="Its name in the logs; by default the last part of model.")
    loss: LossName = Field(default="auto", description="auto audits the two tokenizers and picks p-kl, h-kl or same.")
    weight: Positive = Field(default=1.0, description="Its weight in the sum over teachers, if these are static.")
    merge: Literal["chain", "mean", "first"] | None = Field(
        default=None,
        description="For p-kl, h-kl, gold and uld: how a chunk of several tokens becomes one distribution (default "
        "chain).",
    )
    temperature: Positive = Field(default=1.0, description="Softens the predictions of teacher and student alike.")
    top_k: Count | None = Field(
        default=None,
        description="For p-kl and strict: teach the k most probable teacher tokens only (default all, for strict 100).",
    )
    likelihood_temperature: Positive | None = Field(
        default=None, description="For alm: the likelihoods of chunks are raised to 1 over this (default 100)."
    )
    divergence: Literal["forward", "reverse", "jsd"] | None = Field(
        default=None,
        description="For same and p-kl: forward is KL(teacher || student) (default), reverse KL(student || teacher), "
        "jsd Jensen-Shannon.",
    )
    jsd_beta: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = Field(
        default=None, description="For jsd: the teacher's share of the mixture (default 0.5)."
    )
    projection: ProjectionConfig = Field(default_factory=ProjectionConfig, description="W, where the loss has one.")
    ranks: Count | Literal["all"] | None = Field(
        default=None,
        description="For gold, h-kl and uld: how many sorted probabilities to compare one by one (default 1024).",
    )
    context_length: Count | None = Field(
        default=None, description="The longest document in this teacher's tokens; by default that of the data."
    )

    @model_validator(mode="after")
    def _beta_needs_jsd(self) -> TeacherConfig:
        if self.jsd_beta is not None and self.divergence != "jsd":
            raise ValueError("jsd_beta has no effect without divergence jsd")
        return self


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


class _CorpusSection(_SourceSection):
    """Documents to train on."""

    chat_columns: Annotated[list[str], Field(min_length=1, max_length=2)] | None = Field(
        default=None,
        description="For format chat: the column of the messages, or the two of prompt and completion (default "
        "messages, or else prompt and completion).",
    )


class CorpusConfig(_CorpusSection):
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


class DataConfig(_CorpusSection):
    """The text to train on."""

    format: Literal["text", "chat"] = Field(
        default="text",
        description="What a document is: text, or chat, a conversation that each side's chat template renders.",
    )
    loss_on: Literal["assistant", "all"] | None = Field(
        default=None,
        description="For format chat: learn the assistant's turns after the prompt (default assistant), or every "
        "message; each with the token that ends its turn.",
    )
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
    packing: Literal["none", "documents", "concatenate"] = Field(
        default="none",
        description="Fill each sequence up to the context: documents keeps them apart, concatenate lets each see those "
        "before it, none gives each a sequence of its own. optim.batch_size counts sequences.",
    )
    append_eos: bool = Field(default=True, description="End every document with the tokenizer's end-of-document token.")
    alignment: Literal["bytes", "dp", "surface"] = Field(
        default="bytes",
        description="How the two tokenizations are aligned: bytes is exact, the others are for comparison.",
    )

    @model_validator(mode="after")
    def _settings_fit_the_format(self) -> DataConfig:
        of_the_other = ("chat_columns", "loss_on") if self.format == "text" else ("text_column", "split_text_by")
        for section in (self, *self.corpora):
            for key in of_the_other:
                if getattr(section, key, None) is not None:
                    raise ValueError(f"{key} has no effect with format {self.format}")
        if self.format == "chat" and not self.append_eos:
            raise ValueError("append_eos has no effect with format chat: the chat template ends a conversation")
        return self

    @model_validator(mode="after")
    def _settings_fit(self) -> DataConfig:
        if self.corpora:
            for key in _CorpusSection.model_fields:
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} has no effect beside corpora: give it to each of them")
            if self.streaming:
                raise ValueError("streaming takes one source: the shares of corpora are known when all are prepared")
        if self.streaming and self.packing != "none":
            raise ValueError("packing takes documents whose lengths are known: leave out streaming")
        if self.shuffle_buffer is not None and not self.streaming:
            raise ValueError("shuffle_buffer has no effect without streaming: all of the data is shuffled")
        return self


class LossConfig(_Section):
    """How cross-entropy and the teachers' losses become one number."""

    kd_weight: Literal["auto", "dynamic", "gradient"] | NonNegative = Field(
        default="auto",
        description="The weight of the teachers' sum; dynamic scales it to the cross-entropy's value, gradient to the "
        "norm of its gradient. auto is 1 where every teacher teaches by path-kl, whose nats are the cross-entropy's "
        "own, and dynamic elsewhere.",
    )
    ce_weight: NonNegative = Field(default=1.0, description="The weight of the cross-entropy.")
    kd_warmup: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        default=0.0, description="The share of the steps over which the teachers' sum is faded in."
    )
    teacher_weights: Literal["static", "ce", "entropy", "max_prob"] = Field(
        default="static",
        description="What weighs the teachers: their own weights, or how sure each is of the text, by its "
        "cross-entropy, its entropy or its largest probability.",
    )
    gradient_norms: Count | None = Field(
        default=None,
        description="Steps from one measurement of each term's gradient to the next, for the log and for kd_weight "
        "gradient (default 20 there, else none is made); each costs a pass for the text and one for each teacher.",
    )
    alpha: NonNegative | None = Field(
        default=None, description="How much that counts: softmax(alpha * score) over the teachers (default 1)."
    )

    @model_validator(mode="after")
    def _alpha_needs_scores(self) -> LossConfig:
        if self.alpha is not None and self.teacher_weights == "static":
            raise ValueError("alpha has no effect with static teacher_weights")
        return self

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
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="What float32 weights of the student compute in; auto is bfloat16 on a GPU that has it, else "
        "float32.",
    )
    compile: bool = Field(
        default=False, description="Compile the student by torch.compile: slow to begin, then faster."
    )


class EvalConfig(_SourceSection):
    """Held-out text, on which bits per byte are measured during training, and what these figures decide."""

    max_documents: Count = Field(default=1000, description="Use the first so many held-out documents at most.")
    context_length: Count | None = Field(
        default=None, description="Tokens in a window; by default data.context_length. No document is cut off."
    )
    every: Count = Field(
        default=500, description="Steps between two evaluations; there is one before the first and after the last step."
    )
    batch_size: Count = Field(default=8, description="Windows in a forward pass, fewer where they are long.")
    keep_best: bool = Field(
        default=True,
        description="Keep the checkpoint with the lowest bits per byte, beside those of output.keep_checkpoints.",
    )
    save: Literal["best", "last"] | None = Field(
        default=None,
        description="Which student is saved at the end; by default the best where keep_best is on, else the last.",
    )

    @model_validator(mode="after")
    def _settings_fit(self) -> EvalConfig:
        if self.dataset is not None and self.split is None:
            raise ValueError("name the dataset's split that is held out, as in split: test")
        if self.save == "best" and not self.keep_best:
            raise ValueError("save: best needs the best checkpoint: leave keep_best on")
        return self

    @property
    def saves_best(self) -> bool:
        """Whether the student saved at the end is the best one."""
        return self.keep_best and self.save != "last"


class OutputConfig(_Section):
    """What is written, and where."""

    folder: str | None = Field(default=None, description="The folder for the student, its checkpoints and the metrics.")
    save_every: Count = Field(default=1000, description="Steps between checkpoints to resume from.")
    keep_checkpoints: Count = Field(default=1, description="How many checkpoints are kept, the newest.")
    log_every: Count = Field(default=1, description="Steps between lines in metrics.jsonl; each is the mean over them.")
    trackers: list[str] = Field(
        default=[], description="Trackers that transformers knows: tensorboard, wandb, trackio, mlflow and so on."
    )
    push_to_hub: str | None = Field(
        default=None,
        description="Upload the student and its card to this repository of the hub, USER/NAME, at the end.",
    )
    private: bool | None = Field(
        default=None, description="Whether a new repository is private; by default as the hub has it."
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return _short_for("folder", value)

    @model_validator(mode="after")
    def _pushes_a_folder(self) -> OutputConfig:
        if self.push_to_hub is not None and self.folder is None:
            raise ValueError("push_to_hub needs a folder, which is what is uploaded")
        if self.private is not None and self.push_to_hub is None:
            raise ValueError("private has no effect without push_to_hub")
        return self


class RunConfig(_Section):
    """Everything that decides a run."""

    student: StudentConfig = Field(default_factory=StudentConfig, description="The model that learns.")
    teachers: list[TeacherConfig] = Field(
        default=[], description="The models that teach; none trains the student by cross-entropy alone."
    )
    data: DataConfig = Field(default_factory=DataConfig, description="The text to train on.")
    loss: LossConfig = Field(default_factory=LossConfig, description="How the losses become one number.")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="The optimizer and its schedule.")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="Held-out text, and what its figures decide.")
    output: OutputConfig = Field(default_factory=OutputConfig, description="What is written, and where.")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Of the data's order and of dropout.")

    @model_validator(mode="after")
    def _settings_have_effect(self) -> RunConfig:
        if not self.teachers and self.loss.kd_weight not in ("auto", "dynamic"):
            raise ValueError("loss.kd_weight has no effect without teachers")
        if self.loss.teacher_weights != "static" and len(self.teachers) < 2:
            raise ValueError("loss.teacher_weights has no effect with fewer than two teachers")
        if self.loss.teacher_weights != "static" and any(t.weight != 1 for t in self.teachers):
            raise ValueError(f"teachers' weight has no effect with loss.teacher_weights {self.loss.teacher_weights}")
        if not self.teachers and self.loss.gradient_norms is not None:
            raise ValueError("loss.gradient_norms has no effect without teachers")
        if not self.teachers and self.loss.kd_warmup:
            raise ValueError("loss.kd_warmup has no effect without teachers")
        if self.data.format == "text" and any(m.chat_template is not None for m in (self.student, *self.teachers)):
            raise ValueError("chat_template has no effect with data.format text")
        if not self.teachers and self.data.alignment != "bytes":
            raise ValueError("data.alignment has no effect without teachers")
        if self.loss.kd_weight == 0 and any(teacher.projection.learnable for teacher in self.teachers):
            raise ValueError("projection.learnable has no effect where loss.kd_weight is 0")
        if not self.teachers and self.loss.ce_weight == 0:
            raise ValueError("loss.ce_weight is 0 and there are no teachers: there is nothing to learn from")
        if self.optim.precision != "auto" and self.student.dtype not in ("auto", "float32"):
            raise ValueError(
                f"optim.precision has no effect on a student of dtype {self.student.dtype}, which computes in that: "
                "leave one of them out"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run's settings from a YAML file.

    Args:
        path: the file.
        overrides: `key=value` with dotted keys, as in `teachers.0.weight=0.5`; a value is YAML.

    Raises:
        XTokenError: an unreadable file, an unknown key, a value out of range.
    """
    raw = read_yaml(path, "config file", "student, teachers and data")
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, where=str(path))


def read_yaml(path: str | Path, what: str, keys: str) -> dict[str, Any]:
    """What a YAML file of settings holds.

    Args:
        path: the file.
        what: what a message calls it.
        keys: some that it should have, for a message.

    Raises:
        XTokenError: no such file, or one that cannot be read; no YAML; anything but keys and values.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise XTokenError(f"there is no {what} {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise XTokenError(f"cannot read the {what} {path}: {error}") from None
    except yaml.YAMLError as error:
        raise XTokenError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise XTokenError(f"{path} holds {_kind(raw)}; expected keys such as {keys}")
    return raw


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
        raise XTokenError(f"{where}: cannot be used as it stands\n{explained(error, RunConfig)}") from None


def explained(error: ValidationError, root: type[BaseModel]) -> str:
    """What is wrong with settings, one line a mistake, each with the key and the nearest known one.

    Args:
        error: what pydantic says.
        root: the model it was asked to make.
    """
    return "\n".join(f"  {_explain(problem, root)}" for problem in _in_order(error.errors(), root))


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings and lists as (dotted key, value)."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        yield prefix, value
    else:
        for key, item in inner:
            yield from flat(item, f"{prefix}.{key}" if prefix else str(key))


def flat_settings(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """A run's settings as (dotted key, value), without those that are not set."""
    yield from flat(config.model_dump(exclude_none=True))


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
    """The section that an annotation holds, if any, and whether it holds several: a list, or each under a name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) in (list, dict):
        return _inner(get_args(annotation)[-1])[0], True
    if type(None) in get_args(annotation):  # a section that may be left out
        others = [option for option in get_args(annotation) if option is not type(None)]
        return _inner(others[0]) if len(others) == 1 else (None, False)
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
        path = ".".join(parts[: depth + 1])
        above, here = here, _step_into(here, part, path)
        if isinstance(here, str):  # a section in its short form
            here = _long_form(here, path)
            _assign(above, part, here, path)
    _assign(here, parts[-1], parsed, key)


def _long_form(value: str, path: str) -> Any:
    """What a section given as a bare string stands for; the string itself where there is no such section."""
    sections: dict[str, Any] = {"student": StudentConfig, "teachers.N": TeacherConfig, "data": DataConfig}
    sections |= {"eval": EvalConfig, "output": OutputConfig, "data.corpora.N": CorpusConfig}
    section = sections.get(re.sub(r"\.\d+", ".N", path))
    return value if section is None else section._short(value)


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


def _in_order(problems: Sequence[Any], root: type[BaseModel]) -> list[Any]:
    """Where both branches of a union refuse a value, that of the value's own kind first: a word or a number."""
    places = [_path(problem["loc"], root) for problem in problems]

    def place_and_kind(problem: Any) -> tuple[int, bool]:
        wants_a_word = problem["type"] == "literal_error"
        return places.index(_path(problem["loc"], root)), wants_a_word != isinstance(problem.get("input"), str)

    return sorted(problems, key=place_and_kind)


def _explain(problem: Any, root: type[BaseModel]) -> str:
    """One line for one of pydantic's errors."""
    loc = _path(problem["loc"], root)
    given = problem.get("input")
    if problem["type"] == "extra_forbidden":
        known = _keys_at(loc[:-1], root)
        return f"unknown key {'.'.join(loc)}{_nearest(loc[-1], known)}; there are {', '.join(known)}"
    if problem["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"{'.'.join(loc)} is {given!r}{_nearest(str(given), known)}; expected one of {', '.join(known)}"
    if problem["type"] == "model_type":
        return f"{'.'.join(loc)} is {given!r}; expected keys such as {', '.join(_keys_at(loc, root)[:3])}"
    if problem["type"] == "missing":
        return f"{'.'.join(loc)} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{'.'.join(loc)}: {message}" if loc else message
    return f"{'.'.join(loc)} is {given!r}: {message}"


def _path(loc: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    """Where the error is, without the branch of a union, which pydantic appends to the key that holds a value."""
    section: type[BaseModel] | None = root
    path, is_name = list[str](), False
    for part in loc:
        if section is None and isinstance(part, str):
            break
        path.append(str(part))
        if is_name:
            is_name = False
        elif section is not None and isinstance(part, str):
            annotation = section.model_fields[part].annotation if part in section.model_fields else None
            section, is_name = _inner(annotation)[0], get_origin(annotation) is dict
    return path


def _keys_at(loc: Sequence[str], root: type[BaseModel]) -> list[str]:
    """The keys that a section has, found by the path to it."""
    section, is_name = root, False
    for part in loc:
        if is_name:
            is_name = False
        elif part in section.model_fields:
            annotation = section.model_fields[part].annotation
            section, is_name = _inner(annotation)[0] or section, get_origin(annotation) is dict
    return list(section.model_fields)


def _nearest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given.lower(), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
