"""What worker processes of the tests do; a module of its own, so that they start without torch."""

from __future__ import annotations

import os
import signal

from xtoken.errors import XTokenError
from xtoken.training.texts import TextSource


def power(base: int, exponent: int) -> int:
    """A power; some exponents fail, each in a way of its own."""
    if exponent == 13:
        raise XTokenError("13 brings bad luck")
    if exponent == 17:
        raise LookupError("a fault of ours")
    if exponent == 19:
        os.kill(os.getpid(), signal.SIGKILL)
    if exponent == 23:
        signal.raise_signal(signal.SIGINT)
    return base**exponent


def read_all(source: TextSource, _: int) -> list[str]:
    """The documents of a source."""
    return list(source.read())
