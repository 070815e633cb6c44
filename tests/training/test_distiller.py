"""The loss is the terms over the counts of the window, weighted as asked, and never waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laws.test_memory import record
from training import tiny
from xtoken.config import TeacherConfig
from xtoken.errors import XTokenError
from xtoken.losses import LossTerm
from xtoken.losses.alm import ALM_TEMPERATURE
from xtoken.losses.fast import hidden, walk
from xtoken.losses.fast.ranked import RANKS
from xtoken.losses.strict import STRICT_TOP_K
from xtoken.projection import strict_partition
from xtoken.teachers.causal import HiddenReader, causal_logits
from xtoken.teachers.online import OnlineTeacher
from xtoken.training.collator import Collator
from xtoken.training.data import Side, prepare, side_key
from xtoken.training.distiller import Counts, Distiller, Terms
from xtoken.training.objectives import make_objective
from xtoken.training.texts import texts_from_list

STUDENT, TEACHER = tiny.packed(), tiny.split()


def online(name: str = "t", weight: float = 1.0, loss: str = "p-kl") -> OnlineTeacher:
    objective = make_objective(TeacherConfig(loss=loss), STUDENT, TEACHER, None)
    model = tiny.llama(TEACHER.size, seed=1)
    return OnlineTeacher(name, model, TEACHER.size, objective.loss, side=side_key(TEACHER), weight=weight)


def batch_of(texts: list[str]) -> dict[str, Any]:
    data = prepare(texts_from_list(texts), Side(STUDENT, 64), [Side(TEACHER, 64)])
    return Collator()(data.__getitems__(list(range(len(texts)))))


def term(total: float, count: int) -> LossTerm:
    return LossTerm(torch.tensor(total, requires_grad=True), torch.tensor(count))


@pytest.mark.parametrize("loss", ["gold", "h-kl", "uld"])
def test_the_ranks_a_config_asks_for_reach_the_loss(loss: str) -> None:
    for asked, ranks in ((None, RANKS), (7, 7), ("all", None)):
        assert make_objective(TeacherConfig(loss=loss, ranks=asked), STUDENT, TEACHER, None).loss.ranks == ranks
    assert f"(default {RANKS})" in str(TeacherConfig.model_fields["ranks"].description)


def test_the_settings_of_strict_and_alm_reach_them() -> None:
    for asked, top_k in ((None, STRICT_TOP_K), (7, 7), (10**6, len(strict_partition(STUDENT, TEACHER)))):
        assert make_objective(TeacherConfig(loss="strict", top_k=asked), STUDENT, TEACHER, None).loss.top_k == top_k
    for asked, temperature in ((None, ALM_TEMPERATURE), (7.0, 7.0)):
        config = TeacherConfig(loss="alm", likelihood_temperature=asked)
        assert make_objective(config, STUDENT, TEACHER, None).loss.likelihood_temperature == temperature
    fields = TeacherConfig.model_fields
    assert f"for strict {STRICT_TOP_K})" in str(fields["top_k"].description)
    assert f"(default {ALM_TEMPERATURE:g})" in str(fields["likelihood_temperature"].description)


def test_fixed_weights_add_up_as_written() -> None:
    distiller = Distiller([online("a", 0.8), online("b", 0.2)], STUDENT.size, kd_weight=0.5, ce_weight=2.0)
    terms = Terms(term(6.0, 2), {"a": term(10.0, 4), "b": term(9.0, 3)})
    loss, weighing = distiller.combine(terms, Counts(torch.tensor(4), {"a": torch.tensor(8), "b": torch.tensor(6)}))
    assert loss.item() == pytest.approx(2.0 * 6 / 4 + 0.5 * (0.8 * 10 / 8 + 0.2 * 9 / 6))
    assert weighing.factor.item() == 0.5


def test_dynamic_scaling_pins_the_value_and_not_the_gradient_of_the_factor() -> None:
    distiller = Distiller([online()], STUDENT.size)
    terms = Terms(term(6.0, 2), {"t": term(10.0, 4)})
    loss, weighing = distiller.combine(terms, Counts(torch.tensor(4), {"t": torch.tensor(8)}))
    assert loss.item() == pytest.approx(2 * 6 / 4)
    assert weighing.factor.item() == pytest.approx((6 / 4) / (10 / 8))
    loss.backward()
    assert terms.teachers["t"].total.grad == pytest.approx(weighing.factor.item() / 8)
    assert terms.cross_entropy.total.grad == pytest.approx(1 / 4)


def test_without_teachers_the_loss_is_the_cross_entropy() -> None:
    loss, weighing = Distiller([], STUDENT.size).combine(Terms(term(6.0, 2), {}), Counts(torch.tensor(4), {}))
    assert (loss.item(), weighing.factor.item()) == (1.5, 0.0)


def test_a_batch_without_chunks_or_labels_costs_nothing_and_is_no_nan() -> None:
    distiller = Distiller([online()], STUDENT.size)
    terms = Terms(term(0.0, 0), {"t": term(0.0, 0)})
    loss, _ = distiller.combine(terms, terms.counts())
    assert loss.item() == 0.0


def test_terms_of_a_batch_are_the_sums_of_its_documents_terms() -> None:
    texts = ["7", "Ada has 123 coins and 45 pens", "Bo has 9"]
    model, distiller = tiny.llama(STUDENT.size).double(), Distiller([online()], STUDENT.size)
    distiller.teachers[0].model.double()

    def terms(some: list[str]) -> Terms:
        batch = batch_of(some)
        return distiller.terms(model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch)

    whole, parts = terms(texts), [terms([text]) for text in texts]
    for pick in (lambda t: t.cross_entropy, lambda t: t.teachers["t"]):
        assert torch.allclose(pick(whole).total, sum(pick(part).total for part in parts))
        assert pick(whole).count == sum(pick(part).count for part in parts)


@pytest.mark.parametrize(("loss", "has_some"), [("p-kl", False), ("strict", True), ("partition-kl", True)])
def test_a_batch_by_itself_is_divided_by_the_chunks_that_take_part(loss: str, has_some: bool) -> None:
    """Whether it is weighed by its own terms or by weights that were given; the others count as not kept."""
    distiller, batch = Distiller([online(loss=loss)], STUDENT.size, kd_weight=0.5), batch_of(tiny.documents(12))
    logits = torch.randn(*batch["input_ids"].shape, STUDENT.size)
    term = distiller.terms(logits, batch).teachers["t"]
    n_chunks = len(batch["teachers"][side_key(TEACHER)]["index"]["student_starts"]) - 1
    assert (0 < term.count < n_chunks) if has_some else term.count == n_chunks
    dropped = batch["teachers"][side_key(TEACHER)]["index"]["dropped"]
    assert term.metrics["dropped_chunks"] == dropped + n_chunks - term.count
    weighing = distiller.static_weighing(logits.device, logits.dtype)
    own, given = (distiller.outcome(logits, batch, weighing=w) for w in (None, weighing))
    assert given.loss.item() == pytest.approx(own.loss.item(), rel=1e-6)
    assert own.loss.item() == pytest.approx((own.terms.cross_entropy.mean() + 0.5 * term.mean()).item(), rel=1e-6)


@pytest.mark.parametrize("loss", ["p-kl", "h-kl", "gold", "uld", "strict", "alm", "partition-kl"])
def test_the_padding_of_the_students_head_takes_no_part(loss: str) -> None:
    distiller, batch = Distiller([online(loss=loss)], STUDENT.size), batch_of(["Ada has 123", "Bo"])
    logits = torch.randn(*batch["input_ids"].shape, STUDENT.size)
    padded = torch.cat([logits, torch.full((*logits.shape[:-1], 7), 30.0)], -1)
    plain, wide = distiller.terms(logits, batch), distiller.terms(padded, batch)
    assert torch.equal(plain.cross_entropy.total, wide.cross_entropy.total)
    assert torch.equal(plain.teachers["t"].total, wide.teachers["t"].total)


@pytest.mark.parametrize("loss", ["p-kl", "h-kl", "gold", "uld", "strict", "alm", "partition-kl"])
def test_the_loss_never_waits_for_the_device(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller, batch = Distiller([online(loss=loss)], STUDENT.size), batch_of(["Ada has 123", "Bo"])
    signal = distiller.teachers[0].signal(
        *(batch["teachers"][side_key(TEACHER)][k] for k in ("input_ids", "attention_mask"))
    )
    monkeypatch.setattr(OnlineTeacher, "signal", lambda *_: signal)  # the models are transformers' affair
    logits = torch.randn(*batch["input_ids"].shape, STUDENT.size, requires_grad=True)

    def wait(*_: Any, **__: Any) -> None:
        raise AssertionError("the host waited for a value")

    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    terms = distiller.terms(logits, batch)
    total, _ = distiller.combine(terms, terms.counts())
    total.backward()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teachers": [online("a"), online("a")]}, "give each a name of its own"),
        ({"teachers": [online()], "kd_weight": -1.0}, "kd_weight is -1.0"),
        ({"teachers": [online()], "ce_weight": float("nan")}, "ce_weight is nan"),
        ({"teachers": [], "ce_weight": 0.0}, "nothing to learn from"),
        ({"teachers": [online()], "ce_weight": 0.0, "kd_weight": 0.0}, "nothing to learn from"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        Distiller(vocab_size=STUDENT.size, **settings)


@pytest.mark.parametrize("way", ["hidden", "logits"])
def test_three_teachers_hold_no_more_than_one_and_a_signal(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on torch's allocator, blocks in proportion to the batch.

    A signal is a teacher's logits of the batch. Where the student's logits are read, teachers after the first hold a
    second gradient of them for a while, which is as large as a signal where the vocabularies are.
    """
    monkeypatch.setattr(hidden, "_HEAD_ELEMENTS", 2**16)
    monkeypatch.setattr(walk, "_CPU_ELEMENTS", 2**14)
    batch = batch_of(tiny.documents(24))
    one, three = (peak(batch, way, n) for n in (1, 3))
    signal = batch["teachers"][side_key(TEACHER)]["input_ids"].numel() * TEACHER.size * 4
    gradient = batch["input_ids"].numel() * STUDENT.size * 4
    assert three < one + (signal if way == "hidden" else max(signal, gradient) + 2**16)
    assert peak(batch, way, 2) > one  # what is measured is what is held


def peak(batch: dict[str, Any], way: str, n_teachers: int) -> int:
    """The most that a step holds, in bytes."""
    student, teachers = tiny.llama(STUDENT.size), []
    for name, loss in (("a", "p-kl"), ("b", "gold"), ("c", "path-kl"))[:n_teachers]:
        teachers.append(online(name, loss=loss))
        if way == "logits":
            teachers[-1].reader = None
    distiller = Distiller(teachers, STUDENT.size, kd_weight=0.5)
    weighing = distiller.static_weighing(torch.device("cpu"), torch.float64)
    reader = HiddenReader.of(student)
    assert reader is not None

    def step() -> None:
        inputs = batch["input_ids"], batch["attention_mask"]
        if way == "hidden":
            found = distiller.outcome_from_hidden(reader.read(student, *inputs), reader.head, batch, None, weighing)
        else:
            found = distiller.outcome(causal_logits(student, *inputs), batch, None, weighing)
        found.loss.backward()

    return record(step).peak
