"""`xtoken report`: a run or a study as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xtoken.cli.console import err, out, reports_errors

__all__ = ["report_command"]

_NAME = "report.html"


@reports_errors
def report_command(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_OR_STUDY", help="The folder of a run or of a study.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--out", help="The HTML file (default report.html in the folder).")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Of a run: texts to read, .txt, .jsonl or .parquet, in place of its own.")
    ] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="Of a run: texts to read at most (default 32).")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Of a study: a folder for its figures as SVG and PNG, for papers.")
    ] = None,
) -> None:
    """Show a run or a study on one page: a single HTML file, which loads nothing and can be sent as it is."""
    from xtoken.errors import XTokenError
    from xtoken.report.page import is_own_page, write_page
    from xtoken.report.study_folder import is_study_folder

    if not folder.is_dir():
        raise XTokenError(f"there is no folder {folder}: give the output folder of a run or of a study")
    path = output if output is not None else folder / _NAME
    if output is None and path.exists() and not is_own_page(path):
        raise XTokenError(f"{path} is not xtoken's, so it stays: say where to write by --out FILE")
    if is_study_folder(folder):
        if texts is not None or documents is not None:
            raise XTokenError("--texts and --documents have no effect on the report of a study: its texts are settled")
        document = _study(folder)
    else:
        if figures is not None:
            raise XTokenError("--figures has no effect on the report of a run: it draws the results of a study")
        document = _run(folder, texts, documents)
    write_page(path, document)
    out().print(f"written to {path}", soft_wrap=True)
    if figures is not None:
        _draw(folder, figures)


def _study(folder: Path) -> str:
    from xtoken.report.study import study_page

    return study_page(folder)


def _draw(folder: Path, figures: Path) -> None:
    from xtoken.report.figures import write_figures
    from xtoken.report.study_folder import read_study

    err().print("drawing the figures", style="dim")
    written = write_figures(read_study(folder), figures)
    out().print(f"{len(written)} files in {figures}", soft_wrap=True)


def _run(folder: Path, texts: Path | None, documents: int | None) -> str:
    from xtoken.report.run import DOCUMENTS, run_facts
    from xtoken.report.run_page import run_page
    from xtoken.training.models import no_library_bars

    err().print("reading the run, its models and some texts", style="dim")
    with no_library_bars():
        facts = run_facts(folder, texts=texts, documents=DOCUMENTS if documents is None else documents)
    for sentence in (*facts.notes, *(note for teacher in facts.teachers for note in teacher.notes)):
        err().print(sentence, style="yellow", soft_wrap=True)
    return run_page(facts)
