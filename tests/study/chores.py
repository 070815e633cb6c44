"""Work for worker processes, which import it by name."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from xtoken.errors import XTokenError


def chore(shared: int, job: str) -> tuple[int, str]:
    """Does as it is told, and says in which process."""
    if job == "mistake":
        raise XTokenError("a mistake")
    if job == "fault":
        raise RuntimeError("a fault")
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "litter":
        Path(tempfile.mkdtemp(prefix="xtoken-litter-")).joinpath("file").write_text("left behind")
    if job == "last":
        time.sleep(0.2)
    return os.getpid(), f"{job} {shared}"
