"""Writing a file whole: who reads it finds the old content or the new, never a part."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes bytes, or text as UTF-8, under a temporary name beside `path` and renames it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # a name of each process's own
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
