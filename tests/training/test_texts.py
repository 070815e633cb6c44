"""Documents come out as users of `datasets` expect, and a file that cannot be read says where."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xtoken.errors import XTokenError
from xtoken.training.texts import texts_from_dataset, texts_from_files, texts_from_list

STORY = "one\ntwo\r\n\n\nthree\n four"


@pytest.mark.parametrize(
    ("split_by", "expected"),
    [
        (None, ["one", "two", "", "", "three", " four"]),
        ("paragraph", ["one\ntwo", "", "three\n four"]),
        ("document", [STORY]),
    ],
)
def test_a_text_file_is_cut_as_asked(tmp_path: Path, split_by: str | None, expected: list[str]) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(STORY.encode())
    assert list(texts_from_files([file], split_by=split_by).read()) == expected


def test_a_line_is_a_document_as_in_datasets(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\n\n  two \nthree")
    loaded = datasets.load_dataset("text", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(texts_from_files([file]).read()) == list(loaded["text"])


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\n")
    assert list(texts_from_files([file]).read()) == ["one"]


def test_jsonl_and_parquet_give_their_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n\n{"body": null}\n')
    pq.write_table(pa.table({"body": ["two", None], "id": [1, 2]}), tmp_path / "b.parquet")
    assert list(texts_from_files([tmp_path], text_column="body").read()) == ["one", "", "two", ""]
    assert list(texts_from_files([tmp_path / "*.parquet"], text_column="body").read()) == ["two", ""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_missing_column_lists_those_there_are(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "a.jsonl":
        file.write_text(json.dumps({"body": "one", "id": 1}) + "\n")
    else:
        pq.write_table(pa.table({"body": ["one"], "id": [1]}), file)
    with pytest.raises(XTokenError, match=r"no column 'text'; there are 'body', 'id'.*text_column"):
        list(texts_from_files([file]).read())


def test_no_files_are_no_data() -> None:
    with pytest.raises(XTokenError, match="the list of files is empty"):
        texts_from_files([])


@pytest.mark.parametrize(
    ("content", "byte", "offset"),
    [(b"good\nbad \xe9 latin\n", "0xE9", 9), (b"\xff\xfea\x00", "0xFF", 0), (b"cut \xe4\xbd", "0xE4", 4)],
)
def test_a_file_that_is_not_utf8_names_the_byte(tmp_path: Path, content: bytes, byte: str, offset: int) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(XTokenError, match=rf"a\.txt is not UTF-8: the byte {byte} at offset {offset} "):
        list(texts_from_files([file]).read())


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 2: not valid JSON"), ("[1]", "line 2: expected an object"), ('{"text": 5}', "line 2: .* holds int")],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(XTokenError, match=message):
        list(texts_from_files([file]).read())


def test_what_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match=r"there is no text file .*missing"):
        texts_from_files([tmp_path / "missing.txt"])
    with pytest.raises(XTokenError, match=r"holds no .txt"):
        texts_from_files([tmp_path])
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(XTokenError, match=r"cannot read \.csv; expected \.txt, \.jsonl, \.parquet"):
        texts_from_files([tmp_path / "a.csv"])
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(XTokenError, match="not a readable Parquet file"):
        list(texts_from_files([tmp_path / "b.parquet"]).read())


def test_a_setting_without_effect_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text("{}")
    with pytest.raises(XTokenError, match="text_column 'body' has no effect"):
        texts_from_files([tmp_path / "a.txt"], text_column="body")
    with pytest.raises(XTokenError, match="split_text_by 'line' has no effect"):
        texts_from_files([tmp_path / "b.jsonl"], split_by="line")


def test_a_data_set_gives_its_column(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"body": ["one", "two"]}).save_to_disk(str(tmp_path / "saved"))
    source = texts_from_dataset(str(tmp_path / "saved"), text_column="body")
    assert (list(source.read()), source.count) == (["one", "two"], 2)
    with pytest.raises(XTokenError, match="no column 'text'; there are 'body'"):
        texts_from_dataset(str(tmp_path / "saved"))
    with pytest.raises(XTokenError, match="cannot load the data set"):
        texts_from_dataset(str(tmp_path / "nowhere"))


def test_the_key_follows_the_content(tmp_path: Path) -> None:
    assert texts_from_list(["ab", "c"]).key == texts_from_list(["ab", "c"]).key
    assert texts_from_list(["ab", "c"]).key != texts_from_list(["a", "bc"]).key
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = texts_from_files([file]).key
    assert texts_from_files([file]).key == before
    copy = tmp_path / "b.txt"
    copy.write_text("one")
    assert texts_from_files([copy]).key == before
    file.write_text("two")
    assert texts_from_files([file]).key != before


def test_the_first_documents_alone() -> None:
    source = texts_from_list(["a", "b", "c"])
    assert (list(source.first(2).read()), source.first(2).count) == (["a", "b"], 2)
    assert source.first(2).key != source.first(3).key
