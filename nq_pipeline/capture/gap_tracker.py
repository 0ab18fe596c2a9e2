"""What is proven of a capture window and what is missing: the gaps of one capture, session by session.

    find       gaps that earlier captures left, and holes that arose while none was running
    begin      a session: the records that its replays bring into gaps are counted as they come
    take       a frame, after it was logged
    advance    replays that were completed: their gaps wait for the second count
    judge      a gap by that count
    end        the session: the hole that begins there

Lives on the thread of the capture's event loop; rows are written elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path

from nq_pipeline.capture import gaps as rules
from nq_pipeline.capture.gaps import (
    HISTORICAL,
    LIVE_REPLAY,
    MAX_REPLAYS,
    UNRESOLVED,
    Gap,
    GapStore,
    RecordCount,
)
from nq_pipeline.capture.gateway import SessionState
from nq_pipeline.capture.log import CaptureLog, Position, list_segments, tail
from nq_pipeline.capture.reconnect_policy import SKIPPED_RECORDS, EndReason, SessionEnd
from nq_pipeline.capture.schema_fallback import RTYPES
from nq_pipeline.clock import NS_PER_S, Clock, from_ns, to_ns
from nq_pipeline.dbn.framer import (
    CONTROL,
    ERROR,
    ErrorMsg,
    Frame,
)
from nq_pipeline.errors import CaptureError
from nq_pipeline.market.sessions import Window

OVERLAP_NS = 5 * NS_PER_S
"""A replay begins so long before the last proven moment: instruments' `ts_event` are not in one order."""


