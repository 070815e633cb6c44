"""`xtoken audit`: what two vocabularies share, and which loss follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from xtoken.cli.console import out, print_json, read_text, reports_errors
from xtoken.shown import token_text, visible

if TYPE_CHECKING:
    from xtoken.coverage import AuditReport
    from xtoken.tokens import Vocabulary

__all__ = ["audit_command"]

_EXAMPLES = 5
# Columns of a terminal that the counts take, and those of a corpus; the examples get what is left if it is worth it.
_COUNTS_WIDTH, _CORPUS_WIDTH, _EXAMPLES_WIDTH = 54, 20, 20


@reports_errors
def audit_command(
    student: Annotated[str, typer.Argument(help="Student: a folder, a tokenizer file or a hub id.")],
    teacher: Annotated[str, typer.Argument(help="Teacher: a folder, a tokenizer file or a hub id.")],
    corpus: Annotated[Path | None, typer.Option(help="A UTF-8 text; classes are also weighed by use in it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write one HTML file, with W besides, instead of tables.")] = None,
) -> None:
    """Count what two vocabularies share, by class of token, and recommend a loss."""
    from xtoken.coverage import audit
    from xtoken.errors import XTokenError
    from xtoken.tokens import Vocabulary

    if as_json and html is not None:
        raise XTokenError("--json prints to stdout and --html writes a page; give one of them")
    student_vocab, teacher_vocab = Vocabulary.from_pretrained(student), Vocabulary.from_pretrained(teacher)
    texts = read_text(corpus).splitlines(keepends=True) if corpus else None
    if html is not None:
        _write_page(html, student_vocab, teacher_vocab, texts, corpus)
        return
    report = audit(student_vocab, teacher_vocab, texts=texts)
    if as_json:
        print_json(report.to_json())
        return
    console = out()
    console.print(_class_table(report, student_vocab, console.width))
    console.print(_row_table(report))
    for name, (tokens, common) in report.published_counting.items():
        console.print(f"counted as the paper does, {name}: {common} of {tokens} in common", style="dim")
    console.print(f"\nRecommended loss: {report.recommended_loss}", style="bold")
    console.print(report.reason, soft_wrap=True)


def _write_page(
    path: Path, student: Vocabulary, teacher: Vocabulary, texts: list[str] | None, corpus: Path | None
) -> None:
    from xtoken.report.page import write_page
    from xtoken.report.pair import pair_facts
    from xtoken.report.pair_page import audit_page

    name = None if corpus is None else corpus.name
    write_page(path, audit_page(pair_facts(student, teacher, texts=texts, corpus=name)))
    out().print(f"written to {path}", soft_wrap=True)


def _class_table(report: AuditReport, student: Vocabulary, width: int) -> Table:
    table = Table(
        title=f"{report.student} ({report.student_vocab:,}) against {report.teacher} ({report.teacher_vocab:,}): "
        f"{report.common:,} common tokens",
        title_justify="left",
    )
    usage = any(c.usage is not None for c in report.classes.values())
    for heading in (
        "class",
        "tokens",
        "in common",
        "share",
        *(["of text", "covered"] if usage else []),
    ):
        table.add_column(heading, justify="left" if heading == "class" else "right", no_wrap=True)
    left = width - _COUNTS_WIDTH - (_CORPUS_WIDTH if usage else 0)
    with_examples = left >= _EXAMPLES_WIDTH
    if with_examples:
        table.add_column("not in common, for example", overflow="ellipsis", no_wrap=True, max_width=left)
    for name, c in report.classes.items():
        if c.tokens:
            examples = [visible(token_text(student, i)) for i in c.outside[:_EXAMPLES]]
            table.add_row(name, *_counts(c, usage), *([Text("  ".join(examples))] if with_examples else []))
    return table


def _counts(c: Any, usage: bool) -> list[str | Text]:
    colour = "green" if c.coverage >= 0.95 else "red" if c.coverage < 0.5 else "yellow"
    cells: list[str | Text] = [f"{c.tokens:,}", f"{c.in_common:,}", Text(f"{c.coverage:.1%}", style=colour)]
    if usage:
        cells += [f"{c.usage:.2%}", "" if c.usage_in_common is None else f"{c.usage_in_common:.1%}"]
    return cells


def _row_table(report: AuditReport) -> Table:
    from xtoken.projection.build import FATES

    table = Table(title="The student's tokens in W", title_justify="left")
    table.add_column("carried to")
    table.add_column("tokens", justify="right")
    for fate, count in report.rows.items():
        pieces = ", ".join(f"{n}: {k:,}" for n, k in report.pieces.items()) if fate == "text_pieces" else ""
        table.add_row(FATES[fate] + (f" ({pieces})" if pieces else ""), f"{count:,}")
    return table
