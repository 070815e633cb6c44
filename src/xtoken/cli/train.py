"""`xtoken train`: distil a student as a config file says."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xtoken.cli.console import EXIT_INTERRUPTED, EXIT_MISTAKE, EXIT_TERMINATED, err, out, reports_errors

if TYPE_CHECKING:
    from xtoken.training import RunResult

__all__ = ["train_command"]


def _print_settings(asked: bool) -> None:
    if not asked:
        return
    from rich.table import Table

    from xtoken.config import settings

    table = Table("setting", "default", "what it does", title="Settings of a config file", title_justify="left")
    for key, default, description in settings():
        table.add_row(key, "" if default is None else str(default), description)
    out().print(table)
    raise typer.Exit


@reports_errors
def train_command(
    config: Annotated[Path, typer.Argument(help="A YAML file of settings.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: --set optim.steps=100; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars; errors and the result only.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Train nothing: estimate memory and time from the models' config.json alone."),
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="For --dry-run: GPUs, beside one.", show_default="8 if the batch divides")
    ] = None,
    teraflops: Annotated[
        float | None,
        typer.Option("--flops", help="For --dry-run: a GPU's peak TFLOP/s.", show_default="989, an H100's in bf16"),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--utilisation", "--mfu", help="For --dry-run: the share of the peak that is reached.", show_default="0.4"
        ),
    ] = None,
    memory: Annotated[float | None, typer.Option(help="For --dry-run: GB of a GPU.", show_default="80")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For --dry-run: print one JSON object and nothing else.")
    ] = False,
    settings: Annotated[
        bool, typer.Option("--settings", callback=_print_settings, is_eager=True, help="List every setting and leave.")
    ] = False,
) -> None:
    """Distil a student from its teachers.

    Ctrl-C and SIGTERM stop after the step at hand, with a checkpoint to go on from. The settings of CONFIG are below.
    """
    from xtoken.config import load_config
    from xtoken.errors import XTokenError

    run = load_config(config, overrides or [])
    given = {"--gpus": gpus, "--flops": teraflops, "--utilisation": utilisation, "--memory": memory}
    if dry_run:
        _refuse("has no effect on a dry run", {"--resume": resume, "--overwrite": overwrite, "--quiet": quiet})
        from xtoken.cli.estimate import dry_run as show

        show(
            run,
            config,
            gpus=gpus or (1 if run.optim.batch_size % (8 * (run.optim.micro_batch_size or 1)) else 8),
            teraflops=989 if teraflops is None else teraflops,
            utilisation=0.4 if utilisation is None else utilisation,
            memory=80 if memory is None else memory,
            as_json=as_json,
        )
        return
    _refuse("has no effect without --dry-run", {**given, "--json": as_json or None})
    if run.output.folder is None:
        raise XTokenError(f"{config}: output.folder is missing, and the student has to be saved somewhere")
    from xtoken.training import distil

    is_first = _is_first()
    with _messages(logging.INFO if is_first and not quiet else logging.WARNING):
        result = distil(run, resume=resume, overwrite=overwrite, quiet=quiet)
    if result.interrupted:
        again = ["xtoken", "train", str(config), *(part for o in overrides or [] for part in ("--set", o)), "--resume"]
        if is_first:
            err().print(f"stopped after step {result.steps:,} of {run.optim.steps:,}; checkpoint: {result.checkpoint}")
            err().print(f"go on with: {shlex.join(again)}", soft_wrap=True)
        raise typer.Exit(EXIT_TERMINATED if result.stop_signal == signal.SIGTERM else EXIT_INTERRUPTED)
    if is_first:
        _summarise(result)
    if result.push_failed:  # the log has said why, and what to do
        raise typer.Exit(EXIT_MISTAKE)


def _is_first() -> bool:
    """Whether this is the process that speaks for all that the launcher started."""
    return int(os.environ.get("RANK") or 0) == 0


def _refuse(why: str, options: Mapping[str, object]) -> None:
    """Raises for the first option that was given."""
    from xtoken.errors import XTokenError

    for name, value in options.items():
        if value is not None and value is not False:
            raise XTokenError(f"{name} {why}; leave it out")


@contextmanager
def _messages(level: int) -> Iterator[None]:
    """Shows what the library logs, on stderr."""
    logger, handler = logging.getLogger("xtoken"), logging.StreamHandler(sys.stderr)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _summarise(result: RunResult) -> None:
    lines = [f"student saved in {result.folder} after step {result.steps:,} ({result.seconds:.0f} s of training)"]
    if result.log:
        last = result.log[-1]
        lines.append(", ".join(f"{name} {last[name]:.4f}" for name in ("ce", "kd", "uncovered_mass") if name in last))
    for w in result.projections:
        lines.append(f"W of {w.teacher}: {w.drift:.2%} of the mass of its {w.rows:,} learnable rows moved; {w.file}")
        lines += [f"  {line}" for line in w.moved]
    if result.held_out is not None:
        figures = {each.step: each.bits_per_byte for each in result.evaluations}
        shown = [f"{figures[step]:.4f} after step {step:,}" for step in (0, result.student_step) if step in figures]
        documents = f"{result.held_out.text.documents:,} held-out documents"
        lines.append(f"bits per byte on {documents}: {', '.join(shown)}")
    if result.pushed_to is not None:
        lines.append(f"pushed to {result.pushed_to}")
    if result.data.truncated:
        lines.append(f"{result.data.truncated:,} of {result.data.documents:,} documents were cut to the context")
    for line in lines:
        out().print(line, soft_wrap=True)
