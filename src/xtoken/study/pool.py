"""Jobs in processes that live on, their outcomes as they come.

`Pool.outcomes` is a `map` whose results come in the order in which they are done, and in which a failure is a result.
Laws: each job has one outcome, whatever the number of processes; a job that raises, or whose process dies, fails alone;
when outcomes are no longer asked for, by Ctrl-C say, or when the process that asks is killed, no process is left.

One job at a time is done in this process. More are done in processes that are spawned, so a GPU that this process uses
is not touched; their imports are paid once. What a job leaves in the folder for temporary files goes with the pool.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from xtoken.errors import XTokenError
from xtoken.training.workers import apart, settle_in

__all__ = ["Failure", "Pool", "default_jobs"]

Shared = TypeVar("Shared")
Job = TypeVar("Job")

_FAREWELL = 5.0  # seconds for an idle process to end
_GOODBYE = 1.0  # seconds for a process whose pipe is closed to be gone, so that its exit code can be told


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
        message: for the reader; with a traceback where it is a fault of ours.
    """

    message: str


def default_jobs() -> int:
    """One on a GPU, which one training fills; else one for each core this process may use."""
    import torch

    if torch.cuda.is_available():
        return 1
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone knows which cores a process may use
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Pool(Generic[Shared]):
    """Does jobs, one after the other or in processes; a context manager, which leaves no process.

    Args:
        work: a function at the top of a module, called `work(shared, job)`.
        shared: sent to each process once.
        processes: how many; 1 does the work in this one.
        log: where the processes write what they would write to stderr; None for there.
    """

    def __init__(
        self, work: Callable[[Shared, Any], Any], shared: Shared, processes: int, log: Path | None = None
    ) -> None:
        self._work, self._shared, self._processes, self._log = work, shared, processes, log
        self._stack = ExitStack()
        self._crew: _Crew | None = None

    def __enter__(self) -> Pool[Shared]:
        scratch = self._stack.enter_context(_scratch())
        if self._processes > 1:
            self._crew = _Crew(_Start(self._work, self._shared, scratch, self._log), self._processes)
            self._stack.callback(self._crew.end)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with what came of it, its result or a `Failure`; they are begun in order and given as they end."""
        if self._crew is not None:
            yield from self._crew.outcomes(jobs)
        else:
            for job in jobs:
                yield job, _attempt(self._work, self._shared, job)


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for temporary files that is gone afterwards, whatever a process that was killed left in it."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="xtoken-study-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield folder
        finally:
            tempfile.tempdir = before


def _attempt(work: Callable[[Any, Any], Any], shared: Any, job: Any) -> Any:
    try:
        return work(shared, job)
    except XTokenError as error:
        return Failure(str(error))
    except Exception:  # a fault of ours, or memory that ran out: the other jobs go on
        return Failure(traceback.format_exc())


@dataclass(frozen=True)
class _Start(Generic[Shared]):
    """What a process needs to begin."""

    work: Callable[[Shared, Any], Any]
    shared: Shared
    scratch: str
    log: Path | None


class _Crew:
    """The processes, each with the pipe to it; one is started when there is work for it."""

    def __init__(self, start: _Start[Any], size: int) -> None:
        self.start, self.size = start, size
        self.idle: list[tuple[BaseProcess, Connection]] = []
        self.busy: dict[Connection, tuple[BaseProcess, Any]] = {}

    def _hire(self) -> tuple[BaseProcess, Connection]:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        # Not a daemon, which could not start the processes that tokenise; `end` sees to it, and its own watch.
        process = spawn.Process(target=_serve, args=(theirs, self.start))
        with apart():
            process.start()
        theirs.close()  # then the end of the process is the end of the pipe
        return process, ours

    def outcomes(self, jobs: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        left = list(reversed(jobs))
        while left or self.busy:
            while left and len(self.busy) < self.size:
                process, pipe = self.idle.pop() if self.idle else self._hire()
                job = left.pop()
                self.busy[pipe] = process, job
                with suppress(OSError):  # it has died, and its pipe will say so
                    pipe.send(job)
            for ready in wait(list(self.busy)):
                yield self._received(cast(Connection, ready))

    def _received(self, pipe: Connection) -> tuple[Any, Any]:
        process, job = self.busy.pop(pipe)
        try:
            outcome = pipe.recv()
        except (EOFError, OSError):
            process.join(_GOODBYE)
            return job, Failure(
                f"its process ended before it was done (exit code {process.exitcode}; -9 is what the system does when "
                "memory runs out: try fewer --jobs)"
            )
        self.idle.append((process, pipe))
        return job, outcome

    def end(self) -> None:
        """Leaves no process."""
        for _, pipe in self.idle:
            pipe.close()  # it ends by itself, and leaves nothing behind
        for process, _ in self.idle:
            process.join(_FAREWELL)
        for pipe, (process, _) in self.busy.items():
            pipe.close()
            process.kill()
        for process, _ in [*self.idle, *self.busy.values()]:
            process.kill()
            process.join()


def _serve(pipe: Connection, start: _Start[Any]) -> None:
    """What a process does all its life."""
    _leave_terminal()
    settle_in()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if start.log is not None:
        _write_errors_to(start.log)
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which a process that is killed leaves
    torch.set_num_threads(1)  # a process a core: more threads would only get into each other's way
    tempfile.tempdir = start.scratch
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # whoever asked has left
        while True:
            pipe.send(_attempt(start.work, start.shared, pipe.recv()))


def _leave_terminal() -> None:
    """Ctrl-C goes to a terminal's whole group; training would take it for its own."""
    if hasattr(os, "setsid"):
        os.setsid()


def _die_with_parent() -> None:
    """Ends this process when the one that started it is gone, however it went: nobody would take the outcome."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _write_errors_to(log: Path) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 2)
    os.close(stream)
