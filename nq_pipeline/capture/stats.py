"""What a capture did, so far or at its end, and the meter that keeps it up to date."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from nq_pipeline.capture.gaps import MAX_REPLAYS, UNRESOLVED, Gap

REPORT_EVERY_S = 1.0
LAGS = 4096


@dataclass
class CaptureStats:
    """What a capture did, so far or at its end.

    Attributes
    ----------
    rate
        Records a second since the last report.
    lag_p99_ms
        From Databento's receipt of a record to our log, of the last few thousand chunks that came live.
    reconnects
        Sessions after the first.
    open_gaps, verified_gaps, unfillable_gaps
        Gaps known to this capture by state; open ones include those not verified yet.
    disputed_gaps
        Those of the open ones that no replay filled as the count has it, and that were given up.
    differing_gaps
        Verified ones of which the lake has more or fewer rows than the count found.
    cost_usd
        What was paid to the historical API for gaps.
    schemas
        What is streamed: options, futures.
    missing
        Parents that are always listed, and of which the gateway names no instrument.
    note
        What last happened, one sentence.
    publish_failure
        Why rows are not being published; the log goes on without.
    """

    seconds: float = 0.0
    records: int = 0
    bytes: int = 0
    rate: float = 0.0
    lag_p99_ms: float | None = None
    reconnects: int = 0
    open_gaps: int = 0
    verified_gaps: int = 0
    unfillable_gaps: int = 0
    disputed_gaps: int = 0
    differing_gaps: int = 0
    cost_usd: Decimal = Decimal(0)
    schemas: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    note: str = ""
    publish_failure: str = ""

    def alerts(self) -> list[str]:
        """What somebody has to look at, a sentence each; empty when all is well."""
        found = []
        if self.missing:
            found.append(
                f"the gateway names no instrument of {', '.join(self.missing)}: nothing of it is captured; "
                "ask Databento, or see whether the plan includes it"
            )
        if self.unfillable_gaps or self.disputed_gaps:
            found.append(
                f"{self.unfillable_gaps + self.disputed_gaps} gaps could not be filled; "
                "the table gaps says where and why"
            )
        if self.differing_gaps:
            found.append(
                f"of {self.differing_gaps} verified gaps the lake has other rows than the count found; "
                "the table gaps says how many"
            )
        if self.publish_failure:
            found.append(f"rows are not being published: {self.publish_failure}")
        return found


class Meter:
    """Counts towards the totals, and shows them about every second.

    Parameters
    ----------
    show
        Is handed the totals; always the same object.
    """

    def __init__(self, totals: CaptureStats, show: Callable[[CaptureStats], None] | None) -> None:
        self._totals, self._show = totals, show
        self._began = time.monotonic()
        self._lags: deque[int] = deque(maxlen=LAGS)
        self._rated = (0.0, 0)
        self._ended = (0, 0)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._began - self._rated[0] >= REPORT_EVERY_S

    def lag(self, ns: int) -> None:
        """Take the lag of a chunk that came live."""
        self._lags.append(ns)

    def session_ended(self, records: int, size: int) -> None:
        """Add what a session brought."""
        self._ended = self._ended[0] + records, self._ended[1] + size

    def report(self, gaps: Iterable[Gap], records: int = 0, size: int = 0) -> None:
        """Bring the totals up to date and show them; `records` and `size` of the session that goes on."""
        totals, seconds = self._totals, time.monotonic() - self._began
        totals.records, totals.bytes = self._ended[0] + records, self._ended[1] + size
        then, before = self._rated
        if seconds - then >= REPORT_EVERY_S:
            totals.rate = (totals.records - before) / (seconds - then)
            self._rated = (seconds, totals.records)
        totals.seconds = seconds
        if self._lags:
            totals.lag_p99_ms = sorted(self._lags)[int(len(self._lags) * 0.99)] / 1e6
        found = list(gaps)
        totals.open_gaps = sum(gap.state in UNRESOLVED for gap in found)
        totals.verified_gaps = sum(gap.state == "verified" for gap in found)
        totals.unfillable_gaps = sum(gap.state == "unfillable" for gap in found)
        totals.disputed_gaps = sum(gap.state in UNRESOLVED and gap.attempts >= MAX_REPLAYS for gap in found)
        totals.differing_gaps = sum(gap.is_verified_but_differs for gap in found)
        totals.cost_usd = sum((gap.cost_usd for gap in found), Decimal(0))
        if self._show:
            self._show(totals)
