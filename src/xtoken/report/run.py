"""What a report shows of a run, read from its folder and from the models that its config names.

Type: `RunFacts`, plain values only, gathered by `run_facts`. What is not there any more (a teacher's folder, the texts)
makes a note, never an error: the rest of the report stands. Law: no code that comes with a model is run, whatever the
run's config trusts, since a folder to look at may be anybody's.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtoken.config import RunConfig, TeacherConfig, load_config
from xtoken.errors import XTokenError
from xtoken.evaluation.task_results import TASKS_FILE, TaskResult, read_results, weights_digest
from xtoken.projection import Projection
from xtoken.report.aligned import AlignedText, Piece, aligned_text, bits_per_byte
from xtoken.report.pair import PairFacts, pair_facts
from xtoken.tokens import Vocabulary

if TYPE_CHECKING:
    from xtoken.training.models import LoadedModel

__all__ = ["ClassDifference", "Evaluation", "RunFacts", "TeacherFacts", "WorstChunk", "is_run", "run_facts"]

log = logging.getLogger(__name__)

DOCUMENTS = 32
_WORST = 40
_CONTEXT_CHARS = 60
# Of a text that is longer than any page shows: enough for `reading.CONTEXT` tokens of any script.
_LONGEST = 16_384
_CONFIG, _FACTS, _METRICS = "xtoken_config.yaml", "xtoken_run.json", "metrics.jsonl"
_WEIGHTS = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Evaluation:
    """Held-out bits per byte after some step; None where it was not finite, or there are no numerals."""

    step: int
    bits_per_byte: float | None
    numerals: float | None


@dataclass(frozen=True)
class ClassDifference:
    """Chunks of one class of text.

    Attributes:
        kind: the class.
        chunks: how many were measured.
        kl: nats a chunk, the mean.
        share: of the sum over all chunks.
    """

    kind: str
    chunks: int
    kl: float
    share: float


@dataclass(frozen=True)
class WorstChunk:
    """A chunk where student and teacher differ much, with the text around it."""

    text: int
    before: str
    piece: Piece
    after: str


@dataclass(frozen=True)
class TeacherFacts:
    """One teacher of the run.

    Attributes:
        name, model: its name in the run and what it is; of a local folder the last part.
        loss, reason: what it taught by, and why.
        weight: among the teachers.
        pair: its tokenizer and the student's; None where either is not there.
        texts: the sample, aligned; measured where both models are there.
        student_bits, teacher_bits: bits per byte of both over the chunks that were measured.
        classes: where they differ, the largest share first.
        worst: the chunks that differ most.
        notes: what is missing, in sentences.
    """

    name: str
    model: str
    loss: str
    reason: str
    weight: float
    pair: PairFacts | None
    texts: tuple[AlignedText, ...]
    student_bits: float | None
    teacher_bits: float | None
    classes: tuple[ClassDifference, ...]
    worst: tuple[WorstChunk, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RunFacts:
    """A run.

    Attributes:
        name: its folder's.
        base: what the student was before; of a local folder the last part.
        settings: everything that decides the run, fit to be published.
        documents: what became of the training documents; empty for streamed ones.
        versions: of the packages that made it.
        metrics: a line a step that was logged.
        evaluations: on held-out text.
        best_is_saved: whether the student saved is the best one on held-out text.
        tasks: what the student scored in tasks (`xtoken eval --tasks`); those of other weights are left out.
        teachers: in the config's order.
        sample: which texts were read, in words.
        notes: what is missing, in sentences.
    """

    name: str
    base: str
    settings: Mapping[str, Any]
    documents: Mapping[str, Any]
    versions: Mapping[str, str]
    metrics: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Evaluation, ...]
    best_is_saved: bool
    tasks: tuple[TaskResult, ...]
    teachers: tuple[TeacherFacts, ...]
    sample: str
    notes: tuple[str, ...]


def is_run(folder: Path) -> bool:
    """Whether `xtoken train` wrote a run into a folder."""
    return (folder / _CONFIG).is_file() and (folder / _FACTS).is_file()


def run_facts(folder: Path, *, texts: Path | None = None, documents: int = DOCUMENTS) -> RunFacts:
    """Gathers them.

    Args:
        folder: the run's output folder.
        texts: a file of texts to read in place of the run's own.
        documents: how many texts are read at most.

    Raises:
        XTokenError: no run there; its files are broken; `texts` cannot be read.
    """
    from xtoken.training.card import public_name, public_settings

    if not is_run(folder):
        raise XTokenError(
            f"{folder} holds no run: expected the {_CONFIG} and {_FACTS} that `xtoken train` writes into output.folder"
        )
    config, facts = load_config(folder / _CONFIG), _json(folder / _FACTS)
    steps, evaluations = _metrics(folder / _METRICS)
    sample, about, notes = _sample(config, texts, documents)
    student, vocabulary, missing = _student(folder, config, needs_model=bool(config.teachers and sample))
    notes += missing if config.teachers else ()
    tasks, why = _tasks(folder)
    choices = facts.get("teachers") or [{}] * len(config.teachers)
    teachers = [
        _teacher(folder, settings, choice, student, vocabulary, sample, config.data.alignment)
        for settings, choice in zip(config.teachers, choices, strict=True)
    ]
    return RunFacts(
        name=folder.resolve().name,
        base=public_name(config.student.model),
        settings=public_settings(config),
        documents=facts.get("documents") or {},
        versions=facts.get("versions") or {},
        metrics=steps,
        evaluations=evaluations,
        best_is_saved=config.eval.saves_best,
        tasks=tasks,
        teachers=tuple(teachers),
        sample=about,
        notes=(*notes, *why),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise XTokenError(f"{path} is not the JSON that `xtoken train` writes: {error}") from None
    if not isinstance(found, dict):
        raise XTokenError(f"{path} is not the JSON that `xtoken train` writes: expected an object")
    return found


def _metrics(path: Path) -> tuple[tuple[dict[str, Any], ...], tuple[Evaluation, ...]]:
    """The lines of training and those of evaluation; one that was broken off is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    key = "eval/bits_per_byte"
    evaluations = (Evaluation(x["step"], x[key], x.get(f"{key}/numerals")) for x in lines if key in x)
    return tuple(x for x in lines if "ce" in x), tuple(evaluations)


