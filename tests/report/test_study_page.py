"""The page of a study: the verdict first, every section from the made-up folder, all escaped, nothing passed over."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report.study_folders import MadeUp, large, write_study
from xtoken.report.study import study_page
from xtoken.report.study_charts import Spot, scatter
from xtoken.report.study_folder import read_study
from xtoken.report.study_views import weighed, within

EVIL = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Sections by their anchor: text, and the tags met anywhere."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._inside = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._inside = dict(attrs)["id"] or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.sections[self._inside] = self.sections.get(self._inside, "") + " " + data


def read(folder: Path) -> Reader:
    return Reader(study_page(folder))


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "made-up")


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    return read(folder)


def test_the_verdict_comes_first_in_words(page: Reader) -> None:
    assert next(iter(page.sections)) == "verdict"
    verdict = words(page.sections["verdict"])
    for answer in ("✓ hold 1 of 3", "✗ fail 1 of 3", "? undecided 1 of 3"):
        assert answer in verdict
    assert "✓ holds – (a) A question that holds" in verdict
    assert "95 % interval, 3 seeds" in verdict


def test_every_method_is_drawn_with_its_mean_on_every_pair(page: Reader) -> None:
    text = page.sections["methods"]
    for name in ("cross-entropy alone", "gold", "@ weight 0.3", "@ equal gradient", "teacher main"):
        assert name in text
    assert {"splits-digits", "packs-digits"} <= set(text.split())
    assert "bits per byte, lower is better" in text
    assert "share, higher is better" in text


def test_differences_say_their_verdict_in_words(page: Reader) -> None:
    text = words(page.sections["baselines"])
    assert "splits-digits, against cross-entropy alone" in text
    assert "packs-digits, against gold" in text
    for verdict in ("▲ better", "▼ worse", "? undecided"):
        assert verdict in text


def test_trade_offs_are_drawn_two_by_two_with_variants_joined(folder: Path, page: Reader) -> None:
    text = page.sections["trade-offs"]
    for pair in (
        "bits_per_byte against teacher_kl",
        "exact_answers against teacher_kl",
        "exact_answers against bits_per_byte",
    ):
        assert pair in text
    drawn = re.search(r'<section id="trade-offs".*?</section>', study_page(folder), re.DOTALL)
    assert drawn is not None
    # On each of 2 pairs 3 charts: of gold and p-kl, 2 lines along the weights and 1 dotted to the equal gradient.
    links = re.findall(r'<line class="series-stroke" [^>]*?(stroke-dasharray="2 3")?/>', drawn[0])
    assert (links.count(""), links.count('stroke-dasharray="2 3"')) == (2 * 3 * 2 * 2, 2 * 3 * 2)


def test_the_sweep_says_what_was_declared_and_chosen(page: Reader) -> None:
    text = words(page.sections["sweep"])
    assert "optim.learning_rate of 0.001, 0.002, 0.004, chosen by bits_per_byte" in text
    assert "✓" in text
    assert "at an end of the values" not in text


def test_each_method_says_which_kd_weight_serves_it(tmp_path: Path) -> None:
    """GOLD's bits per byte by weight are 0.5 at its own, 0.4 at 0.3 and 0.6 at the equal push; exact answers alike."""
    made = MadeUp(methods=("ce", "gold"), varied=("gold",), variants=("weight 0.3", "equal gradient"), pairs=("p",))
    folder = write_study(tmp_path, made)
    values = {"": 0.5, "weight 0.3": 0.4, "equal gradient": 0.6}
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    for row in rows:
        if row["method"] == "gold" and row["stage"] == "main":
            row["value"] = str(values[row["variant"]] + int(row["seed"]) / 100)
    # A seed that not every weight has does not count.
    rows.append({**rows[-1], "method": "gold", "variant": "", "seed": "9", "measure": "bits_per_byte", "value": "0.01"})
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    study = read_study(folder)
    lower, higher = (weighed(study, "p", study.measure(name)) for name in ("bits_per_byte", "exact_answers"))
    assert [(w.method.base, w.own, w.seeds, w.best) for w in lower] == [("gold", "auto", 3, "weight 0.3")]
    assert lower[0].means == pytest.approx({name: value + 0.01 for name, value in values.items()})
    assert higher[0].best == "equal gradient"
    text = words(read(folder).sections["weights"])
    assert "weight 0.3 is 0.3, equal gradient is gradient" in text
    assert "gold weight 0.3 auto 0.5100 ✓ 0.4100 0.6100 3" in text
    assert "gold equal gradient auto 0.5100 0.4100 ✓ 0.6100 3" in text


