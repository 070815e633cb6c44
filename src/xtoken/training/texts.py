"""Where documents come from: lists, local files, or `datasets`; read one at a time, never all at once.

Type: `TextSource`, a name for messages, a key that changes when the texts may have changed, what that key is made of,
and a way to read them, which a worker process can be given. A document is one string. In a .txt file it is a line, as
the `text` loader of `datasets` has it, unless told otherwise; in .jsonl and .parquet it is the text column of a row, or
its conversation. A file that is not UTF-8 is an error that names the byte.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from xtoken.errors import XTokenError
from xtoken.training.conversations import ChatColumns, Conversation

__all__ = ["TextSource", "conversations_from_list", "texts_from_dataset", "texts_from_files", "texts_from_list"]

SUFFIXES = (".txt", ".jsonl", ".parquet")
SPLITS = ("line", "paragraph", "document")
DEFAULT_COLUMN = "text"
_BLOCK = 1 << 20  # bytes hashed at a time
_PARQUET_ROWS = 1024  # a read's worth: large enough to be quick, small enough to hold


@dataclass(frozen=True)
class TextSource:
    """Documents that can be read, more than once.

    Attributes:
        name: what messages call it.
        key: sha256 in hexadecimal; equal keys mean equal documents.
        read: gives the documents in order; a missing text is an empty string.
        count: how many there are, where that is known without reading.
        made_of: what the key is made of, in plain JSON types, so that a message can say what changed: `files`, each
            with `name`, `bytes` and `sha256`; or `dataset` and `fingerprint`; or `texts`, how many, and `sha256`.
    """

    name: str
    key: str
    read: Callable[[], Iterator[str]]
    count: int | None = None
    made_of: Mapping[str, Any] = field(default_factory=dict)

    def first(self, n: int) -> TextSource:
        """The first n documents alone."""
        key = hashlib.sha256(f"{self.key} {n}".encode()).hexdigest()
        count = None if self.count is None else min(n, self.count)
        return TextSource(self.name, key, partial(_first, self.read, n), count, self.made_of)


def texts_from_list(texts: Sequence[str], name: str = "the given texts") -> TextSource:
    """Documents that are in memory already.

    Args:
        texts: one string a document.
        name: what messages call them.
    """
    held = tuple(texts)
    digest = hashlib.sha256()
    for text in held:
        raw = text.encode("utf-8", "surrogatepass")  # a lone surrogate is told about when it is encoded in earnest
        digest.update(len(raw).to_bytes(8, "little") + raw)
    made_of = {"texts": len(held), "sha256": digest.hexdigest()}
    return TextSource(name, digest.hexdigest(), partial(iter, held), len(held), made_of)


def conversations_from_list(conversations: Sequence[Any], name: str = "the given conversations") -> TextSource:
    """Conversations that are in memory already.

    Args:
        conversations: lists of messages, or objects with `messages`, or with `prompt` and `completion`.
        name: what messages call them.

    Raises:
        XTokenError: something else among them.
    """
    texts = []
    for number, one in enumerate(conversations):
        try:
            texts.append(Conversation.of(one).to_json())
        except XTokenError as error:
            raise XTokenError(f"{name}, document {number} (counting from 0): {error}") from None
    return texts_from_list(texts, name)


@dataclass(frozen=True)
class _TextColumn:
    """Where a row holds its text; `ChatColumns` is the same for conversations."""

    name: str

    def among(self, columns: Sequence[str], where: str) -> list[str]:
        if self.name not in columns:
            raise _no_column(self.name, columns, where)
        return [self.name]

    def read(self, row: Mapping[str, Any], where: str) -> str:
        return _text(row[self.among(list(row), where)[0]], self.name, where)


_Columns = _TextColumn | ChatColumns


def texts_from_files(
    patterns: Sequence[str | Path],
    *,
    text_column: str | None = None,
    split_by: str | None = None,
    chat: ChatColumns | None = None,
    streaming: bool = False,
) -> TextSource:
    """Documents in local files.

    Args:
        patterns: files, folders (everything readable in them, sorted) or glob patterns.
        text_column: the key or column that holds the text in .jsonl and .parquet; `text` by default.
        split_by: what a document is in a .txt file: `line` (default), `paragraph` or `document`.
        chat: the rows hold conversations, in these columns.
        streaming: know a file by its size, its first and its last MiB, so that it need not be read whole for its key.

    Raises:
        XTokenError: no such file, or of another kind; a setting without effect. While reading: a file that is not
            UTF-8, a line that is not JSON, a column that is not there.
    """
    files = [file for pattern in patterns for file in _files(str(pattern))]
    if not files:
        raise XTokenError("there is no data: the list of files is empty")
    kinds = {file.suffix for file in files}
    if text_column is not None and kinds == {".txt"}:
        raise XTokenError(f"text_column {text_column!r} has no effect: the files are all .txt, which have no columns")
    if split_by is not None and ".txt" not in kinds:
        raise XTokenError(f"split_text_by {split_by!r} has no effect: there is no .txt file among the data")
    if chat is not None and ".txt" in kinds:
        raise XTokenError("a .txt file holds no conversations; chat data is .jsonl or .parquet")
    columns: _Columns = _TextColumn(text_column or DEFAULT_COLUMN) if chat is None else chat
    known = [_identity(file, streaming) for file in files]
    depends = [[one["sha256"] for one in known], text_column, split_by, *([] if chat is None else [chat.key])]
    key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    read = partial(_read_files, files, columns, split_by or "line")
    return TextSource(name, key, read, made_of={"files": known})


def texts_from_dataset(
    path: str,
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    text_column: str | None = None,
    chat: ChatColumns | None = None,
    streaming: bool = False,
) -> TextSource:
    """Documents of a Hugging Face data set.

    Args:
        path: an id on the hub, a folder that `load_dataset` reads, or one that `save_to_disk` wrote.
        config: the data set's configuration.
        split: `train` by default.
        revision: a hub revision.
        text_column: `text` by default.
        chat: the rows hold conversations, in these columns.
        streaming: neither download nor convert it first; rows come as they are read.

    Raises:
        XTokenError: it cannot be loaded, or has no such column; the message lists those there are. While streaming, a
            column that is missing shows when it is read.
    """
    place = _Place(path, config, split or "train", revision)
    columns: _Columns = _TextColumn(text_column or DEFAULT_COLUMN) if chat is None else chat
    rows, where = place.load(streaming=streaming), f"the data set {path}"
    if rows.column_names is not None:  # a stream may not know its columns
        columns.among(rows.column_names, where)
    fingerprint = place.identity() if streaming else rows._fingerprint
    depends = [fingerprint, text_column or DEFAULT_COLUMN] if chat is None else [fingerprint, chat.key]
    key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()
    made_of = {"dataset": path, "fingerprint": fingerprint}
    if streaming:  # each reader opens it for itself
        return TextSource(path, key, partial(_read_stream, place, columns), made_of=made_of)
    return TextSource(path, key, partial(_read_rows, rows, columns, where), len(rows), made_of)


@dataclass(frozen=True)
class _Place:
    """Where a data set is, as `datasets` is told."""

    path: str
    config: str | None
    split: str
    revision: str | None

    def load(self, *, streaming: bool) -> Any:
        import datasets

        path = Path(self.path)
        try:
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                loaded = datasets.load_from_disk(self.path)
                return loaded[self.split] if isinstance(loaded, datasets.DatasetDict) else loaded
            return datasets.load_dataset(
                self.path, self.config, split=self.split, revision=self.revision, streaming=streaming
            )
        except Exception as error:  # `datasets` raises a dozen types, its own and others'
            raise XTokenError(f"cannot load the data set {self.path!r} (split {self.split!r}): {error}") from error

    def identity(self) -> str:
        """What changes when the data set does, found without reading it: its commit on the hub, or its local files."""
        content: list[Any] = [self.config, self.split]
        if Path(self.path).is_dir():
            files = sorted(file for file in Path(self.path).rglob("*") if file.is_file())
            content += [{**_identity(file, True), "name": str(file.relative_to(self.path))} for file in files]
        else:
            content += [self.path, self._commit()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _commit(self) -> str:
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.path, revision=self.revision).sha)
        except Exception as error:  # what the network and the hub raise
            raise XTokenError(f"cannot ask the hub for the state of the data set {self.path!r}: {error}") from error


def _first(read: Callable[[], Iterator[str]], n: int) -> Iterator[str]:
    return islice(read(), n)


def _read_rows(rows: Any, columns: _Columns, where: str) -> Iterator[str]:
    for row in rows.select_columns(columns.among(rows.column_names, where)):
        yield columns.read(row, where)


def _read_stream(place: _Place, columns: _Columns) -> Iterator[str]:
    for row in place.load(streaming=True):
        yield columns.read(row, f"the data set {place.path}")


def _files(pattern: str) -> list[Path]:
    if Path(pattern).is_dir():
        found = sorted(file for file in Path(pattern).rglob("*") if file.suffix in SUFFIXES)
        if not found:
            raise XTokenError(f"the folder {pattern} holds no {', '.join(SUFFIXES)} file")
        return found
    found = [Path(pattern)] if Path(pattern).is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not found:
        raise XTokenError(f"there is no text file {pattern}")
    for file in found:
        if file.suffix not in SUFFIXES:
            raise XTokenError(
                f"{file}: cannot read {file.suffix or 'a file without suffix'}; expected {', '.join(SUFFIXES)}"
            )
    return found


def _identity(file: Path, ends_only: bool) -> dict[str, Any]:
    """A file's name, size and sha256: one that is copied or touched is the same, one that is edited is not.

    Args:
        file: the file.
        ends_only: hash its size, its first and its last block alone.
    """
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if ends_only and size > 2 * _BLOCK:
                digest.update(b"%d " % size + stream.read(_BLOCK))
                stream.seek(size - _BLOCK)
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise XTokenError(f"cannot read {file}: {error.strerror}") from None
    return {"name": str(file), "bytes": size, "sha256": digest.hexdigest()}


def _read_files(files: Sequence[Path], columns: _Columns, split_by: str) -> Iterator[str]:
    for file in files:
        if file.suffix == ".txt":
            yield from _read_text(file, split_by)
        elif file.suffix == ".jsonl":
            yield from _read_jsonl(file, columns)
        else:
            yield from _read_parquet(file, columns)


def _read_text(file: Path, split_by: str) -> Iterator[str]:
    if split_by == "document":
        yield "".join(_lines(file))
        return
    paragraph: list[str] = []
    for line in _lines(file):
        if split_by == "line":
            yield line.rstrip("\r\n")
        elif line.strip():
            paragraph.append(line)
        else:
            yield "".join(paragraph).rstrip("\r\n")
            paragraph = []
    if paragraph:
        yield "".join(paragraph).rstrip("\r\n")


def _read_jsonl(file: Path, columns: _Columns) -> Iterator[str]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise XTokenError(f"{file}, line {number}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise XTokenError(f"{file}, line {number}: expected an object with keys, got {line[:40]!r}")
        yield columns.read(row, f"{file}, line {number}")


def _read_parquet(file: Path, columns: _Columns) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise XTokenError(f"{file} is not a readable Parquet file: {error}") from None
    with table:
        names = columns.among(table.schema_arrow.names, str(file))
        for batch in table.iter_batches(_PARQUET_ROWS, columns=names):
            for row in batch.to_pylist():
                yield columns.read(row, str(file))


def _lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends; a byte order mark in front is not text."""
    offset = 0
    try:
        with file.open("rb") as stream:
            for line in stream:
                text = line.decode("utf-8")
                yield text.removeprefix("\ufeff") if offset == 0 else text
                offset += len(line)
    except UnicodeDecodeError as error:
        raise XTokenError(
            f"{file} is not UTF-8: the byte 0x{error.object[error.start]:02X} at offset {offset + error.start} is not "
            "part of any character. Convert it (iconv -t UTF-8), or leave it out."
        ) from None
    except OSError as error:
        raise XTokenError(f"cannot read {file}: {error.strerror}") from None


def _text(value: Any, column: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise XTokenError(f"{where}: the column {column!r} holds {type(value).__name__}; expected text")
    return value


def _no_column(column: str, columns: Sequence[str], where: str) -> XTokenError:
    there = ", ".join(map(repr, columns)) or "none"
    return XTokenError(
        f"{where} has no column {column!r}; there are {there}. Name the one that holds the text (text_column)."
    )
