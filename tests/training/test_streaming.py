"""A stream gives each document once a pass, in an order of its own, and goes on where it stood."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training import tiny
from xtoken.config import parse_config
from xtoken.errors import XTokenError
from xtoken.training import distil, prepare, streaming
from xtoken.training.callbacks import StopRequest
from xtoken.training.data import Example, Side, side_key
from xtoken.training.streaming import Position, StreamedData, shuffled
from xtoken.training.texts import TextSource, texts_from_dataset, texts_from_files, texts_from_list

SIDES = Side(tiny.packed(), 128), [Side(tiny.split(), 128)]
TEXTS = [f"{text} No {n}" for n, text in enumerate(tiny.documents(23))]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_BLOCK", 4)


def streamed(texts: list[str] | TextSource = TEXTS, **settings: Any) -> StreamedData:
    source = texts if isinstance(texts, TextSource) else texts_from_list(texts)
    return StreamedData(source, *SIDES, **{"buffer": 8, "workers": 0, **settings})


def spelled(example: Example) -> str:
    return b"".join(SIDES[0].vocabulary.tokens[i] for i in example.ids).decode()


def take(data: StreamedData, n: int) -> list[str]:
    return [spelled(example) for example in islice(data, n)]


def test_each_pass_gives_every_document_once_in_another_order() -> None:
    found = take(streamed(), 46)
    first, second = found[:23], found[23:]
    assert sorted(first) == sorted(second) == sorted(TEXTS)
    assert first != TEXTS
    assert first != second


def test_examples_are_those_that_prepare_makes() -> None:
    made = prepare(TEXTS, *SIDES)
    for one, number in zip(streamed(buffer=1), range(23), strict=False):
        other, side = made[number], side_key(SIDES[1][0].vocabulary)
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.teachers[side].chunks, other.teachers[side].chunks)


def test_the_order_is_of_the_seed_and_the_buffer() -> None:
    found = take(streamed(seed=1), 30)
    assert take(streamed(seed=1), 30) == found
    assert take(streamed(seed=2), 30) != found
    assert take(streamed(seed=1, buffer=3), 30) != found
    assert take(streamed(seed=1, buffer=1), 23) == TEXTS


def test_a_buffer_lets_nothing_come_long_before_its_turn() -> None:
    found = list(shuffled(range(1000), 10, np.random.default_rng(0)))
    assert sorted(found) == list(range(1000))
    assert all(item < place + 10 for place, item in enumerate(found))
    assert list(shuffled(range(5), 100, np.random.default_rng(0))) != list(range(5))


def test_no_more_is_read_than_the_buffer_and_a_block_need() -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"Bo {read}"

    take(streamed(TextSource("endless", "key", endless)), 10)
    assert read <= 8 + 3 * 4


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_a_pass_without_overlap(world: int) -> None:
    """Two passes of 6 blocks each: taken together, the processes give each document twice."""
    together = Counter[str]()
    for rank in range(world):
        own = [batch for turn, batch in own_blocks(rank, world) if turn < 2]
        together += Counter(take(streamed(rank=rank, world=world), sum(len(batch.texts) for batch in own)))
    assert together == Counter(dict.fromkeys(TEXTS, 2))


def own_blocks(rank: int, world: int) -> list[Any]:
    return list(islice(streamed(rank=rank, world=world)._blocks.own(), 12))


def test_workers_change_nothing() -> None:
    """Of errors neither: they come in their turn."""
    source = texts_from_list([*TEXTS, "", "7"])
    expected = take(streamed(source), 60)
    assert take(streamed(source, workers=2), 60) == expected
    bad = streamed([*TEXTS, "bad \ud800"], workers=2, buffer=1)
    with pytest.raises(XTokenError, match=r"the given texts, document 23 \(counting from 0\): .*lone surrogate"):
        take(bad, 30)
    assert bad.position == Position(4, 4)  # all before the block with the bad document


@pytest.mark.parametrize("stopped_at", [1, 4, 10, 31])
def test_a_stream_goes_on_where_it_stood(tmp_path: Path, stopped_at: int) -> None:
    expected = take(streamed(), 50)
    first = streamed()
    assert take(first, stopped_at) == expected[:stopped_at]
    first.save_position(tmp_path)
    second = streamed()
    second.load_position(tmp_path)
    assert take(second, 50 - stopped_at) == expected[stopped_at:]


def test_what_came_before_is_not_tokenised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = streaming._examples
    monkeypatch.setattr(streaming, "_examples", lambda plan, batch: made.append(batch) or original(plan, batch))
    data = streamed()
    data.position = Position(5, 0)
    take(data, 4)
    assert len(made) <= 2


def test_a_place_that_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match=r"stream_position_0\.json is missing"):
        streamed().load_position(tmp_path)
    streamed().save_position(tmp_path)
    with pytest.raises(XTokenError, match="of a run of 1 processes, and this one has 2"):
        streamed(world=2).load_position(tmp_path)


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_no_text_is_an_error_and_no_endless_search(texts: list[str]) -> None:
    with pytest.raises(XTokenError, match="no document to train on"):
        take(streamed(texts), 1)


def test_documents_that_cannot_be_used_are_counted_and_leave_no_gap() -> None:
    data = streamed(["Ada", "", "Bo"], buffer=1)
    assert take(data, 4) == ["Ada", "Bo", "Ada", "Bo"]
    assert (data.report.documents, data.report.empty) == (4, 2)


def test_a_data_set_is_streamed_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    lines = [json.dumps({"body": text}) for text in TEXTS]
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(lines))
    source = texts_from_dataset(str(tmp_path / "set"), text_column="body", streaming=True)
    assert (list(source.read()), source.count) == (TEXTS, None)
    assert take(streamed(source, buffer=1), 24) == [*TEXTS, TEXTS[0]]
    again = texts_from_dataset(str(tmp_path / "set"), text_column="body", streaming=True)
    assert again.key == source.key
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(lines[1:]))
    assert texts_from_dataset(str(tmp_path / "set"), text_column="body", streaming=True).key != source.key
    with pytest.raises(XTokenError, match=r"no column 'text'; there are 'body'"):
        list(texts_from_dataset(str(tmp_path / "set"), streaming=True).read())
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    assert list(texts_from_dataset(str(tmp_path / "saved"), streaming=True).read()) == ["a", "b"]


def test_a_data_set_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    rows = datasets.IterableDataset.from_generator(lambda: iter([{"text": "a"}]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    keys = []
    for commit in ("one", "one", "two"):
        info = type("Info", (), {"sha": commit})
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, path, revision=None, i=info: i)
        keys.append(texts_from_dataset("someone/texts", streaming=True).key)
    assert keys[0] == keys[1] != keys[2]


def test_a_streamed_file_is_known_without_reading_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtoken.training.texts._BLOCK", 10)
    file = tmp_path / "a.txt"
    keys = []
    for content in ("a" * 50, "b" + "a" * 49, "a" * 49 + "b", "a" * 51, "a" * 25 + "b" + "a" * 24):
        file.write_text(content)
        keys.append(texts_from_files([file], streaming=True).key)
    assert len(set(keys)) == 4
    assert keys[4] == keys[0]  # the price: a change in the middle that keeps the size is not seen


def config(folder: Path, **data: Any) -> dict[str, Any]:
    return {
        "teachers": [{}],
        "data": {"streaming": True, "shuffle_buffer": 8, "workers": 0, **data},
        "optim": {"steps": 12, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 3e-3},
        "output": {"folder": str(folder), "save_every": 100},
    }


def train(settings: dict[str, Any], seed: int = 0, **options: Any) -> Any:
    learner = tiny.student(seed, attention_dropout=0.1)  # so that a wrong random state would show
    return distil(settings, student=learner, teachers=[tiny.teacher()], texts=TEXTS, quiet=True, **options)


def log(folder: Path) -> list[Any]:
    return [json.loads(line)["ce"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_streaming_run_that_goes_on_ends_as_the_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    train(config(tmp_path / "whole"))

    def stop(self: StopRequest, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 7:
            self.asked = control.should_save = control.should_training_stop = True

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "on_step_end", stop)
        first = train(config(tmp_path / "broken"))
    assert (first.interrupted, first.steps) == (True, 7)
    shutil.copytree(tmp_path / "broken", tmp_path / "workers")
    for name, workers in (("broken", 0), ("workers", 2)):
        second = train(config(tmp_path / name, workers=workers), seed=5, resume=True)
        assert second.steps == 12
        assert log(tmp_path / name) == log(tmp_path / "whole")
        assert not any("epoch" in line for line in second.log)
        whole, broken = (load_file(tmp_path / one / "model.safetensors") for one in ("whole", name))
        assert all(torch.equal(whole[key], broken[key]) for key in whole)
    assert not (cache / "prepared").exists()
    with pytest.raises(XTokenError, match=r"data\.shuffle_buffer: 8 then, 9 now"):
        train(config(tmp_path / "whole", shuffle_buffer=9), resume=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shuffle_buffer": 5}, "shuffle_buffer has no effect without streaming"),
        ({"corpora": [{"files": ["a"]}], "streaming": True}, "streaming takes one source"),
        ({"corpora": [{"files": ["a"]}], "files": ["b"]}, "files has no effect beside corpora"),
        ({"corpora": [{"files": ["a"]}], "max_documents": 3}, "max_documents has no effect beside corpora"),
        ({"corpora": [{"weight": 1}]}, "a corpus needs files or dataset"),
        ({"corpora": [{"files": ["a"], "weight": 0}]}, r"data\.corpora\.0\.weight is 0"),
        ({"corpora": [{"files": ["a"], "wieght": 1}]}, r"unknown key data\.corpora\.0\.wieght .*did you mean 'weight'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        parse_config({"data": data})
