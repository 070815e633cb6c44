"""`xtoken study`: methods against each other, over seeds, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xtoken.cli.console import EXIT_INCOMPLETE, err, out, reports_errors

if TYPE_CHECKING:
    from xtoken.study import StudyResult

__all__ = ["study_command"]


@reports_errors
def study_command(
    study: Annotated[Path, typer.Argument(help="A YAML file of a study.", show_default=False)],
    folder: Annotated[Path | None, typer.Option("--out", help="Its folder.", show_default="studies-out/NAME")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Run what the study's section quick leaves of it.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time.", show_default="one a core; one on a GPU")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, run nothing, say what is left.")
    ] = False,
) -> None:
    """Train methods over seeds and pairs, measure them alike, and say which is better, with 95 % intervals.

    A finished cell is never run again: stop it as you like and start it again.
    """
    from xtoken.study import load_study, run_study
    from xtoken.study.run import describe

    asked = load_study(study)
    if dry_run:
        _show_plan(describe(asked, folder, quick=quick))
        return
    result = run_study(asked, folder, quick=quick, jobs=jobs, console=err())
    _summarise(result)
    if result.failed:
        for name, why in result.failed:
            err().print(f"{name}: {why}", soft_wrap=True)
        err().print(f"{len(result.failed)} failed; they are tried again when the study is run again", soft_wrap=True)
        raise typer.Exit(EXIT_INCOMPLETE)


def _show_plan(plan: dict[str, Any]) -> None:
    for name, stage in plan["stages"].items():
        if stage["cells"]:
            out().print(
                f"{name}: {stage['cells']:,} cells, {stage['finished']:,} finished, {stage['steps']:,} steps left"
            )
    out().print(
        f"in all: {plan['cells']:,} cells, {plan['finished']:,} finished, {plan['steps']:,} steps left; "
        f"folder {plan['folder']}",
        soft_wrap=True,
    )


def _summarise(result: StudyResult) -> None:
    for answer in result.answers:
        out().print(f"({answer.id}) {answer.verdict}: {answer.asks}", soft_wrap=True)
        for claim in answer.claims:
            out().print(f"    {claim.verdict}: {claim.sentence}", soft_wrap=True)
    out().print(f"{result.cells:,} cells, {result.ran:,} run now; results in {result.folder}", soft_wrap=True)
