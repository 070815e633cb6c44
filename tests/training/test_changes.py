"""A run that cannot go on says what became of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from training import tiny
from xtoken.errors import XTokenError
from xtoken.training import LoadedModel, distil
from xtoken.training import data as data_module
from xtoken.training.changes import ingredients, what_changed
from xtoken.training.texts import TextSource, texts_from_dataset, texts_from_files, texts_from_list

S, T = tiny.packed(), tiny.split()


def made(*sources: TextSource, student: Any = S, teacher: Any = T, form: str = "1") -> dict[str, Any]:
    return ingredients([{"format": form, "source": source.made_of} for source in sources], student, {"big": teacher})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    return tmp_path


def change(folder: Path, edit: Any) -> list[str]:
    """The sentences on a folder of files before and after an edit, without its name."""
    before = made(texts_from_files([folder]))
    edit(folder)
    return [line.replace(f"{folder}/", "") for line in what_changed(before, made(texts_from_files([folder])))]


def test_a_file_that_changed_is_named(folder: Path) -> None:
    assert change(folder, lambda f: (f / "b.txt").write_text("B")) == ["b.txt changed (its content differs)"]
    assert change(folder, lambda f: (f / "b.txt").write_text("more")) == [
        "b.txt changed (its content differs: 1 bytes then, 4 now)"
    ]


def test_a_file_more_or_less_is_named(folder: Path) -> None:
    assert change(folder, lambda f: (f / "d.txt").write_text("d")) == ["a file was added: d.txt"]
    assert change(folder, lambda f: (f / "a.txt").unlink()) == ["a file is gone: a.txt"]


def test_a_renamed_file_is_told_by_its_place_alone(folder: Path) -> None:
    assert change(folder, lambda f: (f / "a.txt").rename(f / "z.txt")) == [
        "the files come in another order, or another number of times"
    ]


def test_many_changes_are_cut_short(folder: Path) -> None:
    found = change(folder, lambda f: [(f / f"x{n}.txt").write_text(f"{n}") for n in range(25)])
    assert (len(found), found[-1]) == (21, "and 5 changes more")


def test_tokenizers_and_the_format_are_named() -> None:
    texts, third = texts_from_list(["a"]), tiny.split(bos=False)
    assert what_changed(made(texts), made(texts, student=third)) == ["the student's tokenizer differs"]
    assert what_changed(made(texts), made(texts, teacher=third)) == ["the tokenizer of the teacher big differs"]
    assert what_changed(made(texts), made(texts, form="2")) == ["xtoken makes examples in another way (1 then, 2 now)"]


def test_other_sources_are_named(tmp_path: Path, folder: Path) -> None:
    one, two = texts_from_list(["a"]), texts_from_list(["a", "b"])
    assert what_changed(made(one), made(two)) == ["the given texts differ (1 then, 2 now)"]
    assert what_changed(made(one), made(texts_from_files([folder]))) == [
        "the documents came from texts in memory then, and come from files now"
    ]
    assert what_changed(made(one), made(one, two)) == ["there were 1 corpora, and there are 2"]
    saved = []
    for texts in (["a"], ["b"]):
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
        saved.append(texts_from_dataset(str(tmp_path / "saved")))
    assert what_changed(made(saved[0]), made(saved[1])) == [
        f"the data set {tmp_path / 'saved'} changed (its fingerprint differs)"
    ]


def test_what_no_file_lists_is_told_as_that() -> None:
    texts = made(texts_from_list(["a"]))
    assert "does not list" in what_changed(texts, texts)[0]
    assert "does not list" in what_changed(None, texts)[0]


def run(folder: Path, teacher: LoadedModel | None = None, resume: bool = True, **data: Any) -> Any:
    config = {
        "teachers": [{"loss": "gold"}],
        "data": {"files": [str(folder / "text.jsonl")], **data},
        "optim": {"steps": 1, "batch_size": 2, "micro_batch_size": 2},
        "output": {"folder": str(folder / "out")},
    }
    teachers = [teacher or tiny.teacher()]
    return distil(config, student=tiny.student(), teachers=teachers, resume=resume, quiet=True)


def test_a_run_tells_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "Ada has 12 coins"}\n{"text": "Bo has 7"}\n')
    run(tmp_path, resume=False)
    assert run(tmp_path, workers=2).steps == 1  # how many workers there are changes nothing
    other = LoadedModel(tiny.teacher().model, tiny.split(bos=False))
    with pytest.raises(XTokenError, match=r"other data(.|\n)*the tokenizer of the teacher teacher-0 differs"):
        run(tmp_path, other)
    with monkeypatch.context() as patch:
        patch.setattr(data_module, "_FORMAT", "xtoken-examples-99")
        with pytest.raises(XTokenError, match=r"another way \(xtoken-examples-\d+ then, xtoken-examples-99 now\)"):
            run(tmp_path)
    before = text.read_text()
    text.write_text('{"text": "Ada has 13 coins"}\n{"text": "Bo has 7"}\n')
    with pytest.raises(XTokenError, match=r"text\.jsonl changed \(its content differs\)\n.*--overwrite"):
        run(tmp_path)
    text.unlink()
    (tmp_path / "moved.jsonl").write_text(before)
    assert run(tmp_path, files=[str(tmp_path / "moved.jsonl")]).steps == 1  # a move is no change
