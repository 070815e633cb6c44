"""Signals while training: the first asks for a stop, and which later one cuts it short."""

from __future__ import annotations

import signal

import pytest

from xtoken.training.callbacks import stop_on_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_a_later_sigterm_changes_nothing(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_interrupt() as request:
        assert (request.asked, request.signal) == (False, None)
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert (request.asked, request.signal) == (True, number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
