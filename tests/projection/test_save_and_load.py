"""A saved W comes back bit for bit, and for no other pair of tokenizers."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from small_tokenizers import small
from xtoken.errors import FingerprintMismatchError, XTokenError
from xtoken.projection import Projection, build_projection


@pytest.fixture(scope="module")
def projection() -> Projection:
    return build_projection(small("packing").vocabulary, small("splitting").vocabulary)


@pytest.fixture
def saved(projection: Projection, tmp_path: Path) -> Path:
    projection.save(tmp_path / "W.safetensors")
    return tmp_path / "W.safetensors"


def test_a_round_trip_changes_no_bit(projection: Projection, saved: Path) -> None:
    again = Projection.load(saved, small("packing").vocabulary, small("splitting").vocabulary)
    for name in ("indptr", "cols", "values"):
        before, after = getattr(projection, name), getattr(again, name)
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()
    assert again.shape == projection.shape
    assert again.recipe == projection.recipe
    assert again.student_fingerprint == projection.student_fingerprint
    assert again.teacher_fingerprint == projection.teacher_fingerprint


def test_without_vocabularies_nothing_is_checked(saved: Path, projection: Projection) -> None:
    assert Projection.load(str(saved)).shape == projection.shape


def test_saving_makes_the_folder_and_leaves_no_other_file(projection: Projection, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "W.safetensors"
    projection.save(path)
    projection.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["W.safetensors"]


def test_a_failed_save_leaves_the_old_file(
    projection: Projection, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        projection.save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_others_may_read_the_file_as_the_umask_says(saved: Path) -> None:
    """A temporary file is private; what it is renamed to must not be."""
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~mask


def test_a_wrong_student_is_named(saved: Path) -> None:
    with pytest.raises(FingerprintMismatchError) as error:
        Projection.load(saved, small("gemma").vocabulary, small("splitting").vocabulary)
    message = str(error.value)
    assert "the student's tokenizer is" in message
    assert "the teacher's tokenizer is" not in message
    assert small("gemma").vocabulary.fingerprint[:12] in message
    assert small("packing").vocabulary.fingerprint[:12] in message
    assert "xtoken project" in message


def test_a_wrong_teacher_is_named(saved: Path) -> None:
    with pytest.raises(FingerprintMismatchError, match="the teacher's tokenizer is") as error:
        Projection.load(saved, small("packing").vocabulary, small("gemma").vocabulary)
    assert "the student's tokenizer is" not in str(error.value)


def test_either_side_is_checked_alone(saved: Path) -> None:
    with pytest.raises(FingerprintMismatchError, match="student"):
        Projection.load(saved, student=small("gemma").vocabulary)
    with pytest.raises(FingerprintMismatchError, match="teacher"):
        Projection.load(saved, teacher=small("gemma").vocabulary)


def test_swapped_sides_are_called_so(saved: Path) -> None:
    with pytest.raises(FingerprintMismatchError, match="student and teacher are swapped"):
        Projection.load(saved, small("splitting").vocabulary, small("packing").vocabulary)


def test_two_wrong_sides_are_not_called_swapped(saved: Path) -> None:
    with pytest.raises(FingerprintMismatchError, match=r"student's.*teacher's") as error:
        Projection.load(saved, small("gemma").vocabulary, small("tiktoken").vocabulary)
    assert "swapped" not in str(error.value)


def test_a_missing_file_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match=r"no projection at .*xtoken project"):
        Projection.load(tmp_path / "W.safetensors")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "folder", "header"])
def test_a_broken_file_is_named(damage: str, saved: Path) -> None:
    content = saved.read_bytes()
    saved.unlink()
    if damage == "folder":
        saved.mkdir()
    else:
        broken = {"truncated": content[:-7], "text": b"hello", "empty": b"", "header": content[:20]}[damage]
        saved.write_bytes(broken)
    with pytest.raises(XTokenError, match=r"W\.safetensors' is not a readable safetensors file"):
        Projection.load(saved)


GOOD = {
    "format": "xtoken-projection",
    "version": "1",
    "student_fingerprint": "",
    "teacher_fingerprint": "",
    "shape": "[1, 1]",
    "recipe": "{}",
}
TENSORS = {"indptr": np.array([0, 1]), "cols": np.array([0], np.int32), "values": np.array([1], np.float32)}


def test_a_hand_made_file_of_this_form_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "W.safetensors", metadata=GOOD)
    assert Projection.load(tmp_path / "W.safetensors").shape == (1, 1)


@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [
        ({}, TENSORS),
        (GOOD | {"format": "pt"}, TENSORS),
        (GOOD | {"version": "2"}, TENSORS),
        ({k: v for k, v in GOOD.items() if k != "shape"}, TENSORS),
        (GOOD | {"shape": "nothing"}, TENSORS),
        (GOOD | {"shape": "[1]"}, TENSORS),
        (GOOD | {"recipe": "{"}, TENSORS),
        (GOOD | {"shape": "[2, 1]"}, TENSORS),
        (GOOD, {k: v for k, v in TENSORS.items() if k != "cols"}),
        (GOOD, TENSORS | {"values": np.array([0.5], np.float32)}),
        (GOOD, TENSORS | {"cols": np.array([1], np.int32)}),
    ],
    ids=[
        "no metadata",
        "another format",
        "another version",
        "no shape",
        "broken shape",
        "short shape",
        "broken recipe",
        "wrong shape",
        "no columns",
        "half a row",
        "column outside",
    ],
)
def test_a_file_of_another_form_is_refused(
    metadata: dict[str, str], tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "W.safetensors", metadata=metadata)
    with pytest.raises(XTokenError):
        Projection.load(tmp_path / "W.safetensors")


def test_a_version_of_the_future_says_what_it_is(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "W.safetensors", metadata=GOOD | {"version": "9"})
    with pytest.raises(XTokenError, match=r"no xtoken-projection of version 1: it says .*version '9'"):
        Projection.load(tmp_path / "W.safetensors")


def test_the_metadata_is_plain_text_that_others_can_read(saved: Path, projection: Projection) -> None:
    from safetensors import safe_open

    with safe_open(saved, framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["shape"]) == list(projection.shape)
    assert json.loads(metadata["recipe"]) == projection.recipe
    assert metadata["student_fingerprint"] == projection.student_fingerprint
