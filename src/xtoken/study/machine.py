"""What a study was run with: the commit of the code, the machine, the versions."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["commit", "machine"]


@cache
def commit() -> tuple[str | None, bool | None]:
    """The commit of the code that runs, and whether it was changed since; None where it is no checkout."""
    import xtoken

    folder = Path(xtoken.__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:  # installed, in whatever repository
        return None, None
    found = _git(folder, "rev-parse", "HEAD")
    return found, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def machine() -> dict[str, Any]:
    """The commit, the machine and the versions, in plain JSON types."""
    import torch
    import transformers

    import xtoken

    found, dirty = commit()
    return {
        "commit": found,
        "dirty": dirty,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "xtoken": xtoken.__version__,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }


def _cpu() -> str:
    """The processor's name; Linux tells it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
