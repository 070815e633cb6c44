"""Fixtures that several test folders share: small tokenizers of every family, and the real ones through the cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from xtoken.tokens import Vocabulary

# Examples are drawn from a fixed seed, and slow machines must not fail a test: only the law may.
settings.register_profile("xtoken", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("xtoken")


def _fetch_module() -> object:
    path = Path(__file__).resolve().parents[1] / "scripts" / "fetch_tokenizers.py"
    spec = importlib.util.spec_from_file_location("fetch_tokenizers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def real_tokenizer() -> Callable[[str], Path]:
    """The folder of a real tokenizer, by name; fetched once and cached."""
    return _fetch_module().fetch  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def real_vocabulary(real_tokenizer: Callable[[str], Path]) -> Callable[[str], Vocabulary]:
    """A real vocabulary by name, read once a session."""
    read: dict[str, Vocabulary] = {}

    def get(name: str) -> Vocabulary:
        if name not in read:
            read[name] = Vocabulary.from_pretrained(real_tokenizer(name))
        return read[name]

    return get
