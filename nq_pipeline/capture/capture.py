"""The capture: keeps one session of the gateway going through a window.

    gateway ──► capture log                     within one call, on the event loop's thread
                    └──► publish                about every second, on a thread of its own (`beside`)
    end of a session ──► rule (`reconnect`) ──► next session, with a replay from the last proven moment
    replay completed ──► second replay, counted only (`recount`) ──► gap verified, or replayed again
    gap beyond the replay ──► the historical API, for money that is granted (`history`)

What is proven and what is missing is kept by `accounts`. Knows no host: a terminal, a Dagster run
or a test calls `Capture(...).run(stop)`.
"""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

from nq_pipeline.capture import gateway, reconnect_policy
from nq_pipeline.capture.gap_repair import GapRepairer, HistoricalRecords
from nq_pipeline.capture.gap_tracker import GapTracker
from nq_pipeline.capture.gaps import MAX_REPLAYS, BackgroundWriter, Gap, GapStore, RecordCount, open_window
from nq_pipeline.capture.gateway import GatewaySession, Subscription
from nq_pipeline.capture.log import CaptureLog
from nq_pipeline.capture.publisher import Publisher, publishing
from nq_pipeline.capture.reconnect_policy import Attempts, EndReason, Retry, SessionEnd, StepDown, Stop
from nq_pipeline.capture.recount import recount, subscriptions
from nq_pipeline.capture.schema_fallback import RTYPES, SchemaFallback
from nq_pipeline.capture.stats import CaptureStats, Meter
from nq_pipeline.clock import NS_PER_S, Clock, to_ns
from nq_pipeline.dbn.framer import Frame
from nq_pipeline.errors import CaptureError, LogFailed, NotConfigured, NotEntitled, NqError
from nq_pipeline.market import sessions
from nq_pipeline.settings import check_databento_key
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.settings import Settings

POLL_S = 0.02
GRACE = timedelta(minutes=30)
"""How long after the close gaps may still be filled."""
RECOUNT_AGAIN_S = 1.0


@dataclass(frozen=True)
class Timing:
    """What a test may want shorter.

    Attributes
    ----------
    settle_s
        How long after a replay, by wall and by market, records from before it may still come.
    verify_s
        How long an independent count may take.
    missing_s
        How long a root may take to be named before it counts as missing.
    aging_s
        What the gateway replays moves on with the clock: how long from a replay to its second count.
    """

    heartbeat_s: int = gateway.HEARTBEAT_S
    late_s: float = gateway.LATE_S
    settle_s: float = 1.0
    verify_s: float = 600.0
    missing_s: float = 45.0
    aging_s: float = 60.0