class GapTracker:
    """The accounts of one capture.

    Parameters
    ----------
    book
        Where gaps are put down.
    write
        Does a piece of work later and in order: a row of the book.
    opens_ns, close_ns
        The window that is open, nanoseconds UTC; no close for `always`.
    settle_s
        How long after a replay, by wall and by market, records from before it may still come.
    aging_s
        What the gateway replays moves on: what has less than this left is not counted on.

    Attributes
    ----------
    beyond
        Gaps that the live gateway will not fill, for somebody to take away and fill elsewhere.
    """

    def __init__(
        self,
        book: GapStore,
        write: Callable[[Callable[[], object]], None],
        *,
        clock: Clock,
        run_id: str,
        window: Window,
        opens_ns: int,
        close_ns: int | None,
        settle_s: float,
        aging_s: float,
    ) -> None:
        self.beyond: list[Gap] = []
        self._book, self._write, self._clock = book, write, clock
        self._run_id, self._numbers = run_id, count(1)
        self._window, self._opens_ns, self._close_ns = window, opens_ns, close_ns
        self._settle_s, self._aging_ns = settle_s, int(aging_s * NS_PER_S)
        self._gaps: dict[str, Gap] = {}
        self._limits: dict[str, int] = {}
        self._all_there_is: set[str] = set()
        self._awaited: dict[str, RecordCount] = {}
        self.begin({})

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

    def find(self, folder: Path, schemas: Iterable[str]) -> None:
        """Take up the gaps of earlier captures, and open those that arose while none was running.

        Parameters
        ----------
        folder
            The capture log, whose last records are proven.
        schemas
            Those in force.
        """
        now, in_force = self._clock.now(), set(schemas)
        known = self._book.gaps(now - rules.LOOK_BACK)
        logged = last_moments(folder, {schema: RTYPES[schema] for schema in in_force})
        ended = self._book.proven(now - rules.LOOK_BACK, now)
        for gap in known:
            if gap.state in UNRESOLVED:  # `follow` sees to those of other schemas
                self._take_up(gap)
            elif gap.schema in in_force and gap.state == "unfillable" and gap.filled_by != HISTORICAL:
                self.beyond.append(gap)
        for schema in sorted(in_force):
            mine = [gap for gap in known if gap.schema == schema]
            moments = [logged.get(schema), ended, *(gap.last_ns or gap.first_ns for gap in mine)]
            reached = [ns for ns in moments if ns is not None and ns <= to_ns(now)]
            proven = max(reached, default=None)
            going_on = any(g.last_ns is None and g.schema == schema for g in self.unresolved)
            for first, last in rules.unproven_spans(proven, now, self._window):
                if last is not None or not going_on:
                    late = proven is None or first > proven
                    self._open(schema, first, last, cause="late start" if late else "not running")

    def starts(self, schema: str) -> int | None:
        """Where a replay has to begin: 0 for all there is, None for no replay."""
        firsts = [g.first_ns for g in self.unresolved if g.schema == schema and g.state == "open"]
        if not firsts:
            return None
        return (
            0 if schema in self._all_there_is else max(min(firsts) - OVERLAP_NS, self._limits.get(schema, 0))
        )

    def follow(self, schemas: Iterable[str]) -> None:
        """The next session streams these schemas; a trade date may begin with others than the last had.

        What is missing of one that is left is looked for in those that follow, and each that is new
        has a gap, since without a replay nothing of it could be proven.
        """
        asked = set(schemas)
        since = min((gap.first_ns for gap in self.unresolved if gap.last_ns is None), default=None)
        for left in sorted({gap.schema for gap in self.unresolved} - asked):
            self.step_down(left, asked, f"{left} is no longer streamed")
        going_on = {gap.schema for gap in self.unresolved if gap.last_ns is None}
        for schema in sorted(asked - self._streams.keys() - going_on):
            if since is not None:
                self._open(schema, since, None, cause="another schema")

    def reach(self, schemas: Iterable[str]) -> None:
        """Give up what is older than the gateway replays, as far as is known."""
        now = self._clock.now()
        for schema in schemas:
            self.lose_before(schema, rules.earliest_replay(schema, now))

    def lose_before(self, schema: str, limit_ns: int) -> None:
        """Nothing of a schema before an instant can be replayed."""
        self._limits[schema] = limit = max(limit_ns, self._limits.get(schema, 0))
        mine = [gap for gap in self.unresolved if gap.schema == schema]
        changed = rules.split_at_replay_limit(mine, limit, self._new_id())
        self._change(*changed)
        self.beyond += [gap for gap in changed if gap.state == "unfillable"]

    def begins_at(self, schema: str, first_ns: int) -> None:
        """The gateway's replay of a schema turns out to begin here, and by and by later."""
        self._all_there_is.discard(schema)
        self.lose_before(schema, first_ns + self._aging_ns)
        for gap_id, counted in self._filling.items():
            if self._gaps[gap_id].schema == schema:
                counted.first_ns = self._gaps[gap_id].first_ns

    def start_later(self, starts: Mapping[str, int], earliest_ns: int | None) -> None:
        """A session was refused because a replay was to start too early.

        The refusal does not say which subscription it means. Of a schema that is replayed for the
        whole week it is the last to be believed.

        Parameters
        ----------
        starts
            Schema to where its replay was to begin.
        earliest_ns
            The earliest start that the refusal names. Where it names none that helps, the next
            session asks for all there is, and where that begins is learnt from its first record.
        """
        late = [schema for schema, ns in starts.items() if earliest_ns is not None and ns < earliest_ns]
        late = [schema for schema in late if schema not in rules.WEEKLY] or late
        if earliest_ns is None or not late:
            self._all_there_is |= starts.keys()
            return
        for schema in late:
            self.begins_at(schema, earliest_ns)

    def step_down(self, schema: str, below: Iterable[str], text: str) -> None:
        """Look for what was missing of a schema that is refused in the next one."""
        have = {gap.schema for gap in self.unresolved}
        taken = (sorted(set(below) - have) or sorted(below))[0]
        for gap in [gap for gap in self.unresolved if gap.schema == schema]:
            detail = f"{gap.detail}; {text}".lstrip("; ")
            self._change(gap.change(schema=taken, state="open", detail=detail))

    def settle(self, gap: Gap) -> None:
        """Put down what became of a gap that was filled, or refused, elsewhere.

        Lost gaps of earlier captures are not counted among those of this one.
        """
        held = self._gaps.get(gap.gap_id)
        if held is not None and held.revision >= gap.revision:
            return  # it went on meanwhile
        self._change(gap)
        if held is None and gap.state == "unfillable":
            del self._gaps[gap.gap_id]

    def _take_up(self, gap: Gap) -> None:
        """A gap of an earlier capture: what was counted of its replay is forgotten."""
        last = gap.last_ns
        if last is None and gap.first_ns < self._opens_ns and self._window != "always":
            closed = rules.open_window(from_ns(gap.first_ns), self._window)
            last = to_ns(closed[1]) if closed and closed[1] else self._opens_ns
        if (gap.state, gap.last_ns, gap.attempts) != ("open", last, 0):
            reason = "taken up by another capture"
            gap = gap.change(state="open", last_ns=last, reason=reason, attempts=0)
            self._change(gap)
        self._gaps[gap.gap_id] = gap

    def _open(self, schema: str, first: int, last: int | None, *, cause: str, detail: str = "") -> None:
        self._change(Gap(self._new_id(), schema, first, last, cause, detail))

    def _change(self, *gaps: Gap) -> None:
        if not gaps:
            return
        for gap in gaps:
            self._gaps[gap.gap_id] = gap
        at = self._clock.now()
        self._write(lambda: self._book.write(gaps, at))

    def _new_id(self) -> str:
        return f"{self._run_id}-{next(self._numbers)}"

    # ── a session ───────────────────────────────────────────────────────────────────────────────

    def begin(self, streams: Mapping[str, int]) -> None:
        """A session of these schemas (and their rtypes) begins."""
        self._streams = dict(streams)
        self._filling = {
            gap.gap_id: RecordCount(RTYPES[gap.schema], gap.first_ns, gap.last_ns or self._close_ns)
            for gap in self.unresolved
            if gap.state == "open" and gap.schema in streams
        }
        for gap_id in self._filling:
            self._awaited.pop(gap_id, None)  # counted of a replay that no longer matters
        self._completed: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._before_skip: dict[str, int] | None = None

    def take(self, frame: Frame, state: SessionState) -> int | None:
        """Count a frame; the `ts_recv` of its last record when that came live, not from a replay."""
        if state.skipped and self._before_skip is None:
            self._before_skip = dict(self._last)
        if frame.tallies.keys() <= set(CONTROL):
            return None
        received = None
        for schema, rtype in self._streams.items():
            tally = frame.tallies.get(rtype)
            if tally is None:
                continue
            if schema in self._all_there_is and (first := frame.first_moment(rtype)) is not None:
                self.begins_at(schema, first)
            if tally.ts_event is not None:
                self._last[schema] = tally.ts_event
            if schema in self._completed:
                received = tally.ts_recv
        replayed = self._replayed(state)
        for gap_id, counted in self._filling.items():
            gap = self._gaps[gap_id]
            if gap.last_ns is None and gap.schema in replayed:
                counted.last_ns = self._end_of(gap, replayed[gap.schema])
            counted.add(frame)
        return received

    def advance(self, state: SessionState, now: float) -> list[Gap]:
        """Move on the gaps whose replay is completed.

        Parameters
        ----------
        now
            Seconds of a clock that only runs.

        Returns
        -------
        Those of which all has come, to be counted again.
        """
        for schema, done_ns in self._replayed(state).items():
            if schema in self._all_there_is:
                self.begins_at(schema, done_ns - self._aging_ns)  # there was nothing at all
            self._completed.setdefault(schema, now)
            for gap_id in [i for i in self._filling if self._gaps[i].schema == schema]:
                gap = self._gaps[gap_id]
                if gap.state == "open":
                    self._filling[gap_id].last_ns = last = self._end_of(gap, done_ns)
                    self._change(gap.change(state="replayed", last_ns=last, reason=""))
                settled = now - self._completed[schema] >= self._settle_s
                market = to_ns(self._clock.now()) - done_ns
                if settled and market >= self._settle_s * NS_PER_S:
                    self._awaited[gap_id] = self._filling.pop(gap_id)
        waiting = [self._gaps[gap_id] for gap_id in self._awaited]
        return [gap for gap in waiting if gap.state == "replayed" and gap.schema in self._streams]

    def judge(self, gap: Gap, found: RecordCount) -> Gap | None:
        """A gap by its second count; None when its session ended meanwhile, and it is replayed anew."""
        if self._gaps[gap.gap_id] is not gap:
            return None
        judged = rules.compare_counts(gap, self._awaited.pop(gap.gap_id), found)
        self._change(judged)
        if judged.state == "open" and judged.attempts >= MAX_REPLAYS:
            self.beyond.append(judged)
        return judged

    def uncountable(self, gap: Gap) -> None:
        """A gap was filled, perhaps, but too long ago to be counted by the gateway."""
        if self._gaps[gap.gap_id] is not gap:
            return
        replayed = self._awaited.pop(gap.gap_id).total
        reason = "it was replayed, but the gateway no longer has it for an independent count"
        changed = gap.change(state="unfillable", reason=reason, replayed=replayed, filled_by=LIVE_REPLAY)
        self._change(changed)
        self.beyond.append(changed)

    def end(self, state: SessionState, ending: SessionEnd, log: CaptureLog) -> int | None:
        """Put down the hole that begins where a session ended.

        Returns
        -------
        Up to where everything came of all that was asked for; None where a replay was not completed.
        """
        proven = self._proven(state, ending)
        for gap in [self._gaps[gap_id] for gap_id in self._filling]:
            if gap.state == "replayed":  # cut off before the last of its records could come
                self._change(gap.change(state="open", reason="the session ended just after the replay"))
        self._filling = {}
        if ending.reason is not EndReason.STOPPED:
            for schema, ns in proven.items():
                if self._close_ns is None or ns < self._close_ns:
                    first = _synced_moment(log, schema, ns) if ending.reason is EndReason.FAILED else ns
                    self._open(schema, first, None, cause=str(ending.reason), detail=ending.text)
        whole = [proven[schema] for schema in self._streams if schema in proven]
        return min(whole) if whole and len(whole) == len(self._streams) else None

    def _replayed(self, state: SessionState) -> Mapping[str, int]:
        """Schema to when its replay was completed, never later than when that was heard of."""
        now = to_ns(self._clock.now())
        for schema, done_ns in state.replayed.items():
            self._done.setdefault(schema, min(done_ns, now))
        return self._done

    def _end_of(self, gap: Gap, replayed_ns: int) -> int:
        """Where a gap ends whose replay was completed."""
        if gap.last_ns is not None:
            return gap.last_ns
        inside = replayed_ns if self._close_ns is None else min(replayed_ns, self._close_ns)
        return max(gap.first_ns, inside)

    def _proven(self, state: SessionState, ending: SessionEnd) -> dict[str, int]:
        """Schema to the moment up to which everything came, for those whose replay was completed.

        After a lost connection that is its last record; what else the gateway said proves nothing.
        Where we ended it, the connection was sound, and all had come that the gateway received before
        the newest record or heartbeat it sent. Records that it left out came after the last one before
        it said so.
        """
        settle = int(self._settle_s * NS_PER_S)
        heard = (
            min(state.heard_ns, to_ns(self._clock.now())) - settle
            if ending.reason is EndReason.STOPPED
            else 0
        )
        if self._before_skip is not None:
            return {schema: self._before_skip.get(schema, self._opens_ns) for schema in state.replayed}
        return {
            schema: max(done - settle, self._last.get(schema, 0), heard)
            for schema, done in self._replayed(state).items()
            if schema in self._streams
        }


