"""From documents to examples: tokens of every side and their chunks, computed once and kept.

Types: `Side`, a tokenizer and the longest sequence it may give; `Example`, one document; `PreparedData`, all of them,
as Arrow in memory or on disk; `DataReport`, what became of the documents. Laws: a training step never aligns; a
document that is too long ends at one byte on all sides, and a chunk ends there on each; teachers with one tokenizer
share it.

Each side is: what its tokenizer puts in front by itself, the text, and its end-of-document token. A document that was
cut has no end, so no such token. The text is never searched for special tokens, so nothing is added twice. A
conversation is what each side's chat template makes of it instead, and some of its tokens alone are learnt.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from xtoken.alignment import align_spans_batch
from xtoken.errors import XTokenError
from xtoken.files import write_whole
from xtoken.tokens import TokenSpans, Vocabulary
from xtoken.training.chat import CHAT_RULES, ChatTokenizer, ChatTokens, align_chats
from xtoken.training.conversations import Conversation, LossOn
from xtoken.training.templates import ChatTemplate
from xtoken.training.texts import TextSource, texts_from_list
from xtoken.training.workers import default_workers, in_order

__all__ = ["DataReport", "Example", "PreparedData", "Side", "TeacherTokens", "prepare", "prepared_file", "side_key"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Changing what an example holds makes cached ones unreadable, so the cache's name carries this.
_FORMAT = "xtoken-examples-3"
# Documents tokenised at a time, and about their characters: enough for the tokenizer to use every core, few enough to
# hold.
_BATCH = 512
_BATCH_CHARACTERS = 1 << 22
# Fewer characters are done before worker processes have started and read the tokenizers (measured, docs/data.md).
_WORTH_WORKERS = 1 << 24
# With fewer student tokens than this nothing in a document is predicted.
_SHORTEST = 2
# The number of a document in its source, and the column that conversations have besides.
_DOCUMENT = "document"
_SCORED = "scored"


@dataclass(frozen=True)
class Side:
    """A tokenizer in its part of a run.

    Attributes:
        vocabulary: the tokenizer.
        context_length: the longest sequence, in its tokens.
        chat: its chat template, for conversations.
    """

    vocabulary: Vocabulary
    context_length: int
    chat: ChatTemplate | None = None

    @property
    def key(self) -> str:
        """What its tokens are filed under: equal for equal token sequences, specials and templates included."""
        key = side_key(self.vocabulary)
        return key if self.chat is None else hashlib.sha256(f"{key} {self.chat.key}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TeacherTokens:
    """One document as a teacher reads it.

    Attributes:
        ids: int64 [m], its tokens.
        chunks: int64 [C, 4], rows (s0, s1, t0, t1) as in `xtoken.alignment.Alignment`.
    """

    ids: Ints
    chunks: Ints


@dataclass(frozen=True)
class Example:
    """One document.

    Attributes:
        ids: int64 [n], the student's tokens.
        teachers: what each teacher's tokenizer makes of it, by `Side.key`.
        scored: bool [n], the tokens that are learnt; None for all.
        documents: the numbers of its documents in their source, counted from 0.
        corpus: the place of that source among the corpora.
    """

    ids: Ints
    teachers: dict[str, TeacherTokens]
    scored: Bools | None = None
    documents: tuple[int, ...] = ()
    corpus: int = 0


@dataclass
class DataReport:
    """What became of the documents.

    Attributes:
        documents: how many are trained on.
        empty: skipped, without text.
        truncated: cut on any side to its context; they are among `documents`.
        unusable: skipped, because nothing in them can be predicted or no common place to cut them was found.
        bytes: of text that is trained on; of conversations, as the student's template renders them.
        student_tokens: special ones included.
        teacher_tokens, chunks: for each teacher's tokenizer, by `Side.key`.
    """

    documents: int = 0
    empty: int = 0
    truncated: int = 0
    unusable: int = 0
    bytes: int = 0
    student_tokens: int = 0
    teacher_tokens: dict[str, int] = field(default_factory=dict)
    chunks: dict[str, int] = field(default_factory=dict)

    def add(self, other: DataReport) -> None:
        """Counts other documents as well."""
        for name, value in asdict(other).items():
            mine = getattr(self, name)
            if isinstance(value, dict):
                mine.update({key: mine.get(key, 0) + n for key, n in value.items()})
            else:
                setattr(self, name, mine + value)


class PreparedData:
    """Examples, by number: what a DataLoader asks of a dataset.

    Attributes:
        key: sha256 in hexadecimal of everything the examples depend on.
        report: what became of the documents.
        sides: the `Side.key` of every teacher's tokenizer in them.
        made_of: what the key is made of beside the tokenizers and settings, in plain JSON types: `format`, the version
            of the way examples are made, and `source`, as in `TextSource.made_of`.
        epoch: which pass over the examples is next; a DataLoader's own, or accelerate's, says so by `set_epoch`.
    """

    def __init__(self, rows: Any, report: DataReport, key: str, made_of: Mapping[str, Any] | None = None) -> None:
        """Takes a `datasets.Dataset` with the columns that `prepare` writes."""
        self._rows = rows.with_format("numpy")
        self.report = report
        self.key = key
        self.made_of = dict(made_of or {})
        self.epoch = 0
        self.sides = tuple(name.partition(":")[2] for name in rows.column_names if name.startswith("ids:"))

    def __len__(self) -> int:
        return len(self._rows)

    def set_epoch(self, epoch: int) -> None:
        """Says which pass is next."""
        self.epoch = epoch

    def order(self, seed: int, epoch: int) -> Ints:
        """int64 [n], the numbers of the examples in the order of a pass: another for each seed and each epoch."""
        return np.random.default_rng([seed, epoch]).permutation(len(self))

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        columns = self._rows[indices]
        return [self._example({name: values[i] for name, values in columns.items()}) for i in range(len(indices))]

    def lengths(self) -> dict[str, Ints]:
        """int64 [N] tokens of every example, by `Side.key`; the student's under the empty string."""
        names = {"": "ids", **{side: f"ids:{side}" for side in self.sides}}
        columns = {side: self._rows.data.column(name) for side, name in names.items()}
        return {side: pc.list_value_length(column).to_numpy().astype(np.int64) for side, column in columns.items()}

    def _example(self, row: dict[str, Any]) -> Example:
        document = int(row.pop(_DOCUMENT))
        scored = np.asarray(row.pop(_SCORED), bool) if _SCORED in row else None
        as_ints = {name: np.asarray(values, np.int64) for name, values in row.items()}
        teachers = {k: TeacherTokens(as_ints[f"ids:{k}"], as_ints[f"chunks:{k}"].reshape(-1, 4)) for k in self.sides}
        return Example(as_ints["ids"], teachers, scored, (document,))


