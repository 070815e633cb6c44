"""`xtoken push`: upload a student to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xtoken.cli.console import out, reports_errors

__all__ = ["push_command"]


@reports_errors
def push_command(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run, or any model folder.")],
    repo: Annotated[str, typer.Argument(help="Where to: USER/NAME.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository (default: as the hub has it).")
    ] = None,
) -> None:
    """Upload a student to the Hugging Face hub: weights, config, tokenizer and model card."""
    from xtoken.training.hub import check_push, push_folder

    check_push(repo)
    out().print(f"{folder} is at {push_folder(folder, repo, private=private)}", soft_wrap=True)
