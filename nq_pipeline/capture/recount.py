"""Proves a replay: counts the records of an independent second replay.

A replay that the gateway calls complete may still lack records; that was observed. So each gap is
counted again before it is `verified`, and compared once more with the lake when its rows are published.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nq_pipeline.capture import reconnect_policy
from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.gap_tracker import GapTracker
from nq_pipeline.capture.gaps import MAX_REPLAYS, Gap, RecordCount
from nq_pipeline.capture.gateway import GatewayConnector, GatewaySession, Subscription
from nq_pipeline.capture.reconnect_policy import Attempts, EndReason, Retry, SessionEnd
from nq_pipeline.clock import Clock
from nq_pipeline.dbn.framer import Frame
from nq_pipeline.dbn.layout import RTYPES
from nq_pipeline.leases.leases import Lease

POLL_S = 0.02
MIN_PAUSE_S = 1.0


class LakeComparison:
    """Compares verified gaps with the lake, each after a publication that includes all its records.

    Nothing is published without `lease`, if there is one.
    """

    def __init__(self, store: GapStore, publish: Callable[[], object] | None, lease: Lease | None) -> None:
        self._store, self._publish, self._lease = store, publish, lease
        self._waiting: deque[tuple[Gap, RecordCount]] = deque()
        self.compared: deque[Gap] = deque()
        """Gaps with the number of their rows in the lake, for the caller to remove."""

    def add(self, gap: Gap, counted: RecordCount) -> None:
        self._waiting.append((gap, counted))

    def publish(self) -> None:
        """Publish, then compare the gaps that were waiting before; runs on the publisher's thread."""
        ready = len(self._waiting)  # their records were in the log before this publication
        if self._lease:
            self._lease.check()
        if self._publish:
            self._publish()
        for _ in range(ready):
            self.compared.append(self._store.compare(*self._waiting[0]))
            self._waiting.popleft()


@dataclass
class Recounter:
    """Counts replayed gaps a second time, in sessions of their own, one at a time.

    `notify` is called with a sentence about a count that failed or differs.
    """

    connector: GatewayConnector
    tracker: GapTracker
    comparison: LakeComparison
    clock: Clock
    verify_s: float  # how long a count may take
    notify: Callable[[str], None]
    dispute: str | None = None  # why a replay has to be repeated; None while no count differs

    def __post_init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._failed = Attempts()
        self._not_before = 0.0

    def start(self, gaps: list[Gap], streams: Mapping[str, tuple[str, ...]]) -> None:
        """Begin to count some gaps unless a count is running or due later; `streams` maps schema to parents.

        Raises the error of the previous count, if it failed.
        """
        if self._task and self._task.done():
            self._task.result()
            self._task = None
        if gaps and not self._task and self.clock.monotonic() >= self._not_before:
            self._task = asyncio.create_task(self._recount(gaps, streams))

    async def cancel(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _recount(self, gaps: list[Gap], streams: Mapping[str, tuple[str, ...]]) -> None:
        counts, ending = await count_replay(self.connector, streams, gaps, give_up_s=self.verify_s)
        if ending:
            self._retry_later(gaps, ending)
            return
        self._failed = Attempts()
        for gap in gaps:
            judged = self.tracker.judge(gap, counts[gap.gap_id])
            if judged and judged.state == "verified":
                self.comparison.add(judged, counts[gap.gap_id])
            if judged and judged.state == "open":
                self.notify(f"ALERT: {judged.reason}")
                if judged.attempts < MAX_REPLAYS:
                    self.dispute = judged.reason

    def _retry_later(self, gaps: list[Gap], ending: SessionEnd) -> None:
        """Back off, and give up the gaps that have become too old to be counted."""
        step = reconnect_policy.next_step(
            ending, self._failed, now=self.clock.now(), closes=None, chance=random.random()
        )
        self._failed = self._failed.after(ending)
        if isinstance(step, Retry) and step.replay_too_old:
            oldest = min(gap.first_ns for gap in gaps)
            for gap in gaps:
                if gap.first_ns <= max(oldest, (step.earliest_ns or 0) - 1):
                    self.tracker.mark_uncountable(gap)
        pause = max(MIN_PAUSE_S, step.after_s) if isinstance(step, Retry) else reconnect_policy.CAP_S
        self._not_before = self.clock.monotonic() + pause
        self.notify(f"a gap could not be counted ({ending}); next attempt in {pause:.1f} s")


async def count_replay(
    connector: GatewayConnector,
    streams: Mapping[str, tuple[str, ...]],
    gaps: Sequence[Gap],
    *,
    give_up_s: float,
) -> tuple[dict[str, RecordCount], SessionEnd | None]:
    """Count the records of some gaps in a replay of at most `give_up_s` seconds.

    Returns the count of each gap by its ID, and None; or how the session ended before its replays were
    complete.
    """
    counts = {gap.gap_id: RecordCount(RTYPES[gap.schema], gap.first_ns, gap.last_ns) for gap in gaps}
    subscriptions = [
        Subscription(schema, streams[schema], min(g.first_ns for g in gaps if g.schema == schema))
        for schema in sorted({gap.schema for gap in gaps})
    ]

    def add(frame: Frame) -> None:
        for count in counts.values():
            count.add(frame)

    await connector.wait_turn()
    wanted, loop = {s.schema for s in subscriptions}, asyncio.get_running_loop()
    session, until = GatewaySession(connector, add), loop.time() + give_up_s
    try:
        await session.open(subscriptions)
        while not (session.ending.done() or wanted <= session.state.replayed.keys() or loop.time() > until):
            await asyncio.wait([session.ending], timeout=POLL_S)
    finally:
        session.close(SessionEnd(EndReason.STOPPED, "it took too long"))
    ending = await session.ending
    return counts, None if wanted <= session.state.replayed.keys() else ending
