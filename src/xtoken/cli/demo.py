"""`xtoken demo`: the paper's first failure in miniature, trained before your eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xtoken.cli.console import reports_errors

__all__ = ["demo_command"]


@reports_errors
def demo_command(
    out: Annotated[Path | None, typer.Option(help="A folder for results.json.")] = None,
) -> None:
    """Audit a small pair, train its student by four methods, and print one table. Under 4 minutes on 2 cores."""
    from xtoken.errors import XTokenError

    if out is not None and out.exists() and not out.is_dir():
        raise XTokenError(f"--out {str(out)!r} is a file; name a folder")
    from xtoken.demo.run import run_demo

    run_demo(out)
