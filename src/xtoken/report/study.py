"""The page of a study: what its questions came to first, and after that the figures they rest on.

A section whose file or measure is not there says so: a page never passes over in silence what it lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xtoken.report.page import (
    Cell,
    Keyed,
    Markup,
    Section,
    details,
    facts,
    figure,
    headline,
    join,
    markup,
    note,
    number,
    page,
    paragraphs,
    table,
    tabs,
)
from xtoken.report.study_charts import Dot, Link, Spot, dots, scatter
from xtoken.report.study_folder import Comparison, Measure, Method, StudyFolder, Summary, read_study
from xtoken.report.study_views import (
    TRADE_OFFS,
    ClaimRow,
    Swept,
    Weighed,
    claim_rows,
    ends,
    joints,
    swept,
    swept_values,
    times,
    trade_off,
    weighed,
    weighings,
)
from xtoken.study.questions import Answer

__all__ = ["study_page"]

_ICONS = {"holds": "✓", "fails": "✗", "undecided": "?", "better": "▲", "worse": "▼"}
# Which colour and shape of the charts: a triangle up, one down, a disc, and for questions a disc, a cross, a square.
_COMPARED = {"better": 2, "worse": 4, "undecided": 0}
_ANSWERED = {"holds": 0, "fails": 5, "undecided": 1}
_METHOD, _BASELINE, _REFERENCE = 0, 1, 3  # series of a mean's mark
_MARKS = "Squares are the baselines, rings variants, diamonds models that the study did not train."
_PARTS = {
    "commit": "commit",
    "dirty": "changes not committed",
    "date": "date",
    "cpu": "processor",
    "cores": "cores",
    "gpu": "GPU",
}


def study_page(folder: str | Path) -> str:
    """The report of a study as one HTML document.

    Args:
        folder: what `xtoken study` wrote.

    Raises:
        XTokenError: it is no study's folder, or a file in it cannot be read as what it should be.
    """
    study = read_study(folder)
    sections = [
        Section("Verdict", "verdict", _verdict(study)),
        Section("Methods", "methods", _means(study)),
        Section("Against the baselines", "baselines", _differences(study)),
        Section("Trade-offs", "trade-offs", _trade_offs(study)),
        Section("Sweep", "sweep", _sweep(study)),
        Section("KD weights", "weights", _weights(study)),
        Section("Teachers and audit", "references", _references(study)),
        Section("All means", "summary", _summary_table(study)),
        Section("All comparisons", "comparisons", _comparison_table(study)),
        Section("Failed cells", "failed", _failed(study)),
        Section("Time", "time", _time(study)),
        Section("Machine and versions", "machine", _machine(study)),
        Section("Make it again", "again", _again(study)),
    ]
    return page(f"Study: {study.name}", _lede(study), sections)


def _lede(study: StudyFolder) -> str:
    counts = [
        _many(len({m.base for m in study.methods}), "method"),
        _many(sum(1 for m in study.methods if m.variant), "variant"),
        _many(len(study.pairs), "pair of models", "pairs of models"),
        _many(_seed_count(study), "seed"),
    ]
    quick = "A quick run, smaller than the study. " if study.machine.get("quick") else ""
    return f"{quick}{', '.join(counts)}. Intervals are of 95 % over seeds; comparisons are paired by seed."


def _seed_count(study: StudyFolder) -> int:
    return max((s.seeds for s in study.summaries), default=0)


# --- verdict ---


def _verdict(study: StudyFolder) -> Markup:
    """How many questions hold, each question with its claims, and the claims drawn."""
    if not study.questions:
        return _absent(study, "answers.json", "the study asks no questions") + _cards(study)
    return join([_cards(study), *(_question(q) for q in study.questions), _claim_charts(study)])


def _cards(study: StudyFolder) -> Markup:
    counts = Counter[str](q.verdict for q in study.questions)
    total = len(study.questions)
    cards = [
        (f"{_ICONS[verdict]} {words}", f"{counts[verdict]} of {total}", "questions")
        for verdict, words in (("holds", "hold"), ("fails", "fail"), ("undecided", "undecided"))
        if total
    ]
    done = len({(r.pair, r.method, r.stage, r.seed, r.learning_rate) for r in study.results})
    if done:
        failed = len(study.failed)
        cards.append(("Trainings", number(done), f"{failed} more failed" if failed else ""))
    cards.append(("Seeds", number(_seed_count(study)), "" if _seed_count(study) > 1 else "no intervals with one seed"))
    return headline(cards)


def _question(question: Answer) -> Markup:
    return markup(
        '<h3>{} – ({}) {}</h3>\n<ul class="claims">\n{}</ul>\n',
        _word(question.verdict),
        question.id,
        question.asks or "asked by its claims alone",
        join(markup("<li>{}: {}</li>\n", _word(c.verdict), c.sentence) for c in question.claims),
    )


def _claim_charts(study: StudyFolder) -> Markup:
    """The claims' intervals, a tab a measure (units differ), a chart a pair."""
    panels = []
    for measure in study.measures:
        rows = claim_rows(study, measure)
        pairs = dict.fromkeys(row.claim.pair for row in rows)
        charts = [_claim_chart(pair, measure, [row for row in rows if row.claim.pair == pair]) for pair in pairs]
        if charts:
            panels.append((measure.name, join(charts)))
    return markup("<h3>The claims drawn</h3>\n{}", tabs("Measure of the claims", panels)) if panels else Markup("")


