"""What a Dagster run does beside a capture: shows its progress, and notices when it shall end.

On a thread of its own, because an instance whose database is busy may keep a caller waiting for
half a minute, and the capture's thread reads the socket.
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

LOOK_EVERY_S = 3.0
OBSERVE_EVERY_S, OBSERVE_AT_MOST_EVERY_S = 60.0, 5.0
"""An observation costs Dagster's database about 8 KB; once a minute is a few MB a day. What changes the
state of the capture is shown sooner."""
TICK_S = 0.5

log = logging.getLogger(__name__)


class Watch:
    """Runs as a context manager around `Capture.run`; `see` is its `progress`.

    Parameters
    ----------
    stop
        Set when the run shall end.
    over
        Says in a sentence why the capture shall end by itself, or nothing.
    observe
        Is handed the totals and the records a second since the last call.

    Attributes
    ----------
    given_up
        Whether Dagster no longer counts the run as started: cancelled, failed or deleted meanwhile.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        stop: threading.Event,
        *,
        over: Callable[[], str],
        observe: Callable[[CaptureStats, float], None],
    ) -> None:
        self.given_up = False
        self._context, self._stop, self._over, self._observe = context, stop, over, observe
        self._ended = threading.Event()
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._totals: CaptureStats | None = None
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

    def see(self, totals: CaptureStats) -> None:
        """Take up the totals; what is new about the state of the capture will be a line of the run's log."""
        self._totals = totals
        if totals.note != self._note:
            self._note = totals.note
            self._said.put(totals.note)
        if totals.records and totals.schemas != self._streamed:
            self._streamed = dict(totals.schemas)
            schemas = ", ".join(f"{schema} for {what}" for what, schema in totals.schemas.items())
            self._said.put(f"streaming {schemas}")
        alerts = totals.alerts()
        for alert in alerts:
            if alert not in self._alerts:
                self._said.put(f"ALERT: {alert}")
        self._alerts = alerts

    def _watch(self) -> None:
        looked = observed = time.monotonic()
        records, due, ended = 0, True, False
        while not ended:
            ended = self._ended.wait(TICK_S)
            now = time.monotonic()
            try:
                due = self._say() or due or now - observed >= OBSERVE_EVERY_S
                if now - looked >= LOOK_EVERY_S:
                    looked = now
                    self._look()
                totals = self._totals
                if totals and (ended or (due and now - observed >= OBSERVE_AT_MOST_EVERY_S)):
                    self._observe(totals, (totals.records - records) / (now - observed))
                    observed, records, due = now, totals.records, False
            except Exception:  # a busy database must not end the capture; the next look is soon
                log.exception("Dagster could not be told about the capture")

    def _say(self) -> bool:
        """Write what is new to the run's log; whether there was anything."""
        anything = False
        while not self._said.empty():
            line, anything = self._said.get(), True
            (self._context.log.warning if line.startswith("ALERT") else self._context.log.info)(line)
        return anything

    def _look(self) -> None:
        """End the capture when Dagster says so, even where its signal cannot reach this process."""
        run = self._context.instance.get_run_by_id(self._context.run.run_id)
        if run is None or run.status is not dg.DagsterRunStatus.STARTED:
            self.given_up = True
            self._stop.set()
        elif reason := self._over():
            self._context.log.info(reason)
            self._stop.set()
