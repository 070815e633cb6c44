"""What preparing data costs: processor seconds in this process and in its workers.

    python -m benchmarks.pipeline

Texts are Python's own source, cut at blank lines into documents of a usual length. Counted is `prepare` as a whole,
from the texts to the written file, the start of the workers included; the difference between few documents and many
is the price of a document, and what is left over is the price of starting. Processor time is what a busy machine
changes least.
"""

from __future__ import annotations

import resource
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

from scripts.fetch_tokenizers import fetch

from xtoken.tokens import Vocabulary
from xtoken.training import data
from xtoken.training.data import Side, prepare
from xtoken.training.texts import TextSource, texts_from_list

__all__ = ["main"]

_CONTEXT = 4096
_DOCUMENT = 2_000  # characters at least
_FEW, _MANY = 1_000_000, 9_000_000  # characters
_ANY_AMOUNT = 0  # is worth workers


@cache
def sides() -> tuple[Side, Side]:
    """Llama-3 as student and Qwen3 as teacher."""
    student, teacher = (Side(Vocabulary.from_pretrained(fetch(name)), _CONTEXT) for name in ("llama-3", "qwen3"))
    return student, teacher


@cache
def texts(characters: int) -> tuple[str, ...]:
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


def processor_seconds(characters: int, workers: int) -> tuple[int, float, float]:
    """How many documents so many characters are, and what they cost this process and its workers."""
    chosen = texts(characters)
    before = [_used(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    prepared(texts_from_list(chosen), workers)
    after = [_used(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return len(chosen), after[0] - before[0], after[1] - before[1]


def _used(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Prints the figures."""
    data._WORTH_WORKERS = _ANY_AMOUNT
    prepared(texts_from_list(texts(_FEW)), 1)  # the tokenizers' keys are made once
    for workers in (1, 2):
        for characters in (_FEW, _MANY):
            n, own, children = processor_seconds(characters, workers)
            print(f"{workers} workers, {n:,} documents: {own:.2f} s here, {children:.2f} s in the workers")


if __name__ == "__main__":
    main()
