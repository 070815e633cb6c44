"""A study's figures for a paper, as SVG and PNG through matplotlib (extra `figures`).

Laws: the same results give the same SVG, byte for byte, so that a figure kept in git changes with its data alone (a
constant salt for the ids, no date and no version in it; a PNG's pixels may differ between matplotlib releases). What a
colour says is said by a marker, a line's dashes or a word too, so that a figure survives grey printing.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtoken.errors import XTokenError
from xtoken.files import write_whole
from xtoken.report.study_folder import Measure, Method, StudyFolder
from xtoken.report.study_views import (
    TRADE_OFFS,
    Swept,
    claim_rows,
    ends,
    joints,
    swept,
    swept_values,
    trade_off,
    within,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["study_figures", "write_figures"]

# Inches: a column and the text of the usual two-column paper (ACL, ICML: 3.03 to 3.25 and 6.3 to 6.75).
COLUMN, TEXT = 3.25, 6.75
ROW, MARGIN = 0.145, 0.75  # inches of a method's row, and of title and axis
FONT = 7.0  # points: the size of a footnote in print
LETTER, HANDLE = 0.58, 4.5  # ems: of DejaVu Sans by letter, measured on labels of ours; a legend's mark and spaces
DPI = 300
# Okabe and Ito's palette, which the colour-blind tell apart, without the yellow that is faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# 7 and 11 have no common factor, so colour and marker together tell 77 methods apart.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
INK, FAINT, RULE = "#222222", "#777777", "#dddddd"
_SETTINGS = {
    "svg.hashsalt": "xtoken",
    "text.parse_math": False,  # a method's name may hold a $
    "font.size": FONT,
    "axes.titlesize": FONT + 1,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT,
    "axes.linewidth": 0.6,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def write_figures(study: StudyFolder, folder: Path) -> list[Path]:
    """Writes every figure of a study as NAME.svg and NAME.png.

    Returns:
        The files, in the order written.

    Raises:
        XTokenError: matplotlib is not installed; the study has no results to draw yet.
    """
    if find_spec("matplotlib") is None:
        raise XTokenError(
            "--figures needs the package matplotlib, which is not installed: pip install 'xtoken[figures]'"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with _plain_settings():
        for name, draw in study_figures(study).items():
            figure = draw()
            # No date, no release: the file changes with the data alone.
            for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=suffix[1:], metadata=metadata, dpi=DPI)
                write_whole(folder / f"{name}{suffix}", buffer.getvalue())
                written.append(folder / f"{name}{suffix}")
    if not written:
        raise XTokenError(
            f"nothing to draw in {str(study.path)!r}: no summary.csv, comparisons.csv or answers.json with results"
        )
    return written


def study_figures(study: StudyFolder) -> dict[str, Callable[[], Figure]]:
    """Every figure the study's results allow, by the name of its file, and what draws it."""
    found: dict[str, Callable[[], Figure]] = {}
    if any(c.difference is not None for q in study.questions for c in q.claims):
        found["questions"] = lambda: _questions(study)
    for measure in study.measures:
        found[f"means-{measure.name}"] = lambda measure=measure: _means(study, measure)  # type: ignore[misc]
        for baseline in study.baselines:
            if any(study.against(pair, measure.name, baseline) for pair in study.pairs):
                found[f"against-{baseline}-{measure.name}"] = lambda measure=measure, baseline=baseline: _differences(  # type: ignore[misc]
                    study, measure, baseline
                )
    for pair in study.pairs:
        if any(trade_off(study, pair, x, y) for x, y in TRADE_OFFS):
            found[f"trade-off-{pair}"] = lambda pair=pair: _trade_offs(study, pair)  # type: ignore[misc]
    if any(swept(study, pair) for pair in study.pairs):
        found["sweep"] = lambda: _sweeps(study)
    return {_file_name(name): draw for name, draw in found.items()}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


