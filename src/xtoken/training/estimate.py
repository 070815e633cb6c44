"""What a run would take: the memory of each GPU, and the time, from the models' config.json alone.

Types: `Machine`, what it would run on; `Figure`, a number with the sum it comes from; `Plan`, the memory and time of
one layout; `Estimate`, all of it. Nothing is loaded: parameters are counted on the meta device and activations on
tensors without content (`xtoken.training.trace`). Law: every figure says how it was made.

A step holds weights, gradients, AdamW's moments and the teachers' weights throughout, and one of four phases on top:
the student's forward pass, a teacher's, the losses, the backward pass. The peak is the first plus the largest of the
second. FLOPs follow the usual count: a product of a token with a weight is two, backward twice forward, causal
attention half of the square. Documents are taken to fill the context, and a teacher to need as many tokens as the
student: an upper bound for shorter ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from xtoken.config import RunConfig, StudentConfig, TeacherConfig
from xtoken.errors import XTokenError
from xtoken.losses.fast.hidden import _HEAD_ELEMENTS  # the size of the blocks is theirs to choose
from xtoken.losses.fast.walk import block_rows
from xtoken.training.pushes import EVERY
from xtoken.training.trace import (
    ModelShape,
    TeacherBytes,
    TrainingBytes,
    model_shape,
    read_config,
    teacher_bytes,
    train_bytes,
)

__all__ = ["Estimate", "Figure", "Machine", "Plan", "estimate"]

GB = 1e9
_BYTES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
# Buffers of a step of the losses, each of its rows by the widest vocabulary (measured: 70 MB at 2**21 numbers each).
_STEP_BUFFERS = 8
# What this file counts, or knows to take neither memory nor time worth counting. A setting that is given and not here
# is reported, so that nobody takes the estimate for one of it.
_MODEL = ("model", "revision", "dtype")
_TEACHER = (
    "name",
    "loss",
    "weight",
    "merge",
    "temperature",
    "top_k",
    "ranks",
    "context_length",
    "likelihood_temperature",
)
# Those that have no fast version and so need the student's logits, as the merge `mean` does.
_FROM_LOGITS = ("strict", "alm", "partition-kl")
_SOURCE = ("files", "dataset", "config", "split", "revision", "text_column", "split_text_by", "max_documents")
_SCHEDULE = ("learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm", "steps")
_READING = ("format", "chat_columns", "loss_on", "corpora", "streaming", "shuffle_buffer", "workers")
_COUNTED = {
    "student": _MODEL,
    "teachers": (*_MODEL, *_TEACHER),
    "data": (*_SOURCE, *_READING, "context_length", "append_eos", "alignment", "packing"),
    "loss": ("kd_weight", "ce_weight", "kd_warmup", "gradient_norms"),
    "optim": (*_SCHEDULE, "batch_size", "micro_batch_size", "gradient_checkpointing"),
    "output": ("folder", "save_every", "keep_checkpoints", "log_every", "trackers", "push_to_hub", "private"),
    "seed": (),
}


@dataclass(frozen=True)
class Machine:
    """What a run is estimated for; the defaults are NVIDIA H100s.

    Attributes:
        gpus: how many, at least 1.
        flops: the peak rate of one in the dtype of the products, FLOP/s; 989e12 is an H100's in dense bfloat16.
        utilisation: the share of it that is reached, above 0 and at most 1; 0.4 is what well-run training reaches.
        memory: of one, bytes.
        on_gpu: whether the products are made in bfloat16, as on a GPU, or all in float32, as on a CPU.
    """

    gpus: int = 8
    flops: float = 989e12
    utilisation: float = 0.4
    memory: float = 80 * GB
    on_gpu: bool = True


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from.

    Attributes:
        name: what it is of.
        value: in bytes, parameters or FLOPs, as the list it stands in.
        source: the sum it was made by.
    """

    name: str
    value: float
    source: str