def side_key(vocabulary: Vocabulary) -> str:
    """What a tokenizer's tokens are filed under: equal for equal token sequences, specials included."""
    content = json.dumps([vocabulary.fingerprint, vocabulary.prefix_ids, vocabulary.suffix_ids])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def prepare(
    source: TextSource | Sequence[str],
    student: Side,
    teachers: Sequence[Side] = (),
    *,
    append_eos: bool = True,
    method: str = "bytes",
    loss_on: LossOn = "assistant",
    cache: Path | None = None,
    progress: bool = False,
    workers: int | None = None,
) -> PreparedData:
    """Tokenises and aligns every document, or finds that done before.

    Args:
        source: the documents; a list holds one string each. They are conversations (`Conversation.to_json`) where the
            student has a chat template.
        student: the student's tokenizer and context.
        teachers: theirs; several with one tokenizer are aligned once, to the shortest of their contexts.
        append_eos: end each document with each tokenizer's end-of-document token, where it has one; a chat template
            ends its conversations itself.
        method: the aligner, as for `xtoken.align`.
        loss_on: of conversations, the messages that are learnt.
        cache: a folder that keeps the result; None keeps it in memory.
        progress: show a bar.
        workers: processes to tokenise and align in, which are started only for more than they cost; 0 and 1 are none,
            None is one a core. The examples are the same for any number.

    Raises:
        XTokenError: no usable document; some sides have a chat template and some none; whatever reading and encoding
            raise, with the document's number, counted from 0; a worker process died.
    """
    source = source if isinstance(source, TextSource) else texts_from_list(source)
    plan = _plan_for(student, teachers, append_eos, method, loss_on)
    key, made_of = plan.key(source), {"format": _FORMAT, "source": dict(source.made_of)}
    workers = default_workers() if workers is None else workers
    if cache is None:
        rows, report = _write_to_memory(plan, source, progress, workers)
        return PreparedData(rows, report, key, made_of)
    path = _file_of(cache, key)
    if not path.is_file():
        _write_to_file(plan, source, progress, path, workers)
    import datasets

    report = DataReport(**json.loads(path.with_suffix(".json").read_text()))
    return PreparedData(datasets.Dataset.from_file(str(path)), report, key, made_of)


