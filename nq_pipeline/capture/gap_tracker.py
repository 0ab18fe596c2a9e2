"""Which parts of a capture window are proven and which are gaps, session by session.

    load_gaps       gaps of earlier captures, and gaps that arose while none was running
    begin_session   from now on, records that a replay brings into a gap are counted
    track           a frame, after it was logged
    advance         gaps whose replay is complete wait for the second count
    judge           a gap by its second count
    end_session     the gap that begins there

Runs on the capture's event loop; rows are written by another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.gaps import (
    CLOCK_SKEW,
    HISTORICAL,
    LIVE_REPLAY,
    LOOK_BACK,
    MAX_REPLAYS,
    UNRESOLVED,
    WEEKLY,
    Gap,
    RecordCount,
    compare_counts,
    earliest_replay,
    open_window,
    split_at_replay_limit,
    unproven_spans,
)
from nq_pipeline.capture.gateway import SessionState
from nq_pipeline.capture.log.reader import tail
from nq_pipeline.capture.log.segments import Position, list_segments
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.capture.reconnect_policy import SKIPPED_RECORDS, EndReason, SessionEnd
from nq_pipeline.clock import NS_PER_S, Clock, from_ns, to_ns
from nq_pipeline.dbn.framer import ErrorMsg, Frame
from nq_pipeline.dbn.layout import CONTROL, ERROR, RTYPES
from nq_pipeline.errors import CaptureError
from nq_pipeline.market.sessions import Window

OVERLAP_NS = 5 * NS_PER_S
"""A replay begins this long before the last proven moment: `ts_event` is not in order across instruments."""


@dataclass
class _SessionProgress:
    """What the current session has brought, by schema; instants in nanoseconds UTC."""

    streams: dict[str, int] = field(default_factory=dict)  # schema to rtype
    filling: dict[str, RecordCount] = field(default_factory=dict)  # gap ID to what the replay brings
    completed: dict[str, float] = field(default_factory=dict)  # when that was seen, event loop's seconds
    replayed: dict[str, int] = field(default_factory=dict)  # when the replay was complete, gateway's clock
    last: dict[str, int] = field(default_factory=dict)  # `ts_event` of the last record
    before_skip: dict[str, int] | None = None  # `last` when the gateway skipped records


@dataclass
class GapTracker:
    """The gaps of one capture.

    `write` runs a piece of work later and in order: writing to `store`. The window that is open is from
    `opens_ns` to `close_ns`, nanoseconds UTC; `always` has no close.
    """

    store: GapStore
    write: Callable[[Callable[[], object]], None]
    clock: Clock
    run_id: str
    window: Window
    opens_ns: int
    close_ns: int | None
    settle_s: float
    """How long after a replay, by wall time and by market time, earlier records may still arrive."""
    aging_s: float
    """The gateway's replay window moves on with the clock. A span that will leave the window within this
    many seconds is given up, because its second replay would come too late."""

    def __post_init__(self) -> None:
        self.beyond_replay: list[Gap] = []
        """Gaps that the live gateway will not fill, for the caller to remove and fill elsewhere."""
        self._numbers = count(1)
        self._settle_ns, self._aging_ns = int(self.settle_s * NS_PER_S), int(self.aging_s * NS_PER_S)
        self._gaps: dict[str, Gap] = {}
        self._limits: dict[str, int] = {}
        self._replay_all: set[str] = set()
        self._awaiting_count: dict[str, RecordCount] = {}
        self._session = _SessionProgress()

    # ── gaps ────────────────────────────────────────────────────────────────────────────────────

    @property
    def gaps(self) -> list[Gap]:
        return list(self._gaps.values())

    @property
    def unresolved(self) -> list[Gap]:
        return [gap for gap in self._gaps.values() if gap.state in UNRESOLVED]

    @property
    def fillable(self) -> bool:
        """Whether a replay may still fill something."""
        return any(gap.attempts < MAX_REPLAYS for gap in self.unresolved)

    def load_gaps(self, folder: Path, schemas: Iterable[str]) -> None:
        """Load the gaps of earlier captures, and open those that arose while none was running.

        `folder` is the capture log, whose last records are proven; `schemas` are those in force.
        """
        now, in_force = self.clock.now(), set(schemas)
        known = self.store.gaps(now - LOOK_BACK)
        logged = last_moments(folder, {schema: RTYPES[schema] for schema in in_force})
        ended = self.store.proven(now - LOOK_BACK, now)
        for gap in known:
            if gap.state in UNRESOLVED:  # `follow_schemas` handles those of other schemas
                self._adopt(gap)
            elif gap.schema in in_force and gap.state == "unfillable" and gap.filled_by != HISTORICAL:
                self.beyond_replay.append(gap)
        current = [self._gaps.get(gap.gap_id, gap) for gap in known]
        for schema in sorted(in_force):
            mine = [gap.last_ns or gap.first_ns for gap in current if gap.schema == schema]
            reached = [ns for ns in (logged.get(schema), ended, *mine) if ns is not None]
            proven = max(
                (min(ns, to_ns(now)) for ns in reached if ns <= to_ns(now + CLOCK_SKEW)), default=None
            )
            continuing = any(g.last_ns is None and g.schema == schema for g in self.unresolved)
            for first, last in unproven_spans(proven, now, self.window):
                if last is not None or not continuing:
                    late = proven is None or first > proven
                    self._open(schema, first, last, cause="late start" if late else "not running")

    def replay_start(self, schema: str) -> int | None:
        """Where a replay has to begin, nanoseconds UTC: 0 for all there is, None for no replay."""
        firsts = [g.first_ns for g in self.unresolved if g.schema == schema and g.state == "open"]
        if not firsts:
            return None
        if schema in self._replay_all:
            return 0
        return max(min(firsts) - OVERLAP_NS, self._limits.get(schema, 0))

    def follow_schemas(self, schemas: Iterable[str]) -> None:
        """Adapt the gaps to the schemas of the next session, which may change with the trade date.

        The gaps of a schema no longer streamed move to those that follow. A new schema gets a gap,
        since nothing of it is proven without a replay.
        """
        wanted = set(schemas)
        since = min((gap.first_ns for gap in self.unresolved if gap.last_ns is None), default=None)
        for left in sorted({gap.schema for gap in self.unresolved} - wanted):
            self.move_gaps(left, wanted, f"{left} is no longer streamed")
        continuing = {gap.schema for gap in self.unresolved if gap.last_ns is None}
        for schema in sorted(wanted - self._session.streams.keys() - continuing):
            if since is not None:
                self._open(schema, since, None, cause="another schema")

    def give_up_aged(self, schemas: Iterable[str]) -> None:
        """Give up the parts of gaps that are older than the gateway's replay."""
        now = self.clock.now()
        for schema in schemas:
            self._give_up_before(schema, earliest_replay(schema, now))

    def _give_up_before(self, schema: str, limit_ns: int) -> None:
        """Give up what lies before an instant, which the gateway no longer replays."""
        self._limits[schema] = limit = max(limit_ns, self._limits.get(schema, 0))
        mine = [gap for gap in self.unresolved if gap.schema == schema]
        changed = split_at_replay_limit(mine, limit, self._new_id())
        self._change(*changed)
        self.beyond_replay += [gap for gap in changed if gap.state == "unfillable"]

    def _set_replay_begin(self, schema: str, first_ns: int) -> None:
        """The gateway's replay of a schema begins here, and moves on from here."""
        self._replay_all.discard(schema)
        self._give_up_before(schema, first_ns + self._aging_ns)
        for gap_id, counted in self._session.filling.items():
            if self._gaps[gap_id].schema == schema:
                counted.first_ns = self._gaps[gap_id].first_ns

    def handle_too_old(self, starts: Mapping[str, int], earliest_ns: int | None) -> None:
        """Adapt to a session that was refused because a replay would start too early.

        `starts` maps each schema to the start of its replay, and `earliest_ns` is the earliest start that the
        refusal names (nanoseconds UTC). The refusal does not name the subscription; a schema that is replayed
        for the whole week is the last to be suspected. If the refusal names no start that helps, the next
        session requests all there is, and its first record shows where that begins.
        """
        late = [schema for schema, ns in starts.items() if earliest_ns is not None and ns < earliest_ns]
        late = [schema for schema in late if schema not in WEEKLY] or late
        if earliest_ns is None or not late:
            self._replay_all |= starts.keys()
            return
        for schema in late:
            self._set_replay_begin(schema, earliest_ns)

    def move_gaps(self, schema: str, others: Iterable[str], text: str) -> None:
        """Move the gaps of a refused schema to one of the others."""
        have = {gap.schema for gap in self.unresolved}
        chosen = (sorted(set(others) - have) or sorted(others))[0]
        for gap in [gap for gap in self.unresolved if gap.schema == schema]:
            detail = f"{gap.detail}; {text}".lstrip("; ")
            self._change(gap.change(schema=chosen, state="open", detail=detail))

    def store_outcome(self, gap: Gap) -> None:
        """Store the outcome of a gap that was filled, refused or compared elsewhere.

        Lost gaps of earlier captures do not count as gaps of this one.
        """
        known = self._gaps.get(gap.gap_id)
        if known is not None and known.revision >= gap.revision:
            return  # it has changed meanwhile
        self._change(gap)
        if known is None and gap.state == "unfillable":
            del self._gaps[gap.gap_id]

    def _adopt(self, gap: Gap) -> None:
        """Continue a gap of an earlier capture; the count of its replay is lost."""
        last = gap.last_ns
        if last is None and gap.first_ns < self.opens_ns and self.window != "always":
            closed = open_window(from_ns(gap.first_ns), self.window)
            last = to_ns(closed[1]) if closed and closed[1] else self.opens_ns
        self._gaps[gap.gap_id] = gap
        if (gap.state, gap.last_ns, gap.attempts) != ("open", last, 0):
            reason = "continued by another capture"
            self._change(gap.change(state="open", last_ns=last, reason=reason, attempts=0))

    def _open(self, schema: str, first: int, last: int | None, *, cause: str, detail: str = "") -> None:
        self._change(Gap(self._new_id(), schema, first, last, cause, detail))

    def _change(self, *gaps: Gap) -> None:
        if not gaps:
            return
        self._gaps |= {gap.gap_id: gap for gap in gaps}
        at = self.clock.now()
        self.write(lambda: self.store.write(gaps, at))

    def _new_id(self) -> str:
        return f"{self.run_id}-{next(self._numbers)}"

    # ── a session ───────────────────────────────────────────────────────────────────────────────

    def begin_session(self, streams: Mapping[str, int]) -> None:
        """Begin a session of some schemas; `streams` maps each to its rtype."""
        filling = {
            gap.gap_id: RecordCount(RTYPES[gap.schema], gap.first_ns, gap.last_ns or self.close_ns)
            for gap in self.unresolved
            if gap.state == "open" and gap.schema in streams
        }
        for gap_id in filling:
            self._awaiting_count.pop(gap_id, None)  # the count of a replay that no longer matters
        self._session = _SessionProgress(dict(streams), filling)

    def track(self, frame: Frame, state: SessionState) -> int | None:
        """Count a frame; returns the `ts_recv` of its last record if it came live, not from a replay."""
        session = self._session
        if state.skipped and session.before_skip is None:
            session.before_skip = dict(session.last)
        if frame.tallies.keys() <= set(CONTROL):
            return None
        received = None
        for schema, rtype in session.streams.items():
            tally = frame.tallies.get(rtype)
            if tally is None:
                continue
            if schema in self._replay_all and (first := frame.first_moment(rtype)) is not None:
                self._set_replay_begin(schema, first)
            if tally.ts_event is not None:
                session.last[schema] = tally.ts_event
            if schema in session.completed:
                received = tally.ts_recv
        replayed = self._update_replayed(state)
        for gap_id, counted in session.filling.items():
            gap = self._gaps[gap_id]
            if gap.last_ns is None and gap.schema in replayed:
                counted.last_ns = self._end_of(gap, replayed[gap.schema])
            counted.add(frame)
        return received

    def advance(self, state: SessionState, now: float) -> list[Gap]:
        """Advance the gaps whose replay is complete; returns those to be counted again.

        `now` is in seconds of a monotonic clock. A gap is counted when all its records have arrived.
        """
        session = self._session
        for schema, done_ns in self._update_replayed(state).items():
            if schema in self._replay_all:
                self._set_replay_begin(schema, done_ns - self._aging_ns)  # the replay was empty
            session.completed.setdefault(schema, now)
            for gap_id in [i for i in session.filling if self._gaps[i].schema == schema]:
                gap = self._gaps[gap_id]
                if gap.state == "open":
                    session.filling[gap_id].last_ns = last = self._end_of(gap, done_ns)
                    self._change(gap.change(state="replayed", last_ns=last, reason=""))
                settled = now - session.completed[schema] >= self.settle_s
                if settled and max(to_ns(self.clock.now()), state.heard_ns) - done_ns >= self._settle_ns:
                    self._awaiting_count[gap_id] = session.filling.pop(gap_id)
        waiting = [self._gaps[gap_id] for gap_id in self._awaiting_count]
        return [gap for gap in waiting if gap.state == "replayed" and gap.schema in session.streams]

    def judge(self, gap: Gap, found: RecordCount) -> Gap | None:
        """Judge a gap by its second count; None if its session has ended and it is replayed anew."""
        if self._gaps[gap.gap_id] is not gap:
            return None
        judged = compare_counts(gap, self._awaiting_count.pop(gap.gap_id), found)
        self._change(judged)
        if judged.is_disputed:
            self.beyond_replay.append(judged)
        return judged

    def mark_uncountable(self, gap: Gap) -> None:
        """Give up a replayed gap that the gateway no longer replays for a count."""
        if self._gaps[gap.gap_id] is gap:
            replayed = self._awaiting_count.pop(gap.gap_id).total
            reason = "it was replayed, but the gateway no longer has it for an independent count"
            lost = gap.change(state="unfillable", reason=reason, replayed=replayed, filled_by=LIVE_REPLAY)
            self._change(lost)
            self.beyond_replay.append(lost)

    def end_session(self, state: SessionState, ending: SessionEnd, log: CaptureLog) -> int | None:
        """End the session and open the gap that begins there.

        Returns up to where everything of all schemas has arrived, nanoseconds UTC; None if a replay was not
        complete.
        """
        session, proven = self._session, self._proven(state, ending)
        for gap in [self._gaps[gap_id] for gap_id in session.filling]:
            if gap.state == "replayed":  # its last records may have been cut off
                self._change(gap.change(state="open", reason="the session ended just after the replay"))
        session.filling = {}
        if ending.reason is not EndReason.STOPPED:
            for schema, ns in proven.items():
                if self.close_ns is None or ns < self.close_ns:
                    first = _synced_moment(log, schema, ns) if ending.reason is EndReason.FAILED else ns
                    self._open(schema, first, None, cause=str(ending.reason), detail=ending.text)
        return min(proven.values()) if proven and proven.keys() == session.streams.keys() else None

    def _update_replayed(self, state: SessionState) -> Mapping[str, int]:
        """Note the replays that are complete; schema to when each was."""
        for schema, done_ns in state.replayed.items():
            self._session.replayed.setdefault(schema, self._plausible(done_ns, state.heard_ns))
        return self._session.replayed

    def _plausible(self, ns: int, heard_ns: int = 0) -> int:
        """A time of the gateway, or now if it is too far ahead to be true.

        `heard_ns` is the time by other messages of the gateway: if they agree, our clock is behind.
        """
        now = max(to_ns(self.clock.now()), heard_ns)
        return ns if from_ns(ns) <= from_ns(now) + CLOCK_SKEW else now

    def _end_of(self, gap: Gap, replayed_ns: int) -> int:
        """Where a gap ends when its replay was complete at an instant."""
        if gap.last_ns is not None:
            return gap.last_ns
        inside = replayed_ns if self.close_ns is None else min(replayed_ns, self.close_ns)
        return max(gap.first_ns, inside)

    def _proven(self, state: SessionState, ending: SessionEnd) -> dict[str, int]:
        """Schema to the moment up to which everything arrived, for schemas whose replay was complete.

        After a lost connection that is the last record; nothing else that the gateway sent proves more.
        If we ended the session, the connection was sound, so everything had arrived that the gateway
        received before the newest record or heartbeat. Skipped records came after the last record
        before the gateway's message.
        """
        session, stopped = self._session, ending.reason is EndReason.STOPPED
        if session.before_skip is not None:
            return {
                schema: self._plausible(session.before_skip.get(schema, self.opens_ns))
                for schema in state.replayed
                if schema in session.streams
            }
        heard = min(state.heard_ns, to_ns(self.clock.now())) - self._settle_ns if stopped else 0
        return {
            schema: max(done - self._settle_ns, self._plausible(session.last.get(schema, 0)), heard)
            for schema, done in self._update_replayed(state).items()
            if schema in session.streams
        }


