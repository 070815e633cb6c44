"""Cells and their keys: what decides a cell is in its key, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study import small
from xtoken.errors import XTokenError
from xtoken.study.config import parse_study, quickened
from xtoken.study.plan import Cell, Plan, merged

SWEEP = {"values": [1e-3, 2e-3], "seeds": [100], "choose_by": "bits_per_byte"}


def plan(folder: Path, **changes: Any) -> Plan:
    return Plan(parse_study(small.raw(folder, **changes)), folder / "out")


def with_validation(folder: Path) -> dict[str, Any]:
    measures = small.raw(folder)["measures"]
    return {"sweep": SWEEP, "measures": measures | {"validation": str(folder / "validation.txt")}}


def keys(cells: list[Cell]) -> dict[tuple[str, int], str]:
    return {(cell.full_name, cell.seed): cell.key for cell in cells}


def test_each_method_is_trained_for_each_seed_and_seeds_come_one_after_the_other(folder: Path) -> None:
    cells = plan(folder).main({})
    assert [(cell.seed, cell.full_name) for cell in cells] == [(0, "ce"), (0, "gold"), (1, "ce"), (1, "gold")]
    assert len({cell.key for cell in cells}) == 4
    assert {cell.settings["seed"] for cell in cells} == {0, 1}
    assert cells[1].settings["teachers"] == [{"name": "main", "model": str(folder / "teacher"), "loss": "gold"}]


def test_variants_have_their_own_seeds_and_pairs(folder: Path) -> None:
    pairs = {name: small.raw(folder)["pairs"]["p"] for name in ("p", "q")}
    variants = [{"name": "v", "set": {"optim": {"steps": 1}}, "methods": ["ce"], "seeds": [1, 5], "pairs": ["q"]}]
    methods = {"ce": {}, "gold": small.raw(folder)["methods"]["gold"] | {"pairs": ["p"]}}
    made = plan(folder, pairs=pairs, variants=variants, methods=methods)
    found = [(cell.pair, cell.full_name, cell.seed) for cell in made.main({})]
    assert [each for each in found if each[1] == "ce @ v"] == [("q", "ce @ v", 1), ("q", "ce @ v", 5)]
    assert {pair for pair, name, _ in found if name == "gold"} == {"p"}
    assert made.main_count == len(found)


def _edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _add(file: Path, more: str) -> None:
    file.write_text(file.read_text() + more)


EDITS: dict[str, Callable[[Path], None]] = {
    "training text": lambda folder: _add(folder / "train.jsonl", '{"text": "more 1"}\n'),
    "held-out text": lambda folder: _add(folder / "held_out.txt", "\nmore 1"),
    "answers": lambda folder: _add(folder / "answers.jsonl", '{"prompt": "1 ", "answer": "2"}\n'),
    "student": lambda folder: _edit_json(folder / "student" / "config.json", initializer_range=0.5),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_is_read_is_in_the_key(folder: Path, name: str) -> None:
    before = keys(plan(folder).main({}))
    EDITS[name](folder)
    after = keys(plan(folder).main({}))
    assert all(before[cell] != after[cell] for cell in before)


def test_a_teachers_weights_are_in_the_keys_of_its_students_alone(folder: Path) -> None:
    before = keys(plan(folder).main({}))
    _edit_json(folder / "teacher" / "config.json", rms_norm_eps=1e-3)
    after = keys(plan(folder).main({}))
    assert {name for name, seed in before if before[name, seed] != after[name, seed]} == {"gold"}


def test_a_setting_is_in_the_keys_of_the_cells_that_have_it(folder: Path) -> None:
    before = keys(plan(folder).main({}))
    gold = {"teachers": [{"model": "main", "loss": "gold", "temperature": 2.0}]}
    after = keys(plan(folder, methods={"ce": {}, "gold": gold}).main({}))
    assert {name for name, seed in before if before[name, seed] != after[name, seed]} == {"gold"}
    everyone = plan(folder, base={"optim": {"steps": 3, "batch_size": 4}}).main({})
    assert not set(before.values()) & set(keys(everyone).values())


def test_names_labels_and_places_are_not_in_the_key(folder: Path) -> None:
    before = keys(plan(folder).main({}))
    moved = Path(shutil.copytree(folder, folder.parent / "moved"))
    after = keys(plan(moved, labels={"ce": "other"}, name="other", questions=[]).main({}))
    assert before == after


def test_a_default_written_out_is_the_same_cell(folder: Path) -> None:
    base = small.raw(folder)["base"]
    base["optim"]["weight_decay"] = 0.1
    assert keys(plan(folder).main({})) == keys(plan(folder, base=base).main({}))


def test_the_sweep_tries_each_value_and_its_choice_goes_to_variants_too(folder: Path) -> None:
    variants = [{"name": "v", "set": {"loss": {"ce_weight": 2.0}}, "methods": ["gold"]}]
    made = plan(folder, variants=variants, **with_validation(folder))
    assert [(cell.method, cell.swept, cell.seed, cell.measures) for cell in made.sweep] == [
        ("ce", 1e-3, 100, ("bits_per_byte",)),
        ("gold", 1e-3, 100, ("bits_per_byte",)),
        ("ce", 2e-3, 100, ("bits_per_byte",)),
        ("gold", 2e-3, 100, ("bits_per_byte",)),
    ]
    chosen = made.main({("p", "gold"): 2e-3})
    assert {(cell.full_name, cell.learning_rate) for cell in chosen} == {("gold", 2e-3), ("gold @ v", 2e-3)}
    assert {cell.method for cell in made.undecided({("p", "gold"): 2e-3})} == {"ce"}


def test_what_would_be_held_against_itself_is_refused(folder: Path) -> None:
    gold = small.raw(folder)["methods"]["gold"]
    twin = {"teachers": [gold["teachers"][0] | {"weight": 1.0}]}  # the default, written out
    with pytest.raises(XTokenError, match=r"method .other. on pair .p.: its settings come to those of method .gold."):
        plan(folder, methods={"ce": {}, "gold": gold, "other": twin})
    idle = [{"name": "v", "set": {"optim": {"steps": 2}}, "methods": ["gold"]}]
    with pytest.raises(
        XTokenError, match=r"method .gold @ v. on pair .p.: its settings come to those of method .gold."
    ):
        plan(folder, variants=idle)


def test_values_of_the_sweep_that_make_one_cell_are_refused(folder: Path) -> None:
    made = with_validation(folder)
    with pytest.raises(XTokenError, match=r"method .ce. on pair .p.: the values 0.001, 0.001 of the sweep do not make"):
        plan(folder, **made | {"sweep": SWEEP | {"values": [1e-3, 0.001]}})
    overlay = parse_study(small.raw(folder, **made, quick={"sweep": True, "set": {"optim": {"learning_rate": 1e-3}}}))
    with pytest.raises(XTokenError, match=r"set the key nowhere else"):
        Plan(quickened(overlay), folder / "out")


def test_a_variant_may_set_what_is_swept_and_a_method_may_not(folder: Path) -> None:
    rate = {"optim": {"learning_rate": 7e-3}}
    variants = [{"name": "v", "set": rate, "methods": ["ce"]}]
    made = plan(folder, variants=variants, **with_validation(folder)).main({("p", "ce"): 1e-3})
    assert {cell.learning_rate for cell in made if cell.variant == "v"} == {7e-3}
    with pytest.raises(XTokenError, match=r"method .ce. on pair .p.: it sets optim\.learning_rate, which has no eff"):
        plan(folder, methods={"ce": rate, "gold": {}}, **with_validation(folder))


def test_layers_lie_over_one_another(folder: Path) -> None:
    pairs = {"p": small.raw(folder)["pairs"]["p"] | {"set": {"optim": {"warmup": 0.2, "weight_decay": 0.2}}}}
    study = parse_study(
        small.raw(
            folder,
            pairs=pairs,
            methods={"ce": {"optim": {"weight_decay": 0.3, "max_grad_norm": 3.0}}, "gold": {}},
            quick={"set": {"optim": {"max_grad_norm": 4.0}}},
        )
    )
    optim = Plan(quickened(study), folder / "out").main({})[0].settings["optim"]
    assert (optim["warmup"], optim["weight_decay"], optim["max_grad_norm"]) == (0.2, 0.3, 4.0)
    assert merged({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}, "data": "x"}) == {
        "a": {"b": 1, "c": [2]},
        "data": {"files": ["x"]},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"ce": {"optim": {"stesp": 1}}, "gold": {}}}, "method 'ce' on pair 'p': cannot be used as it st"),
        (
            {"methods": {"ce": {}, "gold": {"teachers": ["mian"]}}},
            "teachers.0.model: there is no model 'mian' (did you",
        ),
        ({"methods": {"ce": {}, "gold": {"teachers": [{"loss": "uld"}]}}}, "teachers.0 names no model; there are main"),
        (
            {"methods": {"ce": {}, "gold": {"teacher_text": {"model": "x"}}}},
            "teacher_text.model: there is no model 'x'",
        ),
        ({"methods": {"ce": {"seed": 3}, "gold": {}}}, "seed has no effect in a study: seeds names them"),
        ({"base": {"output": "runs"}}, "output.folder has no effect in a study: a study keeps no students"),
        ({"base": {"student": "x"}}, "student.model has no effect in a study: the pair names the student"),
        ({"variants": [{"name": "v", "set": {"los": {}}, "methods": ["ce"]}]}, "method 'ce @ v' on pair 'p': cannot"),
    ],
)
def test_mistakes_are_found_before_anything_runs(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError) as caught:
        plan(folder, **changes)
    assert message in " ".join(str(caught.value).split())


def test_files_and_models_that_are_not_there_are_told(folder: Path) -> None:
    (folder / "train.jsonl").unlink()
    with pytest.raises(XTokenError, match="there is no text file"):
        plan(folder)
    (folder / "teacher" / "model.safetensors").unlink()
    with pytest.raises(XTokenError, match=r"pairs\.p\.models\.main: .* has no weights; the student alone"):
        plan(folder)
    shutil.rmtree(folder / "teacher")
    with pytest.raises(XTokenError, match=r"pairs\.p\.models\.main: there is no model folder"):
        plan(folder)


def test_text_that_a_teacher_writes_is_made_once_for_all_that_want_it(folder: Path) -> None:
    asks = {"teacher_text": {"model": "main", "max_new_tokens": 4}}
    hotter = {"teacher_text": {"model": "main", "max_new_tokens": 4, "temperature": 1.0}}
    more = asks | {"loss": {"ce_weight": 2.0}}
    made = plan(folder, methods={"ce": {}, "gold": asks, "a": more, "b": hotter})
    assert len(made.texts) == 2
    cells = {cell.method: cell for cell in made.main({}) if cell.seed == 0}
    assert cells["gold"].texts == cells["a"].texts
    assert cells["gold"].settings["data"]["files"] == [cells["a"].texts.file]  # type: ignore[union-attr]
    assert len({cells[name].key for name in ("ce", "gold", "b")}) == 3


def test_how_many_are_drawn_together_decides_what_is_drawn_and_nothing_of_greedy_text(folder: Path) -> None:
    def key(**how: Any) -> str:
        asks = {"teacher_text": {"model": "main", **how}}
        (texts,) = plan(folder, methods={"ce": {}, "gold": asks}).texts
        return texts.key

    assert key() == key(batch_size=2)
    assert key(temperature=1.0) != key(temperature=1.0, batch_size=2)