@contextmanager
def _plain_settings() -> Iterator[None]:
    """matplotlib's own settings and ours, whatever the reader's matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


# --- means: methods down, a panel a pair ---


def _means(study: StudyFolder, measure: Measure) -> Figure:
    """Mean and 95 % interval by method; baselines as lines through the panel; teachers and the start as last rows."""
    found = {pair: study.summary(pair, measure.name) for pair in study.pairs}
    found = {pair: rows for pair, rows in found.items() if rows}
    methods = [m for m in study.methods if any(m in rows for rows in found.values())]
    references = list(dict.fromkeys(name for pair in found for name in study.reference_values(pair, measure.name)))
    labels = [*(study.label(m) for m in methods), *references]
    figure, axes = _panels(list(found), labels)
    for axis, (pair, rows) in zip(axes, found.items(), strict=True):
        for number, name in enumerate(study.baselines):
            if (base := rows.get(Method(name))) is not None:
                axis.axvline(base.mean, color=FAINT, lw=0.8, ls=DASHES[number % len(DASHES)], zorder=1,
                             label=study.label(Method(name)))  # fmt: skip
        for place, method in enumerate(methods):
            if method in rows:
                _interval(axis, place, ends(rows[method]), _style(method, study))
        _show_references(axis, study.reference_values(pair, measure.name), references, len(methods))
        axis.set_xlabel(_axis_label(measure))
    _legend(figure, axes, "mean and 95 % interval" + _seeds(s.seeds for rows in found.values() for s in rows.values()))
    return figure


def _show_references(axis: Axes, values: Mapping[str, float], names: Sequence[str], first: int) -> None:
    """A diamond for each model, or an arrow at the edge where its value would squeeze everything else together."""
    low, high = axis.get_xlim()
    for place, name in enumerate(names, first):
        value = values.get(name)
        if value is None:
            continue
        if low <= value <= high:
            axis.plot(value, place, "D", color=INK, mfc="white", ms=3.6, mew=0.9)
            continue
        right = value > high
        axis.annotate(
            f"{value:.3g} →" if right else f"← {value:.3g}",
            (1 if right else 0, place),
            xycoords=("axes fraction", "data"),
            ha="right" if right else "left",
            va="center",
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    axis.set_xlim(low, high)


# --- differences: paired by seed ---


def _differences(study: StudyFolder, measure: Measure, baseline: str) -> Figure:
    """Each method less a baseline; the marker says better, worse or undecided."""
    found = {pair: study.against(pair, measure.name, baseline) for pair in study.pairs}
    found = {pair: rows for pair, rows in found.items() if rows}
    methods = [m for m in study.methods if any(m in rows for rows in found.values())]
    figure, axes = _panels(list(found), [study.label(m) for m in methods])
    for axis, rows in zip(axes, found.values(), strict=True):
        axis.axvline(0, color=FAINT, lw=0.8, zorder=1)
        for place, method in enumerate(methods):
            if method in rows:
                _interval(axis, place, ends(rows[method]), _VERDICTS.get(rows[method].verdict, _VERDICTS["undecided"]))
        axis.set_xlabel(
            f"{measure.name} less {study.label(Method(baseline))}\n({measure.unit}, {measure.direction} is better)"
        )
    for verdict, style in _VERDICTS.items():
        axes[0].plot([], [], ls="", label=verdict, **style)
    _legend(figure, axes, "95 % interval, paired by seed" + _seeds(c.seeds for r in found.values() for c in r.values()))
    return figure


_VERDICTS: dict[str, dict[str, Any]] = {
    "better": {"color": "#0072b2", "marker": "^", "ms": 4.2},
    "worse": {"color": "#d55e00", "marker": "v", "ms": 4.2},
    "undecided": {"color": FAINT, "marker": "o", "ms": 3.4, "mfc": "white"},
}


# --- questions: one row a claim ---

_ANSWERS: dict[str, dict[str, Any]] = {
    "holds": {"color": "#0072b2", "marker": "o", "ms": 4},
    "fails": {"color": "#d55e00", "marker": "X", "ms": 4.4},
    "undecided": {"color": FAINT, "marker": "o", "ms": 3.6, "mfc": "white"},
}


def _questions(study: StudyFolder) -> Figure:
    """Each claim's improvement of its left side over its right, a panel a measure: units differ."""
    from matplotlib.figure import Figure

    panels = {m: rows for m in study.measures if (rows := claim_rows(study, m))}
    counts = [len(rows) for rows in panels.values()]
    height = ROW * 1.15 * sum(counts) + 0.62 * len(panels) + 0.45
    figure = Figure(figsize=(TEXT, height), layout="constrained")
    found = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [c + 0.6 for c in counts]})
    axes = [row[0] for row in found]
    for axis, (measure, rows) in zip(axes, panels.items(), strict=True):
        axis.axvline(0, color=FAINT, lw=0.8, zorder=1)
        for place, row in enumerate(rows):
            _interval(axis, place, row.ends, _ANSWERS.get(row.claim.verdict, _ANSWERS["undecided"]))
        _rows(axis, [f"{row.label}, {row.claim.pair}" for row in rows])
        axis.set_xlabel(f"improvement in {measure.name} ({measure.unit})")
    for verdict, style in _ANSWERS.items():
        axes[0].plot([], [], ls="", label=verdict, **style)
    seeds = _seeds(row.claim.seeds for rows in panels.values() for row in rows)
    _legend(figure, axes, f"the first less the second, 95 % interval{seeds}; right of 0 the first is better")
    return figure


