"""What runs beside the stream, each on a thread of its own: rows about the capture, and publishing.

Neither may hold up the event loop's thread, which takes records from the socket to the log.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

from nq_pipeline.capture.stats import CaptureStats
from nq_pipeline.errors import CaptureError

PUBLISH_EVERY_S = 1.0
POLL_S = 0.05


class Writer:
    """Does what is handed to it in order, and raises from `check` what went wrong."""

    def __init__(self) -> None:
        self._pending: deque[Future[Any]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="capture-books")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.check(wait=True)
        finally:
            self._thread.shutdown(wait=True)

    def later(self, work: Callable[[], object]) -> None:
        self._pending.append(self._thread.submit(work))

    def check(self, *, wait: bool = False) -> None:
        """Raise what went wrong so far; with `wait`, once all is done."""
        while self._pending and (wait or self._pending[0].done()):
            self._pending.popleft().result()


class Publishing:
    """Calls `publish` about every second.

    A failure is shown in the totals and tried again: the log goes on without.
    """

    def __init__(self, publish: Callable[[], object], totals: CaptureStats) -> None:
        self._publish, self._totals = publish, totals
        self._over = threading.Event()
        self._rounds = 0
        self._thread = threading.Thread(target=self._keep_on, name="capture-publish")
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def caught_up(self) -> None:
        """Wait until everything that is in the log now is published, or publishing has stopped.

        Raises
        ------
        CaptureError
            It fails.
        """
        enough = self._rounds + 2  # the round that goes on may have begun before
        while self._rounds < enough and not self._over.is_set():
            time.sleep(POLL_S)
        if self._totals.publish_failure:
            raise CaptureError(f"rows are not being published ({self._totals.publish_failure})")

    def _keep_on(self) -> None:
        while not self._over.wait(PUBLISH_EVERY_S):
            try:
                self._publish()
                self._totals.publish_failure = ""
            except Exception as error:  # shown now, raised by the last call at the end
                self._totals.publish_failure = f"{type(error).__name__}: {error}"
            self._rounds += 1


@contextmanager
def publishing(
    publish: Callable[[], object] | None, totals: CaptureStats, *, sync: Callable[[], object]
) -> Iterator[Callable[[], None]]:
    """Publish while the capture runs, and once more, synced, when it is over and all went well.

    Yields what waits until the log is published as it is.
    """
    if publish is None:
        yield lambda: None
        return
    running = Publishing(publish, totals)
    try:
        yield running.caught_up
    finally:
        running.stop()
    sync()
    publish()
    totals.publish_failure = ""
