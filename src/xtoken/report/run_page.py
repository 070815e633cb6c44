"""The page of a run, from what was gathered of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import yaml

from xtoken.evaluation.task_results import Metric, TaskResult
from xtoken.report.charts import Bar, Scale, Series, bars, lines, percent
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
from xtoken.report.run import RunFacts, TeacherFacts, WorstChunk
from xtoken.report.views import aligned_view, audit_view, missing, projection_view, token
from xtoken.shown import visible

__all__ = ["run_page", "verdict"]

_SHOWN_TEXTS = 6
_CARDS = 6  # tasks among the headline figures
_FEW = 12  # rows that need no search
_DASH = "–"
_LOSSES = "The losses of each step before any scaling: cross-entropy on the text, and what the teachers teach."
_SCALING = "How large the teachers' sum is beside the cross-entropy, and what it was multiplied by."
_NORMS = "The norm of the gradient of each raw term over the student's weights, in the steps where it was measured."
_PUSH = (
    "How hard the teachers' sum pushes beside the cross-entropy: the ratio of the norms of their gradients, each times "
    "what its term was multiplied by. At 1, the dashed line, both push alike, whatever the values of the losses are."
)
_UNCOVERED = (
    "The share of each teacher's probability that its loss cannot carry over to the student: a floor without gradient."
)


def run_page(run: RunFacts) -> str:
    """The whole document."""
    taught = ", ".join(f"{t.model} by {t.loss}" for t in run.teachers)
    lede = f"{run.base}, distilled from {taught}." if taught else f"{run.base}, trained by cross-entropy alone."
    sections = [
        Section("Verdict", "verdict", _verdict(run)),
        Section("Curves", "curves", _curves(run)),
    ]
    if run.tasks:
        sections.insert(1, Section("Tasks", "tasks", _tasks(run)))
    if run.teachers:
        sections += [
            Section("Where the student differs", "differences", _by_teacher(run, _differences)),
            Section("Aligned texts", "alignments", _by_teacher(run, lambda t: _alignments(run, t))),
            Section("Audit of the tokenizers", "audit", _by_teacher(run, _audit)),
            Section("The matrix W", "projection", _by_teacher(run, _projection)),
        ]
    sections.append(Section("Settings and versions", "settings", _settings(run)))
    return page(f"Run {run.name}", lede, sections)


def verdict(run: RunFacts) -> str:
    """Whether the student got better on held-out text, in a sentence or two."""
    scored = [e for e in run.evaluations if e.bits_per_byte is not None]
    if not scored:
        return (
            "No held-out text was scored, so nothing here says how good the student is; the losses below are of its "
            "training text."
        )
    before = next((e for e in scored if e.step == 0), None)
    after = [e for e in scored if e.step > 0]
    if before is None or not after:
        return f"The student needs {_bits(scored[-1].bits_per_byte)} bits per byte of held-out text."
    best, last = min(after, key=lambda e: e.bits_per_byte or math.inf), after[-1]
    change = f"{_bits(best.bits_per_byte)} after step {best.step:,}, {_bits(before.bits_per_byte)} before training"
    if not (best.bits_per_byte or 0) < (before.bits_per_byte or 0):
        return f"The student did not get better: its lowest bits per byte of held-out text are {change}."
    said = f"The student got better: it needs fewer bits per byte of held-out text, {change}."
    if last is not best:
        kept = "the best one was saved" if run.best_is_saved else "the last one was saved all the same"
        said += f" After the last step it needs {_bits(last.bits_per_byte)}; {kept}."
    return said


def _bits(value: float | None) -> str:
    return _DASH if value is None else f"{value:.4f}"


def _verdict(run: RunFacts) -> Markup:
    figures = [*_held_out(run), *_task_cards(run), *_training(run)]
    why = [f"{t.name} taught by {t.loss}: {t.reason}." for t in run.teachers if t.reason]
    said = markup('<p class="verdict">{}</p>\n', verdict(run))
    return said + (headline(figures) if figures else "") + paragraphs(*why) + missing(run.notes)


def _held_out(run: RunFacts) -> list[tuple[str, str, str]]:
    scored = [e for e in run.evaluations if e.bits_per_byte is not None]
    if not scored:
        return []
    first, best = scored[0], min(scored, key=lambda e: e.bits_per_byte or math.inf)
    at = f"at step {first.step:,}"
    found = [("bits per byte, held out", _bits(best.bits_per_byte), f"{_bits(first.bits_per_byte)} {at}")]
    if best.numerals is not None:
        found.append(("on numerals", _bits(best.numerals), f"{_bits(first.numerals)} {at}"))
    return found


def _task_cards(run: RunFacts) -> list[tuple[str, str, str]]:
    """The main metric of each task, of the first few."""
    return [
        (f"{result.task}, {metric.label}", _score(metric.value), _error(metric))
        for result in run.tasks[:_CARDS]
        for metric in result.metrics[:1]
    ]


def _score(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else _DASH


def _error(metric: Metric) -> str:
    return "" if metric.stderr is None else f"± {_score(metric.stderr)} (standard error)"


def _tasks(run: RunFacts) -> Markup:
    """Every metric of every task; the tasks of a group stand below it, folded away."""
    by = ", ".join(dict.fromkeys(f"lm-eval {each.lm_eval}, weights in {each.dtype}" for each in run.tasks))
    parts = [part for result in run.tasks for part in result.parts]
    folded = details("The tasks of the groups", _task_table(parts, "The tasks of the groups")) if parts else ""
    return (
        paragraphs(f"What the student as it was saved scored, measured by xtoken eval with {by}.")
        + _task_table(run.tasks, "Tasks and their metrics; a limit is the most documents taken of a task")
        + folded
    )


def _task_table(results: Sequence[TaskResult], caption: str) -> Markup:
    rows: list[list[Cell]] = [
        [
            result.task,
            metric.label,
            Keyed(_score(metric.value), metric.value),
            Keyed(_DASH if metric.stderr is None else _score(metric.stderr), metric.stderr),
            result.documents,
            result.shots,
            result.limit,
            result.version or _DASH,
        ]
        for result in results
        for metric in result.metrics
    ]
    figures = ["value", "standard error", "documents", "shots", "limit"]
    return table(
        ["task", "metric", *figures, "version"], rows, caption=caption, searchable=len(rows) > _FEW, numeric=figures
    )


def _training(run: RunFacts) -> list[tuple[str, str, str]]:
    found = []
    for name, unit in (("ce", "cross-entropy, nats a token"), ("kd", "teachers' sum, nats a chunk")):
        points = _points(run, name)
        if points:
            found.append((unit, number(points[-1][1]), f"{number(points[0][1])} at step {points[0][0]:,.0f}"))
    found += [
        (f"KL to {t.name}, nats a chunk", number(_mean_kl(t)), f"over {sum(c.chunks for c in t.classes):,} chunks")
        for t in run.teachers
        if t.classes
    ]
    return [*found, ("steps", f"{run.metrics[-1]['step']:,}", "")] if run.metrics else found


def _mean_kl(teacher: TeacherFacts) -> float:
    chunks = sum(c.chunks for c in teacher.classes)
    return sum(c.kl * c.chunks for c in teacher.classes) / chunks


def _points(run: RunFacts, name: str) -> list[tuple[float, float | None]]:
    return [(line["step"], line[name]) for line in run.metrics if name in line]


def _drawn(run: RunFacts, names: Mapping[str, str]) -> list[Series]:
    """The metrics that the run has, by their names in the legend."""
    found = [Series(shown, _points(run, name)) for name, shown in names.items()]
    return [series for series in found if series.points]


def _curves(run: RunFacts) -> Markup:
    if not run.metrics and not run.evaluations:
        return note("The run's folder has no metrics.jsonl, or it is empty: no step was logged.")
    losses = {"ce": "cross-entropy, nats a token", "kd": "teachers' sum, nats a chunk"}
    if len(run.teachers) > 1:
        losses |= {f"kd/{t.name}": f"{t.name}, nats a chunk" for t in run.teachers}
    scaling = {"kd_ce_ratio": "raw KD / CE", "kd_factor": "factor on KD"}
    uncovered = {f"uncovered_mass/{t.name}": t.name for t in run.teachers}
    weights = {f"teacher_weight/{t.name}": t.name for t in run.teachers}
    norms = {"gradient_norm/ce": "cross-entropy", "gradient_norm/kd": "teachers' sum"}
    if len(run.teachers) > 1:
        norms |= {f"gradient_norm/kd/{t.name}": t.name for t in run.teachers}
    push = {"push_ratio": "teachers' sum / cross-entropy"}
    parts = [
        _chart(run, losses, ("Raw losses", "nats (log)", "log", _LOSSES)),
        _chart(run, scaling, ("Ratio and factor", "ratio (log)", "log", _SCALING)),
        _evaluations(run),
        _chart(run, norms, ("Norms of the gradients", "norm (log)", "log", _NORMS)),
        _chart(run, push, ("Push of the teachers", "ratio (log)", "log", _PUSH), reference=1.0),
        _chart(run, uncovered, ("Uncovered mass", "share", "linear", _UNCOVERED)),
        _chart(run, weights, ("Weights of the teachers", "weight", "linear", "What each teacher weighed.")),
    ]
    return join(parts) + details("First and last figures of every metric", _metric_table(run))


def _chart(
    run: RunFacts, names: Mapping[str, str], said: tuple[str, str, Scale, str], reference: float | None = None
) -> Markup:
    """A chart of metrics, under its heading; nothing where the run has none of them.

    Args:
        run: the run.
        names: the metrics, each with its name in the legend.
        said: the heading, what y measures, its scale, and the caption.
        reference: a y to mark by a dashed line.
    """
    title, y_label, scale, caption = said
    series = _drawn(run, names)
    if not series:
        return Markup("")
    drawn = lines(series, title=f"{title} by step", x_label="step", y_label=y_label, scale=scale, reference=reference)
    return markup("<h3>{}</h3>\n{}", title, figure(drawn, caption))


def _evaluations(run: RunFacts) -> Markup:
    if not run.evaluations:
        return Markup("")
    series = [Series("all text", [(e.step, e.bits_per_byte) for e in run.evaluations])]
    if any(e.numerals is not None for e in run.evaluations):
        series.append(Series("numerals", [(e.step, e.numerals) for e in run.evaluations]))
    drawn = lines(series, title="Bits per byte by step", x_label="step", y_label="bits per byte (log)", scale="log")
    return markup("<h3>Bits per byte</h3>\n{}", figure(drawn, "Bits per byte of held-out text; lower is better."))


def _metric_table(run: RunFacts) -> Markup:
    names = dict.fromkeys(name for line in run.metrics for name in line if name != "step")
    rows: list[list[Cell]] = []
    for name in names:
        points = [(x, y) for x, y in _points(run, name) if y is not None]
        ys = [y for _, y in points]
        if ys:
            rows.append([name, ys[0], ys[-1], min(ys), max(ys)])
    return table(
        ["metric", "first", "last", "lowest", "highest"],
        rows,
        caption="Every metric of the run",
        searchable=True,
        numeric=["first", "last", "lowest", "highest"],
    )


def _by_teacher(run: RunFacts, view: Callable[[TeacherFacts], Markup]) -> Markup:
    """A view of one teacher, or of several behind tabs."""
    if len(run.teachers) == 1:
        return view(run.teachers[0])
    return tabs("Teachers", [(t.name, view(t)) for t in run.teachers])


def _differences(teacher: TeacherFacts) -> Markup:
    if not teacher.classes:
        return missing(teacher.notes) or note("No text was read by both models, so nothing is measured.")
    lead = (
        f"KL({teacher.name} || student) at the first position of each chunk, in nats, with the tokens of each side "
        "summed by root (the common token that a token begins with). It means the same whatever loss was trained."
    )
    bits = (
        f"Over these chunks the student needs {_bits(teacher.student_bits)} bits per byte of the text, and "
        f"{teacher.name} {_bits(teacher.teacher_bits)}."
    )
    items = [Bar(c.kind, c.share, f"{percent(c.share)}: {number(c.kl)} nats × {c.chunks:,}") for c in teacher.classes]
    chart = figure(
        bars(items, title="Share of the KL by class of chunk", maximum=1.0),
        "Where the KL comes from: the share of its sum by class of chunk, with the mean a chunk and their number.",
    )
    return missing(teacher.notes) + paragraphs(lead, bits) + chart + _worst_table(teacher)


def _worst_table(teacher: TeacherFacts) -> Markup:
    rows: list[list[Cell]] = [
        [
            Keyed(_in_context(worst), worst.piece.text),
            worst.piece.measured.kl,
            worst.piece.kind or "special",
            Keyed(_expected(worst.piece.measured.teacher_expected), _first(worst.piece.measured.teacher_expected)),
            Keyed(_expected(worst.piece.measured.student_expected), _first(worst.piece.measured.student_expected)),
            worst.piece.measured.teacher_log_prob,
            worst.piece.measured.student_log_prob,
            worst.text + 1,
        ]
        for worst in teacher.worst
        if worst.piece.measured is not None
    ]
    figures = ["KL", "teacher's log p", "student's log p", "text"]
    return markup("<h3>The worst chunks</h3>\n{}", table(
        ["chunk, in its text", "KL", "class", "teacher expects", "student expects", *figures[1:]],
        rows,
        caption="The chunks where the two differ most; log p is of the chunk as the text has it, in nats",
        searchable=True,
        numeric=figures,
    ))  # fmt: skip


def _in_context(worst: WorstChunk) -> Markup:
    return markup(
        '<span class="context">{}<mark>{}</mark>{}</span>',
        *(visible(text).replace("·", " ") for text in (worst.before, worst.piece.text, worst.after)),
    )


def _expected(expected: Sequence[tuple[str, float]]) -> Markup:
    return join([markup("{} {}", token(text), percent(p)) for text, p in expected], Markup("<br>"))


def _first(expected: Sequence[tuple[str, float]]) -> str:
    return expected[0][0] if expected else ""


def _alignments(run: RunFacts, teacher: TeacherFacts) -> Markup:
    if not teacher.texts:
        return missing(teacher.notes or run.notes) or note("There is no text to align.")
    texts = teacher.texts[:_SHOWN_TEXTS]
    lead = paragraphs(f"{len(texts)} of {run.sample}, as the student's tokenizer and {teacher.name}'s cut them.")
    return lead + aligned_view(texts)


def _audit(teacher: TeacherFacts) -> Markup:
    return missing(teacher.notes) if teacher.pair is None else audit_view(teacher.pair)


def _projection(teacher: TeacherFacts) -> Markup:
    if teacher.pair is None:
        return missing(teacher.notes)
    without = "" if teacher.loss in ("p-kl", "h-kl") else paragraphs(f"The loss {teacher.loss} does without W.")
    return without + projection_view(teacher.pair)


def _settings(run: RunFacts) -> Markup:
    documents = {name: value for name, value in run.documents.items() if not isinstance(value, dict)}
    shown = [(name.replace("_", " "), number(value)) for name, value in documents.items()]
    settings = yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=True)
    code = '<div class="code" tabindex="0" role="region" aria-label="Settings"><pre><code>{}</code></pre></div>\n'
    return (
        markup("<h3>Settings</h3>\n")
        + paragraphs("The run's config, every choice made; of local files and folders the names alone.")
        + markup(code, settings)
        + (markup("<h3>Training documents</h3>\n{}", facts(shown)) if shown else "")
        + markup("<h3>Versions</h3>\n{}", facts(run.versions.items()))
    )