# --- trade-offs: two measures at once ---


def _trade_offs(study: StudyFolder, pair: str) -> Figure:
    """Closeness to the teacher, the text and the task two by two; a method's variants joined by lines."""
    from matplotlib.figure import Figure

    shown = [(x, y) for x, y in TRADE_OFFS if trade_off(study, pair, x, y)]
    methods = list(dict.fromkeys(m for x, y in shown for m in trade_off(study, pair, x, y)))
    bases = list(dict.fromkeys(m.base for m in methods))
    columns = _columns([*(study.label(Method(base)) for base in bases), "swept setting", "other variant"], TEXT)
    height = 2.35 + ROW * (2 + math.ceil(len(bases) / columns))
    figure = Figure(figsize=(TEXT, height), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    styles = {base: (COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]) for n, base in enumerate(bases)}
    for axis, (x, y) in zip(axes, shown, strict=True):
        _trade_off(axis, study, pair, (x, y), styles)
    handles = [
        axes[0].plot([], [], ls="", marker=marker, color=colour, ms=4, label=study.label(Method(base)))[0]
        for base, (colour, marker) in styles.items()
    ]
    if any(m.variant for m in methods):
        handles.append(
            axes[0].plot([], [], color=FAINT, lw=0.8, marker="o", mfc="white", ms=3, label="swept setting")[0]
        )
        handles.append(axes[0].plot([], [], color=FAINT, lw=0.8, ls=":", marker="o", mfc="white", ms=3,
                                    label="other variant")[0])  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handletextpad=0.4, columnspacing=1.2)
    figure.suptitle(pair, fontsize=FONT + 1)
    return figure


def _trade_off(
    axis: Axes, study: StudyFolder, pair: str, measures: tuple[str, str], styles: Mapping[str, tuple[str, str]]
) -> None:
    points = trade_off(study, pair, *measures)
    for joint in joints(points):
        both = (points[joint.start], points[joint.end])
        axis.plot(
            [p.x.mean for p in both],
            [p.y.mean for p in both],
            color=styles[joint.start.base][0],
            lw=0.7,
            ls="-" if joint.along_a_number else ":",
            zorder=2,
        )
    for method, point in points.items():
        colour, marker = styles[method.base]
        across, up = ends(point.x), ends(point.y)
        axis.plot(across[1:], [up[0]] * 2, color=colour, lw=0.5, alpha=0.5, zorder=1)
        axis.plot([across[0]] * 2, up[1:], color=colour, lw=0.5, alpha=0.5, zorder=1)
        face = "white" if method.variant else colour
        axis.plot(across[0], up[0], marker, color=colour, mfc=face, mew=0.8, ms=3 if method.variant else 4.2, zorder=3)
    x, y = (next(iter(points.values()))[place].measure for place in (0, 1))
    axis.set(xlim=within(p.x.mean for p in points.values()), ylim=within(p.y.mean for p in points.values()))
    axis.set(xlabel=_axis_label(x), ylabel=_axis_label(y))
    axis.grid(color=RULE, lw=0.4)
    axis.set_title(f"better {_better(x, y)}", loc="right", fontsize=FONT, color=FAINT)


def _better(x: Measure, y: Measure) -> str:
    """An arrow to the corner where both measures are better."""
    return {("lower", "lower"): "↙", ("lower", "higher"): "↖", ("higher", "lower"): "↘"}.get(
        (x.direction, y.direction), "↗"
    )


# --- the sweep ---


