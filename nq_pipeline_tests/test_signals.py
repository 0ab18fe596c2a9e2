"""Signals reach a command whatever its main thread does at that moment."""

from __future__ import annotations

import os
import signal
import threading

from nq_pipeline.signals import on_signal


def test_a_signal_is_handled_while_the_main_thread_holds_the_lock() -> None:
    stop, received = threading.Event(), list[int]()

    def act(number: int) -> None:
        received.append(number)
        stop.set()

    with on_signal(act, signal.SIGTERM):
        with stop._cond:  # type: ignore[attr-defined]  # as within `Event.wait`
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
    assert received == [signal.SIGTERM]


def test_the_handlers_before_are_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    with on_signal(lambda number: None, signal.SIGTERM, signal.SIGHUP):
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before
