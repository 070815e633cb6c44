"""`xtoken train --dry-run`: the estimate as tables that can be followed, or as one JSON object."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from xtoken.cli.console import out, print_json

if TYPE_CHECKING:
    from xtoken.config import RunConfig
    from xtoken.training.estimate import Estimate, Figure, Plan

__all__ = ["dry_run"]


def dry_run(
    config: RunConfig,
    where: Path,
    *,
    gpus: int,
    teraflops: float,
    utilisation: float,
    memory: float,
    as_json: bool,
) -> None:
    """Prints what a run would take.

    Args:
        config: the run's settings.
        where: the file they came from.
        gpus: of the larger layout.
        teraflops: TFLOP/s of a GPU at its peak.
        utilisation: the share of it that is reached.
        memory: of a GPU, GB.
        as_json: one JSON object and nothing else.
    """
    from xtoken.training.estimate import GB, Machine, estimate

    found = estimate(config, Machine(gpus, teraflops * 1e12, utilisation, memory * GB))
    if as_json:
        print_json(found.to_json())
    else:
        _show(found, where)


def _show(found: Estimate, where: Path) -> None:
    console = out()
    console.print(f"{where}: an estimate; nothing was loaded or trained", style="bold", soft_wrap=True)
    _table(console, "Parameters", found.parameters, "B")
    _table(console, "FLOPs for one token of the student's", found.flops, "GFLOP")
    console.print(f"in all {found.flops_per_token / 1e9:.2f} GFLOP", style="bold")
    for plan in found.plans:
        _plan(console, plan, found)
    console.print("\nTaken for granted", style="bold")
    for assumption in found.assumptions:
        console.print(f"* {assumption}")
    if found.not_counted:
        console.print(f"\nNOT COUNTED: {', '.join(found.not_counted)}", style="bold red")


def _plan(console: Console, plan: Plan, found: Estimate) -> None:
    _table(console, f"{plan.name}: memory of one GPU, held throughout", plan.held, "GB")
    _table(console, "and on top, one after the other", plan.phases, "GB")
    most = max(plan.phases, key=lambda figure: figure.value)
    held = sum(figure.value for figure in plan.held)
    fits = "fits" if plan.fits else "DOES NOT FIT"
    console.print(
        f"peak {plan.peak / 1e9:.1f} GB = {held / 1e9:.1f} + {most.value / 1e9:.1f} ({most.name}): "
        f"{fits} in {found.machine.memory / 1e9:g} GB",
        style="bold green" if plan.fits else "bold red",
    )
    for advice in plan.advice:
        console.print(f"  instead {advice}")
    console.print(
        f"{plan.tokens_per_second:,.0f} tokens/s = {plan.gpus} x {found.machine.flops / 1e12:,.0f} TFLOP/s x "
        f"{found.machine.utilisation:.0%} / {found.flops_per_token / 1e9:.2f} GFLOP; {found.tokens / 1e9:.3g} B "
        f"tokens: {plan.hours:,.1f} hours, {plan.gpu_hours:,.1f} GPU hours"
    )


def _table(console: Console, title: str, figures: Iterable[Figure], unit: str) -> None:
    from rich.table import Table

    digits = 3 if unit == "B" else 2
    table = Table(title=f"\n{title}", title_justify="left", box=None, padding=(0, 1), title_style="bold")
    table.add_column("")
    table.add_column(unit, justify="right", no_wrap=True)
    table.add_column("made of", ratio=1)
    for figure in figures:
        table.add_row(figure.name, f"{figure.value / 1e9:.{digits}f}", figure.source)
    console.print(table)