@dataclass(frozen=True)
class Plan:
    """A layout over GPUs.

    Attributes:
        name: `1 GPU`, `8 GPUs, DDP`.
        gpus: how many.
        held: bytes of one GPU that are held throughout.
        phases: bytes on top of them, one phase after the other.
        peak: bytes, the sum of the first and the largest of the second.
        fits: whether the peak is within the machine's memory.
        tokens_per_second: of the student, over all GPUs.
        hours: of the whole run.
        gpu_hours: hours times GPUs.
        advice: what would make it fit, each with its peak; empty where it fits.
    """

    name: str
    gpus: int
    held: tuple[Figure, ...]
    phases: tuple[Figure, ...]
    peak: float
    fits: bool
    tokens_per_second: float
    hours: float
    gpu_hours: float
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """The answer of a dry run.

    Attributes:
        parameters: by model.
        flops: for one token of the student's, by part.
        plans: the layouts, one GPU first.
        machine: what they are for.
        tokens: of the student's in the whole run.
        assumptions: what was taken for granted, in sentences.
        not_counted: settings of the config that the estimate knows nothing of.
    """

    parameters: tuple[Figure, ...]
    flops: tuple[Figure, ...]
    plans: tuple[Plan, ...]
    machine: Machine
    tokens: int
    assumptions: tuple[str, ...]
    not_counted: tuple[str, ...] = ()

    @property
    def flops_per_token(self) -> float:
        """The sum of `flops`."""
        return sum(figure.value for figure in self.flops)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "flops_per_token": self.flops_per_token}


def estimate(config: RunConfig, machine: Machine | None = None) -> Estimate:
    """What a run of this config would take.

    Args:
        config: the run's settings; the student and each teacher have to name a model.
        machine: what it would run on.

    Raises:
        XTokenError: a config.json that cannot be read, or of no causal language model; a batch that does not divide
            among the GPUs; a machine out of range.
    """
    machine = machine or Machine()
    _check_machine(machine)
    return _of_run(_Run.of(config, machine, _Models()), with_advice=True)


def _check_machine(machine: Machine) -> None:
    for what, value, most in (
        ("gpus", machine.gpus, float("inf")),
        ("flops", machine.flops, float("inf")),
        ("utilisation", machine.utilisation, 1.0),
        ("memory", machine.memory, float("inf")),
    ):
        if not 0 < value <= most or value == float("inf"):
            raise XTokenError(f"{what} is {value:g}; it must be above 0" + (" and at most 1" if most == 1 else ""))


class _Models:
    """The models of a run, each read, counted and traced once for what is asked."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Any] = {}

    def config(self, who: str, settings: StudentConfig | TeacherConfig) -> Any:
        """Its config.json."""
        return self._once(
            ("config", who), lambda: read_config(str(settings.model), who=who, revision=settings.revision)
        )

    def shape(self, who: str, config: Any) -> ModelShape:
        """Its sizes."""
        found: ModelShape = self._once(("shape", who), lambda: model_shape(config, who))
        return found

    def student(self, config: Any, **how: Any) -> TrainingBytes:
        """As `train_bytes`."""
        key = ("student", *how.values())
        found: TrainingBytes = self._once(key, lambda: train_bytes(config, "student", **how))
        return found

    def teacher(self, who: str, config: Any, **how: Any) -> TeacherBytes:
        """As `teacher_bytes`."""
        found: TeacherBytes = self._once((who, *how.values()), lambda: teacher_bytes(config, who, **how))
        return found

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


@dataclass(frozen=True)
class _Teacher:
    """A teacher of the run, with what was counted of it."""

    name: str
    shape: ModelShape
    dtype: torch.dtype
    tokens: int
    bytes: TeacherBytes


@dataclass(frozen=True)
class _Run:
    """Everything an estimate is made of."""

    config: RunConfig
    machine: Machine
    shape: ModelShape
    dtype: torch.dtype
    autocast: bool
    tokens: int
    documents: int
    student: TrainingBytes
    teachers: tuple[_Teacher, ...]
    models: _Models

    @classmethod
    def of(cls, config: RunConfig, machine: Machine, models: _Models) -> _Run:
        """Reads and counts what `models` does not have."""
        if config.student.model is None:
            raise XTokenError("there is no student: name student.model, a folder or a hub id")
        found = models.config("student", config.student)
        shape = models.shape("student", found)
        dtype = _dtype(config.student.dtype, torch.float32)
        autocast = machine.on_gpu and dtype == torch.float32
        tokens = min(config.data.context_length, shape.positions or config.data.context_length)
        documents = config.optim.micro_batch_size or 1
        counted = models.student(
            found,
            documents=documents,
            tokens=tokens,
            dtype=dtype,
            autocast=autocast,
            checkpointing=config.optim.gradient_checkpointing,
        )
        teachers = tuple(
            _teacher(settings, number, tokens, documents, machine, models)
            for number, settings in enumerate(config.teachers)
        )
        return cls(config, machine, shape, dtype, autocast, tokens, documents, counted, teachers, models)

    @property
    def size(self) -> int:
        """Bytes of one of the student's weights."""
        return _BYTES[self.dtype]

    @property
    def rows(self) -> int:
        """Tokens of a micro-batch."""
        return self.documents * self.tokens