class Capture:
    """One capture of one window.

    Parameters
    ----------
    settings
        With a key of Databento, and the gateway's address if it is not the vendor's.
    clock
        The gateway's: wall time, or that of the stand-in. Must run.
    history
        The historical API, for what the gateway no longer replays. Its counts and prices are asked
        for; records are bought only with `NQ_CAPTURE_REPAIR=paid`.

    Raises
    ------
    CaptureError
        The clock is pinned.
    NotConfigured
        There is no key, or what is set is none.
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
            raise CaptureError("a capture needs a clock that runs; unset NQ_NOW")
        if settings.databento_api_key is None:
            raise NotConfigured("the capture needs a key of Databento; set DATABENTO_API_KEY")
        self.run_id = run_id or uuid.uuid4().hex
        self.totals = CaptureStats()
        self._settings, self._key, self._history = settings, settings.databento_api_key, history
        self._dataset, self._window = settings.databento_dataset, settings.capture_window
        self._address = gateway.gateway_address(settings.databento_gateway, self._dataset)
        check_databento_key(self._key, self._address[0])
        self._timing = timing or Timing()
        self._root = Workspace.of(settings).capture
        self._lake = Workspace.of(settings).lake
        self._book = GapStore(
            self._lake, dataset=self._dataset, environment=settings.environment, run_id=self.run_id
        )
        self._ladder = SchemaFallback(
            self._lake,
            self._dataset,
            {"options": settings.capture_schema, "futures": settings.capture_futures_schema},
        )
        self._parents = {
            "options": gateway.option_parents(settings.products),
            "futures": gateway.future_parents(settings.products),
        }
        self._session_numbers = count(1)
        self._connected_at = float("-inf")
        self._session: GatewaySession | None = None
        self._recounting: asyncio.Task[None] | None = None
        self._recount_again = 0.0
        self._uncounted = Attempts()
        self._disputed: str | None = None
        self._uncompared: deque[tuple[Gap, RecordCount]] = deque()
        self._compared: deque[Gap] = deque()
        self._warnings = 0

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
            Called about every second while the capture runs, and once at its end.
        progress
            Is handed the totals about every second; always the same object.

        Raises
        ------
        CaptureError
            The window is closed, or going on cannot help; the sentence says what to do.
        CaptureBusy
            Another process captures.
        LogFailed
            The disk refuses; a gap row says from where on records are missing.
        NotEntitled
            The plan has no live data.
        """
        opened = open_window(self.clock.now(), self._window)
        if opened is None:
            opens = sessions.next_open(self.clock.now(), self._window)
            raise CaptureError(
                f"the capture window ({self._window}) is closed; it opens {opens:%Y-%m-%d %H:%M} UTC. "
                "Start the capture then, or set NQ_CAPTURE_WINDOW"
            )
        opens, self._closes = opened
        self._proven_ns = to_ns(opens)
        self._stop, self._meter = stop, Meter(self.totals, progress)
        sync_s, after = self._settings.capture_sync_ms / 1000, self._published_segment()
        with (
            CaptureLog(
                self._root, self._dataset, clock=self.clock, sync_every_s=sync_s, after=after
            ) as self._log,
            BackgroundWriter() as self._books,
            self._settling(),
            publishing(publish and self._comparing(publish), self.totals, sync=self._log.sync) as caught_up,
        ):
            self._accounts = GapTracker(
                self._book,
                self._books.later,
                clock=self.clock,
                run_id=self.run_id,
                window=self._window,
                opens_ns=to_ns(opens),
                close_ns=to_ns(self._closes) if self._closes else None,
                settle_s=self._timing.settle_s,
                aging_s=self._timing.aging_s,
            )
            self._repairs = GapRepairer(
                self._history,
                self._lake,
                buys=self._settings.capture_repair == "paid",
                environment=self._settings.environment,
                run_id=self.run_id,
                clock=self.clock,
                caught_up=caught_up,
            )
            self._streams = self._parents_by_schema()
            self._accounts.find(self._log.folder, self._streams)
            with self._repairs:
                asyncio.run(self._supervise())
            self._look_beyond()
        self._report()
        return self.totals

    def _published_segment(self) -> int:
        """The newest segment that was published: were it lost, a new one of its number would pass for it."""
        try:
            return Publisher(self._root / self._dataset, self._lake, run_id=self.run_id).position.segment
        except CaptureError:  # whoever publishes meets the same and says so
            return 0

    # ── one session after the other ─────────────────────────────────────────────────────────────

    async def _supervise(self) -> None:
        attempts = Attempts()
        try:
            while not self._is_over():
                started = self.clock.now()
                session, asked, ending = await self._hold_session()
                advanced_s = self._put_down(session, asked, started, ending)
                ending = replace(
                    ending, healthy=reconnect_policy.is_healthy(session.state.lived_s, advanced_s)
                )
                step = reconnect_policy.next_step(
                    ending, attempts, now=self.clock.now(), closes=self._deadline(), chance=random.random()
                )
                attempts = attempts.after(ending)
                if isinstance(step, Stop):
                    self._give_up(step, ending)
                    return
                if isinstance(step, StepDown):
                    self._step_down(step.schema, ending.text)
                    continue
                if step.replay_too_old:
                    starts = {s.schema: s.start_ns for s in asked if s.start_ns}
                    self._accounts.start_later(starts, step.earliest_ns)
                self.totals.reconnects += 1
                self._note(f"{ending}; next attempt in {step.after_s:.1f} s")
                await self._wait(step.after_s)
        finally:
            if self._recounting:
                self._recounting.cancel()
                await asyncio.gather(self._recounting, return_exceptions=True)

    async def _hold_session(self) -> tuple[GatewaySession, list[Subscription], SessionEnd]:
        """A session from the connection to its end."""
        self._streams = self._parents_by_schema()
        self._accounts.follow(self._streams)
        self._accounts.reach(self._streams)
        asked = [Subscription(s, parents, self._accounts.starts(s)) for s, parents in self._streams.items()]
        self._accounts.begin({s.schema: RTYPES[s.schema] for s in asked})
        self._disputed, self._warnings = None, 0
        await self._space()
        self._session = session = self._session_for(self._record)
        await session.open(*self._address, asked)
        while not session.ending.done():
            await asyncio.wait([session.ending], timeout=POLL_S)
            if not session.ending.done() and (end := self._look_after(session)):
                session.close(end)
        ending = await session.ending
        self._meter.session_ended(session.state.records, session.state.bytes)
        return session, asked, ending

    def _session_for(self, record: Callable[[Frame], None]) -> GatewaySession:
        return GatewaySession(
            self._key,
            self._dataset,
            record,
            heartbeat_s=self._timing.heartbeat_s,
            late_s=self._timing.late_s,
            zstd=self._settings.capture_zstd,
        )

    def _record(self, frame: Frame) -> None:
        """A frame has come: to the log first, then into the accounts."""
        self._log.append(frame)
        assert self._session
        received = self._accounts.take(frame, self._session.state)
        if received is not None:
            self._meter.lag(to_ns(self.clock.now()) - received)

    def _look_after(self, session: GatewaySession) -> SessionEnd | None:
        """What is due while a session goes on; the end that it should have, if it should."""
        now = asyncio.get_running_loop().time()
        try:
            self._log.check()
        except LogFailed as error:
            return SessionEnd(EndReason.FAILED, str(error))
        self._books.check()
        self._count_again(self._accounts.advance(session.state, now))
        self._look_beyond()
        self._miss_roots(session, now)
        if session.state.warnings > self._warnings:
            self._warnings = session.state.warnings
            self._note("the gateway warns that it is read too slowly: nothing is left out, but it comes late")
        if self._meter.is_due:
            self._report()
        if self._is_over():
            return SessionEnd(
                EndReason.STOPPED, "stop was asked for" if self._stop.is_set() else "the window closed"
            )
        if session.state.skipped:
            return SessionEnd(EndReason.SKIPPED, session.state.skipped)
        return SessionEnd(EndReason.REPAIR, self._disputed) if self._disputed else None

    def _miss_roots(self, session: GatewaySession, now: float) -> None:
        """See which of the roots that are always listed the gateway has not named in time."""
        began = session.state.began
        if began is None or now - began < self._timing.missing_s:
            return
        asked = tuple(parent for parents in self._parents.values() for parent in parents)
        always, _ = gateway.missing_parents(asked, session.state.mapped)
        if always and always != self.totals.missing:
            self._note(f"ALERT: the gateway names no instrument of {', '.join(always)}")
        self.totals.missing = always

    def _in_force(self) -> dict[str, str]:
        """Schema of the options and of the futures."""
        self.totals.schemas = self._ladder.in_force(sessions.trade_date(self.clock.now()))
        return self.totals.schemas

    def _parents_by_schema(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for what, schema in self._in_force().items():
            found[schema] = found.get(schema, ()) + self._parents[what]
        return found

    def _put_down(
        self, session: GatewaySession, asked: list[Subscription], at: datetime, ending: SessionEnd
    ) -> float:
        """Put down how a session ended; returns by how many seconds it moved the proven moment."""
        now, state = self.clock.now(), session.state
        proven = self._accounts.end(state, ending, self._log)
        # A gateway whose clock is ahead must not seem to prove more than has passed.
        before, self._proven_ns = self._proven_ns, max(self._proven_ns, min(proven or 0, to_ns(now)))
        row = {
            "session_key": f"{self.run_id}-{next(self._session_numbers)}",
            "gateway_session": state.session_id or None,
            "started_at": to_ns(at),
            "ended_at": to_ns(now),
            "schemas": ",".join(s.schema for s in asked),
            "replay_from": min((s.start_ns for s in asked if s.start_ns is not None), default=None),
            "records": state.records,
            "bytes": state.bytes,
            "ended": str(ending.reason),
            "detail": ending.text or None,
            "code": ending.code,
            "proven_ts": proven,
            "missing": ",".join(self.totals.missing) or None,
        }
        self._books.later(lambda: self._book.write_session(row, now))
        return (self._proven_ns - before) / NS_PER_S

    def _give_up(self, step: Stop, ending: SessionEnd) -> None:
        if step.reason is None:
            return
        if ending.reason is EndReason.FAILED:
            try:
                self._books.check(wait=True)
            except (OSError, NqError) as error:
                raise LogFailed(f"{step.reason}; nor could the gap be written down ({error})") from error
            raise LogFailed(step.reason)
        if not step.entitled:
            raise NotEntitled(step.reason)
        raise CaptureError(step.reason)

    def _step_down(self, schema: str, text: str) -> None:
        """Keep a refusal, and go on with the next schema."""
        self._ladder.refuse(schema, text, sessions.trade_date(self.clock.now()))
        below = self._in_force()
        self._note(f"{text}: going on with {', '.join(f'{s} for {what}' for what, s in below.items())}")
        self._accounts.step_down(schema, below.values(), text)

    def _is_over(self) -> bool:
        """Whether to end: after the close, once the session has brought something later than it."""
        if self._stop.is_set():
            return True
        deadline = self._deadline()
        if deadline is None:
            return False
        timing, now = self._timing, self.clock.now()
        settled = deadline + timedelta(seconds=timing.settle_s)
        silence = timedelta(seconds=timing.heartbeat_s + timing.late_s)
        session = self._session
        heard = session is None or session.ending.done() or session.state.heard_ns >= to_ns(settled)
        return now >= settled and (heard or now >= settled + silence)

    def _deadline(self) -> datetime | None:
        """When the capture ends: the close, or a while later when a gap can still be filled."""
        if self._closes is None:
            return None
        pending = self._accounts.fillable or self._repairs.busy
        return self._closes + GRACE if pending else self._closes

    async def _wait(self, seconds: float) -> None:
        until = self.clock.monotonic() + seconds
        while (left := until - self.clock.monotonic()) > 0 and not self._is_over():
            await asyncio.sleep(min(left, POLL_S))
            if self._meter.is_due:
                self._report()

    async def _space(self) -> None:
        """Keep connections apart, whatever they are for."""
        loop = asyncio.get_running_loop()
        at = max(loop.time(), self._connected_at + reconnect_policy.SPACING_S)
        self._connected_at = at
        await asyncio.sleep(at - loop.time())

    # ── whether what was filled is whole ────────────────────────────────────────────────────────

    def _count_again(self, ready: list[Gap]) -> None:
        """Begin a second count, one at a time."""
        if self._recounting and self._recounting.done():
            self._recounting.result()
            self._recounting = None
        if ready and not self._recounting and self.clock.monotonic() >= self._recount_again:
            asked = subscriptions(ready, self._streams)
            self._recounting = asyncio.create_task(self._recount(ready, asked))

    async def _recount(self, gaps: list[Gap], asked: list[Subscription]) -> None:
        await self._space()
        counts, ending = await recount(
            self._session_for, self._address, asked, gaps, give_up_s=self._timing.verify_s
        )
        if ending:
            self._could_not_count(gaps, ending)
            return
        self._uncounted = Attempts()
        for gap in gaps:
            judged = self._accounts.judge(gap, counts[gap.gap_id])
            if judged and judged.state == "verified":
                self._uncompared.append((judged, counts[gap.gap_id]))
            if judged and judged.state == "open":
                self._note(f"ALERT: {judged.reason}")
                if judged.attempts < MAX_REPLAYS:
                    self._disputed = judged.reason

    def _could_not_count(self, gaps: list[Gap], ending: SessionEnd) -> None:
        """Try again later, and ever later, but for gaps that lie too far back by now."""
        step = reconnect_policy.next_step(
            ending, self._uncounted, now=self.clock.now(), closes=None, chance=random.random()
        )
        self._uncounted = self._uncounted.after(ending)
        if isinstance(step, Retry) and step.replay_too_old:
            oldest = min(gap.first_ns for gap in gaps)
            for gap in gaps:
                if gap.first_ns <= max(oldest, (step.earliest_ns or 0) - 1):
                    self._accounts.uncountable(gap)
        pause = max(RECOUNT_AGAIN_S, step.after_s) if isinstance(step, Retry) else reconnect_policy.CAP_S
        self._recount_again = self.clock.monotonic() + pause
        self._note(f"a gap could not be counted ({ending}); next attempt in {pause:.1f} s")

    def _comparing(self, publish: Callable[[], object]) -> Callable[[], None]:
        """Publish, then see whether the lake has what the second count of each gap found."""

        def publish_and_compare() -> None:
            ready = len(self._uncompared)  # all they brought is in the log before it is published
            publish()
            for gap, found in list(self._uncompared)[:ready]:
                self._compared.append(self._book.compare(gap, found))
                self._uncompared.popleft()

        return publish_and_compare

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """Put down, at the end, what the last publication was compared with."""
        yield
        self._look_beyond()

    def _look_beyond(self) -> None:
        """Hand on what the gateway cannot fill, and put down what became of it."""
        while self._accounts.beyond:
            gap = self._accounts.beyond.pop()
            self._repairs.ask(gap, self._streams.get(gap.schema, ()))
        for gap in self._repairs.finished():
            self._accounts.settle(gap)
        while self._compared:
            gap = self._compared.popleft()
            self._accounts.settle(gap)
            if gap.is_verified_but_differs:
                self._note(f"ALERT: {gap.reason}")

    # ── what is shown ───────────────────────────────────────────────────────────────────────────

    def _note(self, text: str) -> None:
        self.totals.note = text
        self._report()

    def _report(self) -> None:
        records = size = 0
        if self._session and not self._session.ending.done():
            records, size = self._session.state.records, self._session.state.bytes
        self._meter.report(self._accounts.gaps, records, size)