def _claim_chart(pair: str, measure: Measure, rows: Sequence[ClaimRow]) -> Markup:
    drawn = [
        Dot(
            label=row.label,
            name=row.label,
            value=row.ends[0],
            low=None if row.claim.low is None else row.ends[1],
            high=None if row.claim.high is None else row.ends[2],
            series=_ANSWERED.get(row.claim.verdict, _ANSWERED["undecided"]),
            note=_plain(row.claim.verdict),
        )
        for row in rows
    ]
    chart = dots(
        drawn,
        title=f"Claims on {measure.name}, {pair}",
        x_label=f"improvement, {measure.unit}",
        rules=[("no difference", 0.0)],
    )
    caption = (
        "The improvement of the first over the second, and its 95 % interval: right of the line the first is better."
    )
    return markup("<h4>{}</h4>\n{}", pair, figure(chart, caption))


# --- means ---


def _means(study: StudyFolder) -> Markup:
    """A tab a measure, a chart a pair."""
    if not study.summaries:
        return _absent(study, "summary.csv", "no method has finished")
    return tabs(
        "Measure",
        [
            (m.name, join(_mean_chart(study, pair, m) for pair in study.pairs if study.summary(pair, m.name)))
            for m in study.measures
        ],
    )


def _mean_chart(study: StudyFolder, pair: str, measure: Measure) -> Markup:
    rows = study.summary(pair, measure.name)
    baselines = [(study.label(m), s.mean) for m, s in rows.items() if m.name in study.baselines]
    drawn = [
        Dot(
            **_name(study, method, rows),
            value=summary.mean,
            low=summary.low,
            high=summary.high,
            series=_BASELINE if method.name in study.baselines else _METHOD,
            note=number(summary.mean),
        )
        for method, summary in rows.items()
    ]
    drawn += [
        Dot(label=name, name=name, value=value, series=_REFERENCE, note=number(value), outside=True)
        for name, value in study.reference_values(pair, measure.name).items()
    ]
    chart = dots(drawn, title=f"{measure.name} on {pair}", x_label=_axis(measure), rules=baselines)
    return markup("<h4>{}</h4>\n{}", pair, figure(chart, f"{_with_interval('Mean', rows.values())} {_MARKS}"))


def _name(study: StudyFolder, method: Method, rows: Mapping[Method, object]) -> dict[str, Any]:
    """A row's name; a variant stands set in under its method where that is there."""
    under = bool(method.variant) and Method(method.base) in rows
    name = study.label(method)
    return {
        "label": f"@ {method.variant}" if under else name,
        "name": name,
        "indent": under,
        "ring": bool(method.variant),
    }


# --- differences ---


def _differences(study: StudyFolder) -> Markup:
    """A tab a measure, a chart a pair and baseline."""
    if not study.comparisons:
        return _absent(study, "comparisons.csv", "nothing was compared")
    panels = []
    for measure in study.measures:
        charts = [
            _difference_chart(study, pair, measure, baseline)
            for baseline in study.baselines
            for pair in study.pairs
            if study.against(pair, measure.name, baseline)
        ]
        if charts:
            panels.append((measure.name, join(charts)))
    return tabs("Measure of the differences", panels)