def _synced_moment(log: CaptureLog, schema: str, otherwise: int) -> int:
    """The last moment of a schema that is surely on the disk, after the log has failed."""
    try:
        return last_moments(log.folder, {schema: RTYPES[schema]}, log.synced)[schema]
    except (KeyError, OSError, CaptureError):
        return otherwise


def last_moments(folder: Path, wanted: dict[str, int], until: Position | None = None) -> dict[str, int]:
    """Schema to the moment of its last record in the log, or up to `until`.

    What came after the gateway said that it left out records proves nothing. Looks through the
    newest segments until each schema was found, at most those of the last trade dates that
    accounts are kept of.
    """
    found: dict[str, int] = {}
    newest = [s for s in list_segments(folder) if until is None or s.number <= until.segment]
    for segment in reversed(newest):
        if not wanted.keys() - found.keys() or newest[-1].trade_date - segment.trade_date > rules.LOOK_BACK:
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
    """The frames of a segment, up to where the gateway said that it left out records."""
    for block in tail(folder, start, end):
        errors = (message for message in block.frame.control() if isinstance(message, ErrorMsg))
        for offset, error in zip(block.frame.starts(ERROR).tolist(), errors, strict=True):
            if error.code == SKIPPED_RECORDS:
                skip = Position(start.segment, block.frame.offset + offset)
                yield from (part.frame for part in tail(folder, block.start, skip))
                return
        yield block.frame
