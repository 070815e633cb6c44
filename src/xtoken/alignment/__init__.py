"""Span alignment: which tokens of two tokenizers stand for the same bytes."""

from xtoken.alignment.align import METHODS, align, align_batch, align_spans, align_spans_batch
from xtoken.alignment.chunks import Alignment

__all__ = ["METHODS", "Alignment", "align", "align_batch", "align_spans", "align_spans_batch"]
