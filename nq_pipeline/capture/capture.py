"""A live capture: one gateway session after another until the window closes.

    gateway ──► log             each chunk within one call, on the event loop's thread
                 └──► publish   about every second, on a thread of its own (`publisher`)
    session ended ──► `reconnect_policy` ──► next session, replayed from the last proven moment
    replay completed ──► second replay, only counted (`recount`) ──► gap verified, or replayed again
    gap older than the replay ──► historical API, bought only within a budget (`gap_repair`)

`gap_tracker` keeps what is proven and what is missing. Nothing here knows its host: a terminal, a
Dagster run and a test all call `Capture(...).run(stop)`.
"""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

from nq_pipeline.capture import gateway, reconnect_policy
from nq_pipeline.capture.gap_repair import GapRepairer, HistoricalRecords
from nq_pipeline.capture.gap_tracker import GapTracker
from nq_pipeline.capture.gaps import BackgroundWriter, GapStore, open_window
from nq_pipeline.capture.gateway import GatewayConnector, GatewaySession, Subscription
from nq_pipeline.capture.log import CaptureLog
from nq_pipeline.capture.publisher import Publisher, publishing
from nq_pipeline.capture.reconnect_policy import Attempts, EndReason, SessionEnd, StepDown, Stop
from nq_pipeline.capture.recount import LakeComparison, Recounter
from nq_pipeline.capture.schema_fallback import SchemaFallback
from nq_pipeline.capture.stats import CaptureStats, Meter
from nq_pipeline.clock import NS_PER_S, Clock, to_ns
from nq_pipeline.dbn.framer import Frame
from nq_pipeline.dbn.layout import RTYPES
from nq_pipeline.errors import CaptureError, LogFailed, NotConfigured, NotEntitled, NqError
from nq_pipeline.market import sessions
from nq_pipeline.sources.databento.spec import DatabentoSettings, check_databento_key
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.settings import Settings

POLL_S = 0.02
REPAIR_TIME = timedelta(minutes=30)
"""How long after the close gaps may still be filled."""


@dataclass(frozen=True)
class Timing:
    """Intervals in seconds; tests shorten them.

    Attributes
    ----------
    settle_s
        How long after a replay, by wall time and by market time, earlier records may still arrive.
    verify_s
        Limit of an independent count.
    missing_s
        How long the gateway may take to name an instrument of a root before the root counts as missing.
    aging_s
        The gateway's replay window moves with the clock: the time from a replay to its second count.
    publish_s, report_s
        From one publication, or one report of the stats, to the next.
    """

    heartbeat_s: int = gateway.HEARTBEAT_S
    late_s: float = gateway.LATE_S
    settle_s: float = 1.0
    verify_s: float = 600.0
    missing_s: float = 45.0
    aging_s: float = 60.0
    publish_s: float = 1.0
    report_s: float = 1.0


