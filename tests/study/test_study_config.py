"""A study's file: what is wrong with it is told with the place and the nearest name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from study import small
from xtoken.errors import XTokenError
from xtoken.study.config import load_study, parse_study, quickened

CLAIM = {"pair": "p", "measure": "bits_per_byte", "better": "ce", "than": "gold"}


def study(**changes: Any) -> Any:
    return parse_study(small.raw(Path("x"), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sed": [0]}, "unknown key sed (did you mean 'seeds'?)"),
        ({"pairs": {"p": {"models": {"main": "y"}}}}, "  pairs.p.student is missing"),
        ({"pairs": {"p": {"studnt": "x", "models": {"main": "y"}}}}, "unknown key pairs.p.studnt (did you mean 'stu"),
        ({"methods": {"s": {"teacher_text": {"modl": "main"}}}}, "unknown key methods.s.teacher_text.modl"),
        ({"pairs": {"a/b": {"student": "x", "models": {"main": "y"}}}, "questions": None}, "pairs.a/b: a name becomes"),
        ({"methods": {"ce @ x": {}}, "questions": None, "labels": {}, "baselines": []}, "methods.ce @ x: a name"),
        ({"baselines": ["glod"]}, "baselines: there is no method 'glod' (did you mean 'gold'?); there are ce, gold"),
        ({"labels": {"cee": "x"}}, "labels: there is no method 'cee' (did you mean 'ce'?)"),
        ({"questions": [{"id": "b", "claims": [CLAIM | {"better": "c"}]}]}, "question b, claim 0: there is no method"),
        ({"questions": [{"id": "b", "claims": [CLAIM | {"pair": "q"}]}]}, "there is no pair 'q'"),
        ({"questions": [{"id": "b", "claims": [CLAIM | {"measure": "bits"}]}]}, "there is no measure 'bits'"),
        (
            {"questions": [{"id": "b", "claims": [CLAIM | {"measure": "teacher_kl"}]}]},
            "claim 0: teacher_kl is not measured; measures makes bits_per_byte,",
        ),
        ({"questions": [{"id": "b", "claims": [CLAIM | {"no_better": "ce"}]}]}, "give one of better, no_better and"),
        ({"questions": [{"id": "b", "claims": [CLAIM | {"margin": 1}]}]}, "margin has no effect without no_better"),
        ({"variants": [{"name": "v", "set": {}, "methods": ["gld"]}]}, "variants.0.methods: there is no method 'gld'"),
        ({"variants": 2 * [{"name": "v", "set": {}, "methods": ["ce"]}]}, "'ce @ v' is made twice"),
        ({"seeds": [0, 0]}, "seeds: a seed is named twice"),
        ({"seeds": []}, "seeds"),
        ({"measures": {}}, "name held_out or answers"),
        ({"measures": {"held_out": "x", "validation": "y"}}, "measures.validation has no effect without sweep"),
        ({"measures": {"held_out": "x", "teacher": "mian"}, "questions": None}, "there is no model 'mian' (did you me"),
        ({"sweep": {"values": [1], "seeds": [9]}}, "it chooses by measures.validation, which is not there"),
        ({"name": "../x"}, "name is '../x', which becomes a folder"),
        ({"baselines": ["ce", "ce"]}, "baselines: 'ce' is there twice"),
        ({"labels": {"ce": "gold"}}, "labels: 'gold' is there twice"),
        ({"questions": 2 * [{"id": "b", "claims": [CLAIM]}]}, "questions: 'b' is there twice"),
        ({"questions": [{"id": "b", "claims": [CLAIM | {"better": "gold"}]}]}, "claim 0: it holds gold against itself"),
        (
            {
                "pairs": {n: {"student": "x", "models": {"main": "y"}} for n in "pq"},
                "methods": {"ce": {}, "gold": {"pairs": ["q"]}},
            },
            "question a, claim 0: gold is not trained on pair p",
        ),
        ({"quick": {"methods": ["gld"]}}, "quick.methods: there is no method 'gld'"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError) as caught:
        study(**changes)
    assert message in str(caught.value)


def test_no_file_and_no_yaml_are_told(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match="there is no study file"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(XTokenError, match="is not valid YAML"):
        load_study(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[]")
    with pytest.raises(XTokenError, match="expected keys such as name, pairs"):
        load_study(tmp_path / "list.yaml")


def test_what_is_written_is_the_study_that_was_read(tmp_path: Path) -> None:
    asked = study(methods={"ce": {}, "gold": {"teacher_text": {"model": "main"}, "loss": {"ce_weight": 2}}})
    (tmp_path / "again.yaml").write_text(asked.to_yaml())
    assert load_study(tmp_path / "again.yaml") == asked
    assert asked.methods["gold"].settings == {"loss": {"ce_weight": 2}}


def test_variants_are_methods_of_their_own_and_have_labels() -> None:
    asked = study(variants=[{"name": "v", "set": {}, "methods": ["ce", "gold"], "seeds": [1]}])
    assert asked.full_names == ["ce", "gold", "ce @ v", "gold @ v"]
    assert asked.label("gold @ v") == "GOLD @ v"
    assert asked.seeds_of(asked.variants[0]) == [1]


def test_quick_leaves_what_it_says_and_asks_what_can_still_be_asked() -> None:
    other = CLAIM | {"better": "p-kl"}
    asked = study(
        methods={"ce": {}, "gold": {}, "p-kl": {}},
        variants=[{"name": "v", "set": {}, "methods": ["ce"]}],
        questions=[{"id": "a", "claims": [CLAIM, other]}, {"id": "b", "claims": [other]}],
        quick={"seeds": [7], "methods": ["ce", "gold"], "set": {"optim": {"steps": 1}}},
    )
    found = quickened(asked)
    assert (found.full_names, found.seeds, found.overlay) == (["ce", "gold"], [7], {"optim": {"steps": 1}})
    assert [(q.id, len(q.claims)) for q in found.questions] == [("a", 1)]
    assert asked.seeds == [0, 1]
    with pytest.raises(XTokenError, match="has no section quick"):
        quickened(study())


def test_the_study_in_the_docs_is_one() -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    asked = parse_study(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", docs, re.DOTALL)[0]))
    assert quickened(asked).full_names == ["ce", "gold", "p-kl"]
