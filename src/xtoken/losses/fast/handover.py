"""Handing out a gradient that was made on the way forward, without a second copy of it where none is needed.

The gradient has to be multiplied by what comes from above. If the graph is let go with this backward, as it is unless
`retain_graph` asks otherwise, the multiplication is done in place and the tensor given away: at [tokens, vocabulary] a
copy costs more than the loss. If the graph is kept, a copy is handed out and the original stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["hand_out", "keep_for_backward"]


def keep_for_backward(ctx: Any, gradients: Sequence[Tensor | None]) -> None:
    """Keeps gradients for `hand_out`; in a `Function`'s forward."""
    ctx.gradients = list(gradients)


def hand_out(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """The kept gradients times `grad_output`; in a `Function`'s backward.

    Raises:
        RuntimeError: they were given away by a backward before.
    """
    gradients: list[Tensor | None] | None = ctx.gradients
    if gradients is None:
        raise RuntimeError(
            "this loss has given its gradient away: a second backward through it needs retain_graph=True in the first."
        )
    if _graph_is_kept():
        return [None if g is None else g * grad_output.to(g.dtype) for g in gradients]
    ctx.gradients = None
    return [None if g is None else g.mul_(grad_output.to(g.dtype)) for g in gradients]


# What torch's own checkpointing asks. Should a release drop it, a copy is always right.
_graph_is_kept: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
