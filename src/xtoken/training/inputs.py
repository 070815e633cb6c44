"""The data of a run, from its settings: which documents, prepared, mixed, packed or streamed; and the held-out text.

Laws: what the settings say of the data is done here and nowhere else; in a run of several processes on one machine the
first prepares what is kept on disk, and the others wait for it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtoken.config import CorpusConfig, DataConfig, EvalConfig, RunConfig
from xtoken.errors import XTokenError
from xtoken.teachers.causal import packs_apart, uses_flash_attention
from xtoken.training.conversations import ChatColumns
from xtoken.training.data import DataReport, PreparedData, prepare, prepared_file
from xtoken.training.mixture import Corpus, MixedData
from xtoken.training.packing import PackedData
from xtoken.training.participants import Participants
from xtoken.training.streaming import DEFAULT_BUFFER, StreamedData
from xtoken.training.texts import (
    TextSource,
    conversations_from_list,
    texts_from_dataset,
    texts_from_files,
    texts_from_list,
)

if TYPE_CHECKING:
    from xtoken.training.evaluate import HeldOut

__all__ = ["Data", "held_out_source", "held_out_text", "sources_of", "training_data"]

log = logging.getLogger(__name__)

Data = PreparedData | PackedData | MixedData | StreamedData

# Seconds between two looks for what the first process prepares.
_PATIENCE = 1.0


def sources_of(data: DataConfig, texts: Sequence[Any] | None) -> list[TextSource]:
    """The documents, one source for each corpus, in order.

    Args:
        data: the settings.
        texts: documents in memory, in place of those the settings name.

    Raises:
        XTokenError: no data, or named twice.
    """
    if texts is not None:
        if any((data.files, data.dataset, data.text_column, data.chat_columns, data.split_text_by, data.corpora)):
            raise XTokenError("texts were passed, so the data section's files, dataset and columns have no effect")
        source = texts_from_list(texts) if data.format == "text" else conversations_from_list(texts)
        return [source if data.max_documents is None else source.first(data.max_documents)]
    if data.files is None and data.dataset is None and not data.corpora:
        raise XTokenError("there is no data: name data.files (local text) or data.dataset (a `datasets` id)")
    parts: Sequence[DataConfig | CorpusConfig] = data.corpora or [data]
    columns = [None if part.chat_columns is None else tuple(part.chat_columns) for part in parts]
    chats = [ChatColumns(names) if data.format == "chat" else None for names in columns]
    return [_source(part, chat, data.streaming) for part, chat in zip(parts, chats, strict=True)]


def _source(
    part: DataConfig | CorpusConfig | EvalConfig, chat: ChatColumns | None = None, streaming: bool = False
) -> TextSource:
    if part.files is not None:
        source = texts_from_files(
            part.files,
            text_column=part.text_column,
            split_by=part.split_text_by,
            chat=chat,
            streaming=streaming,
        )
    else:
        source = texts_from_dataset(
            str(part.dataset),
            config=part.config,
            split=part.split,
            revision=part.revision,
            text_column=part.text_column,
            chat=chat,
            streaming=streaming,
        )
    return source if part.max_documents is None else source.first(part.max_documents)


def held_out_source(config: RunConfig, texts: Sequence[str] | None) -> TextSource | None:
    """The text to evaluate on; None where nothing is evaluated.

    Args:
        config: the run's settings.
        texts: documents in memory, in place of those the settings name.

    Raises:
        XTokenError: settings that have no effect, or cannot have one.
    """
    asked = config.eval
    if config.output.folder is None and asked.save == "best":
        raise XTokenError("eval.save: best needs output.folder: the best student is read back from its checkpoint")
    if texts is not None:
        if any((asked.files, asked.dataset, asked.text_column, asked.split_text_by)):
            raise XTokenError("eval_texts were passed, so the eval section's files, dataset and columns have no effect")
        return texts_from_list(texts, "the given eval_texts").first(asked.max_documents)
    if asked.files is None and asked.dataset is None and asked != EvalConfig():
        raise XTokenError(
            "the eval section names no held-out text, so it has no effect: name eval.files, or eval.dataset"
        )
    return None if asked.files is None and asked.dataset is None else _source(asked)


def held_out_text(
    source: TextSource | None, training: Sequence[TextSource], participants: Participants
) -> HeldOut | None:
    """The held-out text as the student reads it; documents that are trained on as well are told.

    Args:
        source: None for none.
        training: the documents to train on.
        participants: with every choice made.
    """
    if source is None:
        return None
    from xtoken.training.evaluate import HeldOut, warn_of_overlap

    config = participants.config
    context = config.eval.context_length or config.data.context_length
    held_out = HeldOut.prepare(source, participants.student, context)
    if config.data.format == "text":
        for one in training:
            warn_of_overlap(source, one)
    return held_out


def training_data(sources: Sequence[TextSource], participants: Participants, cache: Path, *, progress: bool) -> Data:
    """The examples: prepared, packed, mixed, or made while training.

    Args:
        sources: the documents of each corpus.
        participants: with every choice made.
        cache: the folder that keeps prepared examples.
        progress: show a bar.

    Raises:
        XTokenError: whatever preparing raises; a model that cannot be given packed documents.
    """
    config = participants.config
    settings = config.data
    teachers = [teacher.side for teacher in participants.teachers]
    if not teachers:
        log.info("no teachers: the student is trained by cross-entropy alone")
    if settings.streaming:
        return StreamedData(
            sources[0],
            participants.side,
            teachers,
            append_eos=settings.append_eos,
            method=settings.alignment,
            loss_on=settings.loss_on or "assistant",
            seed=config.seed,
            buffer=settings.shuffle_buffer or DEFAULT_BUFFER,
            workers=settings.workers,
            rank=int(os.environ.get("RANK") or 0),  # as launchers set it; `trainer_arguments` checks WORLD_SIZE
            world=int(os.environ.get("WORLD_SIZE") or 1),
        )
    _check_packing(participants)
    prepared = [_packed(_prepared(source, participants, cache, progress), participants) for source in sources]
    data: PreparedData | PackedData | MixedData = prepared[0]
    if settings.corpora:
        names = [one.name or source.name for one, source in zip(settings.corpora, sources, strict=True)]
        weights = [one.weight for one in settings.corpora]
        data = MixedData([Corpus(*corpus) for corpus in zip(names, prepared, weights, strict=True)])
        _tell_mixture(data, config.optim.steps * config.optim.batch_size)
    _tell_report(data.report)
    return data


def _prepared(source: TextSource, participants: Participants, cache: Path, progress: bool) -> PreparedData:
    settings = participants.config.data
    sides = participants.side, [teacher.side for teacher in participants.teachers]
    how: dict[str, Any] = {
        "append_eos": settings.append_eos,
        "method": settings.alignment,
        "loss_on": settings.loss_on or "assistant",
    }
    if int(os.environ.get("LOCAL_RANK") or 0):  # a launcher ends all processes where the first one fails
        file = prepared_file(source, *sides, cache=cache, **how)
        while not file.is_file():
            time.sleep(_PATIENCE)
    return prepare(source, *sides, cache=cache, progress=progress, workers=settings.workers, **how)


def _check_packing(participants: Participants) -> None:
    """Refuses models that let packed documents see each other."""
    if participants.config.data.packing != "documents":
        return
    models = {"the student": participants.student.model}
    models |= {f"teacher {t.config.name!r}": t.loaded.model for t in participants.teachers}
    flash = [who for who, model in models.items() if uses_flash_attention(model)]
    if flash and (participants.config.optim.micro_batch_size or 1) > 1:
        raise XTokenError(
            f"data.packing is documents, and {' and '.join(flash)} uses flash attention, for which transformers keeps "
            "documents apart in a batch of one sequence alone: use optim.micro_batch_size 1, or attention sdpa"
        )
    mixing = [who for who, model in models.items() if who not in flash and not packs_apart(model)]
    if mixing:
        raise XTokenError(
            f"data.packing is documents, but {' and '.join(mixing)} would let documents in one sequence see each other "
            "(not every architecture and attention keeps them apart): use packing none, or concatenate"
        )


def _packed(data: PreparedData, participants: Participants) -> PreparedData | PackedData:
    """The examples in the sequences that the settings ask for."""
    settings = participants.config.data
    if settings.packing == "none":
        return data
    limits = {"": settings.context_length}
    for teacher in participants.teachers:
        side = teacher.side.key
        limits[side] = min(teacher.context_length, limits.get(side, teacher.context_length))
    found = PackedData(data, settings.packing, limits)
    log.info("packed into %d sequences, %.1f %% full", len(found), 100 * found.fill)
    return found


def _tell_mixture(data: MixedData, examples: int) -> None:
    """Logs what the weights come to in a run of so many examples."""
    shares, repetitions = data.shares(), data.repetitions(examples)
    for corpus, share, repetition in zip(data.corpora, shares, repetitions, strict=True):
        log.info(
            "%s: %.1f %% of the tokens; each of its %d examples is seen %.2f times",
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