def _sweeps(study: StudyFolder) -> Figure:
    """The measure that decided by the swept value, a line a method, the chosen value filled."""
    from matplotlib.figure import Figure

    declared = study.settings.get("sweep") or {}
    pairs = [pair for pair in study.pairs if swept(study, pair)]
    bases = list(dict.fromkeys(s.method for pair in pairs for s in swept(study, pair)))
    width = TEXT if len(pairs) > 1 else COLUMN
    columns = _columns([study.label(m) for m in bases], width)
    rows = math.ceil(len(pairs) / 2)
    height = 2.1 * rows + ROW * (1 + math.ceil(len(bases) / columns))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, min(2, len(pairs)), squeeze=False).flat)
    for axis, pair in zip(axes, pairs, strict=False):
        values = swept_values(swept(study, pair))
        for found in swept(study, pair):
            number = bases.index(found.method)
            _swept_line(axis, values, found, COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        axis.set(title=pair, xlabel=str(declared.get("key", "")))
        axis.set_xticks(range(len(values)), values)
        axis.set_ylabel(f"{declared.get('choose_by', '')}, validation")
    for axis in axes[len(pairs) :]:
        axis.remove()
    handles = [axes[0].plot([], [], color=COLOURS[n % len(COLOURS)], marker=MARKERS[n % len(MARKERS)], ms=3.6, lw=0.7,
                            label=study.label(m))[0] for n, m in enumerate(bases)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, title="filled: the value chosen",
                  title_fontsize=FONT)  # fmt: skip
    return figure


def _swept_line(axis: Axes, values: Sequence[str], found: Swept, colour: str, marker: str) -> None:
    """Values at equal steps: a sweep's are declared so that each is as far from the next."""
    there = [n for n, value in enumerate(values) if value in found.means]
    means = [found.means[values[n]] for n in there]
    axis.plot(there, means, color=colour, lw=0.7, marker=marker, mfc="white", ms=3.2, mew=0.7)
    if found.chosen is not None:
        axis.plot(values.index(found.chosen), found.means[found.chosen], marker, color=colour, ms=4.4)


# --- what they share ---


def _columns(labels: Sequence[str], width: float) -> int:
    """How many columns of a legend fit in a figure so wide, the longest label in any of them."""
    letters = max(map(len, labels), default=0)
    return max(1, min(5, int(width / ((letters * LETTER + HANDLE) * FONT / 72))))


def _panels(titles: Sequence[str], labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A panel a title, two in a row, with the same rows down."""
    from matplotlib.figure import Figure

    rows, columns = math.ceil(len(titles) / 2), min(2, len(titles))
    height = rows * (ROW * len(labels) + MARGIN) + 2 * ROW
    figure = Figure(figsize=(TEXT if columns > 1 else COLUMN, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title)
        _rows(axis, labels)
    for axis in axes[len(titles) :]:
        axis.remove()
    return figure, axes[: len(titles)]


def _rows(axis: Axes, labels: Sequence[str]) -> None:
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)  # the first on top
    axis.grid(axis="y", color=RULE, lw=0.4)
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)


def _interval(axis: Axes, place: float, bounds: tuple[float, float, float], style: Mapping[str, Any]) -> None:
    mean, low, high = bounds
    axis.plot([low, high], [place, place], color=style["color"], lw=1.1, zorder=2, solid_capstyle="butt")
    axis.plot(mean, place, ls="", zorder=3, mew=0.9, **style)


def _style(method: Method, study: StudyFolder) -> dict[str, Any]:
    """Baselines are squares, other methods discs, variants rings."""
    colour = INK if method.name in study.baselines else COLOURS[0]
    marker = "s" if method.name in study.baselines else "o"
    return {"color": colour, "marker": marker, "ms": 3.4, "mfc": "white" if method.variant else colour}


def _axis_label(measure: Measure) -> str:
    return f"{measure.name}\n({measure.unit}, {measure.direction} is better)"


def _seeds(counts: Iterator[int]) -> str:
    """The number of seeds behind the intervals, for the legend's title."""
    found = sorted(set(counts))
    if found == [1]:
        return ": none with one seed"
    return f" over {found[0]} seeds" if len(found) == 1 else f" over {found[0]} to {found[-1]} seeds"


def _legend(figure: Figure, axes: Sequence[Axes], title: str) -> None:
    """What the marks mean, beneath the panels; the title alone where there is nothing to tell apart."""
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, title=title, title_fontsize=FONT)
    else:
        figure.supxlabel(title, fontsize=FONT)