def _difference_chart(study: StudyFolder, pair: str, measure: Measure, baseline: str) -> Markup:
    rows = study.against(pair, measure.name, baseline)
    less = study.label(Method(baseline))
    drawn = [
        Dot(
            **_name(study, method, rows),
            value=ends(row)[0],
            low=row.low,
            high=row.high,
            series=_COMPARED.get(row.verdict, 0),
            note=_plain(row.verdict),
        )
        for method, row in rows.items()
    ]
    chart = dots(
        drawn,
        title=f"{measure.name} less that of {less}, on {pair}",
        x_label=_axis(measure),
        rules=[(f"no difference from {less}", 0.0)],
    )
    return markup(
        "<h4>{}, against {}</h4>\n{}",
        *(
            pair,
            less,
            figure(chart, _with_interval("Difference, paired by seed,", rows.values())),
        ),
    )


# --- trade-offs ---


def _trade_offs(study: StudyFolder) -> Markup:
    """Two measures at a time, a tab a pair."""
    said = paragraphs(
        "How close the student comes to its teacher (teacher_kl), what it learns of the text (bits_per_byte) and the "
        "task (exact_answers), apart: a method may gain in one and lose in another. Rings are variants; a line joins "
        "those that differ in a number alone, a dotted one leads from a method to a variant of another kind."
    )
    names = {m.name for m in study.measures}
    missing = sorted({name for both in TRADE_OFFS for name in both} - names)
    if missing:
        said += note(f"Not measured in this study: {', '.join(missing)}.")
    panels = [(pair, charts) for pair in study.pairs if (charts := join(_trade_off_charts(study, pair)))]
    return said + (tabs("Pair", panels) if panels else note("No two of these measures are there to be drawn."))


def _trade_off_charts(study: StudyFolder, pair: str) -> list[Markup]:
    bases = list(dict.fromkeys(m.base for m in study.methods))
    legend = [study.label(Method(base)) for base in bases]
    found: list[Markup] = []
    for x, y in TRADE_OFFS:
        points = trade_off(study, pair, x, y)
        if not points:
            continue
        spots = [
            Spot(study.label(m), ends(p.x), ends(p.y), bases.index(m.base), bool(m.variant)) for m, p in points.items()
        ]
        links = [Link(study.label(j.start), study.label(j.end), not j.along_a_number) for j in joints(points)]
        any_point = next(iter(points.values()))
        chart = scatter(
            spots,
            links,
            title=f"{y} against {x} on {pair}",
            x_label=f"{x}: {_axis(any_point.x.measure)}",
            y_label=f"{y}: {_axis(any_point.y.measure)}",
            legend=[] if found else legend,  # once a pair
        )
        found.append(figure(chart, f"{y} against {x}; lines through a mark are 95 % intervals, cut at the edge."))
    return found


# --- sweep ---


def _sweep(study: StudyFolder) -> Markup:
    """What was declared, and what each method chose, a table a pair."""
    declared = study.settings.get("sweep")
    if not declared:
        return note("The study sweeps nothing: each method trains with its own settings.")
    if study.machine.get("quick") and not study.sweep:
        return note("A quick run leaves the sweep out: each method trains with its own settings.")
    values = ", ".join(str(value) for value in declared.get("values", ()))
    said = paragraphs(
        f"Declared before: {declared.get('key')} of {values}, chosen by {declared.get('choose_by')} on the validation "
        f"text with {_many(len(declared.get('seeds', ())), 'seed')} of its own. Variants take their method's value."
    )
    tables = [_sweep_table(pair, found, study) for pair in study.pairs if (found := swept(study, pair))]
    return said + (join(tables) if tables else _absent(study, "sweep.csv", "no cell of the sweep has finished"))


def _sweep_table(pair: str, found: Sequence[Swept], study: StudyFolder) -> Markup:
    values = swept_values(found)
    rows = [[study.label(e.method), e.chosen or "–", *(_swept_cell(e, value) for value in values)] for e in found]
    edge = [study.label(e.method) for e in found if len(values) > 2 and e.chosen in (values[0], values[-1])]
    remark = note(f"Chosen at an end of the values, so that a better one may lie beyond: {', '.join(edge)}.")
    shown = table(["method", "chosen", *values], rows, caption=f"The sweep on {pair}", numeric=["chosen", *values])
    return shown + (remark if edge else "")