def test_wide_intervals_do_not_squeeze_the_means_of_a_trade_off() -> None:
    """Two seeds give intervals many times as long as the methods lie apart; on the page and in figures."""
    spots = [
        Spot("a", (0.1, -9.0, 9.0), (0.5, -5.0, 6.0), 0, False),
        Spot("b", (0.3, 0.2, 0.4), (0.9, 0.8, 1.0), 1, False),
    ]
    drawn = scatter(spots, [], title="t", x_label="x", y_label="y")
    places = [float(x) for x in re.findall(r'<svg x="([\d.]+)%"', drawn)]
    assert places == pytest.approx([100 / 6, 100 * 5 / 6], abs=0.01)
    assert within([0.1, 0.3]) == pytest.approx((0.05, 0.35))
    assert within([2.0, 2.0]) == pytest.approx((1.8, 2.2))
    assert within([0.0]) == (-1.0, 1.0)


def test_a_study_without_other_kd_weights_says_so(tmp_path: Path) -> None:
    made = MadeUp(methods=("ce", "gold"), varied=(), variants=(), pairs=("p",))
    assert "no variants by KD weight" in read(write_study(tmp_path, made)).sections["weights"]


def test_a_choice_at_the_end_of_the_values_is_told(tmp_path: Path) -> None:
    text = words(read(write_study(tmp_path, MadeUp(rates=(2e-3, 4e-3, 8e-3)))).sections["sweep"])
    assert "Chosen at an end of the values, so that a better one may lie beyond: cross-entropy alone, gold" in text


def test_tables_hold_every_row_and_can_be_searched_and_sorted(folder: Path, page: Reader) -> None:
    document = study_page(folder)
    for anchor, file in (("summary", "summary.csv"), ("comparisons", "comparisons.csv")):
        section = re.search(rf'<section id="{anchor}".*?</section>', document, re.DOTALL)
        assert section is not None
        rows = len((folder / file).read_text().splitlines()) - 1
        assert section[0].count("<tr>") == rows + 1
        assert "data-sortable" in section[0]
        assert "data-search" in section[0]


def test_failed_cells_are_listed_with_their_error(tmp_path: Path, page: Reader) -> None:
    assert "None failed." in page.sections["failed"]
    found = read(write_study(tmp_path, MadeUp(failed=2)))
    assert "2 cells failed" in found.sections["failed"]
    assert "step 17: the loss is not finite" in found.sections["failed"]
    assert "2 more failed" in found.sections["verdict"]
    assert "2 to 3 seeds" in found.sections["methods"] or "1 to 3 seeds" in found.sections["methods"]


def test_time_machine_and_how_to_make_it_again(page: Reader) -> None:
    assert "seconds each" in page.sections["time"]
    machine = words(page.sections["machine"])
    assert "commit 0123456789abcdef" in machine
    assert "GPU none" in machine
    assert "changes not committed no" in machine
    again = page.sections["again"]
    assert "git checkout 0123456789abcdef\nxtoken study study.yaml" in again
    assert "choose_by: bits_per_byte" in again


def test_the_teachers_and_the_audit(page: Reader) -> None:
    text = words(page.sections["references"])
    assert "The audit recommends p-kl: numerals of several digits are not in common" in text
    assert "student at the start" in text


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    page = read(write_study(tmp_path, MadeUp(seeds=(0,))))
    assert "no intervals with one seed" in page.sections["verdict"]
    assert "Mean with one seed, which gives no interval." in page.sections["methods"]
    assert not [attributes for tag, attributes in page.tags if "whisker" in (attributes.get("class") or "")]