def _teacher(
    settings: TeacherConfig, number: int, tokens: int, documents: int, machine: Machine, models: _Models
) -> _Teacher:
    who = f"teachers.{number}"
    if settings.model is None:
        raise XTokenError(f"{who} names no model, and a dry run has to read its config.json")
    found = models.config(who, settings)
    shape = models.shape(who, found)
    dtype = _dtype(settings.dtype, torch.bfloat16 if machine.on_gpu else torch.float32)
    tokens = min(settings.context_length or tokens, shape.positions or tokens)
    name = settings.name or settings.model.rstrip("/").rpartition("/")[2]
    counted = models.teacher(who, found, documents=documents, tokens=tokens, dtype=dtype)
    return _Teacher(name, shape, dtype, tokens, counted)


def _dtype(asked: str, auto: torch.dtype) -> torch.dtype:
    return auto if asked == "auto" else {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(asked, torch.float16)


def _of_run(run: _Run, *, with_advice: bool) -> Estimate:
    flops = tuple(_flops(run))
    tokens = run.config.optim.steps * run.config.optim.batch_size * run.tokens
    per_token = sum(figure.value for figure in flops)
    layouts = [(1, False)] + [(run.machine.gpus, sharded) for sharded in (False, True) if run.machine.gpus > 1]
    plans = [_plan(run, gpus, sharded, per_token, tokens) for gpus, sharded in layouts]
    if with_advice:
        plans = [plan if plan.fits else _advised(run, plan, number) for number, plan in enumerate(plans)]
    return Estimate(
        parameters=tuple(_parameters(run)),
        flops=flops,
        plans=tuple(plans),
        machine=run.machine,
        tokens=tokens,
        assumptions=tuple(_assumptions(run)),
        not_counted=tuple(_not_counted(run.config)),
    )


def _parameters(run: _Run) -> Iterator[Figure]:
    for name, shape in (("student", run.shape), *((f"teacher {t.name}", t.shape) for t in run.teachers)):
        rows, tied = f"{shape.head_rows:,} x {shape.hidden:,}", shape.parameters - shape.matrices < 2 * shape.head
        yield Figure(
            name,
            shape.parameters,
            f"{shape.layers} layers; output head {rows} = {_billions(shape.head)}"
            + (", shared with the embeddings" if tied else ""),
        )


def _flops(run: _Run) -> Iterator[Figure]:
    """Per token of the student's."""
    learning, teaching = list(_learning(run)), list(_teaching(run))
    yield from learning
    yield from teaching
    every = _measured_every(run.config)
    if every is not None:
        passes = 1 + len(run.teachers)
        whole = passes * sum(figure.value for figure in learning) + sum(figure.value for figure in teaching)
        times = f"{passes} of the student's forward and backward, and one of each teacher's"
        yield Figure("gradient norms", whole / every, f"every {every} steps {times}")


def _measured_every(config: RunConfig) -> int | None:
    """Steps between two measurements of the terms' gradients; None where there is none."""
    if config.loss.gradient_norms is None and config.loss.kd_weight == "gradient":
        return EVERY
    return config.loss.gradient_norms


def _learning(run: _Run) -> Iterator[Figure]:
    shape, again = run.shape, run.config.optim.gradient_checkpointing
    passes = 4 if again else 3
    times = f"{passes} passes (forward, {'recomputed, ' if again else ''}backward twice)"
    yield Figure("student, weights", 2 * passes * shape.matrices, f"2 x {_billions(shape.matrices)} weights x {times}")
    yield _attention("student", shape, run.tokens, passes, times)
    yield Figure(
        "student, head",
        2 * shape.head * 3,
        f"2 x {_billions(shape.head)} weights x 3 products (logits, and two gradients)",
    )


def _teaching(run: _Run) -> Iterator[Figure]:
    for teacher in run.teachers:
        share = teacher.tokens / run.tokens
        one = teacher.shape
        yield Figure(
            f"{teacher.name}, weights", 2 * one.matrices * share, f"2 x {_billions(one.matrices)} weights, forward"
        )
        yield _attention(teacher.name, one, teacher.tokens, share, "forward")
        yield Figure(f"{teacher.name}, head", 2 * one.head * share, f"2 x {_billions(one.head)} weights, logits")


def _attention(name: str, shape: ModelShape, tokens: int, passes: float, times: str) -> Figure:
    """Two products, with half of the context on average."""
    width = shape.attention_width
    source = f"2 products x 2 x {tokens:,} / 2 tokens before x {width:,} (heads over layers), {times}"
    return Figure(f"{name}, attention", 2 * tokens * width * passes, source)


def _plan(run: _Run, gpus: int, sharded: bool, flops: float, tokens: int) -> Plan:
    _check_batch(run, gpus)
    held, phases = tuple(_held(run, gpus, sharded)), tuple(_phases(run, sharded))
    peak = sum(figure.value for figure in held) + max(figure.value for figure in phases)
    rate = gpus * run.machine.flops * run.machine.utilisation / flops
    hours = tokens / rate / 3600
    kind = "" if gpus == 1 else ", FSDP" if sharded else ", DDP"
    return Plan(
        name=f"{gpus} GPU{'s' if gpus > 1 else ''}{kind}",
        gpus=gpus,
        held=held,
        phases=phases,
        peak=peak,
        fits=peak <= run.machine.memory,
        tokens_per_second=rate,
        hours=hours,
        gpu_hours=hours * gpus,
    )


def _check_batch(run: _Run, gpus: int) -> None:
    batch, one = run.config.optim.batch_size, gpus * run.documents
    if batch % one:
        raise XTokenError(
            f"optim.batch_size {batch} does not divide into micro-batches of {run.documents} on {gpus} GPUs ({one} "
            "documents at a time)"
        )


def _held(run: _Run, gpus: int, sharded: bool) -> Iterator[Figure]:
    """What one GPU holds throughout a step."""
    size, shape = run.size, run.shape
    share, over = (gpus, f" / {gpus} GPUs") if sharded else (1, "")
    count = f"{_billions(shape.parameters)} parameters"
    for name, factor in (("student, weights", 1), ("student, gradients", 1), ("student, AdamW's moments", 2)):
        times = f"{factor} x " if factor > 1 else ""
        source = f"{times}{size} bytes ({_name(run.dtype)}) x {count}{over}"
        yield Figure(name, factor * size * shape.parameters / share, source)
    if gpus > 1 and not sharded:
        yield Figure("DDP's buckets", size * shape.parameters, f"{size} bytes x {count}: gradients on their way")
    if sharded:
        units = shape.parameters - shape.layers * shape.largest_layer + 2 * shape.largest_layer
        units = min(units, shape.parameters)
        yield Figure(
            "FSDP's gathered units",
            2 * size * units,
            f"{size} bytes x {_billions(units)} (embeddings and two layers), weights and gradients",
        )
    if _measured_every(run.config) is not None and not sharded:  # where it is sharded, measuring is refused
        more = min(2, len(run.teachers))
        source = f"{size} bytes x {count} x {more}: a term's beside the micro-batch's"
        yield Figure("gradient norms", more * size * shape.parameters, source + (", and the sum" if more > 1 else ""))
    for teacher in run.teachers:
        each = _BYTES[teacher.dtype]
        parameters = teacher.shape.parameters
        source = f"{each} bytes ({_name(teacher.dtype)}) x {_billions(parameters)} parameters, whole on every GPU"
        yield Figure(f"teacher {teacher.name}, weights", each * parameters, source)


def _phases(run: _Run, sharded: bool) -> Iterator[Figure]:
    """What comes on top, one phase after the other."""
    student, again = run.student, run.config.optim.gradient_checkpointing
    at = f"{run.documents} x {run.tokens:,} tokens"
    kept = f"activations {_gb(student.kept)}" + (" (recomputed in part)" if again else "")
    yield Figure("student's forward pass", student.forward, f"traced at {at}")
    before = 0
    for teacher in run.teachers:
        source = f"{kept} + its own pass {_gb(teacher.bytes.forward)}, traced"
        if before:
            source += f" + hidden states of others {_gb(before)}"
        yield Figure(f"{teacher.name}'s forward pass", student.kept + before + teacher.bytes.forward, source)
        before += teacher.bytes.hidden
    from_logits = sharded or any(t.loss in _FROM_LOGITS or t.merge == "mean" for t in run.config.teachers)
    buffers, source = _logit_buffers(run, sharded) if from_logits else _block_buffers(run)
    signals = f" + teachers' hidden states {_gb(before)}" if before else ""
    yield Figure("losses", student.kept + before + buffers, f"{kept}{signals} + {source}")
    extra = _logits(run) if from_logits else 0
    source = f"traced: {kept}, gradients of the head and of the hidden states, a layer's own"
    yield Figure("backward pass", student.backward + extra, source + (f" + logits {_gb(extra)}" if extra else ""))


def _block_buffers(run: _Run) -> tuple[float, str]:
    """What `losses_from_hidden` holds beside hidden states: blocks of logits, the steps' buffers, gradients."""
    own, widths = run.shape.head_rows, [teacher.shape.head_rows for teacher in run.teachers]
    widest = max([own, *widths])
    step = block_rows(torch.device("cuda" if run.machine.on_gpu else "cpu"), widest)
    steps = -(-run.rows // step)
    most = max(1, _HEAD_ELEMENTS // (own + sum(widths)) // step)
    n_blocks = max(1, -(-steps // most))
    rows = min(run.rows, -(-steps // n_blocks) * step)
    blocks = 4 * rows * (own + sum(widths))
    products = [own if run.autocast else 0, *(t.shape.head_rows for t in run.teachers if _BYTES[t.dtype] == 2)]
    halves = 2 * rows * max(products)
    buffers = _STEP_BUFFERS * 4 * min(step, run.rows) * widest
    weight = 4 * run.shape.head + (2 * run.shape.head if run.autocast else 0)
    hidden = (4 + (2 if run.autocast else 0)) * run.rows * run.shape.hidden
    source = (
        f"logits of {rows:,} rows {_gb(blocks + halves)}, steps' buffers {_gb(buffers)}, gradients of the head and of "
        f"the hidden states {_gb(weight + hidden)}"
    )
    return blocks + halves + buffers + weight + hidden, source


def _logits(run: _Run) -> float:
    """The student's logits, the gradients of cross-entropy and of the teachers together, and that of one teacher more
    where there are several; float32 [tokens, vocabulary]."""
    return 4 * (2 + min(2, len(run.teachers))) * run.rows * run.shape.head_rows


def _logit_buffers(run: _Run, sharded: bool) -> tuple[float, str]:
    found = _logits(run)
    why = "sharded weights have no head to walk" if sharded else "a loss without a version from hidden states"
    parts = 2 + len(run.teachers)
    return found, (
        f"{parts} x 4 bytes x {run.rows:,} tokens x {run.shape.head_rows:,} {_gb(found)}: logits, and the gradients of "
        f"cross-entropy and of each teacher ({why})"
    )


def _advised(run: _Run, plan: Plan, number: int) -> Plan:
    """The plan with the changes that would make it fit, or the best that was found."""
    fitting: list[str] = []
    for text, changed, is_last in _changes(run):
        if is_last and fitting:
            break
        other = _of_run(_Run.of(changed, run.machine, run.models), with_advice=False).plans[number]
        if other.fits or is_last:
            fitting.append(f"{text}: {_gb(other.peak)}" + ("" if other.fits else ", which does not fit either"))
    return replace(plan, advice=tuple(fitting))


def _changes(run: _Run) -> Iterator[tuple[str, RunConfig, bool]]:
    """Settings that take less memory: each alone, and last all together, which is the least there is."""
    config, optim = run.config, run.config.optim
    changes: list[tuple[str, dict[str, Any]]] = []
    if run.documents > 1:
        changes.append(("optim.micro_batch_size=1", {"optim": {"micro_batch_size": 1}}))
    if not optim.gradient_checkpointing:
        changes.append(("optim.gradient_checkpointing=true", {"optim": {"gradient_checkpointing": True}}))
    for number, teacher in enumerate(run.teachers):
        if teacher.dtype == torch.float32 and run.machine.on_gpu:
            changes.append((f"teachers.{number}.dtype=bfloat16", {"teachers": number}))
    if run.dtype == torch.float32 and run.machine.on_gpu:
        changes.append(("student.dtype=bfloat16 (loses small updates)", {"student": {"dtype": "bfloat16"}}))
    shorter = max(1, run.tokens // 2)
    changes.append((f"data.context_length={shorter}", {"data": {"context_length": shorter}}))
    for text, change in changes:
        yield text, _changed(config, [change]), False
    texts = ", ".join(text for text, _ in changes)
    yield f"all of {texts}", _changed(config, [change for _, change in changes]), True


def _changed(config: RunConfig, changes: Sequence[Mapping[str, Any]]) -> RunConfig:
    for change in changes:
        for section, update in change.items():
            if section == "teachers":
                teachers = list(config.teachers)
                teachers[update] = teachers[update].model_copy(update={"dtype": "bfloat16"})
                config = config.model_copy(update={"teachers": teachers})
            else:
                config = config.model_copy(update={section: getattr(config, section).model_copy(update=update)})
    return config


def _assumptions(run: _Run) -> Iterator[str]:
    machine = run.machine
    yield (
        f"{machine.flops / 1e12:,.0f} TFLOP/s at {machine.utilisation:.0%} on each GPU, {machine.memory / GB:g} GB of "
        "memory (GB are 10^9 bytes; the driver's share and fragmentation are not in the estimate)"
    )
    yield f"documents fill the context of {run.tokens:,} tokens, and teachers need as many tokens as the student"
    yield "GPUs add up: communication is hidden behind the backward pass"
    yield "reading W or tries (under 20 MB) and preparing the data are not counted"


def _not_counted(config: RunConfig) -> Iterator[str]:
    """Settings that were given and that this file does not know."""
    for key in _given(config.model_dump(exclude_unset=True)):
        section, _, rest = re.sub(r"\.\d+(?=\.|$)", "", key).partition(".")
        if rest.partition(".")[0] not in _COUNTED.get(section, ()) and (rest or section not in _COUNTED):
            yield key


def _given(value: Any, prefix: str = "") -> Iterator[str]:
    """Nested settings as dotted keys; one without content was not given."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        if value is not None:
            yield prefix
        return
    for key, item in inner:
        yield from _given(item, f"{prefix}.{key}" if prefix else str(key))


def _billions(count: float) -> str:
    return f"{count / 1e9:.3f} B" if count >= 1e8 else f"{count / 1e6:.3f} M"


def _gb(count: float) -> str:
    return f"{count / GB:.2f} GB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