def prepared_file(
    source: TextSource,
    student: Side,
    teachers: Sequence[Side],
    *,
    append_eos: bool,
    method: str,
    loss_on: LossOn,
    cache: Path,
) -> Path:
    """Where `prepare`, with the same arguments, keeps the examples; there when they are whole."""
    return _file_of(cache, _plan_for(student, teachers, append_eos, method, loss_on).key(source))


def _file_of(cache: Path, key: str) -> Path:
    return cache / "prepared" / f"{key}.arrow"


def _plan_for(
    student: Side, teachers: Sequence[Side], append_eos: bool, method: str, loss_on: LossOn = "assistant"
) -> _Plan:
    if len({side.chat is None for side in (student, *teachers)}) > 1:
        raise XTokenError("conversations need a chat template on every side, and some of these sides have none")
    by_key: dict[str, Side] = {}
    for side in teachers:
        known = by_key.get(side.key, side)
        by_key[side.key] = replace(side, context_length=min(side.context_length, known.context_length))
    return _Plan(student, by_key, append_eos, method, None if student.chat is None else loss_on)


@dataclass(frozen=True)
class _Plan:
    """How one document becomes one example."""

    student: Side
    teachers: dict[str, Side]
    append_eos: bool
    method: str
    loss_on: LossOn | None = None

    def key(self, source: TextSource) -> str:
        sides = [(self.student.key, self.student.context_length)]
        sides += [(name, side.context_length) for name, side in sorted(self.teachers.items())]
        chat = [] if self.loss_on is None else [CHAT_RULES, self.loss_on]
        content = json.dumps([_FORMAT, source.key, sides, self.append_eos, self.method, *chat])
        return hashlib.sha256(content.encode()).hexdigest()

    def schema(self) -> pa.Schema:
        names = ["ids"] + [f"{what}:{name}" for name in self.teachers for what in ("ids", "chunks")]
        scored = [] if self.loss_on is None else [(_SCORED, pa.list_(pa.bool_()))]
        return pa.schema([(_DOCUMENT, pa.int64()), *((name, pa.list_(pa.int32())) for name in names), *scored])

    def spans(self, side: Side, texts: Sequence[str]) -> list[TokenSpans]:
        vocabulary = side.vocabulary
        suffix = list(vocabulary.suffix_ids)
        if self.append_eos and vocabulary.eos_id is not None and vocabulary.eos_id not in suffix:
            suffix.append(vocabulary.eos_id)
        return [spans.with_specials(vocabulary.prefix_ids, suffix) for spans in vocabulary.encode_batch(texts)]

    def examples(self, texts: Sequence[str], report: DataReport) -> Iterator[Example]:
        """Those of some documents, which are numbered by their places among them."""
        if self.loss_on is not None:
            yield from self.chat_examples([Conversation.from_json(text) for text in texts], self.loss_on, report)
            return
        all_spans = self.spans(self.student, texts)
        aligned = {name: self.teacher_tokens(side, all_spans, texts) for name, side in self.teachers.items()}
        for i, spans_s in enumerate(all_spans):
            teachers = {name: tokens[i] for name, tokens in aligned.items()}
            if (example := self.example(spans_s, teachers, report)) is not None:
                yield replace(example, documents=(i,))

    def chat_examples(
        self, conversations: Sequence[Conversation], loss_on: LossOn, report: DataReport
    ) -> Iterator[Example]:
        learnt = [one.learnt(loss_on) for one in conversations]
        chats_s = self.chat_tokens(self.student, conversations)
        aligned: dict[str, list[TeacherTokens]] = {}
        for name, side in self.teachers.items():
            chats_t = self.chat_tokens(side, conversations)
            chunks = align_chats(self.student.vocabulary, side.vocabulary, chats_s, chats_t, learnt, self.method)
            aligned[name] = [TeacherTokens(t.spans.ids, rows) for t, rows in zip(chats_t, chunks, strict=True)]
        for i, chat in enumerate(chats_s):
            teachers = {name: tokens[i] for name, tokens in aligned.items()}
            if (example := self.example(chat.spans, teachers, report, chat.learnt(learnt[i]))) is not None:
                yield replace(example, documents=(i,))

    def chat_tokens(self, side: Side, conversations: Sequence[Conversation]) -> list[ChatTokens]:
        assert side.chat is not None, "`prepare` has looked"
        return _chat_tokenizer(side.vocabulary, side.chat).encode_batch(conversations)

    def first_failure(self, texts: Sequence[str]) -> int:
        """The place of the text that `examples` raised for."""
        for place, text in enumerate(texts):
            try:
                list(self.examples([text], DataReport()))
            except XTokenError:
                return place
        raise AssertionError("a batch fails only where one of its documents does")

    def example(
        self,
        spans_s: TokenSpans,
        teachers: dict[str, TeacherTokens],
        report: DataReport,
        scored: Bools | None = None,
    ) -> Example | None:
        cut: int | None = len(spans_s)
        if is_cut := self.is_too_long(spans_s, teachers):
            cut = _common_cut(
                self.student.context_length, [(teachers[k], s.context_length) for k, s in self.teachers.items()]
            )
        if cut is None or cut < _SHORTEST or (scored is not None and not scored[1:cut].any()):
            report.unusable += 1
            return None
        report.documents += 1
        report.truncated += is_cut
        report.bytes += spans_s.length if cut == len(spans_s) else int(spans_s.ends[cut - 1])
        if is_cut:
            teachers = {name: _cut_teacher(tokens, cut) for name, tokens in teachers.items()}
        example = Example(spans_s.ids[:cut], teachers, None if scored is None else scored[:cut])
        _count(report, example)
        return example

    def teacher_tokens(self, side: Side, spans_s: Sequence[TokenSpans], texts: Sequence[str]) -> list[TeacherTokens]:
        teacher, student = side.vocabulary, self.student.vocabulary
        if teacher.fingerprint == student.fingerprint:  # one tokenizer: token by token, whatever the aligner
            return [TeacherTokens(spans.ids, _one_to_one(len(spans))) for spans in spans_s]
        aligned = align_spans_batch(student, teacher, spans_s, self.spans(side, texts), self.method)
        return [TeacherTokens(alignment.teacher_ids, alignment.chunks) for alignment in aligned]

    def is_too_long(self, spans_s: TokenSpans, teachers: dict[str, TeacherTokens]) -> bool:
        fits = [len(teachers[name].ids) <= side.context_length for name, side in self.teachers.items()]
        return len(spans_s) > self.student.context_length or not all(fits)


