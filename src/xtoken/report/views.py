"""The parts of a page that show two tokenizers: the audit, W, and aligned texts."""

from __future__ import annotations

from collections.abc import Sequence

from xtoken.projection.build import FATES, Fate
from xtoken.report.aligned import AlignedText, Piece
from xtoken.report.charts import Bar, bars, grid, percent
from xtoken.report.page import Cell, Keyed, Markup, details, figure, join, markup, note, number, paragraphs, table, tabs
from xtoken.report.pair import ClassFacts, PairFacts, ProjectionFacts
from xtoken.shown import counted, visible

__all__ = ["aligned_view", "audit_view", "missing", "projection_view", "token"]

# A bar under a chunk is full at this KL: a student that finds the teacher's likeliest token e^-2 as likely.
_FULL_KL = 2.0


def token(text: str) -> Markup:
    """A token with its white space shown, in its own direction of writing."""
    return markup('<bdi class="token">{}</bdi>', visible(text))


def audit_view(pair: PairFacts) -> Markup:
    """The audit: bars by class, the figures as tables, and the recommendation."""
    report = pair.audit
    lead = markup("Recommended loss: <strong>{}</strong>: {}.", report.recommended_loss, report.reason)
    sizes = (
        f"{report.student} has {report.student_vocab:,} tokens, {report.teacher} {report.teacher_vocab:,}; "
        f"{report.common:,} of them stand for the same bytes, and {counted(report.common_special, 'special token')} "
        "for the same role."
    )
    items = [Bar(c.name, c.coverage.coverage, _counts(c)) for c in pair.student_classes]
    chart = figure(
        bars(items, title="Share of the student's tokens in the common set, by class", maximum=1.0),
        "The share of the student's tokens that the teacher has as well, by class of token.",
    )
    both = tabs(
        "Classes of tokens",
        [
            ("Student's tokens", _class_table(pair.student_classes, "The student's tokens by class", pair.corpus)),
            ("Teacher's tokens", _class_table(pair.teacher_classes, "The teacher's tokens by class", None)),
        ],
    )
    return paragraphs(lead, sizes) + chart + both + _published(pair)


def _counts(c: ClassFacts) -> str:
    return f"{c.coverage.in_common:,} of {c.coverage.tokens:,} ({percent(c.coverage.coverage)})"


def _class_table(classes: Sequence[ClassFacts], caption: str, corpus: str | None) -> Markup:
    weighed = corpus is not None
    usage = ["of text", "of it in common"] if weighed else []
    rows: list[list[Cell]] = [
        [
            c.name,
            c.coverage.tokens,
            c.coverage.in_common,
            Keyed(percent(c.coverage.coverage), c.coverage.coverage),
            *([_share(c.coverage.usage), _share(c.coverage.usage_in_common)] if weighed else []),
            Keyed(join([token(text) for text in c.outside], " ") or "–", len(c.outside)),
        ]
        for c in classes
    ]
    if weighed:
        caption += f", weighed by {corpus}"
    return table(
        ["class", "tokens", "in common", "share", *usage, "not in common, for example"],
        rows,
        caption=caption,
        numeric=["tokens", "in common", "share", *usage],
    )


def _share(value: float | None) -> Keyed:
    return Keyed(percent(value), value)


def _published(pair: PairFacts) -> Markup:
    counted = pair.audit.published_counting
    if not counted:
        return Markup("")
    said = "; ".join(f"{name}: {common:,} of {tokens:,} in common" for name, (tokens, common) in counted.items())
    return paragraphs(f"Counted as the X-Token paper does, {said}.")


def projection_view(pair: PairFacts) -> Markup:
    """W: how sparse it is, what its rows are made of, and a sample of them to search."""
    w = pair.projection
    made = "learnt with the student" if w.is_learnt else "built by rule from the two tokenizers"
    lead = (
        f"W carries a distribution over the student's {w.shape[0]:,} tokens into the teacher's {w.shape[1]:,}. It is "
        f"{made} and holds {w.entries:,} weights, {_one_in(w.density)}; {w.reached:,} of the teacher's tokens are "
        f"reached ({percent(w.reached / w.shape[1])})."
    )
    spy = figure(
        grid(w.grid, title="Where W's weights lie, by student id down and teacher id across"),
        f"Where W's weights lie: student ids from top to bottom, teacher ids from left to right, in {len(w.grid)} by "
        f"{len(w.grid)} squares; the darker a square, the more weights, in steps of powers of ten.",
    )
    fates: list[list[Cell]] = [
        [FATES[fate], count, Keyed(percent(count / w.shape[0]), count), "no" if fate in Fate.EMPTY else "yes"]
        for fate, count in sorted(pair.audit.rows.items(), key=lambda item: -item[1])
    ]
    rules = table(
        ["carried to", "tokens", "share", "carried"],
        fates,
        caption="The student's tokens in W, by rule",
        numeric=["tokens", "share"],
    )
    lengths = table(
        ["weights in the row", "rows"],
        [[str(n), count] for n, count in w.by_length.items()],
        caption="Rows of W by their number of weights",
        numeric=["rows"],
    )
    return paragraphs(lead) + rules + markup('<div class="pair">{}{}</div>\n', spy, lengths) + _rows(w)


