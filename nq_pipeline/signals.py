"""Handle signals while a command or a run lasts."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread


@contextmanager
def on_signal(act: Callable[[int], None], *signals: int) -> Iterator[None]:
    """Call `act` with the number of each of these signals, on a thread of its own, while the context lasts.

    Python runs a handler between two instructions of the main thread, which may just hold the lock that
    `act` needs: `Event.set` within `Event.wait` would wait for ever. So the handlers do nothing, and a thread
    reads the numbers that the interpreter writes to a socket.

    Enter it on the main thread; Python allows handlers nowhere else.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while numbers := reader.recv(64):
            for number in numbers:
                if number in signals:
                    act(number)

    listener = Thread(target=listen, name="signals", daemon=True)
    listener.start()
    fd_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        writer.close()
        listener.join()
        reader.close()
