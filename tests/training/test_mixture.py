"""A mixture has the shares it was asked for, and an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from training import tiny
from xtoken.errors import XTokenError
from xtoken.training import distil
from xtoken.training.callbacks import StopRequest
from xtoken.training.data import PreparedData, Side, prepare
from xtoken.training.mixture import Corpus, EpochSampler, MixedData
from xtoken.training.packing import PackedData
from xtoken.training.texts import texts_from_list

STUDENT = Side(tiny.packed(), 128)


def prepared(texts: list[str]) -> PreparedData:
    return prepare(texts, STUDENT)


LONG = prepared(tiny.documents(60))
SHORT = prepared([f"Bo {n}" for n in range(7)])
OTHER = prepared([f"Eve has {n} pens" for n in range(20)])


def mixed(*weights: float) -> MixedData:
    corpora = zip(("long", "short", "other"), (LONG, SHORT, OTHER), weights, strict=False)
    return MixedData([Corpus(*corpus) for corpus in corpora])


def tokens(data: MixedData, order: Any) -> list[int]:
    """How many student tokens each corpus gives."""
    found = [0] * len(data.corpora)
    starts = np.cumsum([0, *(len(corpus.data) for corpus in data.corpora)])
    for index, example in zip(order.tolist(), data.__getitems__(order.tolist()), strict=True):
        found[int(np.searchsorted(starts, index, side="right")) - 1] += len(example.ids)
    return found


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.2, 0.1), (5.0, 80.0, 15.0)])
def test_the_weights_are_shares_of_the_tokens(weights: tuple[float, ...]) -> None:
    data = mixed(*weights)
    found = np.array(tokens(data, data.order(seed=0, epoch=0)))
    assert found / found.sum() == pytest.approx(np.array(weights) / sum(weights), rel=0.05)
    assert data.shares() == pytest.approx(np.array(weights) / sum(weights))


def test_an_epoch_goes_once_through_the_corpus_that_lasts_longest_and_repeats_the_others() -> None:
    data = mixed(0.5, 0.5)
    seen = Counter(data.order(seed=0, epoch=0).tolist())
    assert [seen[n] for n in range(len(LONG))] == [1] * len(LONG)
    assert min(seen[len(LONG) + n] for n in range(len(SHORT))) > 10
    whole = len(data.order(0, 0))
    assert data.repetitions(whole)[0] == 1
    assert data.repetitions(2 * whole)[1] == pytest.approx(2 * data.draws[1] / len(SHORT))


def test_a_corpus_is_gone_through_whole_before_a_document_comes_again_even_over_epochs() -> None:
    data = mixed(0.6, 0.31)
    assert data.draws[1] % len(SHORT)  # a pass over it ends in the middle of another epoch
    both = np.concatenate([data.order(seed=3, epoch=epoch) for epoch in (0, 1)])
    short = both[both >= len(LONG)]
    for start in range(0, len(short) - len(SHORT), len(SHORT)):
        assert len(set(short[start : start + len(SHORT)].tolist())) == len(SHORT)


@pytest.mark.parametrize("data", [mixed(0.5, 0.5, 1.0), LONG], ids=["mixed", "one"])
def test_the_order_is_of_the_seed_and_the_epoch(data: Any) -> None:
    assert np.array_equal(data.order(1, 2), data.order(1, 2))
    for other in (data.order(2, 1), data.order(1, 1), data.order(1, 3)):
        assert not np.array_equal(data.order(1, 2), other)


def test_examples_are_those_of_the_corpora() -> None:
    data = mixed(1.0, 1.0, 1.0)
    asked = [61, 3, 70, 61, 0]
    expected = [SHORT[1], LONG[3], OTHER[3], SHORT[1], LONG[0]]
    for one, other in zip(data.__getitems__(asked), expected, strict=True):
        assert np.array_equal(one.ids, other.ids)
    assert len(data) == 87
    assert np.array_equal(data[86].ids, OTHER[19].ids)
    assert data.report.documents == 87


def test_a_weight_changes_nothing_that_is_prepared() -> None:
    assert mixed(1.0, 2.0).key == mixed(3.0, 1.0).key
    assert mixed(1.0, 2.0).key != mixed(1.0, 2.0, 1.0).key


class Numbers:
    """A dataset that gives the numbers it is asked for, in another's order."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> int:
        return index

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, seed: int, epoch: int) -> Any:
        return self.data.order(seed, epoch)


