"""How hard each term pushes: the norm of its gradient by the student's parameters.

Dynamic scaling gives two terms one value, which says nothing of what they do to the student: a term with a floor pushes
less than its value says. So each raw term is differentiated by itself, over a whole accumulation window and all
processes, beside the training and without a trace in it: no `.grad` is written, no hook on a parameter runs. Laws: a
norm does not depend on how the window is cut into micro-batches and processes, and is the same in all of them; the term
alone of a learnable W is differentiated by the student, and W's own parameters are left out.

The whole window and not its first micro-batch: the norm of few documents is mostly noise, and cross-entropy has more of
it than what a teacher says of the same text, so the ratio of the two would change with the micro-batch. Cost: a pass
forward and backward for the cross-entropy and one for each teacher. Memory: beside a pass's own, at most three
gradients of the parameters that learn, at a time at which the step has none yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import broadcast
from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.teachers.online import OnlineTeacher
from xtoken.training.distiller import Distiller, KdWeight

__all__ = ["EVERY", "Pushes", "gradient_of", "measure", "steps_between"]

# Steps from one measurement to the next where the factor depends on it: with one teacher about a tenth of the time.
EVERY = 20


@dataclass(frozen=True)
class Pushes:
    """Norms of gradients by the student's parameters, as one step had them; each mean's, before any factor.

    Attributes:
        cross_entropy: of the raw cross-entropy, nats a token.
        distillation: of the teachers' weighted sum.
        teachers: of each teacher's raw loss, by name.
    """

    cross_entropy: float
    distillation: float
    teachers: Mapping[str, float]

    @property
    def factor(self) -> float:
        """What the teachers' sum is multiplied by to push as hard as the cross-entropy; 1 where it does not push."""
        return self.cross_entropy / self.distillation if self.distillation else 1.0


def steps_between(
    asked: int | None, kd_weight: KdWeight | Literal["gradient"], teachers: Sequence[OnlineTeacher]
) -> int | None:
    """How many steps lie between two measurements; None where nothing is measured.

    Args:
        asked: None for the default: `EVERY` where the weight goes by gradients, else never.
        kd_weight: of the teachers' sum.
        teachers: of the run.

    Raises:
        XTokenError: there is nothing to compare; fewer than one step.
    """
    by_gradient = kd_weight == "gradient"
    if asked is None and not by_gradient:
        return None
    what = "kd_weight 'gradient'" if by_gradient else "gradient_norms"
    if not teachers:
        raise XTokenError(f"{what} has no effect without teachers: there is one term alone. Leave it out.")
    if asked is not None and asked < 1:
        raise XTokenError(f"gradient_norms is {asked}; expected a number of steps, at least 1")
    return EVERY if asked is None else asked


def gradient_of(losses: Iterable[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a sum of losses, without a change to `.grad`; zeros for a parameter that none depends on.

    Args:
        losses: scalars, at least one; each graph is let go before the next loss is asked for.
        parameters: which to differentiate by.
    """
    total: list[Tensor] = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        total = _plus(total, list(found))
    return total


def measure(
    gradient: Callable[[Distiller], list[Tensor]],
    distiller: Distiller,
    weights: Mapping[str, Tensor],
    accelerator: Any,
) -> Pushes:
    """The norms of all terms, the same in every process.

    Args:
        gradient: this process's part of the gradient of a distiller's loss: of cross-entropy where it has no teacher,
            else of its teacher's raw loss.
        distiller: the run's.
        weights: scalars, of the teachers in their sum.
        accelerator: adds up over the processes.
    """
    norms = [_norm(gradient(Distiller((), distiller.vocab_size)), accelerator)]
    total: list[Tensor] = []
    for teacher in distiller.teachers:
        own = gradient(Distiller([teacher], distiller.vocab_size, kd_weight=1.0, ce_weight=0.0))
        norms.append(_norm(own, accelerator))
        total = _plus(total, [weights[teacher.name].to(part.dtype) * part for part in own])
        del own
    norms.append(_norm(total, accelerator))
    # Added up alike in all processes, but on devices that need not be alike.
    ce, *teachers, kd = broadcast(torch.stack(norms)).tolist()
    return Pushes(ce, kd, dict(zip([teacher.name for teacher in distiller.teachers], teachers, strict=True)))


def _plus(total: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    """The sum of two gradients, of which the first may be empty; out of place: autograd may give one tensor twice."""
    if not total:
        return more
    for number, part in enumerate(more):
        total[number] = total[number] + part
    return total


def _norm(gradient: Sequence[Tensor], accelerator: Any) -> Tensor:
    """The L2 norm of a gradient added up over the processes, one parameter at a time, in at least float32."""
    parts = []
    for part in gradient:
        whole = accelerator.reduce(part, reduction="sum") if accelerator.num_processes > 1 else part
        wide = torch.promote_types(whole.dtype, torch.float32)
        parts.append(torch.linalg.vector_norm(whole, dtype=wide))
    return torch.linalg.vector_norm(torch.stack(parts))
