"""What a step adds up to: the sums of its accumulation window, over all processes, and those of a line of the log.

The Trainer reads the log's line and the next step's weights from here. Types: sums by name, as Python floats, which are
the same in every process. Law: they do not depend on how the window is cut into micro-batches and processes, but for
the order in which floating-point numbers are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xtoken.losses.term import LossTerm
from xtoken.teachers.online import OnlineTeacher
from xtoken.training.distiller import DROPPED, SCORE, SCORED, Outcome, Terms, Weighing
from xtoken.training.pushes import Pushes

__all__ = ["Interval", "Window", "shown", "terms_of"]

TOTAL, COUNT, TOKENS = "total", "count", "tokens"


def _key(teacher: str, part: str) -> str:
    """A teacher's number among the sums; of the text where the teacher is empty."""
    return f"{teacher}\t{part}"


@dataclass
class Window:
    """The micro-batches of one optimizer step in this process.

    Attributes:
        parts: what each micro-batch adds, scalars on the device.
        inputs: the micro-batches.
        weighing: how they were weighed.
        pushes: what was measured of the step; None where nothing was.
    """

    parts: list[dict[str, Tensor]] = field(default_factory=list)
    inputs: list[Mapping[str, Any]] = field(default_factory=list)
    weighing: Weighing | None = None
    pushes: Pushes | None = None

    def add(self, outcome: Outcome, inputs: Mapping[str, Any], tokens: Tensor) -> None:
        """A micro-batch.

        Args:
            outcome: its loss.
            inputs: the batch.
            tokens: int64 scalar, the student's, without padding.
        """
        self.weighing = outcome.weighing
        self.inputs.append(inputs)
        self.parts.append({TOKENS: tokens, **flat_terms(outcome.terms)})

    def flat(self) -> tuple[list[str], Tensor]:
        """The names of the sums, in one order for all processes, and the sums [n]."""
        names = sorted(self.parts[0])
        wide = torch.float32 if self.parts[0][TOKENS].device.type == "mps" else torch.float64
        return names, torch.stack([torch.stack([part[name].to(wide) for name in names]) for part in self.parts]).sum(0)

    def first_not_finite(self) -> tuple[int, str] | None:
        """The micro-batch and the number that are not finite; None where all of this process's are."""
        for number, part in enumerate(self.parts):
            for name, value in part.items():
                if not math.isfinite(float(value)):
                    return number, name
        return None


def flat_terms(terms: Terms) -> dict[str, Tensor]:
    """Totals, counts and metrics as one mapping."""
    found: dict[str, Tensor] = {}
    for name, term in {"": terms.cross_entropy, **terms.teachers}.items():
        parts = {TOTAL: term.total.detach(), COUNT: term.count, **term.metrics}
        found.update({_key(name, part): value for part, value in parts.items()})
    return found


def terms_of(sums: Mapping[str, float], teachers: Iterable[OnlineTeacher]) -> Terms:
    """The terms of a whole step, from its sums; on the host."""

    def term(name: str) -> LossTerm:
        parts = {key.partition("\t")[2]: value for key, value in sums.items() if key.startswith(f"{name}\t")}
        total = torch.tensor(parts[TOTAL], dtype=torch.float64)
        metrics = {key: total.new_tensor(parts[key]) for key in (SCORE, SCORED) if key in parts}
        return LossTerm(total, total.new_tensor(parts[COUNT]), metrics)

    return Terms(term(""), {teacher.name: term(teacher.name) for teacher in teachers})


@dataclass
class Interval:
    """The steps since the last line of the log.

    Attributes:
        sums: as a window's, added up; and the losses, factors and weights of the steps.
        steps: how many.
        largest_factor: on the teachers' sum.
        pushes: norms and ratios of gradients, added up over the steps that were measured.
        measured: how many these are.
    """

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    largest_factor: float = 0.0
    pushes: dict[str, float] = field(default_factory=dict)
    measured: int = 0

    def add(self, sums: Mapping[str, float], ce_weight: float, factor: float, weights: Mapping[str, float]) -> None:
        """A step.

        Args:
            sums: of its window.
            ce_weight: of the cross-entropy.
            factor: on the teachers' sum.
            weights: of the teachers in it.
        """
        self.largest_factor = factor if not self.steps else max(self.largest_factor, factor)
        kd = sum(weight * _mean(sums, name) for name, weight in weights.items())
        more = {**sums, "loss": ce_weight * _mean(sums, "") + factor * kd, "factor": factor}
        more |= {_key(name, "weight"): weight for name, weight in weights.items()}
        for name, value in more.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    def add_pushes(self, pushes: Pushes, ce_weight: float, factor: float) -> None:
        """What was measured of a step.

        Args:
            pushes: the norms.
            ce_weight, factor: as for `add`.
        """
        norms = {"ce": pushes.cross_entropy, "kd": pushes.distillation}
        norms |= {f"kd/{name}": norm for name, norm in pushes.teachers.items()}
        found = {f"gradient_norm/{name}": norm for name, norm in norms.items()}
        found["push_ratio"] = _ratio(factor * pushes.distillation, ce_weight * pushes.cross_entropy)
        for name, value in found.items():
            self.pushes[name] = self.pushes.get(name, 0.0) + value
        self.measured += 1


def shown(interval: Interval, teachers: Iterable[OnlineTeacher], *, is_adaptive: bool) -> dict[str, float]:
    """What a line of the log shows, but for its speed."""
    sums = interval.sums
    ce, loss = _mean(sums, ""), _ratio(sums["loss"], interval.steps)
    kd = 0.0
    metrics: dict[str, float] = {}
    overall: dict[str, tuple[float, float]] = {}
    for teacher in teachers:
        own = {key.partition("\t")[2]: value for key, value in sums.items() if key.startswith(f"{teacher.name}\t")}
        total, count, dropped, weight = (own.pop(name) for name in (TOTAL, COUNT, DROPPED, "weight"))
        score, scored = own.pop(SCORE, 0.0), own.pop(SCORED, 0.0)
        kd += _ratio(weight, interval.steps) * _ratio(total, count)
        metrics[f"kd/{teacher.name}"] = _ratio(total, count)
        if is_adaptive:
            metrics[f"teacher_weight/{teacher.name}"] = _ratio(weight, interval.steps)
            metrics[f"teacher_score/{teacher.name}"] = _ratio(score, scored)
        shares = {name: (value, count) for name, value in own.items()} | {"kept_chunks": (count, count + dropped)}
        for name, (part, whole) in shares.items():
            metrics[f"{name}/{teacher.name}"] = _ratio(part, whole)
            had = overall.get(name, (0.0, 0.0))
            overall[name] = (had[0] + part, had[1] + whole)
    if not metrics:
        return {"loss": loss, "ce": ce}
    head = {
        "loss": loss,
        "ce": ce,
        "kd": kd,
        "kd_ce_ratio": _ratio(kd, ce),
        "kd_factor": _ratio(sums["factor"], interval.steps),
    }
    head["kd_factor_max"] = interval.largest_factor
    pushes = {name: _ratio(value, interval.measured) for name, value in interval.pushes.items()}
    return {**head, **{name: _ratio(*parts) for name, parts in overall.items()}, **metrics, **pushes}


def _mean(sums: Mapping[str, float], teacher: str) -> float:
    return _ratio(sums[_key(teacher, TOTAL)], sums[_key(teacher, COUNT)])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
