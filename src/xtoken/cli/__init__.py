"""The `xtoken` command: one file a subcommand, each importing what it needs when it runs, so that help answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from xtoken.cli.align import align_command
from xtoken.cli.audit import audit_command
from xtoken.cli.project import project_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="xtoken",
    help="Distil any large language model into any smaller one, whatever their tokenizers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from xtoken import __version__

        typer.echo(f"xtoken {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


app.command("audit")(audit_command)
app.command("project")(project_command)
app.command("align")(align_command)


def main() -> None:
    """The console script."""
    app()
