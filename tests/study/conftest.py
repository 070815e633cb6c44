"""The models and texts of the small study, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from study import small


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    small.files(folder)
    return folder


@pytest.fixture
def folder(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the small study names, and with a cache of its own."""
    monkeypatch.setenv("XTOKEN_CACHE", str(_made / "cache"))
    return Path(shutil.copytree(_made, tmp_path / "files", ignore=shutil.ignore_patterns("cache")))
