"""Writing a small file whole: who reads it finds the old content or the new, never a part."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Writes UTF-8 under a temporary name beside `path` and renames it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # a name of each process's own
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
