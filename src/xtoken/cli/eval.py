"""`xtoken eval`: bits per byte of a model on a text, or what it scores in tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xtoken.cli.console import err, out, print_json, reports_errors
from xtoken.errors import XTokenError

if TYPE_CHECKING:
    from xtoken.evaluation import BitsPerByte
    from xtoken.training.models import LoadedModel

__all__ = ["eval_command"]

DTYPES = ("bfloat16", "float16", "float32")


@reports_errors
def eval_command(
    model: Annotated[str, typer.Argument(help="A model folder or a hub id.", show_default=False)],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", help="A .txt, .jsonl or .parquet file, or a folder; may be repeated.", show_default=False
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-eval instead of a text, with commas: mmlu,gsm8k.", show_default=False),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(min=0, help="For --tasks: solved examples before a question.", show_default="the task's own"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="For --tasks: documents of each, for a trial.", show_default="all")
    ] = None,
    include: Annotated[
        Path | None,
        typer.Option(help="For --tasks: a folder with task files of your own (.yaml).", show_default=False),
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", help="For --tasks: where to write the figures.", show_default="xtoken_tasks.json in MODEL"
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="The column that holds the text in .jsonl and .parquet (default text).")
    ] = None,
    split_text_by: Annotated[
        str | None, typer.Option(help="A document in a .txt file: line (default), paragraph or document.")
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Tokens in a window (default: what the model takes, up to 4096).")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Windows or prompts in a forward pass; of windows, fewer where they are long.")
    ] = 8,
    device: Annotated[
        str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.", show_default="cuda if there is one")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help=f"Of the weights: {', '.join(DTYPES)} (default: see above).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A hub revision.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Score a text, or run tasks.

    With --text: bits per byte, which compare across tokenizers, overall and by class of token. With --tasks: what
    lm-eval measures, which also goes into xtoken_tasks.json in MODEL and into its model card.

    The weights are bfloat16 on a GPU and float32 on a CPU.
    """
    if bool(text) == (tasks is not None):
        raise XTokenError("give either --text FILE or --tasks NAMES: a text to score, or tasks to run")
    for_text = {"--text-column": text_column, "--split-text-by": split_text_by, "--context-length": context_length}
    for_tasks = {"--shots": shots, "--limit": limit, "--include": include, "--out": out_file}
    _refuse(for_tasks if tasks is None else for_text, "--tasks" if tasks is None else "--text")

    def load() -> LoadedModel:
        return _load(model, revision, device, dtype)

    if tasks is not None:
        from xtoken.cli.tasks import eval_tasks

        how = {"shots": shots, "limit": limit, "include": include}
        eval_tasks(model, load, tasks, **how, batch_size=batch_size, file=out_file, as_json=as_json)  # type: ignore[arg-type]
        return
    from xtoken.evaluation import bits_per_byte
    from xtoken.training.texts import SPLITS, texts_from_files

    if split_text_by is not None and split_text_by not in SPLITS:
        raise XTokenError(f"--split-text-by {split_text_by!r}: expected one of {', '.join(SPLITS)}")
    source = texts_from_files(text or [], text_column=text_column, split_by=split_text_by)
    loaded = load()
    result = bits_per_byte(
        loaded.model,
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


def _refuse(options: Mapping[str, object], needed: str) -> None:
    """Raises for the first option that was given."""
    for name, value in options.items():
        if value is not None:
            raise XTokenError(f"{name} has no effect without {needed}; leave it out")


def _load(model: str, revision: str | None, device: str | None, dtype: str | None) -> LoadedModel:
    """A model on its device."""
    import torch

    from xtoken.training.models import load_model

    if dtype is not None and dtype not in DTYPES:
        raise XTokenError(f"--dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        on = torch.zeros((), device=where).device
    except (RuntimeError, AssertionError) as error:  # no such device, or no build of torch that knows one
        reason = str(error).splitlines()[0]
        raise XTokenError(f"--device {where!r} cannot be used here: {reason}") from None
    chosen = dtype or ("float32" if on.type == "cpu" else "bfloat16")
    loaded = load_model(model, who="model", revision=revision, dtype=chosen)
    loaded.model.to(on)
    return loaded


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
