"""`xtoken project`: build W for a pair of tokenizers and save it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xtoken.cli.console import out, reports_errors

__all__ = ["project_command"]


@reports_errors
def project_command(
    student: Annotated[str, typer.Argument(help="Student: a folder, a tokenizer file or a hub id.")],
    teacher: Annotated[str, typer.Argument(help="Teacher: a folder, a tokenizer file or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write W, as safetensors.")],
) -> None:
    """Build the projection W that carries student tokens into the teacher's vocabulary."""
    from xtoken.errors import XTokenError
    from xtoken.projection import build_projection
    from xtoken.tokens import Vocabulary

    if output.is_dir():
        raise XTokenError(
            f"{str(output)!r} is a folder: name the file to write, such as {str(output / 'W.safetensors')!r}"
        )
    if output.exists() and output.suffix != ".safetensors":
        raise XTokenError(f"{str(output)!r} is there already and is no .safetensors file: choose another name for W")
    student_vocab, teacher_vocab = Vocabulary.from_pretrained(student), Vocabulary.from_pretrained(teacher)
    projection = build_projection(student_vocab, teacher_vocab)
    try:
        projection.save(output)
    except OSError as error:
        raise XTokenError(f"cannot write {str(output)!r}: {error.strerror or error}") from None
    empty = int((projection.row_sums() == 0).sum())
    out().print(
        f"W: {projection.shape[0]:,} x {projection.shape[1]:,}, {len(projection.values):,} entries, "
        f"{empty:,} empty rows, written to {output}",
        soft_wrap=True,
    )
