"""torch.compile of a student, in place and for training passes alone.

The decoder's own `forward` is compiled, and neither the whole model nor the decoder's call: hooks on it then run as
ever, which is how hidden states are read, and no parameter gets another name, so that checkpoints and the saved student
are the plain model's. A pass without gradient runs as it is, since its graph would be compiled anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from xtoken.errors import XTokenError
from xtoken.teachers.causal import decoder_of

__all__ = ["compiled"]

BACKEND = "inductor"


@contextmanager
def compiled(model: Any, backend: str | None = None) -> Iterator[None]:
    """Compiles a model's decoder for the time of the block; a model that shows none is compiled whole.

    Args:
        model: a Hugging Face causal LM, in peft's wrapper or bare.
        backend: of torch.compile; None is inductor.

    Raises:
        XTokenError: when the first batch comes, where the backend cannot compile here.
    """
    part = decoder_of(model) or model
    plain, own = part.forward, part.__dict__.get("forward")
    quick = torch.compile(plain, backend=backend or BACKEND)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        try:
            return quick(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise XTokenError(f"optim.compile: torch.compile fails on the student: {reason}. Leave it out.") from error

    part.forward = forward
    try:
        yield
    finally:
        part.__dict__.pop("forward", None)
        if own is not None:
            part.forward = own
