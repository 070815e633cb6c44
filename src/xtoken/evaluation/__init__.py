"""Measuring models: figures that compare across tokenizers, and tasks. `tasks` stands apart, since it needs lm-eval."""

from xtoken.evaluation.bits_per_byte import BitsPerByte, CutText, Score, Share, bits_per_byte

__all__ = ["BitsPerByte", "CutText", "Score", "Share", "bits_per_byte"]
