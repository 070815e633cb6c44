"""The most memory that a piece of work held at once, in resident bytes (Linux)."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

__all__ = ["resident_peak"]

_MIB = 2**20


def resident_peak(work: Callable[[], object]) -> float:
    """MiB by which the resident memory rose over where it stood, at its highest, while `work` ran.

    What the work returns counts, since it is still held at the end.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what freed memory the allocator keeps would hide what the work takes
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark so far
    before = _status("VmRSS")
    held = work()
    peak = _status("VmHWM")
    del held
    return (peak - before) / _MIB


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