@lru_cache(maxsize=16)
def _chat_tokenizer(vocabulary: Vocabulary, template: ChatTemplate) -> ChatTokenizer:
    return ChatTokenizer(vocabulary, template)


def _one_to_one(n: int) -> Ints:
    starts = np.arange(n)
    return np.stack([starts, starts + 1, starts, starts + 1], axis=1)


def _common_cut(student_limit: int, teachers: Sequence[tuple[TeacherTokens, int]]) -> int | None:
    """The most student tokens such that every side fits and ends with a chunk; None where there is no such place.

    A chunk covers the same bytes on both sides, so all sides end at the same byte.

    Args:
        student_limit: the student's context, in its tokens.
        teachers: each teacher's tokens and its context.
    """
    if not teachers:
        return student_limit
    ends = [t.chunks[(t.chunks[:, 1] <= student_limit) & (t.chunks[:, 3] <= limit), 1] for t, limit in teachers]
    common = reduce(np.intersect1d, ends)
    return int(common[-1]) if len(common) else None


def _cut_teacher(tokens: TeacherTokens, cut: int) -> TeacherTokens:
    """A teacher's side of a document whose student side ends after `cut` tokens: up to the chunk that ends there.

    Also where `cut` is all the student has: a teacher may have an end-of-document token beyond it, and no room for it.
    """
    chunks = tokens.chunks[tokens.chunks[:, 1] <= cut]
    return TeacherTokens(tokens.ids[: chunks[-1, 3]], chunks)


def _count(report: DataReport, example: Example) -> None:
    report.student_tokens += len(example.ids)
    for name, tokens in example.teachers.items():
        report.teacher_tokens[name] = report.teacher_tokens.get(name, 0) + len(tokens.ids)
        report.chunks[name] = report.chunks.get(name, 0) + len(tokens.chunks)


@dataclass(frozen=True)
class _Batch:
    """Documents to be done at a time.

    Attributes:
        source: what messages call where they are from.
        numbers: theirs, counted from 0.
        texts: the documents.
    """

    source: str
    numbers: Sequence[int]
    texts: list[str]


