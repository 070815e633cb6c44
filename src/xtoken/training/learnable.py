"""The learnable Ws of a run: their optimizer group, their place in a checkpoint, and what became of them.

A W belongs to its teacher's loss and not to the student, so neither the Trainer's clipping nor its checkpoints nor data
parallelism know of it. Types: `LearnableProjections`, all Ws of a training; `LearntProjection`, one of them at its end.
Laws: a resumed training has the W of the unbroken one to the bit; every process has the same W; a W that is saved loads
as any other, for its pair of tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from transformers import TrainerCallback

from xtoken.errors import XTokenError
from xtoken.files import write_whole
from xtoken.losses import PKL
from xtoken.losses.learnable import RowWeights
from xtoken.projection import Projection
from xtoken.shown import token_text
from xtoken.teachers.online import OnlineTeacher
from xtoken.tokens import Vocabulary

__all__ = [
    "LEARNING_RATE",
    "LearnableProjections",
    "LearntProjection",
    "conclude",
    "learnt_projection",
    "moved_rows",
    "projection_file",
]

# X-Token's, for the projection alone; the student's own is 5e-5 there.
LEARNING_RATE = 1e-2
_FILE = "projection_weights.safetensors"
_SHOWN_ROWS = 10


class LearnableProjections(TrainerCallback):
    """Every W that a training learns, by its teacher's name.

    The Trainer empties the gradients of its model and of nothing else: here it is done when a step begins.

    Args:
        teachers: those whose loss is a `PKL` with a learnable W count.

    Attributes:
        weights: the log-weights of each.
    """

    def __init__(self, teachers: Sequence[OnlineTeacher]) -> None:
        found = [(teacher, _row_weights(teacher)) for teacher in teachers]
        self.weights: dict[str, RowWeights] = {teacher.name: w for teacher, w in found if w is not None}
        self._rates = {
            t.name: LEARNING_RATE if t.loss_learning_rate is None else t.loss_learning_rate for t in teachers
        }

    def check(self, *, is_sharded: bool, optimizer: Any, loads_best: bool) -> None:
        """Refuses a training that could not do as it says.

        Args:
            is_sharded: whether the student's parameters are spread over processes (FSDP, DeepSpeed).
            optimizer: that the caller made; None for the Trainer's own.
            loads_best: whether the Trainer ends with the best checkpoint's student.

        Raises:
            XTokenError: a learnable W does not go with it.
        """
        if not self.weights:
            return
        if is_sharded:
            raise XTokenError("a learnable projection cannot be trained under FSDP or DeepSpeed; leave it fixed there")
        if loads_best:
            raise XTokenError("load_best_model_at_end would take the student back and not a learnable projection")
        held = {id(p) for group in (optimizer.param_groups if optimizer else []) for p in group["params"]}
        missing = [name for name, w in self.weights.items() if id(w.log_weights) not in held]
        if optimizer is not None and missing:
            raise XTokenError(
                f"the optimizer that was passed does not hold the learnable projection of {', '.join(missing)}: add a "
                "group with loss.parameters(), without weight decay"
            )

    def add_groups(self, optimizer: Any) -> None:
        """Gives each W a group of its own: its learning rate, no weight decay."""
        for name, weights in self.weights.items():
            group = {"params": [weights.log_weights], "lr": self._rates[name], "weight_decay": 0.0}
            optimizer.add_param_group(group)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for weights in self.weights.values():
            weights.log_weights.grad = None

    def reduce(self, accelerator: Any) -> None:
        """Averages the gradients over the processes, as data parallelism does with the student's; once a step."""
        for weights in self.weights.values():
            parameter = weights.log_weights
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = accelerator.reduce(own, reduction="mean")

    def gradients_are_finite(self) -> bool:
        """Whether all of them are; waits for the device where there is any."""
        gradients = [w.log_weights.grad for w in self.weights.values() if w.log_weights.grad is not None]
        return all(bool(gradient.isfinite().all()) for gradient in gradients)

    def logged(self) -> dict[str, float]:
        """`w_drift/NAME`: the share of the learnable rows' mass that lies elsewhere than at the start, their mean."""
        if not self.weights:
            return {}
        means = torch.stack([weights.drift().mean().float() for weights in self.weights.values()]).tolist()
        return {f"w_drift/{name}": mean for name, mean in zip(self.weights, means, strict=True)}

    def save(self, folder: Path) -> None:
        """Adds the log-weights to a checkpoint."""
        from safetensors.torch import save

        if self.weights:
            tensors = {name: weights.log_weights.detach().cpu() for name, weights in self.weights.items()}
            write_whole(folder / _FILE, save(tensors))

    def load(self, folder: Path) -> None:
        """Takes the log-weights of a checkpoint.

        Raises:
            XTokenError: it has none, or those of another W.
        """
        from safetensors.torch import load_file

        if not self.weights:
            return
        path = folder / _FILE
        saved = load_file(path) if path.is_file() else {}
        for name, weights in self.weights.items():
            parameter, found = weights.log_weights, saved.get(name)
            if found is None or found.shape != parameter.shape:
                raise XTokenError(f"{folder} holds no weights of {name}'s learnable projection; start the run anew")
            with torch.no_grad():
                parameter.copy_(found)


