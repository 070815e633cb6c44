"""A study's folder is read back as it was written; what is not there is named; what cannot be read says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from report.study_folders import MEASURES, MadeUp, write_study
from xtoken.errors import XTokenError
from xtoken.report.study_folder import Measure, Method, read_study, variant_series


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "made-up")


def test_everything_written_is_read(folder: Path) -> None:
    study = read_study(folder)
    made = MadeUp()
    methods = len(made.methods) + len(made.varied) * len(made.variants)
    assert len(study.methods) == methods
    assert len(study.summaries) == methods * len(made.pairs) * len(MEASURES)
    assert len(study.cells) == len(made.pairs) * (methods * len(made.seeds) + len(made.methods) * len(made.rates))
    assert {m.name: (m.unit, m.direction) for m in study.measures} == MEASURES
    assert [q.verdict for q in study.questions] == ["holds", "fails", "undecided"]
    assert study.absent == ()
    row = study.summary("splits-digits", "teacher_kl")[Method("p-kl", "weight 0.3")]
    assert row.seeds == 3
    assert row.low is not None
    assert row.high is not None
    assert row.low < row.mean < row.high


def test_methods_stand_in_the_studys_order_each_before_its_variants(tmp_path: Path) -> None:
    made = MadeUp(methods=("p-kl", "gold", "ce"), varied=("p-kl", "gold"), variants=("weight 1", "weight 0.1"))
    names = [m.name for m in read_study(write_study(tmp_path, made)).methods]
    assert names == [
        "p-kl",
        "p-kl @ weight 1",
        "p-kl @ weight 0.1",
        "gold",
        "gold @ weight 1",
        "gold @ weight 0.1",
        "ce",
    ]


def test_a_variant_may_stand_in_the_methods_name(folder: Path, tmp_path: Path) -> None:
    for name in ("study.yaml", "summary.csv"):
        text = (folder / name).read_text().replace("gold,weight 1,", "gold @ weight 1,weight 1,")
        (tmp_path / name).write_text(text)
    assert "gold @ weight 1,weight 1" in (tmp_path / "summary.csv").read_text()
    assert read_study(tmp_path).methods == read_study(folder).methods


def test_labels_name_a_method_and_its_variants(folder: Path) -> None:
    study = read_study(folder)
    assert study.label(Method("ce")) == "cross-entropy alone"
    assert study.label(Method("ce", "weight 1")) == "cross-entropy alone @ weight 1"
    assert study.label_of("gold @ weight 1") == "gold @ weight 1"


def test_a_baseline_is_not_compared_with_itself_but_its_variants_are(folder: Path) -> None:
    found = read_study(folder).against("splits-digits", "bits_per_byte", "gold")
    assert Method("gold") not in found
    assert Method("gold", "weight 1") in found


def test_a_failure_of_earlier_settings_is_not_told(folder: Path, tmp_path: Path) -> None:
    """It lies in the folder still, but the cell has results now, or its method is gone."""
    for name in ("study.yaml", "results.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "cells").mkdir()
    cell = {"pair": "splits-digits", "variant": None, "stage": "main", "learning_rate": 2e-3, "status": "failed"}
    for name, seed in (("gold", 0), ("gold", 7), ("gone", 0)):
        file = tmp_path / "cells" / f"{name}{seed}.json"
        file.write_text(json.dumps({**cell, "method": name, "seed": seed, "error": "x"}))
    assert [(c.method.name, c.seed) for c in read_study(tmp_path).failed] == [("gold", "7")]


def test_an_empty_difference_is_no_difference(folder: Path, tmp_path: Path) -> None:
    """Where one side failed with every seed, nothing is drawn and the row stays in the table."""
    header, first, *_ = (folder / "comparisons.csv").read_text().splitlines()
    columns, values = header.split(","), first.split(",")
    for name in ("difference", "low", "high", "improvement_low", "improvement_high"):
        values[columns.index(name)] = ""
    (tmp_path / "study.yaml").write_text((folder / "study.yaml").read_text())
    (tmp_path / "comparisons.csv").write_text("\n".join([header, ",".join(values)]))
    study = read_study(tmp_path)
    (row,) = study.comparisons
    assert row.difference is None
    assert study.against(row.pair, row.measure, row.baseline) == {}


def test_study_yaml_alone_is_a_study_that_has_just_begun(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text((folder / "study.yaml").read_text())
    study = read_study(tmp_path)
    assert set(study.absent) == {
        "results.csv", "summary.csv", "comparisons.csv", "sweep.csv", "answers.json", "references.json",
        "statistics.json", "machine.json", "cells/"
    }  # fmt: skip
    assert (study.methods, study.pairs, study.measures, study.questions) == ((), (), (), ())


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match=r"no study\.yaml: expected the folder that `xtoken study` wrote"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.csv", "pair,method\nx,y\n", "summary.csv' has no column 'variant'"),
        ("summary.csv", "pair,method,variant,measure,unit,direction,seeds,mean,low,high\np,m,,b,u,lower,2,oops,,\n",
         "summary.csv', row 2: could not convert string to float: 'oops'"),
        ("machine.json", "[1]", "machine.json': expected names with values, found list"),
        ("answers.json", "{", "cannot read .*answers.json"),
        ("answers.json", '[{"asks": "x"}]', "answers.json' is not what `xtoken study` wrote: KeyError"),
        ("study.yaml", "a: [", "cannot read .*study.yaml"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / "study.yaml").write_text("name: x\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(XTokenError, match=said):
        read_study(tmp_path)


def test_fields_may_hold_line_ends_and_commas(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: x\n")
    header, first, *_ = (folder / "summary.csv").read_text().splitlines()
    (tmp_path / "summary.csv").write_text("\n".join([header, first.replace("splits-digits", '"two\nlines, a comma"')]))
    assert read_study(tmp_path).pairs == ("two\nlines, a comma",)


def test_more_is_better_after_turning_whichever_the_direction() -> None:
    assert Measure("x", "nats", "lower").improvement(-0.5) == 0.5
    assert Measure("x", "share", "higher").improvement(-0.5) == -0.5


def test_variants_that_differ_in_a_number_make_a_line_in_its_order() -> None:
    methods = [
        Method("gold", name)
        for name in ("weight 10", "weight 0.3", "weight 1e-1", "equal gradient", "top 8", "step2", "step3", "")
    ]
    assert [[m.variant for m in line] for line in variant_series(methods)] == [
        ["weight 1e-1", "weight 0.3", "weight 10"],
    ]


def test_references_are_those_measured_and_finite(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: x\n")
    here = {"models": {"main": {"bits_per_byte": 0.5}, "small": {}}, "student": {"bits_per_byte": float("nan")}}
    (tmp_path / "references.json").write_text(json.dumps({"p": here}))
    assert read_study(tmp_path).reference_values("p", "bits_per_byte") == {"teacher main": 0.5}
    assert read_study(tmp_path).reference_values("another", "bits_per_byte") == {}