def read(data: Any, processes: int, *, epoch: int, skip: int = 0) -> list[int]:
    """The numbers in the order in which the processes together read them, as the Trainer has them do it."""
    shares = []
    for rank in range(processes):
        numbers = Numbers(data)
        loader = DataLoader(numbers, batch_size=4 // processes, sampler=EpochSampler(numbers, 5))  # type: ignore[arg-type]
        own = prepare_data_loader(loader, num_processes=processes, process_index=rank, put_on_device=False)
        if skip:
            own = skip_first_batches(own, skip)
        own.set_epoch(epoch)
        shares.append([batch.tolist() for batch in own])
    return [number for batches in zip(*shares, strict=True) for batch in batches for number in batch]


@pytest.mark.parametrize("data", [mixed(0.5, 0.5), LONG], ids=["mixed", "one"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_the_order_does_not_depend_on_the_processes_nor_on_a_fresh_start(data: Any, epoch: int) -> None:
    expected = data.order(5, epoch).tolist()
    for processes in (1, 2):
        whole = read(data, processes, epoch=epoch)
        assert whole[: len(expected)] == expected
        assert read(data, processes, epoch=epoch, skip=3) == whole[12:]


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    for name, texts in (("big.txt", tiny.documents(40)), ("small.txt", tiny.documents(3, seed=1))):
        (folder / name).write_text("\n".join(texts))
    corpora = [{"files": [str(folder / "big.txt")], "weight": 3}, {"files": [str(folder / "small.txt")], "name": "few"}]
    return {
        "teachers": [{}],
        "data": {"corpora": corpora},
        "optim": {"steps": 12, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3},
        "output": {"folder": str(folder / "out"), "save_every": 100},
    } | changes


def train(settings: dict[str, Any], seed: int = 0, **options: Any) -> Any:
    return distil(settings, student=tiny.student(seed), teachers=[tiny.teacher()], quiet=True, **options)


def test_a_mixture_is_trained_on_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cache: Path
) -> None:
    """96 documents, so that the run stops and goes on in its second epoch."""
    with caplog.at_level(logging.INFO, "xtoken"):
        whole = train(config(tmp_path))
    assert (
        f"{tmp_path / 'big.txt'}: 75.0 % of the tokens; each of its 40 examples is seen 1.81 times" in caplog.messages
    )
    assert "few: 25.0 % of the tokens; each of its 3 examples is seen 7.85 times" in caplog.messages
    prepared = {file.name: file.stat().st_mtime_ns for file in (cache / "prepared").iterdir()}
    broken = config(tmp_path, output={"folder": str(tmp_path / "broken"), "save_every": 100})

    def stop(self: StopRequest, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 9:
            self.asked = control.should_save = control.should_training_stop = True

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "on_step_end", stop)
        assert train(broken).interrupted
    result = train(broken, seed=5, resume=True)
    assert [line["ce"] for line in result.log] == [line["ce"] for line in whole.log]
    heavier = config(tmp_path)
    heavier["data"]["corpora"][1]["weight"] = 2
    with pytest.raises(XTokenError, match=r"data\.corpora\.1\.weight: 1\.0 then, 2\.0 now"):
        train(heavier, resume=True)
    (tmp_path / "moved.txt").write_bytes((tmp_path / "small.txt").read_bytes())
    moved = config(tmp_path)
    moved["data"]["corpora"][1] |= {"files": [str(tmp_path / "moved.txt")], "name": "else"}
    assert train(moved, resume=True).steps == 12
    train(heavier, overwrite=True)
    assert {file.name: file.stat().st_mtime_ns for file in (cache / "prepared").iterdir()} == prepared


def test_texts_in_memory_leave_no_room_for_corpora(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match="texts were passed"):
        train(config(tmp_path), texts=["a"])


@pytest.mark.parametrize(("size", "batch"), [(11, 4), (8, 4), (3, 8), (5, 1)])
def test_batches_are_whole_over_the_ends_of_epochs_and_nothing_comes_twice_before_all_came_once(
    size: int, batch: int
) -> None:
    data = prepare(texts_from_list(tiny.documents(size)), Side(tiny.packed(), 64))
    sampler = EpochSampler(data, 7, batch)
    seen = []
    for epoch in range(6):
        data.set_epoch(epoch)
        seen += list(sampler)
        assert len(seen) == (epoch + 1) * len(sampler)
    assert len(sampler) % batch == 0
    for turn in range(len(seen) // size):
        assert sorted(seen[turn * size : (turn + 1) * size]) == list(range(size))


def test_every_example_says_which_document_of_which_corpus_it_is() -> None:
    texts = [["a 1", " ", "b 22"], ["c 333"]]
    corpora = [prepare(texts_from_list(some), Side(tiny.packed(), 64)) for some in texts]
    mixed = MixedData([Corpus(name, data, 1.0) for name, data in zip("xy", corpora, strict=True)])
    found = [(e.corpus, e.documents) for e in mixed.__getitems__([0, 1, 2])]  # the second document is empty
    assert found == [(0, (0,)), (0, (2,)), (1, (0,))]
    packed = PackedData(corpora[0], "concatenate", {"": 64})
    assert packed[0].documents == (0, 2)  # type: ignore[union-attr]