def _row_weights(teacher: OnlineTeacher) -> RowWeights | None:
    return teacher.loss.row_weights if isinstance(teacher.loss, PKL) else None


@dataclass(frozen=True)
class LearntProjection:
    """What became of a W.

    Attributes:
        teacher: whose it is.
        file: where it was saved; None where nothing was.
        drift: the share of the learnable rows' mass that has moved, their mean.
        rows: how many rows could be learnt.
        moved: the rows that moved most, one line of text each.
    """

    teacher: str
    file: Path | None
    drift: float
    rows: int
    moved: tuple[str, ...]


def conclude(
    name: str,
    loss: PKL,
    start: Projection,
    vocabularies: tuple[Vocabulary, Vocabulary],
    folder: Path | None,
    facts: Mapping[str, Any],
) -> LearntProjection:
    """Saves a learnt W and says how it moved.

    Args:
        name: the teacher's.
        loss: with its learnable W.
        start: what it was made from.
        vocabularies: of student and teacher.
        folder: where to; None saves nothing.
        facts: as for `learnt_projection`.
    """
    assert loss.row_weights is not None
    drift = loss.row_weights.drift()
    mean, file = float(drift.mean()), None
    if folder is not None:
        file = folder / projection_file(name)
        learnt_projection(loss, start, {"teacher": name, "drift": mean, **facts}).save(file)
    return LearntProjection(name, file, mean, len(drift), tuple(moved_rows(loss, start, *vocabularies)))


def projection_file(teacher: str) -> str:
    """The name of a teacher's learnt W in a run's folder."""
    return f"projection-{quote(teacher, safe='')}.safetensors"


def learnt_projection(loss: PKL, start: Projection, facts: Mapping[str, Any]) -> Projection:
    """W as it was learnt.

    Args:
        loss: with its learnable W.
        start: what it was made from: gives the fingerprints and, in the recipe, `from`.
        facts: of plain JSON types, for the recipe.
    """
    tensors = loss.projection
    # A weight that is no float32 any more stays an entry: the support is fixed.
    values = tensors.values.detach().clamp(min=torch.finfo(torch.float32).tiny)
    rows, cols, values = (x.cpu() for x in (tensors.rows, tensors.cols, values))
    return Projection.from_coo(
        rows.numpy(),
        cols.numpy(),
        values.numpy(),
        start.shape,
        student_fingerprint=start.student_fingerprint,
        teacher_fingerprint=start.teacher_fingerprint,
        recipe={"learnt": True, **facts, "from": json.loads(json.dumps(start.recipe))},
    )


def moved_rows(
    loss: PKL, start: Projection, student: Vocabulary, teacher: Vocabulary, most: int = _SHOWN_ROWS
) -> list[str]:
    """The rows of a learnable W that moved most, as text.

    Args:
        loss: with its learnable W.
        start: what it was made from.
        student, teacher: the vocabularies.
        most: how many rows.

    Returns:
        lines such as `" 123": "1" 0.90 -> 0.41, "2" 0.10 -> 0.59`, the row that moved most first; none for a row that
        stayed.
    """
    assert loss.row_weights is not None
    drift = loss.row_weights.drift().cpu()
    ids = loss.row_weights.rows.cpu()[drift.argsort(descending=True, stable=True)[:most]]
    still = set(loss.row_weights.rows.cpu()[drift == 0].tolist())
    learnt = learnt_projection(loss, start, {})
    return [_line(i, start, learnt, student, teacher) for i in ids.tolist() if i not in still]


def _line(row: int, start: Projection, learnt: Projection, student: Vocabulary, teacher: Vocabulary) -> str:
    at = slice(int(start.indptr[row]), int(start.indptr[row + 1]))
    assert np.array_equal(start.cols[at], learnt.cols[at])
    cells = zip(start.cols[at].tolist(), start.values[at].tolist(), learnt.values[at].tolist(), strict=True)
    parts = (f"{_token(teacher, col)} {old:.2f} -> {new:.2f}" for col, old, new in cells)
    return f"{_token(student, row)}: {', '.join(parts)}"


def _token(vocabulary: Vocabulary, token: int) -> str:
    """Quoted; bytes that are no text on their own as escapes."""
    return json.dumps(token_text(vocabulary, token), ensure_ascii=False)