def _cut(name: str, documents: Iterable[tuple[int, str]], most: int, characters: int) -> Iterator[_Batch]:
    """Numbered documents in batches, of about one size where documents are long.

    Args:
        name: what messages call their source.
        documents: in order.
        most: of them in a batch.
        characters: that end a batch, however few its documents.
    """
    numbers, texts, size = list[int](), list[str](), 0
    for number, text in documents:
        numbers.append(number)
        texts.append(text)
        size += len(text)
        if len(texts) == most or size >= characters:
            yield _Batch(name, numbers, texts)
            numbers, texts, size = [], [], 0
    if texts:
        yield _Batch(name, numbers, texts)


def _examples(plan: _Plan, batch: _Batch) -> tuple[list[Example], DataReport]:
    """A batch's examples, and what became of its documents; an error names the document."""
    report = DataReport()
    kept = [place for place, text in enumerate(batch.texts) if text.strip()]
    report.empty = len(batch.texts) - len(kept)
    numbers = [batch.numbers[place] for place in kept]
    try:
        found = plan.examples([batch.texts[place] for place in kept], report)
        return [replace(one, documents=tuple(numbers[i] for i in one.documents)) for one in found], report
    except XTokenError as error:
        number = batch.numbers[plan.first_failure(batch.texts)]
        raise XTokenError(f"{batch.source}, document {number} (counting from 0): {error}") from error


def _as_arrow(plan: _Plan, batch: _Batch) -> tuple[pa.RecordBatch, DataReport, int]:
    """A batch's examples as Arrow, which is quick to hand over; its report; how many documents it had."""
    examples, report = _examples(plan, batch)
    schema = plan.schema()
    return pa.RecordBatch.from_pydict(_columns(examples, schema.names), schema), report, len(batch.texts)


def _batches(
    plan: _Plan, source: TextSource, progress: bool, report: DataReport, workers: int
) -> Iterator[pa.RecordBatch]:
    """The examples as Arrow, a batch of documents at a time; raises at the end where there was none."""
    batches, n_read = _cut(source.name, enumerate(source.read()), _BATCH, _BATCH_CHARACTERS), 0
    if workers > 1:
        batches, workers = _worth_workers(batches, workers)
    with tqdm(total=source.count, desc="aligning", unit=" documents", disable=not progress, dynamic_ncols=True) as bar:
        for rows, became, n_documents in in_order(_as_arrow, plan, batches, workers):
            report.add(became)
            yield rows
            n_read += n_documents
            bar.update(n_documents)
    if not report.documents:
        raise _nothing_to_train_on(source.name, n_read, report)


def _worth_workers(batches: Iterator[_Batch], workers: int) -> tuple[Iterator[_Batch], int]:
    """The same batches, and no workers where there are too few; reads that many ahead to find out."""
    ahead, size = list[_Batch](), 0
    try:
        for batch in batches:
            ahead.append(batch)
            size += sum(map(len, batch.texts))
            if size >= _WORTH_WORKERS:
                return chain(ahead, batches), workers
    except XTokenError as error:  # in its turn: what was read before may have an error of its own
        return chain(ahead, map(_throw, [error])), 1
    return iter(ahead), 1


def _throw(error: XTokenError) -> _Batch:
    raise error


def _nothing_to_train_on(name: str, n_read: int, report: DataReport) -> XTokenError:
    return XTokenError(
        f"{name}: no document to train on ({n_read} read, {report.empty} empty, {report.unusable} unusable: "
        "nothing in them to predict, or not to be cut to the context at a byte common to all sides)"
    )


def _columns(examples: Sequence[Example], names: Sequence[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for example in examples:
        columns[_DOCUMENT].append(example.documents[0])
        columns["ids"].append(example.ids)
        if example.scored is not None:
            columns[_SCORED].append(example.scored)
        for name, tokens in example.teachers.items():
            columns[f"ids:{name}"].append(tokens.ids)
            columns[f"chunks:{name}"].append(tokens.chunks.reshape(-1))
    return columns


def _write_to_memory(plan: _Plan, source: TextSource, progress: bool, workers: int) -> tuple[Any, DataReport]:
    import datasets

    report = DataReport()
    table = pa.Table.from_batches(list(_batches(plan, source, progress, report, workers)), plan.schema())
    return datasets.Dataset(table), report


def _write_to_file(plan: _Plan, source: TextSource, progress: bool, path: Path, workers: int) -> None:
    """Writes the examples, then their report, then gives the file its name: a file of that name is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, report = path.with_suffix(f".{os.getpid()}.tmp"), DataReport()
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, plan.schema()) as writer:
            for batch in _batches(plan, source, progress, report, workers):
                writer.write_batch(batch)
        write_whole(path.with_suffix(".json"), json.dumps(asdict(report)))
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
