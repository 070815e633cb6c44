"""Artifacts of a pair of tokenizers on disk: safetensors with a format, a version and both fingerprints.

Law: a file is written whole or not at all, and is refused for any other pair than it was made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken.errors import FingerprintMismatchError, XTokenError
from xtoken.files import write_whole
from xtoken.tokens import Vocabulary

__all__ = ["Kind", "damaged", "load_artifact", "save_artifact"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """What a file holds.

    Attributes:
        format: its name in the file.
        version: of the format.
        what: its name in messages.
        made_by: the way to a new one.
        rules: the version of what it follows from besides the tokenizers; empty where a file may be made in any way.
    """

    format: str
    version: int
    what: str
    made_by: str
    rules: str = ""


def save_artifact(
    path: str | Path, kind: Kind, arrays: Mapping[str, NDArray[Any]], prints: tuple[str, str], more: Mapping[str, str]
) -> None:
    """Writes an artifact, to a temporary name first, so that a broken write leaves no file.

    Args:
        path: the file; its folder is made.
        kind: what it is.
        arrays: by name.
        prints: the fingerprints of student and teacher.
        more: further metadata.
    """
    from safetensors.numpy import save

    metadata = {
        "format": kind.format,
        "version": str(kind.version),
        **({"rules": kind.rules} if kind.rules else {}),
        "student_fingerprint": prints[0],
        "teacher_fingerprint": prints[1],
        **more,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))


def load_artifact(
    path: str | Path, kind: Kind, student: Vocabulary | None, teacher: Vocabulary | None
) -> tuple[Arrays, dict[str, str]]:
    """Reads an artifact for the pair of tokenizers it was made for.

    Args:
        path: the file.
        kind: what it must be.
        student, teacher: the vocabularies it will be used with; one that is given is checked.

    Returns:
        the arrays by name, and the metadata.

    Raises:
        XTokenError: no such file, not one of ours, or built by the rules of another version.
        FingerprintMismatchError: it was made for another tokenizer; the message says which side differs.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise XTokenError(f"no {kind.what} at {str(path)!r}: {kind.made_by}") from None
    except (SafetensorError, OSError) as error:
        raise XTokenError(f"{str(path)!r} is not a readable safetensors file: {error}") from None
    if metadata.get("format") != kind.format or metadata.get("version") != str(kind.version):
        raise XTokenError(
            f"{str(path)!r} is no {kind.format} of version {kind.version}: it says format "
            f"{metadata.get('format')!r}, version {metadata.get('version')!r}"
        )
    if kind.rules and metadata.get("rules") != kind.rules:
        raise XTokenError(
            f"{str(path)!r} was built by other rules ({metadata.get('rules')!r}) than this version of xtoken has "
            f"({kind.rules!r}). To get a new one, {kind.made_by}."
        )
    try:
        prints = metadata["student_fingerprint"], metadata["teacher_fingerprint"]
    except KeyError as error:
        raise damaged(path, kind, error) from None
    _check_pair(path, kind, prints, student, teacher)
    return arrays, metadata


def damaged(path: str | Path, kind: Kind, error: Exception) -> XTokenError:
    """The error of a file that says it is of this kind and lacks something."""
    return XTokenError(f"{str(path)!r} is a damaged {kind.format}: {error!r}. Build it again.")


def _check_pair(
    path: str | Path, kind: Kind, prints: tuple[str, str], student: Vocabulary | None, teacher: Vocabulary | None
) -> None:
    sides = [
        (side, vocabulary, made_for)
        for side, vocabulary, made_for in (("student", student, prints[0]), ("teacher", teacher, prints[1]))
        if vocabulary is not None and vocabulary.fingerprint != made_for
    ]
    if not sides:
        return
    swapped = len(sides) == 2 and {v.fingerprint for _, v, _ in sides if v} == set(prints)
    what = " and ".join(
        f"the {side}'s tokenizer is {vocabulary.name!r} ({vocabulary.fingerprint[:12]}), it was built for {made[:12]}"
        for side, vocabulary, made in sides
        if vocabulary
    )
    way_out = "student and teacher are swapped." if swapped else f"To get a new one, {kind.made_by}."
    raise FingerprintMismatchError(f"{str(path)!r} does not belong to this pair: {what}. {way_out}")
