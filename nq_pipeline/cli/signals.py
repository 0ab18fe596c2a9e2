"""What a signal does while a command runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def at_signal(act: Callable[[], None], *numbers: int) -> Iterator[None]:
    """Call `act` at these signals instead of what was done before."""
    import signal

    before = {number: signal.signal(number, lambda *_: act()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