def _swept_cell(found: Swept, value: str) -> Cell:
    mean = found.means.get(value)
    return Keyed(markup("<b>✓ {}</b>", number(mean)), mean) if value == found.chosen else mean


# --- KD weights ---


def _weights(study: StudyFolder) -> Markup:
    """Which weight of the teachers' sum serves each method, a tab a measure, a table a pair."""
    variants = weighings(study)
    if not variants:
        return note("The study has no variants by KD weight: each method trains at its own.")
    if not study.results:
        return _absent(study, "results.csv", "no cell has finished")
    weights = ", ".join(f"{name} is {weight}" for name, weight in variants.items())
    said = paragraphs(
        "Dynamic scaling evens out the values of the losses and not how hard they push, so methods were also run at "
        f"other weights of the teachers' sum (loss.kd_weight): {weights}. "
        "Each row is over the seeds that all its weights have. The best is marked after the fact, on this measure "
        "itself, so on another text it would look a little less good; whether a weight beats the baselines is said, "
        "with intervals, under their heading."
    )
    panels = [
        (
            m.name,
            join(_weight_table(study, pair, m, found) for pair in study.pairs if (found := weighed(study, pair, m))),
        )
        for m in study.measures
    ]
    shown = [(name, tables) for name, tables in panels if tables]
    return said + (
        tabs("Measure of the weights", shown) if shown else note("No method has finished at two of them yet.")
    )


def _weight_table(study: StudyFolder, pair: str, measure: Measure, found: Sequence[Weighed]) -> Markup:
    variants = [name for name in weighings(study) if any(name in each.means for each in found)]
    rows = [
        [
            study.label(each.method),
            each.own if each.best == "" else each.best,
            each.own,
            *(_weighed_cell(each, name) for name in ("", *variants)),
            each.seeds,
        ]
        for each in found
    ]
    return table(
        ["method", "best", "its own", "at its own", *variants, "seeds"],
        rows,
        caption=f"{measure.name} on {pair} by KD weight ({_axis(measure)})",
        numeric=["at its own", *variants, "seeds"],
    )


def _weighed_cell(found: Weighed, name: str) -> Cell:
    mean = found.means.get(name)
    return Keyed(markup("<b>✓ {}</b>", number(mean)), mean) if name == found.best else mean


# --- references ---


def _references(study: StudyFolder) -> Markup:
    """What the models reach that nothing trained here, and what the audit says of each pair."""
    if not study.references:
        return _absent(study, "references.json", "no model was measured")
    found: list[Markup] = []
    for pair, here in study.references.items():
        columns = [m.name for m in study.measures if study.reference_values(pair, m.name)]
        by_measure = {name: study.reference_values(pair, name) for name in columns}
        names = list(dict.fromkeys(name for values in by_measure.values() for name in values))
        rows: list[list[Cell]] = [[name, *(by_measure[column].get(name) for column in columns)] for name in names]
        found.append(markup("<h3>{}</h3>\n", pair))
        found.append(_audit(here.get("audit") or {}))
        if rows:
            found.append(table(["model", *columns], rows, caption=f"Measures of the models of {pair}", numeric=columns))
    return join(found)


def _audit(audit: Mapping[str, Any]) -> Markup:
    if not audit.get("recommended_loss"):
        return note("references.json holds no audit of this pair.")
    return paragraphs(f"The audit recommends {audit['recommended_loss']}: {audit.get('reason', '')}")


# --- tables ---


def _summary_table(study: StudyFolder) -> Markup:
    if not study.summaries:
        return _absent(study, "summary.csv", "no method has finished")
    headings = ["method", "pair", "measure", "mean", "low", "high", "seeds"]
    rows: list[list[Cell]] = [
        [study.label(s.method), s.pair, s.measure.name, s.mean, s.low, s.high, s.seeds]
        for s in study.summaries
    ]  # fmt: skip
    return table(
        headings,
        rows,
        caption="Means with 95 % intervals over seeds",
        searchable=True,
        numeric=["mean", "low", "high", "seeds"],
    )


