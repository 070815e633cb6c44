"""The `xtoken` command: a file for each subcommand, which imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from xtoken.cli.align import align_command
from xtoken.cli.audit import audit_command
from xtoken.cli.console import EXIT_CODES
from xtoken.cli.demo import demo_command
from xtoken.cli.eval import eval_command
from xtoken.cli.project import project_command
from xtoken.cli.push import push_command
from xtoken.cli.report import report_command
from xtoken.cli.schema import schema_command
from xtoken.cli.settings import CommandWithSettings
from xtoken.cli.study import study_command
from xtoken.cli.train import train_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="xtoken",
    help="Distil any large language model into any smaller one, whatever their tokenizers.",
    epilog="Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
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
app.command("train", cls=CommandWithSettings)(train_command)
app.command("schema")(schema_command)
app.command("eval")(eval_command)
app.command("report")(report_command)
app.command("push")(push_command)
app.command("demo")(demo_command)
app.command("study")(study_command)


def main() -> None:
    """The console script."""
    app()
