"""Holds one gateway session after another until the capture window closes.

A session that ended is recorded, `reconnect_policy` decides the next step, and the next session replays from
the last proven moment.
"""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count

from nq_pipeline.capture import gateway, reconnect_policy
from nq_pipeline.capture.gap_repair import GapRepairer
from nq_pipeline.capture.gap_store import BackgroundWriter, GapStore
from nq_pipeline.capture.gap_tracker import GapTracker
from nq_pipeline.capture.gateway import GatewayConnector, GatewaySession, Subscription
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.capture.reconnect_policy import Attempts, EndReason, SessionEnd, StepDown, Stop
from nq_pipeline.capture.recount import LakeComparison, Recounter
from nq_pipeline.capture.schema_fallback import SchemaFallback
from nq_pipeline.capture.stats import Meter
from nq_pipeline.clock import NS_PER_S, Clock, to_ns
from nq_pipeline.dbn.framer import Frame
from nq_pipeline.dbn.layout import RTYPES
from nq_pipeline.errors import CaptureError, LogFailed, NotEntitled, NqError
from nq_pipeline.market import sessions

POLL_S = 0.02
MAX_OVERTIME = timedelta(minutes=30)
"""How long after the close a capture may go on to receive a backlog and to fill gaps."""


@dataclass(frozen=True)
class Timing:
    """Intervals in seconds; tests shorten them."""

    heartbeat_s: int = gateway.HEARTBEAT_S
    late_s: float = gateway.LATE_S
    settle_s: float = 1.0  # see `GapTracker`
    verify_s: float = 600.0  # the limit of an independent count
    missing_s: float = 45.0
    """How long the gateway may take to name an instrument of a root before the root counts as missing."""
    aging_s: float = 60.0  # see `GapTracker`
    publish_s: float = 1.0  # from one publication to the next
    report_s: float = 1.0  # from one report of the stats to the next