class Capture:
    """A capture of the window that is open.

    Parameters
    ----------
    settings
        With a Databento key, and the gateway's address unless it is the vendor's.
    clock
        The gateway's clock: wall time, or the stand-in's. Must not be pinned.
    history
        The historical API, for what the gateway no longer replays. Counts and prices are free;
        records are bought only with `NQ_CAPTURE_REPAIR=paid`.

    Attributes
    ----------
    stats
        What the capture has done so far; always the same object.

    Raises
    ------
    CaptureError
        The clock is pinned.
    NotConfigured
        The key is missing or malformed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        run_id: str | None = None,
        timing: Timing | None = None,
        history: HistoricalRecords | None = None,
    ) -> None:
        self.clock = clock or settings.clock
        if self.clock.pinned:
            raise CaptureError("a capture needs a running clock; unset NQ_NOW")
        databento = settings.vendor(DatabentoSettings)
        key, self._dataset = databento.api_key, databento.dataset
        if key is None:
            raise NotConfigured("a capture needs a Databento key; set DATABENTO_API_KEY")
        self.run_id = run_id or uuid.uuid4().hex
        self.stats = CaptureStats()
        self._settings, self._history, self._timing = settings, history, timing or Timing()
        workspace = Workspace.of(settings)
        self._root, self._lake = workspace.capture, workspace.lake
        address = gateway.gateway_address(databento.gateway, self._dataset)
        check_databento_key(key, address[0])
        self._connector = GatewayConnector(
            key,
            self._dataset,
            address,
            heartbeat_s=self._timing.heartbeat_s,
            late_s=self._timing.late_s,
            zstd=settings.capture.zstd,
        )
        self._parents = {
            "options": gateway.option_parents(settings.products),
            "futures": gateway.future_parents(settings.products),
        }

    def run(
        self,
        stop: threading.Event,
        *,
        publish: Callable[[], object] | None = None,
        progress: Callable[[CaptureStats], None] | None = None,
    ) -> CaptureStats:
        """Capture until the window closes and its gaps are filled, or `stop` is set.

        Parameters
        ----------
        publish
            Called about every second during the capture, and once at its end.
        progress
            Called with `stats` about every second.

        Raises
        ------
        CaptureError
            The window is closed, or continuing cannot help; the message says what to do.
        CaptureBusy
            Another process captures.
        LogFailed
            The disk refuses writes; a gap row says from when records are missing.
        NotEntitled
            The plan has no live data.
        """
        settings, window = self._settings, self._settings.capture.window
        opened = open_window(self.clock.now(), window)
        if opened is None:
            opens = sessions.next_open(self.clock.now(), window)
            raise CaptureError(
                f"the capture window ({window}) is closed; it opens {opens:%Y-%m-%d %H:%M} UTC. "
                "Start the capture then, or set NQ_CAPTURE_WINDOW"
            )
        opens, closes = opened
        store = GapStore(self._lake, dataset=self._dataset, run_id=self.run_id)
        fallback = SchemaFallback(
            self._lake,
            self._dataset,
            {"options": settings.capture.options_schema, "futures": settings.capture.futures_schema},
        )
        comparison, meter = (
            LakeComparison(store, publish),
            Meter(self.stats, progress, every_s=self._timing.report_s),
        )
        with (
            CaptureLog(
                self._root,
                self._dataset,
                clock=self.clock,
                sync_every_s=settings.capture.sync_ms / 1000,
                after=self._published_segment(),
            ) as log,
            BackgroundWriter() as writer,
        ):
            with publishing(
                publish and comparison.publish, self.stats, sync=log.sync, every_s=self._timing.publish_s
            ) as wait_for_publication:
                tracker = GapTracker(
                    store,
                    writer.submit,
                    clock=self.clock,
                    run_id=self.run_id,
                    window=window,
                    opens_ns=to_ns(opens),
                    close_ns=to_ns(closes) if closes else None,
                    settle_s=self._timing.settle_s,
                    aging_s=self._timing.aging_s,
                )
                repairer = GapRepairer(
                    self._history,
                    self._lake,
                    buys=settings.capture.repair == "paid",
                    run_id=self.run_id,
                    clock=self.clock,
                    wait_for_publication=wait_for_publication,
                )
                supervisor = _Supervisor(
                    clock=self.clock,
                    run_id=self.run_id,
                    timing=self._timing,
                    stop=stop,
                    closes=closes,
                    parents=self._parents,
                    fallback=fallback,
                    connector=self._connector,
                    log=log,
                    tracker=tracker,
                    store=store,
                    writer=writer,
                    repairer=repairer,
                    comparison=comparison,
                    meter=meter,
                    proven_ns=to_ns(opens),
                )
                tracker.load_gaps(log.folder, supervisor.streams)
                with repairer:
                    asyncio.run(supervisor.run())
                supervisor.collect_repairs()
            supervisor.collect_repairs()  # also what the last publication was compared with
        supervisor.report()
        return self.stats

    def _published_segment(self) -> int:
        """The newest published segment: were it lost, a new segment must not reuse its number."""
        try:
            return Publisher(self._root / self._dataset, self._lake, run_id=self.run_id).position.segment
        except CaptureError:  # the publisher meets the same error and reports it
            return 0


@dataclass
class _Supervisor:
    """Holds one gateway session after another.

    The first block of fields are the parts of the capture; the second changes while it runs.
    """

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

    proven_ns: int
    session: GatewaySession | None = None
    warnings: int = 0
    session_numbers: count[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.streams = self._streams_in_force()
        self.recounter = Recounter(
            self.connector,
            self.tracker,
            self.comparison,
            clock=self.clock,
            verify_s=self.timing.verify_s,
            notify=self._notify,
        )

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
        await self.connector.wait_turn()
        self.session = session = self.connector.create_session(self._record)
        await self.connector.open(session, subscriptions)
        while not session.ending.done():
            await asyncio.wait([session.ending], timeout=POLL_S)
            if not session.ending.done() and (end := self._supervise(session)):
                session.close(end)
        ending = await session.ending
        self.meter.add_session(session.state.records, session.state.bytes)
        return session, subscriptions, ending

    def _record(self, frame: Frame) -> None:
        """Log a frame first, then track it."""
        self.log.append(frame)
        assert self.session
        received = self.tracker.track(frame, self.session.state)
        if received is not None:
            self.meter.add_lag(to_ns(self.clock.now()) - received)

    def _supervise(self, session: GatewaySession) -> SessionEnd | None:
        """Do what is due during a session; the end that it should come to, if any."""
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
        """Whether to end: after the close, once the session has brought something later than it."""
        if self.stop.is_set():
            return True
        deadline = self._deadline()
        if deadline is None:
            return False
        now = self.clock.now()
        settled = deadline + timedelta(seconds=self.timing.settle_s)
        silence = timedelta(seconds=self.timing.heartbeat_s + self.timing.late_s)
        session = self.session
        heard = session is None or session.ending.done() or session.state.heard_ns >= to_ns(settled)
        return now >= settled and (heard or now >= settled + silence)

    def _deadline(self) -> datetime | None:
        """When the capture ends: at the close, or later while a gap can still be filled."""
        if self.closes is None:
            return None
        pending = self.tracker.fillable or self.repairer.busy
        return self.closes + REPAIR_TIME if pending else self.closes

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
