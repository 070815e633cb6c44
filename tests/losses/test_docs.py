"""The examples in docs/losses.md run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import torch

DOCS = Path(__file__).parents[2] / "docs" / "losses.md"


def test_the_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    assert len(blocks) == 2
    for code in blocks:
        exec(code, names)
    assert names["index"].n_chunks == 2
    assert names["student_logits"].grad.abs().max() > 0
    assert names["hidden"].grad.abs().max() > 0