def _tasks(folder: Path) -> tuple[tuple[TaskResult, ...], tuple[str, ...]]:
    """What the student scored in tasks, and why that is not shown."""
    file = folder / TASKS_FILE
    if not file.is_file():
        return (), ()
    try:
        weights, found = read_results(file)
    except XTokenError as error:
        return (), (f"What the student scored in tasks could not be read: {error}.",)
    if weights is not None and weights != weights_digest(folder):
        return (), (f"{TASKS_FILE} is of other weights than those in the folder, so it is not shown: measure them "
                    "again by xtoken eval --tasks.",)  # fmt: skip
    return found, ()


def _sample(config: RunConfig, texts: Path | None, documents: int) -> tuple[list[str], str, tuple[str, ...]]:
    """Texts to read, which they are, and what is missing."""
    from xtoken.training.inputs import held_out_source, sources_of
    from xtoken.training.texts import texts_from_files

    if texts is not None:
        found = _some(texts_from_files([texts]).read(), documents)
        if not found:
            raise XTokenError(f"{texts} holds no text")
        return found, f"the first {len(found)} texts of {texts.name}", ()
    if config.eval.files is None and config.eval.dataset is None and config.data.format == "chat":
        return [], "", ("No texts were read: the run has no held-out text, and its documents are conversations. Give "
                        "texts with --texts FILE.",)  # fmt: skip
    try:
        held_out = held_out_source(config, None)
        source = held_out if held_out is not None else sources_of(config.data, None)[0]
        found = _some(source.read(), documents)
    except XTokenError as error:
        return [], "", (f"No texts were read: {error}. Give some with --texts FILE.",)
    kind = "held-out texts" if held_out is not None else "training documents"
    return found, f"the first {len(found)} {kind}", ()


def _some(texts: Any, documents: int) -> list[str]:
    return [text[:_LONGEST] for text in islice((text for text in texts if text.strip()), documents)]


def _student(
    folder: Path, config: RunConfig, *, needs_model: bool
) -> tuple[LoadedModel | None, Vocabulary | None, tuple[str, ...]]:
    """The student as it was saved, or as its last checkpoint has it; its tokenizer; what is missing."""
    from xtoken.training.output import last_checkpoint

    notes: tuple[str, ...] = ()
    source: Path | None = folder
    if not any((folder / name).is_file() for name in _WEIGHTS):
        source = last_checkpoint(folder)
        at = "nothing of the student is there" if source is None else f"its last checkpoint, {source.name}, is shown"
        notes = (f"The run was not finished and saved no student: {at}.",)
    if source is None:
        vocabulary, why = _vocabulary(config.student.model)
        return None, vocabulary, (*notes, *why)
    vocabulary, why = _vocabulary(str(source))
    if why or not needs_model:
        return None, vocabulary, (*notes, *why)
    try:
        return _loaded(str(source), "student", None), vocabulary, notes
    except XTokenError as error:
        return None, vocabulary, (*notes, f"The student could not be read: {error}.")


def _loaded(model: str, who: str, revision: str | None) -> LoadedModel:
    import torch

    from xtoken.training.models import load_model

    on_gpu = torch.cuda.is_available()
    loaded = load_model(model, who=who, revision=revision, dtype="bfloat16" if on_gpu else "float32")
    loaded.model.to("cuda" if on_gpu else "cpu").eval()
    return loaded


