"""What the commands share: consoles, one way to report an error, and reading a text file.

Exit codes are `EXIT_CODES`, for scripts to go by. stdout carries results alone; messages and progress go to stderr, so
that `--json` output can be piped.
"""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from xtoken.errors import DivergedError, XTokenError

__all__ = [
    "EXIT_CODES",
    "EXIT_DIVERGED",
    "EXIT_INCOMPLETE",
    "EXIT_INTERRUPTED",
    "EXIT_MISTAKE",
    "EXIT_TERMINATED",
    "err",
    "fail",
    "out",
    "print_json",
    "read_text",
    "reports_errors",
]

EXIT_INCOMPLETE = 1
EXIT_MISTAKE = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it
EXIT_TERMINATED = 143  # likewise of SIGTERM
EXIT_CODES = {
    0: "done",
    EXIT_INCOMPLETE: "a fault of xtoken's, with a traceback; or a study some of whose cells failed",
    EXIT_MISTAKE: "a mistake in what was asked",
    EXIT_DIVERGED: "the training diverged: a loss is not finite",
    EXIT_INTERRUPTED: "interrupted (Ctrl-C)",
    EXIT_TERMINATED: "terminated (SIGTERM)",
}

F = TypeVar("F", bound=Callable[..., Any])


def out() -> Console:
    """The console for results, bound to the stdout of the moment."""
    return _console(sys.stdout)


def err() -> Console:
    """The console for messages."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    """Plain text unless marked with styles: a token such as `[red]` is no markup, and no terminal is too old for it."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return Console(file=stream, highlight=False, markup=False)


def fail(message: str, code: int = EXIT_MISTAKE) -> NoReturn:
    """Prints an error and ends the command, by default as a mistake of the caller."""
    err().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    raise typer.Exit(code)


def reports_errors(command: F) -> F:
    """Turns our own errors into one line on stderr; anything else is a fault and keeps its traceback."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except DivergedError as error:
            fail(str(error), EXIT_DIVERGED)
        except XTokenError as error:
            fail(str(error))
        except KeyboardInterrupt:
            err().print("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return guarded  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """One JSON object on stdout and nothing else."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, ensure_ascii=not is_utf8) + "\n")


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, its line ends as they are.

    Raises:
        XTokenError: it is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise XTokenError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise XTokenError(
            f"{str(path)!r} is not UTF-8: byte 0x{error.object[error.start]:02X} at offset {error.start}. "
            "Convert it first, for example with iconv."
        ) from None
