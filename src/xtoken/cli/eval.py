"""`xtoken eval`: bits per byte of a model on a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from xtoken.cli.console import err, out, print_json, reports_errors

if TYPE_CHECKING:
    from xtoken.evaluation import BitsPerByte

__all__ = ["eval_command"]


@reports_errors
def eval_command(
    model: Annotated[str, typer.Argument(help="A model folder or a hub id.", show_default=False)],
    text: Annotated[
        list[str],
        typer.Option(
            "--text", help="A .txt, .jsonl or .parquet file, or a folder; may be repeated.", show_default=False
        ),
    ],
    text_column: Annotated[
        str | None, typer.Option(help="The column that holds the text in .jsonl and .parquet (default text).")
    ] = None,
    split_text_by: Annotated[
        str | None, typer.Option(help="A document in a .txt file: line (default), paragraph or document.")
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Tokens in a window (default: what the model takes, up to 4096).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in a forward pass, fewer where they are long.")] = 8,
    revision: Annotated[str | None, typer.Option(help="A hub revision.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Score a text: bits per byte, which compare across tokenizers, overall and by class of token.

    The weights are bfloat16 on a GPU and float32 on a CPU.
    """
    import torch

    from xtoken.errors import XTokenError
    from xtoken.evaluation import bits_per_byte
    from xtoken.training.models import load_model
    from xtoken.training.texts import SPLITS, texts_from_files

    if split_text_by is not None and split_text_by not in SPLITS:
        raise XTokenError(f"--split-text-by {split_text_by!r}: expected one of {', '.join(SPLITS)}")
    source = texts_from_files(text, text_column=text_column, split_by=split_text_by)
    on_gpu = torch.cuda.is_available()
    loaded = load_model(model, who="model", revision=revision, dtype="bfloat16" if on_gpu else "float32")
    result = bits_per_byte(
        loaded.model.to("cuda" if on_gpu else "cpu"),
        loaded.vocabulary,
        source.read(),
        context_length=context_length,
        batch_size=batch_size,
        progress=not as_json and err().is_terminal,
    )
    if as_json:
        print_json(result.to_json())
    else:
        _show(result, model)


def _show(result: BitsPerByte, model: str) -> None:
    from rich.table import Table

    table = Table(title=f"{model}: {result.bits_per_byte:.4f} bits per byte", title_justify="left")
    for heading in ("class", "bits per byte", "tokens", "bytes"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, score in {**result.classes, "all": result.total}.items():
        table.add_row(name, f"{score.bits_per_byte:.4f}", f"{score.tokens:,}", f"{score.bytes:,}")
    out().print(table)
    if result.unscored_bytes:
        out().print(
            f"{result.unscored_bytes:,} bytes of first tokens were not scored: nothing predicts them", soft_wrap=True
        )
