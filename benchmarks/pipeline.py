"""What preparing data costs: documents a second in this process and in worker processes.

    python -m benchmarks.pipeline

Texts are Python's own, as in `benchmarks.alignment`: the modules of its library, cut where a blank line ends a block
that is long enough, so that there are documents of a usual length. Timed is `prepare` as a whole, from the texts to the
written file, the start of the workers included.
"""

from __future__ import annotations

import sysconfig
import tempfile
from collections.abc import Callable
from functools import cache, partial
from itertools import islice
from pathlib import Path

from scripts.fetch_tokenizers import fetch

from benchmarks.common import Figure, alternate
from xtoken.tokens import Vocabulary
from xtoken.training import data
from xtoken.training.data import Side, prepare
from xtoken.training.streaming import StreamedData
from xtoken.training.texts import TextSource, texts_from_list

__all__ = ["figures"]

_CONTEXT = 4096
_DOCUMENT = 2_000  # characters at least
_CHARACTERS = 12_000_000
_ANY_AMOUNT = 0  # is worth workers
_TURNS = 3


@cache
def sides() -> tuple[Side, Side]:
    """Llama-3 as student and Qwen3 as teacher."""
    student, teacher = (Side(Vocabulary.from_pretrained(fetch(name)), _CONTEXT) for name in ("llama-3", "qwen3"))
    return student, teacher


@cache
def texts(characters: int = _CHARACTERS) -> tuple[str, ...]:
    """Python source, so many characters of it."""
    found: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # tests of encodings
            continue
        document = ""
        for block in text.split("\n\n"):
            document += block + "\n\n"
            if len(document) >= _DOCUMENT:
                found.append(document)
                size += len(document)
                document = ""
        if size >= characters:
            break
    return tuple(found)


def prepared(source: TextSource, workers: int) -> None:
    """From the texts to the file."""
    student, teacher = sides()
    with tempfile.TemporaryDirectory() as folder:
        prepare(source, student, [teacher], cache=Path(folder), workers=workers)


def streamed(source: TextSource, workers: int, n: int) -> None:
    """So many examples of a stream."""
    student, teacher = sides()
    for _ in islice(StreamedData(source, student, [teacher], workers=workers), n):
        pass


def figures() -> list[Figure]:
    """Documents a second."""
    data._WORTH_WORKERS = _ANY_AMOUNT
    source, n = texts_from_list(texts()), len(texts())
    work: dict[str, Callable[[], None]] = {}
    for workers in (1, 2):
        work[f"prepare, {workers} workers"] = partial(prepared, source, workers)
    for workers in (0, 2):
        work[f"streaming, {workers} workers"] = partial(streamed, source, workers, n)
    note = f"{n:,} documents of Python source, {sum(map(len, texts())) / 1e6:.0f} MB"
    return [
        Figure(name, n / timing.median, 0, unit="documents/s", at_least=True, note=note)
        for name, timing in zip(work, alternate(list(work.values()), _TURNS, warm_up=0), strict=True)
    ]


if __name__ == "__main__":
    for figure in figures():
        print(figure)