@pytest.mark.parametrize(
    ("file", "anchor"),
    [
        ("answers.json", "verdict"),
        ("summary.csv", "methods"),
        ("summary.csv", "summary"),
        ("comparisons.csv", "baselines"),
        ("comparisons.csv", "comparisons"),
        ("references.json", "references"),
        ("machine.json", "machine"),
        ("results.csv", "time"),
        ("sweep.csv", "sweep"),
    ],
)
def test_a_file_that_is_not_there_is_told_in_its_section(tmp_path: Path, file: str, anchor: str) -> None:
    write_study(tmp_path, MadeUp(methods=("ce", "gold"), varied=(), pairs=("p",)))
    (tmp_path / file).unlink()
    assert f"{file} is not in this folder" in read(tmp_path).sections[anchor]


def test_cells_that_were_not_kept_are_told(folder: Path, tmp_path: Path) -> None:
    for name in ("study.yaml", "summary.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    assert "cannot be told whether any failed" in read(tmp_path).sections["failed"]


def test_measures_that_are_not_there_are_told(tmp_path: Path) -> None:
    page = read(write_study(tmp_path, MadeUp(measures=("exact_answers", "bits_per_byte"))))
    assert "Not measured in this study: teacher_kl." in page.sections["trade-offs"]
    assert "exact_answers against bits_per_byte" in page.sections["trade-offs"]


def test_a_study_that_sweeps_nothing_and_asks_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: bare\n")
    (tmp_path / "answers.json").write_text("[]")
    page = read(tmp_path)
    assert "The study sweeps nothing" in page.sections["sweep"]
    assert "answers.json holds nothing to show here: the study asks no questions" in page.sections["verdict"]


def test_whatever_a_name_holds_stays_text(tmp_path: Path) -> None:
    made = MadeUp(
        methods=("ce", "gold", EVIL), varied=(EVIL,), variants=(f"{EVIL} 1", f'" onload="x {EVIL} 2', "a & b"),
        pairs=(f"<b>{EVIL}",), labels={"ce": f"<i>{EVIL}</i>", EVIL: f"'{EVIL}"}, failed=1,
    )  # fmt: skip
    write_study(tmp_path, made)
    answers = json.loads((tmp_path / "answers.json").read_text())
    answers[0] |= {"id": EVIL, "asks": EVIL, "verdict": EVIL}
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    (tmp_path / "machine.json").write_text(json.dumps({EVIL: EVIL, "commit": EVIL, "gpu": {EVIL: [EVIL]}}))
    page = read(tmp_path)
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert len(scripts) == 2  # the page's own
    assert not [tag for tag, _ in page.tags if tag in ("i", "img")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert EVIL in page.sections["methods"]
    assert EVIL in page.sections["machine"]


def test_the_page_loads_nothing(folder: Path) -> None:
    document = study_page(folder)
    addresses = set(re.findall(r'(?:src|href|action|url\()\s*=?\s*["\']?([^"\'\s>)]+)', document))
    assert all(address.startswith(("#", "data:")) for address in addresses), addresses
    assert set(re.findall(r"https?://[^\s\"'<]+", document)) <= {"http://www.w3.org/2000/svg"}


def test_forty_methods_and_six_hundred_cells_stay_under_3_mb(tmp_path: Path) -> None:
    made = large()
    write_study(tmp_path, MadeUp(made.methods, made.variants, made.varied, seeds=(0, 1, 2, 3, 4), rates=range(1, 8)))
    assert len(list((tmp_path / "cells").rglob("*.json"))) > 590
    assert len(study_page(tmp_path).encode()) < 3_000_000


def test_the_same_folder_gives_the_same_page(folder: Path) -> None:
    assert study_page(folder) == study_page(folder)


def test_no_path_of_this_machine_is_in_the_page(folder: Path) -> None:
    assert str(folder.parent) not in study_page(folder)
