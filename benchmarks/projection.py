"""What W and the audit cost: whole processes as a person starts them, and W alone for a large pair.

    python -m benchmarks.projection

The commands run in processes of their own, so that imports, reading the tokenizers and the peak of memory count. No
real vocabulary of 262,144 tokens can be had without a model hub; one is made here of the bytes of the real ones'
tokens, so its tokens are real and its size is right, but nobody trained it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.fetch_tokenizers import fetch

from benchmarks.common import Figure, alternate
from xtoken.projection import build_projection
from xtoken.tokens import Vocabulary

__all__ = ["figures"]

_TURNS = 3
_AUDIT_SECONDS = 3.0
_HELP_SECONDS = 0.3  # it takes half of that; the machine may be busy
_W_SECONDS, _W_MEGABYTES = 2.0, 700.0
_LARGE_SECONDS, _LARGE_SIZE = 6.0, 262_144


@dataclass(frozen=True)
class Run:
    """A process that ended.

    Attributes:
        seconds: of wall time, from its start.
        megabytes: the most memory it held at once.
    """

    seconds: float
    megabytes: float


def run(arguments: Sequence[str]) -> Run:
    """Runs `xtoken` with these arguments.

    Raises:
        RuntimeError: it failed.
    """
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "xtoken", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"xtoken {' '.join(arguments)} ended with {process.returncode}")
    in_kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return Run(seconds, in_kilobytes * 1024 / 1e6)


def commands() -> list[Figure]:
    """`audit`, `project` and `--help`, in turn."""
    pair = [str(fetch(name)) for name in ("llama-3", "qwen3")]
    runs: dict[str, list[Run]] = {"--help": [], "audit": [], "project": []}
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "--help": ["--help"],
            "audit": ["audit", *pair],
            "project": ["project", *pair, "-o", str(Path(folder) / "W.safetensors")],
        }
        for _ in range(_TURNS):
            for name, taken in runs.items():
                taken.append(run(arguments[name]))
    median = {name: sorted(r.seconds for r in taken)[_TURNS // 2] for name, taken in runs.items()}
    peak = {name: max(r.megabytes for r in taken) for name, taken in runs.items()}
    return [
        Figure(
            "xtoken audit, whole process", median["audit"], _AUDIT_SECONDS, unit="s", note=f"{peak['audit']:.0f} MB"
        ),
        Figure(
            "xtoken project, peak memory",
            peak["project"],
            _W_MEGABYTES,
            unit="MB",
            note=f"{median['project']:.2f} s in all",
        ),
        Figure("xtoken --help", median["--help"], _HELP_SECONDS, unit="s", note=f"{peak['--help']:.0f} MB"),
    ]


def build(student: Vocabulary, teacher: Vocabulary) -> None:
    """All that `xtoken project` does once both are loaded, fingerprints and file included, nothing kept from before."""
    for vocabulary in (student, teacher):
        for kept in ("fingerprint", "token_bytes", "is_special", "is_event", "_bare"):
            vocabulary.__dict__.pop(kept, None)
    with tempfile.TemporaryDirectory() as folder:
        build_projection(student, teacher).save(Path(folder) / "W.safetensors")


def large_vocabulary(sources: Sequence[Vocabulary]) -> Vocabulary:
    """A byte-level vocabulary of 262,144 tokens: all single bytes, then the real ones' tokens, the shortest first.

    Args:
        sources: the real vocabularies.
    """
    from xtoken.tokens.hf import _byte_pair_tokenizer
    from xtoken.tokens.known import CL100K_PATTERN

    single = [bytes([b]) for b in range(256)]
    longer = sorted({t for source in sources for t in source.tokens if len(t) > 1}, key=lambda t: (len(t), t))
    tokens = [*single, *longer][:_LARGE_SIZE]
    if len(tokens) != _LARGE_SIZE:
        raise RuntimeError(f"the real vocabularies hold {len(tokens)} different tokens, fewer than {_LARGE_SIZE}")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return Vocabulary.from_tokenizer(_byte_pair_tokenizer(ranks, CL100K_PATTERN))


def figures() -> list[Figure]:
    """The figures, in under a minute."""
    found = commands()
    names = ("llama-3", "qwen3", "llama-4", "deepseek")
    real = {name: Vocabulary.from_pretrained(fetch(name)) for name in names}
    large, student, teacher = large_vocabulary([*real.values()]), real["llama-3"], real["qwen3"]
    small_pair, large_pair = alternate([lambda: build(student, teacher), lambda: build(large, student)], _TURNS)
    sizes = [f"{one.size:,} x {other.size:,}" for one, other in ((student, teacher), (large, student))]
    note = "tokenizers at hand; fingerprints and file included"
    return [
        *found,
        Figure(f"W, Llama-3 x Qwen3, {sizes[0]}", small_pair.median, _W_SECONDS, unit="s", note=note),
        Figure(
            f"W, {sizes[1]}", large_pair.median, _LARGE_SECONDS, unit="s", note=f"{note}; student of real tokens' bytes"
        ),
    ]


if __name__ == "__main__":
    for figure in figures():
        print(figure)
