"""How the settings of a config file are shown: as a table, and beneath the help of `xtoken train`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from typer.core import TyperCommand

from xtoken.cli.console import EXIT_CODES, out

__all__ = ["CommandWithSettings", "print_exit_codes", "print_settings"]


class CommandWithSettings(TyperCommand):
    """A command whose help ends with every setting and with the exit codes; they are read when help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        console = out()
        print_settings(console)
        print_exit_codes(console)


def print_settings(console: Console) -> None:
    """Every setting with what may stand there, its default and what it does, one under the other."""
    from xtoken.schema import setting_list

    console.print("Settings of CONFIG, and of --set KEY=VALUE\n", style="bold")
    for setting in setting_list():
        line = Text.assemble((setting.key, "bold"), f": {setting.kind} (default {setting.default or 'none'})")
        console.print(Padding(line, (0, 0, 0, 2), expand=False))
        console.print(Padding(Text(setting.description), (0, 0, 0, 6), expand=False))


def print_exit_codes(console: Console) -> None:
    """What a script can tell from the exit code."""
    console.print("\nExit codes\n", style="bold")
    for code, meaning in EXIT_CODES.items():
        console.print(Padding(Text(f"{code:>3}  {meaning}"), (0, 0, 0, 2), expand=False))