def _comparison_table(study: StudyFolder) -> Markup:
    if not study.comparisons:
        return _absent(study, "comparisons.csv", "nothing was compared")
    said = study.statistics.get("sentence")
    headings = ["method", "baseline", "pair", "measure", "verdict", "difference", "low", "high", "seeds", "in words"]
    rows: list[list[Cell]] = [
        [study.label(c.method), study.label(Method(c.baseline)), c.pair, c.measure, _plain(c.verdict), c.difference,
         c.low, c.high, c.seeds, c.sentence]
        for c in study.comparisons
    ]  # fmt: skip
    shown = table(
        headings,
        rows,
        caption="Each method less each baseline, paired by seed, with 95 % intervals",
        searchable=True,
        numeric=["difference", "low", "high", "seeds"],
    )
    return paragraphs(str(said)) + shown if said else shown


def _failed(study: StudyFolder) -> Markup:
    if not study.cells:
        return note("The cells are not in this folder, so it cannot be told whether any failed.")
    failed = study.failed
    if not failed:
        return paragraphs("None failed.")
    headings = ["method", "pair", "stage", "seed", "learning rate", "error"]
    rows: list[list[Cell]] = [
        [study.label(c.method), c.pair, c.stage, c.seed, Keyed(_rate(c.learning_rate), c.learning_rate), c.error]
        for c in failed
    ]
    return table(headings, rows, caption=f"{_many(len(failed), 'cell')} failed", numeric=["learning rate"])


def _time(study: StudyFolder) -> Markup:
    found = times(study)
    if not found:
        return _absent(study, "results.csv", "no cell has finished")
    headings = ["method", "trainings", "seconds each", "seconds in all"]
    rows: list[list[Cell]] = [[study.label(t.method), t.cells, t.mean, t.total] for t in found]
    caption = "Seconds of training by the clock; cells that ran side by side slow each other"
    return table(headings, rows, caption=caption, numeric=headings[1:])


# --- where it was made ---


def _machine(study: StudyFolder) -> Markup:
    if not study.machine:
        return _absent(study, "machine.json", "the study has not ended")
    return facts([(_PARTS.get(name, name), _fact(value)) for name, value in study.machine.items()])


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:,.0f}" if isinstance(value, float) else str(value)


def _again(study: StudyFolder) -> Markup:
    """The commands, and study.yaml as it was read."""
    commit = study.machine.get("commit")
    steps = [f"git checkout {commit}"] if commit else []
    quick, folder = (" --quick", "-quick") if study.machine.get("quick") else ("", "")
    steps += [
        f"xtoken study study.yaml{quick}",
        f"xtoken report studies-out/{study.name}{folder} --figures figures",
    ]
    return (
        paragraphs("With study.yaml below, and the models and data that it names:")
        + _code("Commands", "\n".join(steps))
        + details("study.yaml", _code("study.yaml", study.source))
    )


def _code(label: str, text: str) -> Markup:
    """Text as it stands, in a box that scrolls by itself."""
    template = '<div class="code" tabindex="0" role="region" aria-label="{}"><pre><code>{}</code></pre></div>\n'
    return markup(template, label, text)


# --- words ---


def _absent(study: StudyFolder, file: str, otherwise: str) -> Markup:
    """Why a section is empty: its file is not there, or it is and holds nothing."""
    if file in study.absent:
        return note(f"{file} is not in this folder: the study has not come so far, or the file was not kept.")
    return note(f"{file} holds nothing to show here: {otherwise}.")


def _word(verdict: str) -> Markup:
    return markup('<b><span aria-hidden="true">{} </span>{}</b>', _ICONS.get(verdict, "?"), verdict)


def _plain(verdict: str) -> str:
    return f"{_ICONS.get(verdict, '?')} {verdict}"


def _axis(measure: Measure) -> str:
    return f"{measure.unit}, {measure.direction} is better"


def _with_interval(what: str, rows: Iterable[Summary | Comparison]) -> str:
    """A caption's first sentence."""
    counts = sorted({row.seeds for row in rows})
    if counts == [1]:
        return f"{what} with one seed, which gives no interval."
    seeds = _many(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    return f"{what} with its 95 % interval over {seeds}."


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
