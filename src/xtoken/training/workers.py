"""Work in worker processes, its results in order.

`in_order` is `map` over several processes. Laws: what comes out does not depend on how many there are; the error that
is raised is the first in that order; when the results are no longer asked for, by an error, Ctrl-C or a `break`, no
process is left; one that dies is an error, never a wait without end.

Processes are spawned, so a GPU that this process uses is not touched. They run nothing of the script that started it: a
script needs no `if __name__ == "__main__"` for them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.resource_tracker import ensure_running
from types import ModuleType
from typing import Any, TypeVar

from xtoken.errors import XTokenError

__all__ = ["apart", "default_workers", "in_order", "settle_in"]

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

# Reading and writing stay in the process that asks, and keep up with about so many.
_MOST = 16
# On 2 cores the threads of tokenizers do as well as two processes (measured, docs/data.md).
_FEWEST = 4
# Results that are done before their turn are held, for so many items a worker.
_AHEAD = 4
# tokenizers reads it at every call. With a process a core its threads would only get into each other's way.
_TOKENIZERS_THREADS = "TOKENIZERS_PARALLELISM"
# Set by launchers: the processes that share this machine's cores.
_LOCAL_PROCESSES = "LOCAL_WORLD_SIZE"
_GOODBYE = 1.0  # seconds for a process whose pipe is closed to be gone, so that its exit code can be told


def default_workers() -> int:
    """This process's share of the cores it may use, at most 16; 1, which is none, where it is under 4."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone knows which cores a process may use
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    share = cores // int(os.environ.get(_LOCAL_PROCESSES) or 1)
    return min(_MOST, share) if share >= _FEWEST else 1


def in_order(
    work: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`work(shared, item)` for each item, in the order of the items.

    Args:
        work: a function at the top of a module.
        shared: sent to each worker once.
        items: read in this process, a few a worker ahead.
        workers: how many processes; with 0 or 1 the work is done in this one.

    Raises:
        XTokenError: what `work` or reading the items raises, in its turn; a process died.
        RuntimeError: `work` raised something else, with its traceback.
    """
    if workers <= 1:
        for item in items:
            yield work(shared, item)
        return
    with _started(workers) as crew:
        for worker in crew:
            worker.send((work, shared))
        yield from _results(crew, iter(items))


@dataclass(frozen=True)
class _Failure:
    """What went wrong with an item, in place of its result."""

    error: Exception


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process = process
        self.pipe = pipe

    def send(self, message: Any) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            self._tell()

    def receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return self._tell()

    def _tell(self) -> Any:
        self.process.join(_GOODBYE)
        raise XTokenError(
            f"a worker process ended before its work was done (exit code {self.process.exitcode}; -9 is what the "
            "system does when memory runs out). Try fewer: data.workers, 1 for none."
        ) from None


def _results(crew: list[_Worker], items: Iterator[Any]) -> Iterator[Any]:
    """Gives each item to whoever is idle, and the results back in order."""
    idle, busy = list(crew), dict[Any, tuple[_Worker, int]]()
    done: dict[int, Any] = {}
    turn = given = 0
    is_more = True

    def collect(timeout: float | None) -> None:
        for pipe in wait(list(busy), timeout):
            worker, number = busy.pop(pipe)
            done[number] = worker.receive()
            idle.append(worker)

    while True:
        collect(0)
        while is_more and idle and given - turn < _AHEAD * len(crew):
            try:
                item = next(items)
            except StopIteration:
                is_more = False
            except XTokenError as error:  # it comes after the results of what was read before it
                is_more, done[given] = False, _Failure(error)
            else:
                worker = idle.pop()
                worker.send(item)
                busy[worker.pipe] = worker, given
                given += 1
        if turn in done:
            result = done.pop(turn)
            if isinstance(result, _Failure):
                raise result.error
            yield result
            turn += 1
        elif busy:
            collect(None)
        else:
            return


@contextmanager
def _started(n: int) -> Iterator[list[_Worker]]:
    """So many processes, which are gone afterwards."""
    spawn = multiprocessing.get_context("spawn")
    crew: list[_Worker] = []
    try:
        for _ in range(n):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
            with apart():
                process.start()
            theirs.close()  # then the end of the process is the end of the pipe
            crew.append(_Worker(process, ours))
        yield crew
    finally:
        for worker in crew:
            worker.pipe.close()
            worker.process.terminate()
        for worker in crew:
            worker.process.join()


@contextmanager
def apart() -> Iterator[None]:
    """Processes that are spawned in it do not run the main script again, and Ctrl-C does not reach them.

    It reaches this process, and waits until the block is left. Where signals cannot be held back (Windows), `settle_in`
    alone sees to it, once the process has started.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    if holds_back := hasattr(signal, "pthread_sigmask"):
        ensure_running()  # starting it sets the mask back
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if holds_back:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def settle_in() -> None:
    """Makes this process a worker: Ctrl-C is for the process that started it, and one core is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[_TOKENIZERS_THREADS] = "false"


def _serve(pipe: Connection) -> None:
    """What a worker process does all its life."""
    settle_in()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # whoever asked has left
        work, shared = pipe.recv()
        while True:
            pipe.send(_outcome(work, shared, pipe.recv()))


def _outcome(work: Callable[[Any, Any], Any], shared: Any, item: Any) -> Any:
    try:
        return work(shared, item)
    except XTokenError as error:
        return _Failure(error)
    except Exception:  # a fault of ours; its traceback does not travel by itself
        return _Failure(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))
