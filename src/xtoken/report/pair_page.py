"""Pages of two tokenizers alone: an audit, and an aligned text."""

from __future__ import annotations

from xtoken.report.aligned import AlignedText
from xtoken.report.page import Section, page
from xtoken.report.pair import PairFacts
from xtoken.report.views import aligned_view, audit_view, projection_view

__all__ = ["align_page", "audit_page"]


def audit_page(pair: PairFacts) -> str:
    """The audit and W of a pair of tokenizers."""
    return page(
        f"{pair.audit.student} and {pair.audit.teacher}",
        "What the two vocabularies share, the loss that follows from it, and the matrix between them.",
        [
            Section("Audit", "audit", audit_view(pair)),
            Section("The matrix W", "projection", projection_view(pair)),
        ],
    )


def align_page(text: AlignedText, student: str, teacher: str, method: str) -> str:
    """One text as two tokenizers cut it."""
    return page(
        f"A text in {student} and {teacher}",
        f"Which tokens stand for the same bytes, by the aligner {method}.",
        [Section("Aligned text", "alignment", aligned_view([text]))],
    )
