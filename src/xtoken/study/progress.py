"""How far a study is: a bar with the time left on a terminal, a line for each job elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

__all__ = ["StudyProgress", "duration"]


class StudyProgress:
    """Shows what is done; a context manager.

    Args:
        console: where to.
        total: how many jobs the study has.
        done: how many of them were done before.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console, self.total, self.count = console, total, done
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.description}"),
            )
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task("", total=total, completed=done, left="")

    def __enter__(self) -> StudyProgress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, what: str, seconds_left: float | None) -> None:
        """One job more is done.

        Args:
            what: the job, and how it went.
            seconds_left: for the rest; None where nothing is known of it.
        """
        self.count += 1
        left = "" if seconds_left is None else f"{duration(seconds_left)} left"
        if self.bar is not None:
            self.bar.update(self.task, completed=self.count, description=what, left=left)
        else:
            self.console.print(f"[{self.count}/{self.total}] {what}{', ' if left else ''}{left}", soft_wrap=True)

    def skip(self, jobs: int) -> None:
        """So many jobs turn out to have been done before."""
        self.count += jobs

    def say(self, message: str) -> None:
        """A line that stays."""
        self.console.print(message, soft_wrap=True)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