def _synced_moment(log: CaptureLog, schema: str, otherwise: int) -> int:
    """The last moment of a schema that is certainly on disk, after the log has failed."""
    try:
        return last_moments(log.folder, {schema: RTYPES[schema]}, log.synced)[schema]
    except (KeyError, OSError, CaptureError):
        return otherwise


def last_moments(folder: Path, wanted: dict[str, int], until: Position | None = None) -> dict[str, int]:
    """Schema to the moment of its last record in the log, or up to `until`, nanoseconds UTC.

    Records after the gateway's message that it skipped some prove nothing. Reads the newest segments
    until every schema is found, at most those of `LOOK_BACK`. `wanted` maps schema to rtype.
    """
    found: dict[str, int] = {}
    newest = [s for s in list_segments(folder) if until is None or s.number <= until.segment]
    for segment in reversed(newest):
        if not wanted.keys() - found.keys() or newest[-1].trade_date - segment.trade_date > LOOK_BACK:
            break
        last: dict[str, int] = {}
        end = Position(segment.number, segment.path.stat().st_size)
        for frame in _until_skip(folder, Position(segment.number, 0), min(end, until or end)):
            for schema, rtype in wanted.items():
                tally = frame.tallies.get(rtype)
                if tally and tally.ts_event is not None:
                    last[schema] = tally.ts_event
        found = {**last, **found}
    return found


def _until_skip(folder: Path, start: Position, end: Position) -> Iterator[Frame]:
    """The frames of a segment, up to the gateway's message that it skipped records."""
    for block in tail(folder, start, end):
        errors = (message for message in block.frame.messages() if isinstance(message, ErrorMsg))
        for offset, error in zip(block.frame.starts(ERROR).tolist(), errors, strict=True):
            if error.code == SKIPPED_RECORDS:
                skip = Position(start.segment, block.frame.offset + offset)
                yield from (part.frame for part in tail(folder, block.start, skip))
                return
        yield block.frame
