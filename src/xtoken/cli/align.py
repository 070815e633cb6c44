"""`xtoken align`: see which tokens of two tokenizers stand for the same bytes of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.text import Text

from xtoken.cli.console import out, print_json, read_text, reports_errors
from xtoken.shown import token_text, visible

if TYPE_CHECKING:
    from xtoken.alignment import Alignment
    from xtoken.tokens import Vocabulary

__all__ = ["align_command"]

_COLOURS = ("cyan", "yellow", "green", "magenta")
_GAP = "reverse red"


@reports_errors
def align_command(
    student: Annotated[str, typer.Argument(help="Student: a folder, a tokenizer file or a hub id.")],
    teacher: Annotated[str, typer.Argument(help="Teacher: a folder, a tokenizer file or a hub id.")],
    text: Annotated[str | None, typer.Option(help="The text to align.")] = None,
    file: Annotated[Path | None, typer.Option(help="A UTF-8 file that holds the text.")] = None,
    method: Annotated[str, typer.Option(help="bytes, dp or surface.")] = "bytes",
    add_special_tokens: Annotated[bool, typer.Option(help="Add what each tokenizer adds by itself.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write one HTML file instead of rows of text.")] = None,
) -> None:
    """Align the tokens of one text: two rows, chunk under chunk, gaps marked."""
    from xtoken.alignment import align
    from xtoken.errors import XTokenError
    from xtoken.tokens import Vocabulary

    if (text is None) == (file is None):
        raise XTokenError("give the text with --text or with --file, and not with both")
    if as_json and html is not None:
        raise XTokenError("--json prints to stdout and --html writes a page; give one of them")
    content = text if text is not None else read_text(file)  # type: ignore[arg-type]
    student_vocab, teacher_vocab = Vocabulary.from_pretrained(student), Vocabulary.from_pretrained(teacher)
    alignment = align(student_vocab, teacher_vocab, content, method, add_special_tokens=add_special_tokens)
    if html is not None:
        _write_page(html, alignment, student_vocab, teacher_vocab)
    elif as_json:
        print_json(_as_json(alignment, student_vocab, teacher_vocab))
    else:
        _show(alignment, student_vocab, teacher_vocab)


def _write_page(path: Path, alignment: Alignment, student: Vocabulary, teacher: Vocabulary) -> None:
    from xtoken.report.aligned import aligned_text
    from xtoken.report.page import write_page
    from xtoken.report.pair_page import align_page

    write_page(
        path, align_page(aligned_text(alignment, student, teacher), student.name, teacher.name, alignment.method)
    )
    out().print(f"written to {path}", soft_wrap=True)


def _as_json(alignment: Alignment, student: Vocabulary, teacher: Vocabulary) -> dict[str, Any]:
    chunks = []
    for s0, s1, t0, t1 in alignment.chunks.tolist():
        spelled = b"".join([student.tokens[i] for i in alignment.student_ids[s0:s1].tolist()])
        text = spelled.decode("utf-8", "backslashreplace")
        chunks.append({"student": [s0, s1], "teacher": [t0, t1], "text": text, "bytes": len(spelled)})
    return {
        "method": alignment.method,
        "student_tokens": [token_text(student, i) for i in alignment.student_ids.tolist()],
        "teacher_tokens": [token_text(teacher, i) for i in alignment.teacher_ids.tolist()],
        "chunks": chunks,
        "student_gaps": alignment.student_gaps.tolist(),
        "teacher_gaps": alignment.teacher_gaps.tolist(),
    }


def _show(alignment: Alignment, student: Vocabulary, teacher: Vocabulary) -> None:
    from xtoken.alignment.segments import segments

    console = out()
    labels = ("student ", "teacher ")
    rows, width = (Text(labels[0], style="dim"), Text(labels[1], style="dim")), len(labels[0])
    for n, segment in enumerate(segments(alignment)):
        spans, is_gap = (segment.student, segment.teacher), segment.chunk is None
        sides = zip((student, teacher), (alignment.student_ids, alignment.teacher_ids), spans, strict=True)
        cells = ["|".join(visible(token_text(v, i)) for i in ids[a:b].tolist()) for v, ids, (a, b) in sides]
        wide = max(map(cell_len, cells))
        if width + wide + 1 > console.width and width > len(labels[0]):
            _print_rows(console, rows)
            rows, width = (Text(labels[0], style="dim"), Text(labels[1], style="dim")), len(labels[0])
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell + " " * (wide - cell_len(cell)), style=_GAP if is_gap else _COLOURS[n % len(_COLOURS)])
            row.append(" ")
        width += wide + 1
    _print_rows(console, rows)
    gaps = len(alignment.student_gaps), len(alignment.teacher_gaps)
    console.print(
        f"{alignment.method}: {len(alignment)} chunks; {len(alignment.student_ids)} student tokens ({gaps[0]} in gaps) "
        f"and {len(alignment.teacher_ids)} teacher tokens ({gaps[1]} in gaps)"
    )


def _print_rows(console: Any, rows: tuple[Text, Text]) -> None:
    for row in rows:
        console.print(row, soft_wrap=True)
    console.print()
