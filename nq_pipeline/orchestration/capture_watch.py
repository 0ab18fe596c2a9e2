"""The thread that watches a capture in a Dagster run: reports its progress, and ends it with the run.

A thread of its own, because Dagster's database may keep a caller waiting for half a minute when it is busy,
and the capture's thread reads the socket.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import dagster as dg

if TYPE_CHECKING:
    from nq_pipeline.capture.stats import CaptureStats

CHECK_RUN_EVERY_S = 3.0
OBSERVE_EVERY_S, OBSERVE_AT_MOST_EVERY_S = 60.0, 5.0
"""An observation costs Dagster's database about 8 KB, so one a minute is a few MB a day. A change of state
is shown sooner."""
TICK_S = 0.5

log = logging.getLogger(__name__)


class CaptureWatch:
    """A context manager around `Capture.run`, whose `progress` is `update`.

    It sets `stop` when the run has to end: when `end_reason` returns one, or when Dagster no longer counts
    the run as started, because it was cancelled, failed or deleted (`abandoned`). It calls `observe` with the
    statistics and the records a second since the last call.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        stop: threading.Event,
        *,
        end_reason: Callable[[], str],
        observe: Callable[[CaptureStats, float], None],
    ) -> None:
        self.abandoned = False
        self._context, self._stop, self._end_reason, self._observe = context, stop, end_reason, observe
        self._ended = threading.Event()
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stats: CaptureStats | None = None
        self._note = ""
        self._alerts: list[str] = []
        self._streamed: dict[str, str] = {}
        self._thread = threading.Thread(target=self._watch, name="capture-watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def update(self, stats: CaptureStats) -> None:
        """Remember the statistics; a change of the capture's state becomes a line of the run's log."""
        self._stats = stats
        if stats.note != self._note:
            self._note = stats.note
            self._lines.put(stats.note)
        if stats.records and stats.schemas != self._streamed:
            self._streamed = dict(stats.schemas)
            schemas = ", ".join(f"{schema} for {what}" for what, schema in stats.schemas.items())
            self._lines.put(f"streaming {schemas}")
        alerts = stats.alerts()
        for alert in alerts:
            if alert not in self._alerts:
                self._lines.put(f"ALERT: {alert}")
        self._alerts = alerts

    def _watch(self) -> None:
        checked = observed = time.monotonic()
        records, due, ended = 0, True, False
        while not ended:
            ended = self._ended.wait(TICK_S)
            now = time.monotonic()
            try:
                due = self._log_lines() or due or now - observed >= OBSERVE_EVERY_S
                if now - checked >= CHECK_RUN_EVERY_S:
                    checked = now
                    self._check_run()
                stats = self._stats
                if stats and (ended or (due and now - observed >= OBSERVE_AT_MOST_EVERY_S)):
                    self._observe(stats, (stats.records - records) / (now - observed))
                    observed, records, due = now, stats.records, False
            except Exception:  # a busy database must not end the capture; the next try is soon
                log.exception("The progress of the capture could not be reported to Dagster")

    def _log_lines(self) -> bool:
        """Write the new lines to the run's log; returns whether there were any."""
        anything = False
        while not self._lines.empty():
            line, anything = self._lines.get(), True
            (self._context.log.warning if line.startswith("ALERT") else self._context.log.info)(line)
        return anything

    def _check_run(self) -> None:
        """End the capture when Dagster has ended its run, even where its signal cannot reach this process."""
        run = self._context.instance.get_run_by_id(self._context.run.run_id)
        if run is None or run.status is not dg.DagsterRunStatus.STARTED:
            self.abandoned = True
            self._stop.set()
        elif reason := self._end_reason():
            self._context.log.info(reason)
            self._stop.set()
