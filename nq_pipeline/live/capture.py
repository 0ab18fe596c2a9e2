"""The capture: keeps one session of the gateway going through a window, and accounts for every hole.

    gateway ──► capture log                     within one call, on the event loop's thread
                    └──► publish                about every second, on a thread of its own
    end of a session ──► rule (`reconnect`) ──► next session, with a replay from the last proven moment
    replay completed ──► second replay, counted only ──► gap verified, or the replay is repeated

Knows no host: a terminal, a Dagster run or a test calls `Capture(...).run(stop)`.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nq_pipeline.clock import NS_PER_S, Clock, from_ns, to_ns
from nq_pipeline.errors import CaptureError, LogFailed, NotConfigured, NotEntitled, NqError
from nq_pipeline.live import gaps as accounting
from nq_pipeline.live import gateway, reconnect
from nq_pipeline.live.framer import CONTROL, Frame
from nq_pipeline.live.gaps import UNRESOLVED, Book, Count, Gap
from nq_pipeline.live.gateway import Session, Subscription
from nq_pipeline.live.ladder import RTYPES, Ladder
from nq_pipeline.live.log import CaptureLog, Position, segments, tail
from nq_pipeline.live.reconnect import Attempts, Ending, How, Retry, StepDown, Stop
from nq_pipeline.market import sessions

if TYPE_CHECKING:
    from nq_pipeline.settings import Settings

POLL_S = 0.02
PUBLISH_EVERY_S = 1.0
PROGRESS_EVERY_S = 1.0
OVERLAP_NS = 5 * NS_PER_S
"""A replay begins so long before the last proven moment: instruments' `ts_event` are not in one order."""
TOO_OLD_MARGIN_NS = 5 * NS_PER_S
"""What the gateway still replays moves on between its refusal and the next attempt."""
GRACE = timedelta(minutes=30)
"""How long after the close gaps may still be filled."""
REPAIRS = 3
"""Replays of one gap that may disagree with the count before it is left open."""
LAGS = 4096


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
    """

    heartbeat_s: int = gateway.HEARTBEAT_S
    late_s: float = gateway.LATE_S
    settle_s: float = 1.0
    verify_s: float = 600.0
    missing_s: float = 45.0


@dataclass
class Totals:
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
    schemas
        What is streamed: options, futures.
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
    schemas: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    note: str = ""
    publish_failure: str = ""


class Capture:
    """One capture of one window.

    Parameters
    ----------
    settings
        With a key of Databento, and the gateway's address if it is not the vendor's.
    clock
        The gateway's: wall time, or that of the stand-in. Must run.

    Raises
    ------
    CaptureError
        The clock is pinned.
    NotConfigured
        There is no key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        run_id: str | None = None,
        timing: Timing | None = None,
    ) -> None:
        from nq_pipeline.lake.lake import Lake

        self.clock = clock or settings.clock
        if self.clock.pinned:
            raise CaptureError("a capture needs a clock that runs; unset NQ_NOW")
        if settings.databento_api_key is None:
            raise NotConfigured("the capture needs a key of Databento; set DATABENTO_API_KEY")
        self.run_id = run_id or uuid.uuid4().hex
        self.totals = Totals()
        self._settings, self._key = settings, settings.databento_api_key
        self._dataset, self._window = settings.databento_dataset, settings.capture_window
        self._address = gateway.address(settings.databento_gateway, self._dataset)
        self._timing = timing or Timing()
        self._root = settings.environment_dir / "capture"
        self._lake = Lake(settings.environment_dir / "lake")
        self._book = Book(
            self._lake, dataset=self._dataset, environment=settings.environment, run_id=self.run_id
        )
        self._ladder = Ladder(
            self._root / self._dataset / "entitlement.json",
            {"options": settings.capture_schema, "futures": settings.capture_futures_schema},
        )
        self._parents = {"options": gateway.option_parents(), "futures": gateway.future_parents()}
        self._gaps: dict[str, Gap] = {}
        self._counts: dict[str, Count] = {}
        self._counted: dict[str, Count] = {}
        self._completed: dict[str, float] = {}
        self._last: dict[str, int] = {}
        self._before_skip: dict[str, int] | None = None
        self._lags: deque[int] = deque(maxlen=LAGS)
        self._numbers = iter(range(1, 2**62))
        self._connected_at = float("-inf")
        self._limit_ns: int | None = None
        self._session: Session | None = None
        self._streams: dict[str, int] = {}
        self._verifying: asyncio.Task[None] | None = None
        self._verify_again = 0.0
        self._repair: str | None = None
        self._reported = (0.0, 0)
        self._past = (0, 0)

    def run(
        self,
        stop: threading.Event,
        *,
        publish: Callable[[], object] | None = None,
        progress: Callable[[Totals], None] | None = None,
    ) -> Totals:
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
        opened = accounting.span(self.clock.now(), self._window)
        if opened is None:
            opens = sessions.next_open(self.clock.now(), self._window)
            raise CaptureError(
                f"the capture window ({self._window}) is closed; it opens {opens:%Y-%m-%d %H:%M} UTC. "
                "Start the capture then, or set NQ_CAPTURE_WINDOW"
            )
        self._opens, self._closes = opened
        self._opens_ns, self._close_ns = to_ns(self._opens), to_ns(self._closes) if self._closes else None
        self._stop, self._publish, self._progress = stop, publish, progress
        self._began = time.monotonic()
        sync_s = self._settings.capture_sync_ms / 1000
        with CaptureLog(self._root, self._dataset, clock=self.clock, sync_every_s=sync_s) as log:
            self._log = log
            with self._bookkeeping(), self._publishing():
                self._find_holes()
                asyncio.run(self._supervise())
        self._report()
        return self.totals

    # ── one session after the other ─────────────────────────────────────────────────────────────

    async def _supervise(self) -> None:
        attempts = Attempts()
        try:
            while not self._is_over():
                started = self.clock.now()
                session, asked, ending = await self._hold_session()
                self._account(session, asked, started, ending)
                step = reconnect.next_step(
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
                    starts = [s.start_ns for s in asked if s.start_ns is not None]
                    limit = reconnect.too_old(step, min(starts), to_ns(self.clock.now()))
                    self._lose_before(limit + TOO_OLD_MARGIN_NS)
                self.totals.reconnects += 1
                self._note(f"{ending}; next attempt in {step.after_s:.1f} s")
                await self._wait(step.after_s)
        finally:
            if self._verifying:
                self._verifying.cancel()
                await asyncio.gather(self._verifying, return_exceptions=True)

    async def _hold_session(self) -> tuple[Session, list[Subscription], Ending]:
        """A session from the connection to its end."""
        self._lose_before(to_ns(self.clock.now()) - accounting.REPLAY_NS + accounting.REPLAY_MARGIN_NS)
        asked = self._subscriptions()
        self._counts = {
            gap.gap_id: Count(RTYPES[gap.schema], gap.first_ns, gap.last_ns or self._close_ns)
            for gap in self._unresolved()
            if gap.state == "open" and gap.schema in {s.schema for s in asked}
        }
        self._completed, self._last, self._before_skip, self._repair = {}, {}, None, None
        await self._space()
        session = Session(
            self._key,
            self._dataset,
            self._record,
            heartbeat_s=self._timing.heartbeat_s,
            late_s=self._timing.late_s,
            zstd=self._settings.capture_zstd,
        )
        self._session, self._streams = session, {s.schema: RTYPES[s.schema] for s in asked}
        await session.open(*self._address, asked)
        while not session.ending.done():
            await asyncio.wait([session.ending], timeout=POLL_S)
            if not session.ending.done() and (end := self._look_after(session)):
                session.close(end)
        ending = await session.ending
        self._past = (self._past[0] + session.state.records, self._past[1] + session.state.bytes)
        return session, asked, ending

    def _record(self, frame: Frame) -> None:
        """A frame has come: to the log first, then into the accounts."""
        self._log.append(frame)
        assert self._session
        if self._session.state.skipped and self._before_skip is None:
            self._before_skip = dict(self._last)
        if frame.tallies.keys() <= set(CONTROL):
            return
        replayed = self._session.state.replayed
        for schema, rtype in self._streams.items():
            tally = frame.tallies.get(rtype)
            if tally is None:
                continue
            if tally.ts_event is not None:
                self._last[schema] = tally.ts_event
            if schema in self._completed and tally.ts_recv is not None:
                self._lags.append(to_ns(self.clock.now()) - tally.ts_recv)
        for gap_id, count in self._counts.items():
            gap = self._gaps[gap_id]
            if gap.last_ns is None and gap.schema in replayed:
                count.last_ns = self._end_of(gap, replayed[gap.schema])
            count.add(frame)

    def _end_of(self, gap: Gap, replayed_ns: int) -> int:
        """Where a gap ends whose replay was completed."""
        if gap.last_ns is not None:
            return gap.last_ns
        inside = replayed_ns if self._close_ns is None else min(replayed_ns, self._close_ns)
        return max(gap.first_ns, inside)

    def _look_after(self, session: Session) -> Ending | None:
        """What is due while a session goes on; the end that it should have, if it should."""
        state, now = session.state, asyncio.get_running_loop().time()
        try:
            self._log.check()
        except LogFailed as error:
            return Ending(How.FAILED, str(error))
        self._check_bookkeeping()
        self._past_replays(session, now)
        if state.began is not None and now - state.began >= self._timing.missing_s:
            asked = sum((self._parents[what] for what in self._parents), ())
            always, _ = gateway.missing(asked, state.mapped)
            if always and always != self.totals.missing:
                self._note(f"ALERT: the gateway names no instrument of {', '.join(always)}")
            self.totals.missing = always
        if time.monotonic() - self._began - self._reported[0] >= PROGRESS_EVERY_S:
            self._report()
        if self._is_over():
            return Ending(How.STOPPED, "stop was asked for" if self._stop.is_set() else "the window closed")
        if state.skipped:
            return Ending(How.SKIPPED, state.skipped)
        return Ending(How.REPAIR, self._repair) if self._repair else None

    def _subscriptions(self) -> list[Subscription]:
        """One subscription for each schema in force, each with a replay from its first unproven moment."""
        day = sessions.trade_date(self.clock.now())
        self.totals.schemas = self._ladder.in_force(day)
        parents: dict[str, tuple[str, ...]] = {}
        for what, schema in self.totals.schemas.items():
            parents[schema] = parents.get(schema, ()) + self._parents[what]
        found = []
        for schema, symbols in parents.items():
            starts = [g.first_ns for g in self._unresolved() if g.schema == schema and g.state == "open"]
            start = min(starts) - OVERLAP_NS if starts else None
            if start is not None and self._limit_ns is not None:
                start = max(start, self._limit_ns)
            found.append(Subscription(schema, symbols, start))
        return found

    def _account(self, session: Session, asked: list[Subscription], at: datetime, ending: Ending) -> None:
        """Put down how a session ended, and the hole that begins there."""
        now, proven = self.clock.now(), self._proven(session, ending)
        for gap in [self._gaps[gap_id] for gap_id in self._counts]:
            if gap.state == "replayed":  # cut off before the last of its records could come
                self._change(gap.change(state="open", reason="the session ended just after the replay"))
        self._counts = {}
        reached = [proven.get(s.schema) for s in asked]
        whole = [ns for ns in reached if ns is not None]
        if ending.how is not How.STOPPED:
            for schema, ns in proven.items():
                if self._close_ns is None or ns < self._close_ns:
                    first = self._synced_moment(schema, ns) if ending.how is How.FAILED else ns
                    self._open(schema, first, None, cause=str(ending.how), detail=ending.text)
        starts = [s.start_ns for s in asked if s.start_ns is not None]
        self._write_session(
            {
                "session_key": f"{self.run_id}-{next(self._numbers)}",
                "gateway_session": session.state.session_id or None,
                "trade_date": sessions.trade_date(now),
                "environment": self._settings.environment,
                "dataset": self._dataset,
                "started_at": to_ns(at),
                "ended_at": to_ns(now),
                "schemas": ",".join(s.schema for s in asked),
                "replay_from": min(starts, default=None),
                "records": session.state.records,
                "bytes": session.state.bytes,
                "ended": str(ending.how),
                "detail": ending.text or None,
                "code": ending.code,
                "proven_ts": min(whole) if len(whole) == len(asked) else None,
                "missing": ",".join(self.totals.missing) or None,
                "run_id": self.run_id,
            },
            now,
        )

    def _proven(self, session: Session, ending: Ending) -> dict[str, int]:
        """Schema to the moment up to which everything came, for those whose replay was completed.

        After a lost connection that is its last record; what else the gateway said proves nothing.
        Where we ended it, the connection was sound when bytes of any kind last came. Records that
        the gateway left out came after the last one before it said so.
        """
        settle = int(self._timing.settle_s * NS_PER_S)
        heard = self._heard_ns() - settle if ending.how is How.STOPPED else 0
        if self._before_skip is not None:
            return {
                schema: self._before_skip.get(schema, self._opens_ns) for schema in session.state.replayed
            }
        return {
            schema: max(done - settle, self._last.get(schema, 0), heard)
            for schema, done in session.state.replayed.items()
            if schema in self._streams
        }

    def _synced_moment(self, schema: str, otherwise: int) -> int:
        """The last moment of a schema that is surely on the disk, after the log has failed."""
        try:
            return _last_moments(self._log.folder, {schema: RTYPES[schema]}, self._log.synced)[schema]
        except (KeyError, OSError, CaptureError):
            return otherwise

    def _give_up(self, step: Stop, ending: Ending) -> None:
        if step.reason is None:
            return
        if ending.how is How.FAILED:
            try:
                self._check_bookkeeping(wait=True)
            except (OSError, NqError) as error:
                raise LogFailed(f"{step.reason}; nor could the gap be written down ({error})") from error
            raise LogFailed(step.reason)
        if not step.entitled:
            raise NotEntitled(step.reason)
        raise CaptureError(step.reason)

    def _step_down(self, schema: str, text: str) -> None:
        """Keep a refusal, and look for what was missing of that schema in the next one."""
        day = sessions.trade_date(self.clock.now())
        self._ladder.refuse(schema, text, day)
        below = self._ladder.in_force(day)
        self._note(f"{text}: going on with {', '.join(f'{s} for {what}' for what, s in below.items())}")
        have = {gap.schema for gap in self._unresolved()}
        for gap in [g for g in self._unresolved() if g.schema == schema]:
            taken = sorted(set(below.values()) - have) or [next(iter(below.values()))]
            self._change(
                gap.change(schema=taken[0], state="open", detail=f"{gap.detail}; {text}".lstrip("; "))
            )

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
        going = self._session is not None and not self._session.ending.done()
        return now >= settled and (
            not going or self._heard_ns() >= to_ns(settled) or now >= settled + silence
        )

    def _heard_ns(self) -> int:
        """When bytes came last, by the clock of the market."""
        if self._session is None:
            return 0
        silent = asyncio.get_running_loop().time() - self._session.state.last_heard
        return to_ns(self.clock.now()) - int(silent * NS_PER_S)

    def _deadline(self) -> datetime | None:
        """When the capture ends: the close, or a while later when a gap can still be filled."""
        if self._closes is None:
            return None
        fillable = any(gap.attempts < REPAIRS for gap in self._unresolved())
        return self._closes + GRACE if fillable else self._closes

    async def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._is_over():
            await asyncio.sleep(min(left, POLL_S))
            if time.monotonic() - self._began - self._reported[0] >= PROGRESS_EVERY_S:
                self._report()

    async def _space(self) -> None:
        """Keep connections apart, whatever they are for."""
        loop = asyncio.get_running_loop()
        at = max(loop.time(), self._connected_at + reconnect.SPACING_S)
        self._connected_at = at
        await asyncio.sleep(at - loop.time())

    # ── gaps ────────────────────────────────────────────────────────────────────────────────────

    def _find_holes(self) -> None:
        """Take up the gaps of earlier captures, and open those that arose while none was running."""
        now = self.clock.now()
        known = self._book.gaps(now - accounting.LOOK_BACK)
        in_force = set(self._ladder.in_force(sessions.trade_date(now)).values())
        logged = _last_moments(self._log.folder, {schema: RTYPES[schema] for schema in in_force})
        ended = self._proven_before(now)
        for gap in known:
            if gap.state in UNRESOLVED and gap.schema in in_force:
                self._take_up(gap)
        for schema in sorted(in_force):
            mine = [gap for gap in known if gap.schema == schema]
            moments = [logged.get(schema), ended, *(gap.last_ns or gap.first_ns for gap in mine)]
            reached = [ns for ns in moments if ns is not None and ns <= to_ns(now)]
            proven = max(reached, default=None)
            going_on = any(g.last_ns is None and g.schema == schema for g in self._unresolved())
            for first, last in accounting.holes(proven, now, self._window):
                if last is not None or not going_on:
                    late = proven is None or first > proven
                    self._open(schema, first, last, cause="late start" if late else "not running")

    def _take_up(self, gap: Gap) -> None:
        """A gap of an earlier capture: what was counted of its replay is forgotten."""
        last = gap.last_ns
        if last is None and gap.first_ns < self._opens_ns and self._window != "always":
            closed = accounting.span(from_ns(gap.first_ns), self._window)
            last = to_ns(closed[1]) if closed and closed[1] else self._opens_ns
        if (gap.state, gap.last_ns, gap.attempts) != ("open", last, 0):
            reason = "taken up by another capture"
            gap = gap.change(state="open", last_ns=last, reason=reason, attempts=0)
            self._change(gap)
        self._gaps[gap.gap_id] = gap

    def _proven_before(self, now: datetime) -> int | None:
        """Up to where the last session of an earlier capture had everything."""
        import polars as pl

        from nq_pipeline.lake.schemas import SESSIONS

        days = [s.trade_date for s in sessions.sessions((now - accounting.LOOK_BACK).date(), now.date())]
        found = (
            self._lake.scan(SESSIONS, [*days, sessions.trade_date(now)])
            .filter(pl.col("dataset") == self._dataset, pl.col("ended") == str(How.STOPPED))
            .select(pl.col("proven_ts").dt.epoch("ns").max())
            .collect()
        )
        newest = found.item() if found.height else None
        return None if newest is None else int(newest)

    def _unresolved(self) -> list[Gap]:
        return [gap for gap in self._gaps.values() if gap.state in UNRESOLVED]

    def _open(self, schema: str, first: int, last: int | None, *, cause: str, detail: str = "") -> None:
        gap_id = f"{self.run_id}-{next(self._numbers)}"
        self._change(Gap(gap_id, schema, first, last, cause, detail))

    def _change(self, *gaps: Gap) -> None:
        for gap in gaps:
            self._gaps[gap.gap_id] = gap
        at = self.clock.now()
        self._later(lambda: self._book.write(gaps, at))

    def _lose_before(self, limit_ns: int) -> None:
        """Nothing before an instant can be replayed."""
        self._limit_ns = max(limit_ns, self._limit_ns or 0)
        number = f"{self.run_id}-{next(self._numbers)}"
        changed = accounting.out_of_reach(self._unresolved(), self._limit_ns, number)
        if changed:
            self._change(*changed)

    def _past_replays(self, session: Session, now: float) -> None:
        """Move on the gaps whose replay is completed, and have them counted once all of it has come."""
        for schema, done_ns in session.state.replayed.items():
            self._completed.setdefault(schema, now)
            for gap_id in [i for i in self._counts if self._gaps[i].schema == schema]:
                gap = self._gaps[gap_id]
                if gap.state == "open":
                    self._counts[gap_id].last_ns = last = self._end_of(gap, done_ns)
                    self._change(gap.change(state="replayed", last_ns=last, reason=""))
                settled = now - self._completed[schema] >= self._timing.settle_s
                market = to_ns(self.clock.now()) - done_ns
                if settled and market >= self._timing.settle_s * NS_PER_S:
                    self._counted[gap_id] = self._counts.pop(gap_id)
        waiting = [self._gaps[gap_id] for gap_id in self._counted]
        ready = [gap for gap in waiting if gap.state == "replayed" and gap.schema in self._streams]
        idle = self._verifying is None or self._verifying.done()
        if ready and idle and now >= self._verify_again:
            if self._verifying:
                self._verifying.result()
            self._verifying = asyncio.create_task(self._verify(ready))

    async def _verify(self, gaps: list[Gap]) -> None:
        """Count the records of some gaps in a second replay, which leaves nothing in the log."""
        found = {gap.gap_id: Count(RTYPES[gap.schema], gap.first_ns, gap.last_ns) for gap in gaps}

        def count(frame: Frame) -> None:
            for one in found.values():
                one.add(frame)

        parents = {s.schema: s.parents for s in self._subscriptions()}
        wanted = {gap.schema for gap in gaps}
        asked = [
            Subscription(schema, parents[schema], min(g.first_ns for g in gaps if g.schema == schema))
            for schema in sorted(wanted)
        ]
        await self._space()
        session = Session(
            self._key,
            self._dataset,
            count,
            heartbeat_s=self._timing.heartbeat_s,
            late_s=self._timing.late_s,
            zstd=self._settings.capture_zstd,
        )
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._timing.verify_s
        try:
            await session.open(*self._address, asked)
            while not (session.ending.done() or wanted <= session.state.replayed.keys()):
                if loop.time() > give_up:
                    break
                await asyncio.wait([session.ending], timeout=POLL_S)
        finally:
            session.close(Ending(How.STOPPED))
        ending = await session.ending
        if not wanted <= session.state.replayed.keys():
            step = reconnect.next_step(ending, Attempts(), now=self.clock.now(), closes=None, chance=0.0)
            if isinstance(step, Retry) and step.replay_too_old:
                self._uncountable(gaps, step)
            self._verify_again = loop.time() + (
                reconnect.LIMIT_S if ending.code == reconnect.CONNECTION_LIMIT else PUBLISH_EVERY_S
            )
            self._note(f"a gap could not be counted ({ending}); it will be tried again")
            return
        for gap in gaps:
            if self._gaps[gap.gap_id] is not gap:
                continue  # its session ended meanwhile, and it is replayed anew
            judged = accounting.judge(gap, self._counted.pop(gap.gap_id), found[gap.gap_id])
            self._change(judged)
            if judged.state == "open":
                self._note(f"ALERT: {judged.reason}")
                if judged.attempts < REPAIRS:
                    self._repair = judged.reason

    def _uncountable(self, gaps: list[Gap], refusal: Retry) -> None:
        """Gaps that were filled, perhaps, but too long ago to be counted."""
        begin = min(gap.first_ns for gap in gaps)
        limit = reconnect.too_old(refusal, begin, to_ns(self.clock.now()))
        for gap in gaps:
            if gap.first_ns < limit and self._gaps[gap.gap_id] is gap:
                replayed = self._counted.pop(gap.gap_id).total
                reason = "it was replayed, but the gateway no longer has it for an independent count"
                self._change(gap.change(state="unfillable", reason=reason, replayed=replayed))

    # ── beside the stream ───────────────────────────────────────────────────────────────────────

    @contextmanager
    def _bookkeeping(self) -> Iterator[None]:
        """Rows about the capture are written by a thread of their own, in order."""
        self._pending: deque[Future[Any]] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="capture-books")
        try:
            yield
            self._check_bookkeeping(wait=True)
        finally:
            self._writer.shutdown(wait=True)

    def _later(self, work: Callable[[], object]) -> None:
        self._pending.append(self._writer.submit(work))

    def _check_bookkeeping(self, *, wait: bool = False) -> None:
        """Raise what went wrong while rows were written."""
        while self._pending and (wait or self._pending[0].done()):
            self._pending.popleft().result()

    def _write_session(self, row: dict[str, Any], at: datetime) -> None:
        def write() -> None:
            import polars as pl

            from nq_pipeline.lake.schemas import INSTANT, SESSIONS

            instants = ("started_at", "ended_at", "replay_from", "proven_ts")
            frame = pl.DataFrame([row]).with_columns(pl.col(instants).cast(pl.Int64).cast(INSTANT))
            self._lake.append(SESSIONS, frame, run_id=self.run_id, now=at)

        self._later(write)

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        """Call `publish` about every second, and once more when the capture is over."""
        if self._publish is None:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._keep_publishing, args=(over,), name="capture-publish")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        self._log.sync()
        self._publish()
        self.totals.publish_failure = ""

    def _keep_publishing(self, over: threading.Event) -> None:
        assert self._publish
        while not over.wait(PUBLISH_EVERY_S):
            try:
                self._publish()
                self.totals.publish_failure = ""
            except Exception as error:  # the log goes on; shown now, raised by the last call at the end
                self.totals.publish_failure = f"{type(error).__name__}: {error}"

    def _note(self, text: str) -> None:
        self.totals.note = text
        self._report()

    def _report(self) -> None:
        """Bring the totals up to date and show them."""
        totals, seconds = self.totals, time.monotonic() - self._began
        totals.records, totals.bytes = self._past
        if self._session and not self._session.ending.done():
            totals.records += self._session.state.records
            totals.bytes += self._session.state.bytes
        then, before = self._reported
        if seconds - then >= PROGRESS_EVERY_S:
            totals.rate = (totals.records - before) / (seconds - then)
            self._reported = (seconds, totals.records)
        totals.seconds = seconds
        if self._lags:
            lags = sorted(self._lags)
            totals.lag_p99_ms = lags[int(len(lags) * 0.99)] / 1e6
        states = [gap.state for gap in self._gaps.values()]
        totals.open_gaps = sum(state in UNRESOLVED for state in states)
        totals.verified_gaps = states.count("verified")
        totals.unfillable_gaps = states.count("unfillable")
        totals.disputed_gaps = sum(gap.attempts >= REPAIRS for gap in self._unresolved())
        if self._progress:
            self._progress(totals)


def _last_moments(folder: Path, wanted: dict[str, int], until: Position | None = None) -> dict[str, int]:
    """Schema to the `ts_event` of its last record in the log, or up to `until`.

    Looks through the newest segments until each schema was found, at most those of the last
    trade dates that accounts are kept of.
    """
    found: dict[str, int] = {}
    newest = [s for s in segments(folder) if until is None or s.number <= until.segment]
    for segment in reversed(newest):
        if (
            not wanted.keys() - found.keys()
            or newest[-1].trade_date - segment.trade_date > accounting.LOOK_BACK
        ):
            break
        last: dict[str, int] = {}
        end = Position(segment.number, segment.path.stat().st_size)
        for block in tail(folder, Position(segment.number, 0), min(end, until or end)):
            for schema, rtype in wanted.items():
                tally = block.frame.tallies.get(rtype)
                if tally and tally.ts_event is not None:
                    last[schema] = tally.ts_event
        found = {**last, **found}
    return found
