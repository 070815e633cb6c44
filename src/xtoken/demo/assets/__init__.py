"""What the demo ships, made by scripts/make_demo.py: `student` (config and tokenizer), `teacher` (with weights)."""

from pathlib import Path

__all__ = ["ASSETS"]

ASSETS = Path(__file__).parent
