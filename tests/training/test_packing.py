"""Packed documents are read as if each stood alone; joined ones as one text; every document is in one sequence."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM

from training import tiny
from xtoken.config import TeacherConfig, parse_config
from xtoken.errors import XTokenError
from xtoken.losses import ChunkIndex
from xtoken.losses.cross_entropy import IGNORED_LABEL
from xtoken.teachers.causal import causal_logits, packs_apart
from xtoken.teachers.online import OnlineTeacher
from xtoken.training import Collator, Distiller, LoadedModel, Side, distil, prepare, side_key, texts_from_list
from xtoken.training.inputs import sources_of, training_data
from xtoken.training.mixture import MixedData
from xtoken.training.objectives import make_objective
from xtoken.training.packing import PackedData, join, pack
from xtoken.training.participants import gather

STUDENT, TEACHER = tiny.packed(), tiny.split()
SIDE = side_key(TEACHER)
TEXTS = [*tiny.documents(12, seed=3), "7", "Bo has 9"]
DATA = prepare(texts_from_list(TEXTS), Side(STUDENT, 64), [Side(TEACHER, 90)])
LIMITS = {"": 64, SIDE: 90}


def online(loss: str) -> OnlineTeacher:
    objective = make_objective(TeacherConfig(loss=loss), STUDENT, TEACHER, None)
    return OnlineTeacher("t", tiny.llama(TEACHER.size, seed=1).double(), TEACHER.size, objective.loss, side=SIDE)


def test_every_document_is_in_one_sequence_and_no_side_is_too_long() -> None:
    lengths = DATA.lengths()
    groups = pack(lengths, LIMITS)
    assert sorted(number for group in groups for number in group) == list(range(len(DATA)))
    for side, limit in LIMITS.items():
        assert max(lengths[side][group].sum() for group in groups) <= limit
    assert len(groups) < len(DATA) / 1.5


def test_lengths_are_those_of_the_examples() -> None:
    lengths = DATA.lengths()
    examples = DATA.__getitems__(list(range(len(DATA))))
    assert lengths[""].tolist() == [len(example.ids) for example in examples]
    assert lengths[SIDE].tolist() == [len(example.teachers[SIDE].ids) for example in examples]


def test_a_document_goes_to_the_fullest_sequence_that_it_fits_on_all_sides() -> None:
    sizes = {"": np.array([50, 30, 12, 12, 40]), "t": np.array([50, 30, 40, 12, 40])}
    assert pack(sizes, {"": 64, "t": 64}) == [[0, 3], [1], [2], [4]]
    with pytest.raises(XTokenError, match="document 1 is longer than a context"):
        pack({"": np.array([3, 9])}, {"": 8})


@pytest.mark.parametrize("loss", ["p-kl", "path-kl", "gold"])
def test_packed_documents_give_the_loss_and_gradient_of_documents_alone(loss: str) -> None:
    """Student and teachers alike, whatever is beside them in a sequence; fp64."""
    model = tiny.llama(STUDENT.size).double()
    distiller = Distiller([online(loss)], STUDENT.size, kd_weight=0.7)
    packs = PackedData(DATA, "documents", LIMITS)
    batches = Collator()(packs.__getitems__([0, 1])), Collator()([e for p in packs.__getitems__([0, 1]) for e in p])
    assert len(batches[1]["input_ids"]) > len(batches[0]["input_ids"])
    found = []
    for batch in batches:
        logits = causal_logits(model, batch["input_ids"], batch["attention_mask"], batch.get("position_ids"))
        outcome = distiller.outcome(logits, batch)
        gradients = torch.autograd.grad(outcome.loss, list(model.parameters()))
        found.append((outcome, gradients))
    (packed, by_packed), (alone, by_alone) = found
    assert int(packed.terms.cross_entropy.count) == int(alone.terms.cross_entropy.count)
    assert int(packed.terms.teachers["t"].count) == int(alone.terms.teachers["t"].count)
    torch.testing.assert_close(packed.loss, alone.loss, rtol=1e-10, atol=1e-12)
    for one, other in zip(by_packed, by_alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_nothing_is_predicted_across_a_border() -> None:
    documents = PackedData(DATA, "documents", LIMITS).__getitems__([0])
    batch = Collator()(documents)
    begins = np.cumsum([0, *(len(example.ids) for example in documents[0])])[:-1]
    assert (batch["labels"][0, begins] == IGNORED_LABEL).all()
    assert (batch["position_ids"][0, begins] == 0).all()
    index = ChunkIndex.from_tensors(batch["teachers"][SIDE]["index"])
    assert not set((index.student_rows + 1).tolist()) & set(begins.tolist())
    assert batch["documents"].tolist() == [[0, *example.documents] for example in documents[0]]


def test_joined_documents_are_one_text_in_which_each_sees_those_before() -> None:
    documents = DATA.__getitems__([0, 1])
    whole = join(documents)
    batch = Collator()([whole])
    assert "position_ids" not in batch
    border = len(documents[0].ids)
    assert batch["labels"][0, border] == documents[1].ids[0]
    index = ChunkIndex.from_tensors(batch["teachers"][SIDE]["index"])
    # The chunk of the second document's first token has a row now, the first one's has none.
    alone = [ChunkIndex.from_tensors(Collator()([d])["teachers"][SIDE]["index"]) for d in documents]
    assert index.n_chunks == sum(one.n_chunks for one in alone) + int(alone[1].dropped)
    bounds = whole.teachers[SIDE].chunks
    assert not ((bounds[:, 0] < border) & (bounds[:, 1] > border)).any()


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, state_size=4))


def gemma(size: int = 8) -> Any:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )


@pytest.mark.filterwarnings("ignore")  # mamba's own, of kernels that are not there
def test_a_model_that_lets_documents_mix_is_found_out() -> None:
    assert packs_apart(tiny.llama(8))
    assert packs_apart(gemma())
    assert not packs_apart(mamba())


def test_a_run_packs_and_says_how_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "xtoken")
    settings = {
        "teachers": [{"loss": "p-kl"}],
        "data": {"context_length": 120, "packing": "documents"},
        "loss": {"kd_weight": 0.1},
        "optim": {"steps": 30, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-2},
    }
    for packing in ("documents", "concatenate"):
        settings["data"]["packing"] = packing
        result = distil(settings, student=tiny.student(), teachers=[tiny.teacher()], texts=TEXTS * 4, quiet=True)
        assert result.log[-1]["ce"] < 0.6 * result.log[0]["ce"]
    assert "% full" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_a_run_with_a_model_that_mixes_is_refused() -> None:
    learner = LoadedModel(
        MambaForCausalLM(MambaConfig(vocab_size=STUDENT.size, hidden_size=16, num_hidden_layers=1, state_size=4)),
        STUDENT,
    )
    settings = {"data": {"context_length": 64, "packing": "documents"}, "optim": {"steps": 1, "batch_size": 1}}
    with pytest.raises(XTokenError, match="but the student would let documents in one sequence see each other"):
        distil(settings, student=learner, texts=TEXTS, quiet=True)


def test_corpora_are_packed_each_on_its_own_and_keep_their_shares(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 5), ("b", 6)):
        files.append(tmp_path / f"{name}.txt")
        files[-1].write_text("\n".join(tiny.documents(30, seed)))
    corpora = [{"files": [str(files[0])], "weight": 3}, {"files": [str(files[1])], "weight": 1}]
    config = parse_config({"data": {"corpora": corpora, "context_length": 120, "packing": "documents"}})
    participants = gather(config, tiny.student(), [], None)
    data = training_data(sources_of(config.data, None), participants, tmp_path / "cache", progress=False)
    assert isinstance(data, MixedData)
    packs = data.__getitems__(data.order(0, 0).tolist())
    assert all(isinstance(pack, tuple) and len(pack) > 1 for pack in packs)
    first = len(data.corpora[0].data)
    tokens = [0, 0]
    for number, documents in zip(data.order(0, 0).tolist(), packs, strict=True):
        tokens[int(number >= first)] += sum(len(example.ids) for example in documents)
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.05)


def test_flash_attention_packs_one_sequence_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    student = tiny.student()
    student.model.config._attn_implementation = "flash_attention_2"
    settings = {"data": {"context_length": 64, "packing": "documents"}, "optim": {"steps": 1, "batch_size": 2}}
    settings["optim"]["micro_batch_size"] = 2
    with pytest.raises(XTokenError, match=r"the student uses flash attention, .* optim.micro_batch_size 1"):
        distil(settings, student=student, texts=TEXTS, quiet=True)