@dataclass
class SessionSupervisor:
    """Holds one gateway session after another; `closes` is the window's close, if it has one."""

    clock: Clock
    run_id: str
    timing: Timing
    stop: threading.Event
    closes: datetime | None
    parents: dict[str, tuple[str, ...]]
    fallback: SchemaFallback
    connector: GatewayConnector
    log: CaptureLog
    tracker: GapTracker
    store: GapStore
    writer: BackgroundWriter
    repairer: GapRepairer
    comparison: LakeComparison
    meter: Meter
    proven_ns: int  # this and what follows change during the capture
    session: GatewaySession | None = None
    warnings: int = 0
    session_numbers: count[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.streams = self._streams_in_force()
        counting = self.connector, self.tracker, self.comparison
        self.recounter = Recounter(*counting, self.clock, self.timing.verify_s, self._notify)

    async def run(self) -> None:
        attempts = Attempts()
        try:
            while not self._is_over():
                started = self.clock.now()
                session, subscriptions, ending = await self._hold_session()
                advanced_s = self._record_session(session, subscriptions, started, ending)
                healthy = reconnect_policy.is_healthy(session.state.lived_s, advanced_s)
                ending = replace(ending, healthy=healthy)
                step = reconnect_policy.next_step(
                    ending, attempts, now=self.clock.now(), closes=self._deadline(), chance=random.random()
                )
                attempts = attempts.after(ending)
                if isinstance(step, Stop):
                    self._stop(step, ending)
                    return
                if isinstance(step, StepDown):
                    self._step_down(step.schema, ending.text)
                    continue
                if step.replay_too_old:
                    starts = {s.schema: s.start_ns for s in subscriptions if s.start_ns}
                    self.tracker.handle_too_old(starts, step.earliest_ns)
                self.meter.stats.reconnects += 1
                self._notify(f"{ending}; next attempt in {step.after_s:.1f} s")
                await self._wait(step.after_s)
        finally:
            await self.recounter.cancel()

    async def _hold_session(self) -> tuple[GatewaySession, list[Subscription], SessionEnd]:
        """Hold a session from its connection to its end."""
        self.streams = self._streams_in_force()
        self.tracker.follow_schemas(self.streams)
        self.tracker.give_up_aged(self.streams)
        subscriptions = [
            Subscription(schema, parents, self.tracker.replay_start(schema))
            for schema, parents in self.streams.items()
        ]
        self.tracker.begin_session({schema: RTYPES[schema] for schema in self.streams})
        self.recounter.dispute, self.warnings = None, 0
        # The rows of what is missing come first: the log of the next session seems to prove what came before.
        await asyncio.to_thread(self.writer.check, wait=True)
        await self.connector.wait_turn()
        self.session = session = GatewaySession(self.connector, self._record)
        opening = asyncio.create_task(session.open(subscriptions))
        try:
            while not session.ending.done():
                await asyncio.wait([session.ending], timeout=POLL_S)
                if opening.done():
                    opening.result()
                if not session.ending.done() and (end := self._supervise(session)):
                    session.close(end)
        finally:
            opening.cancel()
            await asyncio.wait([opening])
        ending = await session.ending
        self.meter.add_session(session.state.records, session.state.bytes)
        try:
            self.log.sync()  # before a row says what has arrived
        except LogFailed as error:
            ending = SessionEnd(EndReason.FAILED, str(error))
        return session, subscriptions, ending

    def _record(self, frame: Frame) -> None:
        """Log a frame first, then track it."""
        self.log.append(frame)
        assert self.session
        received = self.tracker.track(frame, self.session.state)
        if received is not None:
            self.meter.add_lag(to_ns(self.clock.now()) - received)

    def _supervise(self, session: GatewaySession) -> SessionEnd | None:
        """Do the periodic work of a session; return why to end it, if at all."""
        now = asyncio.get_running_loop().time()
        try:
            self.log.check()
        except LogFailed as error:
            return SessionEnd(EndReason.FAILED, str(error))
        self.writer.check()
        self.recounter.start(self.tracker.advance(session.state, now), self.streams)
        self.collect_repairs()
        self._check_roots(session, now)
        if session.state.warnings > self.warnings:
            self.warnings = session.state.warnings
            self._notify("the gateway warns of a slow reader: nothing is lost, but records arrive late")
        if self.meter.is_due:
            self.report()
        if self._is_over():
            why = "stopped on request" if self.stop.is_set() else "the window closed"
            return SessionEnd(EndReason.STOPPED, why)
        if session.state.skipped:
            return SessionEnd(EndReason.SKIPPED, session.state.skipped)
        return SessionEnd(EndReason.REPAIR, self.recounter.dispute) if self.recounter.dispute else None

    def _check_roots(self, session: GatewaySession, now: float) -> None:
        """Report the roots that are always listed and that the gateway did not name in time."""
        began = session.state.began
        if began is None or now - began < self.timing.missing_s:
            return
        parents = tuple(parent for group in self.parents.values() for parent in group)
        missing, _ = gateway.missing_parents(parents, session.state.mapped)
        if missing and missing != self.meter.stats.missing:
            self._notify(f"ALERT: the gateway names no instrument of {', '.join(missing)}")
        self.meter.stats.missing = missing

    def _streams_in_force(self) -> dict[str, tuple[str, ...]]:
        """Schema to the parents that are streamed by it."""
        self.meter.stats.schemas = self.fallback.in_force(sessions.trade_date(self.clock.now()))
        streams: dict[str, tuple[str, ...]] = {}
        for group, schema in self.meter.stats.schemas.items():
            streams[schema] = streams.get(schema, ()) + self.parents[group]
        return streams

    def _record_session(
        self, session: GatewaySession, subscriptions: list[Subscription], at: datetime, ending: SessionEnd
    ) -> float:
        """Store how a session ended; returns by how many seconds it moved the proven moment."""
        now, state = self.clock.now(), session.state
        proven = self.tracker.end_session(state, ending, self.log)
        # A gateway whose clock is ahead must not seem to prove more than has passed.
        before, self.proven_ns = self.proven_ns, max(self.proven_ns, min(proven or 0, to_ns(now)))
        row = {
            "session_key": f"{self.run_id}-{next(self.session_numbers)}",
            "gateway_session": state.session_id or None,
            "started_at": to_ns(at),
            "ended_at": to_ns(now),
            "schemas": ",".join(s.schema for s in subscriptions),
            "replay_from": min((s.start_ns for s in subscriptions if s.start_ns is not None), default=None),
            "records": state.records,
            "bytes": state.bytes,
            "ended": str(ending.reason),
            "detail": ending.text or None,
            "code": ending.code,
            "proven_ts": proven,
            "missing": ",".join(self.meter.stats.missing) or None,
        }
        self.writer.submit(lambda: self.store.write_session(row, now))
        return (self.proven_ns - before) / NS_PER_S

    def _stop(self, step: Stop, ending: SessionEnd) -> None:
        """End the capture: silently if all is well, else with the error that says why."""
        if step.reason is None:
            return
        if ending.reason is EndReason.FAILED:
            try:
                self.writer.check(wait=True)
            except (OSError, NqError) as error:
                raise LogFailed(f"{step.reason}; the gap could not be stored either ({error})") from error
            raise LogFailed(step.reason)
        raise CaptureError(step.reason) if step.entitled else NotEntitled(step.reason)

    def _step_down(self, schema: str, text: str) -> None:
        """Remember a refusal and continue with the next schema."""
        self.fallback.refuse(schema, text, sessions.trade_date(self.clock.now()))
        self.streams = self._streams_in_force()
        in_force = self.meter.stats.schemas
        schemas = ", ".join(f"{schema} for {group}" for group, schema in in_force.items())
        self._notify(f"{text}: continuing with {schemas}")
        self.tracker.move_gaps(schema, in_force.values(), text)

    def _is_over(self) -> bool:
        """Whether to end: on request, or after the close.

        The close has passed for sure once the session has sent a record or heartbeat from after it, or
        nothing newer for too long. A gateway that is behind may still be sending what came before.
        """
        if self.stop.is_set():
            return True
        deadline = self._deadline()
        if self.closes is None or deadline is None:
            return False
        now, settle = self.clock.now(), timedelta(seconds=self.timing.settle_s)
        if now < deadline + settle:
            return False
        session = self.session
        if session is None or session.ending.done() or now >= self.closes + MAX_OVERTIME + settle:
            return True
        quiet_s = asyncio.get_running_loop().time() - session.state.advanced
        late = quiet_s >= self.timing.heartbeat_s + self.timing.late_s
        return late or session.state.heard_ns >= to_ns(deadline + settle)

    def _deadline(self) -> datetime | None:
        """When the capture ends: at the close, or later while a gap can still be filled."""
        if self.closes is None:
            return None
        pending = self.tracker.fillable or self.repairer.busy
        return self.closes + MAX_OVERTIME if pending else self.closes

    async def _wait(self, seconds: float) -> None:
        until = self.clock.monotonic() + seconds
        while (left := until - self.clock.monotonic()) > 0 and not self._is_over():
            await asyncio.sleep(min(left, POLL_S))
            if self.meter.is_due:
                self.report()

    def collect_repairs(self) -> None:
        """Request from history what the gateway cannot fill, and store the outcomes."""
        while self.tracker.beyond_replay:
            gap = self.tracker.beyond_replay.pop()
            self.repairer.request(gap, self.streams.get(gap.schema, ()))
        for gap in self.repairer.finished():
            self.tracker.store_outcome(gap)
        while self.comparison.compared:
            gap = self.comparison.compared.popleft()
            self.tracker.store_outcome(gap)
            if gap.is_verified_but_differs:
                self._notify(f"ALERT: {gap.reason}")

    def report(self) -> None:
        """Bring the stats up to date and show them."""
        records = size = 0
        if self.session and not self.session.ending.done():
            records, size = self.session.state.records, self.session.state.bytes
        self.meter.report(self.tracker.gaps, records, size)

    def _notify(self, text: str) -> None:
        self.meter.stats.note = text
        self.report()
