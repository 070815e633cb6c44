"""`xtoken audit`: what two vocabularies share, and which loss follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from xtoken.cli.console import out, print_json, read_text, reports_errors, visible

if TYPE_CHECKING:
    from xtoken.audit import AuditReport
    from xtoken.tokens import Vocabulary

__all__ = ["audit_command"]

_EXAMPLES = 5
_FATES = {
    "exact": "equal bytes",
    "special_by_role": "special, same role",
    "text_pieces": "the pieces of its text",
    "byte_pieces": "the pieces of its bytes (not UTF-8 on its own)",
    "over_4_pieces": "nothing: more than 4 pieces",
    "not_utf8": "nothing: not UTF-8, and more than 4 pieces",
    "unknown_to_teacher": "nothing: the teacher cannot spell it",
    "special_alone": "nothing: special, without a counterpart",
    "unused_id": "nothing: an id not in use",
}


@reports_errors
def audit_command(
    student: Annotated[str, typer.Argument(help="Student: a folder, a tokenizer file or a hub id.")],
    teacher: Annotated[str, typer.Argument(help="Teacher: a folder, a tokenizer file or a hub id.")],
    corpus: Annotated[Path | None, typer.Option(help="A UTF-8 text; classes are also weighed by use in it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Count what two vocabularies share, by class of token, and recommend a loss."""
    from xtoken.audit import audit
    from xtoken.tokens import Vocabulary

    student_vocab, teacher_vocab = Vocabulary.from_pretrained(student), Vocabulary.from_pretrained(teacher)
    texts = read_text(corpus).splitlines(keepends=True) if corpus else None
    report = audit(student_vocab, teacher_vocab, texts=texts)
    if as_json:
        print_json(report.to_json())
        return
    console = out()
    console.print(_class_table(report, student_vocab))
    console.print(_row_table(report))
    for name, (tokens, common) in report.published_counting.items():
        console.print(f"[dim]counted as the paper does, {name}: {common} of {tokens} in common[/dim]")
    console.print(f"\n[bold]Recommended loss: {report.recommended_loss}[/bold]\n{report.reason}", soft_wrap=True)


def _class_table(report: AuditReport, student: Vocabulary) -> Table:
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
        *(["of the corpus", "of that, in common"] if usage else []),
    ):
        table.add_column(heading, justify="left" if heading == "class" else "right", no_wrap=True)
    table.add_column("not in common, for example", overflow="ellipsis", no_wrap=True)
    for name, c in report.classes.items():
        if c.tokens:
            examples = [visible(student.tokens[i].decode("utf-8", "backslashreplace")) for i in c.outside[:_EXAMPLES]]
            table.add_row(name, *_counts(c, usage), _escaped("  ".join(examples)))
    return table


def _counts(c: Any, usage: bool) -> list[str]:
    colour = "green" if c.coverage >= 0.95 else "red" if c.coverage < 0.5 else "yellow"
    cells = [f"{c.tokens:,}", f"{c.in_common:,}", f"[{colour}]{c.coverage:.1%}[/{colour}]"]
    if usage:
        cells += [f"{c.usage:.2%}", "" if c.usage_in_common is None else f"{c.usage_in_common:.1%}"]
    return cells


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _row_table(report: AuditReport) -> Table:
    table = Table(title="The student's tokens in W", title_justify="left")
    table.add_column("carried to")
    table.add_column("tokens", justify="right")
    for fate, count in report.rows.items():
        pieces = ", ".join(f"{n}: {k:,}" for n, k in report.pieces.items()) if fate == "text_pieces" else ""
        table.add_row(_FATES[fate] + (f" ({pieces})" if pieces else ""), f"{count:,}")
    return table
