"""A study's figures: all that the results allow, well formed, the same bytes for the same results."""

from __future__ import annotations

import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from report.study_folders import MadeUp, write_study
from xtoken.errors import XTokenError
from xtoken.report import figures
from xtoken.report.figures import DPI, TEXT, study_figures, write_figures
from xtoken.report.study_folder import StudyFolder, read_study
from xtoken.report.study_views import trade_off, within

FEW = MadeUp(
    methods=("ce", "gold", "p-kl"),
    varied=("p-kl",),
    measures=("exact_answers", "bits_per_byte", "bits_per_byte/numerals", "bits_per_byte/words", "teacher_kl"),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return read_study(write_study(tmp_path_factory.mktemp("study"), FEW))


@pytest.fixture(scope="module")
def written(study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_figures(study, tmp_path_factory.mktemp("figures") / "not there yet")


def size(png: Path) -> tuple[int, int]:
    return struct.unpack(">II", png.read_bytes()[16:24])


def text_of(study: StudyFolder, name: str) -> str:
    """All that a figure says, one thing a line."""
    from matplotlib.text import Text

    with figures._plain_settings():
        figure = study_figures(study)[name]()
        return "\n".join(found.get_text() for found in figure.findobj(Text))


def test_there_is_a_figure_for_each_part(written: list[Path]) -> None:
    names = {path.stem for path in written}
    assert {
        "questions", "means-exact_answers", "means-bits_per_byte-numerals", "against-ce-teacher_kl",
        "against-gold-bits_per_byte", "trade-off-splits-digits", "trade-off-packs-digits", "sweep",
    } <= names  # fmt: skip
    assert len(names) == 1 + len(FEW.measures) * (1 + 2) + len(FEW.pairs) + 1
    assert {path.suffix for path in written} == {".svg", ".png"}


def test_every_svg_is_xml_without_a_date(written: list[Path]) -> None:
    for path in written:
        if path.suffix == ".svg":
            root = ET.parse(path).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert b"<dc:date>" not in path.read_bytes()


def test_pngs_are_as_wide_as_a_papers_text(written: list[Path]) -> None:
    for path in written:
        if path.suffix == ".png":
            width, height = size(path)
            assert width == round(TEXT * DPI)
            assert 0.2 < height / width < 2


def test_one_pair_fits_a_column(tmp_path: Path) -> None:
    made = MadeUp(methods=("ce", "gold"), varied=(), pairs=("p",), measures=("bits_per_byte",))
    write_figures(read_study(write_study(tmp_path, made)), tmp_path / "figures")
    assert size(tmp_path / "figures" / "means-bits_per_byte.png")[0] == round(figures.COLUMN * DPI)


def test_the_same_results_give_the_same_svg_in_another_process(
    study: StudyFolder, written: list[Path], tmp_path: Path
) -> None:
    """As after a commit: another process, another folder, another matplotlibrc."""
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nlines.linewidth: 9\n")
    code = (
        "import sys; from pathlib import Path; from xtoken.report.study_folder import read_study;"
        "from xtoken.report.figures import write_figures; write_figures(read_study(sys.argv[1]), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(study.path), "again"], cwd=tmp_path, check=True)
    for path in written:
        if path.suffix == ".svg":
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_other_results_give_another_figure(study: StudyFolder, written: list[Path], tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", FEW)
    lines = (folder / "summary.csv").read_text().splitlines()
    header = lines[0].split(",")
    fields = lines[1].split(",")
    fields[header.index("mean")] = str(float(fields[header.index("mean")]) + 0.01)
    (folder / "summary.csv").write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]))
    write_figures(read_study(folder), tmp_path / "figures")
    changed = f"means-{fields[header.index('measure')]}.svg"
    before = next(path for path in written if path.name == changed)
    assert before.read_bytes() != (tmp_path / "figures" / changed).read_bytes()


def test_figures_name_methods_units_seeds_and_verdicts(study: StudyFolder) -> None:
    means = text_of(study, "means-bits_per_byte")
    for said in (
        "cross-entropy alone",
        "p-kl @ equal gradient",
        "lower is better",
        "95 % interval over 3 seeds",
        "8 →",
    ):
        assert said in means
    differences = text_of(study, "against-ce-bits_per_byte")
    for said in ("better", "worse", "undecided", "paired by seed over 3 seeds"):
        assert said in differences
    assert "better ↖" in text_of(study, "trade-off-splits-digits")
    assert "filled: the value chosen" in text_of(study, "sweep")


@pytest.mark.parametrize("pairs", [("p",), ("p", "q")])
def test_a_legend_of_many_long_names_fits_its_figure(tmp_path: Path, pairs: tuple[str, ...]) -> None:
    methods = ("ce", "gold", *(f"m{n}" for n in range(15)))
    labels = {name: f"{name}: two teachers, adaptive weights" for name in methods}
    made = MadeUp(methods, varied=("gold",), pairs=pairs, measures=("bits_per_byte", "teacher_kl"), labels=labels)
    study = read_study(write_study(tmp_path, made))
    with figures._plain_settings():
        for name in ("trade-off-p", "sweep"):
            figure = study_figures(study)[name]()
            figure.draw_without_rendering()
            (legend,) = figure.legends
            box = legend.get_window_extent()
            assert box.x0 >= 0, name
            assert box.x1 <= figure.bbox.x1, name


def test_the_axes_of_a_trade_off_are_the_means_own(study: StudyFolder) -> None:
    with figures._plain_settings():
        axis = study_figures(study)["trade-off-splits-digits"]().axes[0]
    means = [p.x.mean for p in trade_off(study, "splits-digits", "teacher_kl", "bits_per_byte").values()]
    assert axis.get_xlim() == pytest.approx(within(means))


def test_verdicts_differ_by_marker_and_not_by_colour_alone() -> None:
    for styles in (figures._VERDICTS, figures._ANSWERS):
        assert len({(style["marker"], style.get("mfc")) for style in styles.values()}) == len(styles)
    both = {(figures.COLOURS[n % 7], figures.MARKERS[n % 11]) for n in range(77)}
    assert (len(figures.COLOURS), len(figures.MARKERS), len(both)) == (7, 11, 77)


def test_one_seed_draws_points_and_says_there_is_no_interval(tmp_path: Path) -> None:
    made = MadeUp(methods=("ce", "gold"), varied=(), pairs=("p",), seeds=(0,), measures=("bits_per_byte",))
    study = read_study(write_study(tmp_path, made))
    assert "95 % interval: none with one seed" in text_of(study, "means-bits_per_byte")


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    made = MadeUp(methods=("ce", "gold", "a $\\frac{$ b"), varied=(), pairs=("p/$q$",), measures=("bits_per_byte",))
    study = read_study(write_study(tmp_path, made))
    files = write_figures(study, tmp_path / "figures")
    assert all(path.parent == tmp_path / "figures" for path in files)
    assert "a $\\frac{$ b" in text_of(study, "means-bits_per_byte")


def test_a_study_without_results_has_nothing_to_draw(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: x\n")
    with pytest.raises(XTokenError, match=r"nothing to draw in .*no summary\.csv, comparisons\.csv or answers\.json"):
        write_figures(read_study(tmp_path), tmp_path / "figures")


def test_matplotlib_is_asked_for_by_its_extra(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(XTokenError, match=r"--figures needs the package matplotlib.*pip install 'xtoken\[figures\]'"):
        write_figures(study, tmp_path)
