"""What a capture has done, and the meter that keeps it up to date."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from nq_pipeline.capture.gaps import UNRESOLVED, Gap

MAX_LAGS = 4096


@dataclass
class CaptureStats:
    """What a capture has done so far, or by its end."""

    seconds: float = 0.0
    records: int = 0
    bytes: int = 0
    rate: float = 0.0  # records a second since the last report
    lag_p99_ms: float | None = None
    """From Databento's receipt of a record to our log, over the last few thousand live chunks."""
    reconnects: int = 0
    open_gaps: int = 0  # also those replayed but not verified
    verified_gaps: int = 0
    unfillable_gaps: int = 0
    disputed_gaps: int = 0  # open gaps that were given up because no replay agreed with its count
    differing_gaps: int = 0  # verified gaps of which the lake has more or fewer rows than were counted
    cost_usd: Decimal = Decimal(0)  # paid to the historical API for gaps
    schemas: dict[str, str] = field(default_factory=dict)  # streamed of `options` and of `futures`
    missing: list[str] = field(default_factory=list)
    """Parents that are always listed but of which the gateway names no instrument."""
    note: str = ""  # the last event, in one sentence
    publish_failure: str = ""  # why rows are not being published; logging continues

    def alerts(self) -> list[str]:
        """What needs attention, one sentence each; empty when all is well."""
        found = []
        if self.missing:
            found.append(
                f"the gateway names no instrument of {', '.join(self.missing)}, so it is not captured; "
                "ask Databento, or check whether the plan includes it"
            )
        if lost := self.unfillable_gaps + self.disputed_gaps:
            found.append(f"{lost} gaps could not be filled; the table gaps says where and why")
        if self.differing_gaps:
            found.append(
                f"the lake has more or fewer rows than counted in {self.differing_gaps} verified gaps; "
                "the table gaps says by how much"
            )
        if self.publish_failure:
            found.append(f"rows are not being published: {self.publish_failure}")
        return found


class Meter:
    """Updates the stats of a capture, and calls `show` with them every `every_s` seconds."""

    def __init__(
        self, stats: CaptureStats, show: Callable[[CaptureStats], None] | None, *, every_s: float
    ) -> None:
        self.stats, self._show, self._every_s = stats, show, every_s
        self._began = time.monotonic()
        self._lags: deque[int] = deque(maxlen=MAX_LAGS)
        self._last_rated = (0.0, 0)
        self._ended_records = self._ended_bytes = 0

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._began - self._last_rated[0] >= self._every_s

    def add_lag(self, ns: int) -> None:
        """Add the lag of a live chunk, nanoseconds."""
        self._lags.append(ns)

    def add_session(self, records: int, size: int) -> None:
        """Add the records and bytes of a session that has ended."""
        self._ended_records += records
        self._ended_bytes += size

    def report(self, gaps: Sequence[Gap], records: int = 0, size: int = 0) -> None:
        """Update and show the stats; `records` and `size` are those of the session that is open."""
        stats, seconds = self.stats, time.monotonic() - self._began
        stats.records, stats.bytes = self._ended_records + records, self._ended_bytes + size
        then, before = self._last_rated
        if seconds - then >= self._every_s:
            stats.rate = (stats.records - before) / (seconds - then)
            self._last_rated = (seconds, stats.records)
        stats.seconds = seconds
        if self._lags:
            stats.lag_p99_ms = sorted(self._lags)[int(len(self._lags) * 0.99)] / 1e6
        stats.open_gaps = sum(gap.state in UNRESOLVED for gap in gaps)
        stats.verified_gaps = sum(gap.state == "verified" for gap in gaps)
        stats.unfillable_gaps = sum(gap.state == "unfillable" for gap in gaps)
        stats.disputed_gaps = sum(gap.is_disputed for gap in gaps)
        stats.differing_gaps = sum(gap.is_verified_but_differs for gap in gaps)
        stats.cost_usd = sum((gap.cost_usd for gap in gaps), Decimal(0))
        if self._show:
            self._show(stats)
