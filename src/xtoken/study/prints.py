"""Fingerprints of what a cell reads: texts, models, single files.

Type: `Prints`. Laws: what is moved or touched keeps its fingerprint, what is edited does not; each file is read once in
the life of a `Prints`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from xtoken.config import DataConfig
from xtoken.errors import XTokenError
from xtoken.study.config import TextsConfig

__all__ = ["Prints", "hashed"]

_BLOCK = 1 << 20
# Of a model's folder: what decides what it computes. A model card does not.
_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py")


class Prints:
    """Fingerprints, sha256 in hexadecimal (shortened where they are made of several); each is made once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    def data(self, data: DataConfig) -> str:
        """Of the documents to train on.

        Raises:
            XTokenError: they are not there.
        """
        from xtoken.training.inputs import sources_of

        key = ("data", data.model_dump_json())
        if key not in self._known:
            self._known[key] = hashed([source.key for source in sources_of(data, None)])
        return self._known[key]

    def texts(self, texts: TextsConfig) -> str:
        """Of text to measure on."""
        return self.data(DataConfig(**texts.model_dump()))

    def model(self, model: str) -> str:
        """Of a model: of its files where it is a folder, else of its id."""
        folder = Path(model).expanduser()
        if not folder.is_dir():
            return model
        files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
        return hashed([[file.name, self.file(str(file))] for file in files])

    def file(self, path: str) -> str:
        """Of a file.

        Raises:
            XTokenError: it cannot be read.
        """
        key = ("file", path)
        if key not in self._known:
            self._known[key] = _digest(Path(path).expanduser())
        return self._known[key]


def hashed(made_of: Any) -> str:
    """24 hexadecimal digits of the sha256 of plain JSON types; the order of keys does not matter."""
    content = json.dumps(made_of, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise XTokenError(f"cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest()