def _vocabulary(model: str | None, revision: str | None = None) -> tuple[Vocabulary | None, tuple[str, ...]]:
    if model is None:
        return None, ("The model was passed in memory, so there is nothing to read its tokenizer from.",)
    try:
        return Vocabulary.from_pretrained(model, revision=revision), ()
    except XTokenError as error:
        return None, (f"Its tokenizer could not be read: {error}.",)


def _teacher(
    folder: Path,
    settings: TeacherConfig,
    choice: Mapping[str, str],
    student: LoadedModel | None,
    vocabulary: Vocabulary | None,
    sample: Sequence[str],
    method: str,
) -> TeacherFacts:
    from xtoken.training.card import public_name

    own, notes = _vocabulary(settings.model, settings.revision)
    pair: PairFacts | None = None
    texts: tuple[AlignedText, ...] = ()
    if own is not None and vocabulary is not None:
        w, why = _projection(folder, settings, vocabulary, own)
        pair = pair_facts(vocabulary, own, texts=sample or None, corpus="the texts read here", projection=w)
        texts, reason = _texts(settings, student, vocabulary, own, sample, method)
        notes += (*why, *reason)
    elif own is not None:
        notes += ("The student's tokenizer is not there, so the two could not be compared.",)
    return TeacherFacts(
        name=str(settings.name),
        model=public_name(settings.model),
        loss=choice.get("loss", settings.loss),
        reason=choice.get("reason", ""),
        weight=settings.weight,
        pair=pair,
        texts=texts,
        student_bits=bits_per_byte(texts, "student"),
        teacher_bits=bits_per_byte(texts, "teacher"),
        classes=class_differences(texts),
        worst=worst_chunks(texts),
        notes=notes,
    )


def _projection(
    folder: Path, settings: TeacherConfig, student: Vocabulary, teacher: Vocabulary
) -> tuple[Projection | None, tuple[str, ...]]:
    """The W that the run learnt or was given; None for the one built by rule."""
    from xtoken.training.learnable import projection_file

    learnt = folder / projection_file(str(settings.name))
    file = learnt if learnt.is_file() else settings.projection.file
    if file is None:
        return None, ()
    try:
        return Projection.load(Path(file).expanduser(), student, teacher), ()
    except XTokenError as error:
        return None, (f"The W shown is the one built by rule, since the run's own could not be read: {error}.",)


def _texts(
    settings: TeacherConfig,
    student: LoadedModel | None,
    vocabulary: Vocabulary,
    own: Vocabulary,
    sample: Sequence[str],
    method: str,
) -> tuple[tuple[AlignedText, ...], tuple[str, ...]]:
    """The sample as both read it; by their tokenizers alone where a model is missing."""
    from xtoken.alignment import align_batch
    from xtoken.projection import build_tries
    from xtoken.report.reading import Reader

    teacher: LoadedModel | None = None
    notes: tuple[str, ...] = ()
    if student is not None and sample:
        try:
            teacher = _loaded(str(settings.model), f"teacher {settings.name!r}", settings.revision)
        except XTokenError as error:
            notes = (f"The teacher's model could not be read, so nothing is measured: {error}.",)
    if student is not None and teacher is not None:
        log.info("reading %d texts with the student and %s", len(sample), settings.name)
        reader = Reader(student, teacher, build_tries(vocabulary, own), method)
        return tuple(reader.read(text) for text in sample), notes
    alignments = align_batch(vocabulary, own, [text[: _CONTEXT_CHARS * 16] for text in sample], method)
    return tuple(aligned_text(each, vocabulary, own) for each in alignments), notes


def class_differences(texts: Sequence[AlignedText]) -> tuple[ClassDifference, ...]:
    """Where student and teacher differ, by class of text; the largest share of the sum first."""
    found: dict[str, list[float]] = defaultdict(list)
    for text in texts:
        for piece in text.pieces:
            if piece.measured is not None and piece.kind:
                found[piece.kind].append(piece.measured.kl)
    whole = math.fsum(kl for kls in found.values() for kl in kls)
    differences = [
        ClassDifference(kind, len(kls), math.fsum(kls) / len(kls), math.fsum(kls) / whole if whole else 0.0)
        for kind, kls in found.items()
    ]
    return tuple(sorted(differences, key=lambda each: -each.share))


def worst_chunks(texts: Sequence[AlignedText], most: int = _WORST) -> tuple[WorstChunk, ...]:
    """The chunks with the largest KL, each with the text around it."""
    places = [
        (piece.measured.kl, number, place)
        for number, text in enumerate(texts)
        for place, piece in enumerate(text.pieces)
        if piece.measured is not None
    ]
    return tuple(_in_context(texts[n], n, place) for _, n, place in sorted(places, key=lambda x: -x[0])[:most])


def _in_context(text: AlignedText, number: int, place: int) -> WorstChunk:
    before = "".join(piece.text for piece in text.pieces[:place])
    after = "".join(piece.text for piece in text.pieces[place + 1 :])
    return WorstChunk(number, before[-_CONTEXT_CHARS:], text.pieces[place], after[:_CONTEXT_CHARS])
