"""A study: methods x seeds x pairs, trained by `xtoken.training.distil`, measured alike and compared with intervals.

`run_study` is what `xtoken study` calls. A study is read by `config`, made into cells by `plan`, run by `cell` in the
processes of `pool`, kept and written down by `write`, and judged by `statistics` and `questions`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xtoken.study.config import StudyConfig as StudyConfig
    from xtoken.study.config import load_study as load_study
    from xtoken.study.run import StudyResult as StudyResult
    from xtoken.study.run import run_study as run_study

_HOME = {
    "StudyConfig": "xtoken.study.config",
    "StudyResult": "xtoken.study.run",
    "load_study": "xtoken.study.config",
    "run_study": "xtoken.study.run",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
