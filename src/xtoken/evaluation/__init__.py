"""Measuring models: figures that compare across tokenizers."""

from xtoken.evaluation.bits_per_byte import BitsPerByte, Score, bits_per_byte

__all__ = ["BitsPerByte", "Score", "bits_per_byte"]