def _one_in(density: float) -> str:
    return f"one in {round(1 / density):,} of all" if density else "none of all"


def _rows(w: ProjectionFacts) -> Markup:
    rows: list[list[Cell]] = [
        [
            Keyed(token(row.text), row.text),
            row.token,
            row.kind or "special",
            row.fate,
            len(row.pieces),
            Keyed(
                join([markup("{} {}", token(text), f"{weight:.3f}") for text, weight in row.pieces], ", ") or "–",
                row.pieces[0][1] if row.pieces else None,
            ),
        ]
        for row in w.rows
    ]
    return markup("<h3>A sample of its rows</h3>\n{}", table(
        ["student token", "id", "class", "carried to", "weights", "teacher tokens"],
        rows,
        caption=f"{len(rows):,} of {w.shape[0]:,} rows, every rule represented",
        searchable=True,
        numeric=["id", "weights"],
    ))  # fmt: skip


def aligned_view(texts: Sequence[AlignedText]) -> Markup:
    """Aligned texts, several behind tabs: the student's tokens above the teacher's, a box a chunk; and as a table."""
    if len(texts) == 1:
        return _key(texts) + _text(texts[0])
    return _key(texts) + tabs("Texts", [(f"Text {n}", _text(text)) for n, text in enumerate(texts, 1)])


def _key(texts: Sequence[AlignedText]) -> Markup:
    is_measured = any(p.measured for text in texts for p in text.pieces)
    heat = "; the bar under it is the longer and stronger, the more the models differ there (their KL)"
    return paragraphs(
        "Each box is a chunk: the student's tokens above, the teacher's below, both spelling the same bytes"
        f"{heat if is_measured else ''}. A dashed box is a gap, which takes no part in the loss; ∅ is no token."
    )


def _text(text: AlignedText) -> Markup:
    chunks = sum(not p.is_gap for p in text.pieces)
    tokens = sum(len(p.student) for p in text.pieces), sum(len(p.teacher) for p in text.pieces)
    said = (
        f"{counted(chunks, 'chunk')} and {counted(len(text.pieces) - chunks, 'gap')}; "
        f"{counted(tokens[0], 'student token')}, {counted(tokens[1], 'teacher token')}: as a table"
    )
    return (
        markup('<ol class="chunks">\n{}</ol>\n', join(_box(p, n) for n, p in enumerate(text.pieces)))
        + (paragraphs("The text goes on; this is its beginning.") if text.is_cut else "")
        + details(said, _chunk_table(text))
    )


def _box(piece: Piece, n: int) -> Markup:
    kind = "gap" if piece.is_gap else f"c{n % 2 + 1}"
    told = _told(piece)
    heat = Markup("")
    if piece.measured is not None:
        heat = markup('<span class="heat" style="--kl:{}"></span>', f"{min(piece.measured.kl / _FULL_KL, 1):.2f}")
    return markup(
        '<li class="{}"{}><span>{}</span><span>{}</span>{}</li>\n',
        kind,
        markup(' title="{}"', told) if told else "",
        _side(piece.student),
        _side(piece.teacher),
        heat,
    )


def _side(tokens: Sequence[str]) -> Markup:
    return join([markup("<bdi>{}</bdi>", visible(text)) for text in tokens]) or Markup("∅")


def _told(piece: Piece) -> str:
    if piece.measured is None:
        return "gap" if piece.is_gap else ""
    m = piece.measured
    return f"KL {number(m.kl)}; log p: student {number(m.student_log_prob)}, teacher {number(m.teacher_log_prob)}"


def _chunk_table(text: AlignedText) -> Markup:
    is_measured = any(p.measured for p in text.pieces)
    figures = ["KL", "student's log p", "teacher's log p"] if is_measured else []
    rows: list[list[Cell]] = [
        [
            n,
            Keyed(join([token(t) for t in p.student], " ") or "∅", "".join(p.student)),
            Keyed(join([token(t) for t in p.teacher], " ") or "∅", "".join(p.teacher)),
            "gap" if p.is_gap else p.kind or "special",
            *(_figures(p) if is_measured else []),
        ]
        for n, p in enumerate(text.pieces, 1)
    ]
    return table(
        ["place", "student", "teacher", "class", *figures],
        rows,
        caption="Chunks and gaps in order; KL and log p in nats" if is_measured else "Chunks and gaps in order",
        searchable=True,
        numeric=["place", *figures],
    )


def _figures(piece: Piece) -> list[float | None]:
    m = piece.measured
    return [None] * 3 if m is None else [m.kl, m.student_log_prob, m.teacher_log_prob]


def missing(sentences: Sequence[str]) -> Markup:
    """What is not there, a note each."""
    return join(note(sentence) for sentence in sentences)
