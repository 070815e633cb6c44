"""What is kept of a step that went wrong: enough to see it again.

A folder with the student as the step found it, the micro-batches it was given (one safetensors file a process) and
`report-RANK.json`: the step, the numbers that are not finite, the micro-batch they came from, and the documents in it,
each as [corpus, number in its source].
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtoken.files import write_whole
from xtoken.training.window import Window

__all__ = ["save_failure"]


def save_failure(folder: Path, window: Window, step: int, wrong: Sequence[str], process: int) -> None:
    """Saves the batches of a step and says what was wrong with it.

    Args:
        folder: made where it is missing.
        window: the step in this process.
        step: counted from 1.
        wrong: the sums, over all processes, that are not finite.
        process: this one's number.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}/{name}": tensor.detach().cpu().contiguous()
        for number, inputs in enumerate(window.inputs)
        for name, tensor in _flat(inputs)
    }
    write_whole(folder / f"batches-{process}.safetensors", save(tensors))
    found = window.first_not_finite()
    documents = [inputs["documents"].tolist() for inputs in window.inputs if "documents" in inputs]
    report = {
        "step": step,
        "not_finite": list(wrong),
        "micro_batch": None if found is None else found[0],
        "term": None if found is None else found[1],
        "documents": documents if found is None or not documents else documents[found[0]],
        "terms": [{name: _shown(value) for name, value in part.items()} for part in window.parts],
        "torch": torch.__version__,
    }
    write_whole(folder / f"report-{process}.json", json.dumps(report, indent=2) + "\n")


def _flat(inputs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value


def _shown(value: Tensor) -> float | str:
    number = float(value)
    return number if abs(number) < float("inf") else str(number)
