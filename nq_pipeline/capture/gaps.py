"""Gaps: spans of a capture window, of one schema, for which completeness is not proven.

A gap is `open` until a replay has covered it, `replayed` until an independent count agrees, then
`verified`; or it is `unfillable`, with the reason. That the gateway calls a replay complete proves
nothing: replays were observed to lack records.

Each change of state is another row of the table `gaps`; the highest revision is current. Spans are of
`ts_event`, start included and end excluded, because a live replay starts from a `ts_event`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

import numpy as np

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.dbn.framer import Frame
from nq_pipeline.dbn.layout import UNDEF_TIMESTAMP
from nq_pipeline.market import sessions
from nq_pipeline.market.sessions import Window

GapState = Literal["open", "replayed", "verified", "unfillable"]
UNRESOLVED: tuple[GapState, ...] = ("open", "replayed")

REPLAY, REPLAY_MARGIN = timedelta(hours=24), timedelta(minutes=1)
"""How far back the gateway replays; at weekends it may be less, and the gateway then reports its limit."""
WEEKLY = frozenset({"mbo"})
"""Schemas of which the gateway replays the whole weekly CME session, as Databento documents."""
MAX_REPLAYS = 3
"""Replays of one gap that may disagree with the count before it is left open."""
CLOCK_SKEW = timedelta(minutes=1)
"""How far a time of the gateway may be ahead of our clock before it counts as wrong."""
LOOK_BACK = timedelta(days=10)
"""Older windows are not searched for gaps."""
TOO_OLD = "older than the gateway's replay; the historical API has it, for money"
LIVE_REPLAY, HISTORICAL, ALREADY_THERE = "live replay", "historical", "already there"
"""What filled a gap. The lake may hold its records already, for instance from a backfill."""


@dataclass(frozen=True, slots=True)
class Gap:
    """One gap in one state. Instants are nanoseconds UTC."""

    gap_id: str
    schema: str
    first_ns: int  # the last moment proven before
    last_ns: int | None  # the first one proven after; None while nothing has followed
    cause: str  # how the last session ended, or that there was none
    detail: str = ""  # its message
    state: GapState = "open"
    reason: str = ""  # why the gap is unfillable, or open again
    replayed: int | None = None  # records of the span that the replay brought to the log
    counted: int | None = None  # records that the count found
    published: int | None = None  # rows of these in the lake; None until compared after their publication
    attempts: int = 0  # replays that disagreed with the count
    filled_by: str = ""
    cost_usd: Decimal = Decimal(0)
    revision: int = 0

    def change(self, **changes: object) -> Gap:
        """The next state."""
        return replace(self, revision=self.revision + 1, **changes)  # type: ignore[arg-type]

    @property
    def is_disputed(self) -> bool:
        """Whether the gap is unresolved and no more replays are tried."""
        return self.state in UNRESOLVED and self.attempts >= MAX_REPLAYS

    @property
    def is_verified_but_differs(self) -> bool:
        """Whether the lake has more or fewer rows than the count that verified the gap."""
        return self.state == "verified" and self.published not in (None, self.counted)


def open_window(instant: datetime, window: Window) -> tuple[datetime, datetime | None] | None:
    """Opening and close of the window that contains an instant; None when it is closed.

    The window `always` opens with the session and has no close.
    """
    if window == "always":
        return sessions.current_session(instant).open, None
    return next(((a, b) for a, b in _windows(instant, instant, window) if a <= instant < b), None)


def unproven_spans(proven_ns: int | None, now: datetime, window: Window) -> list[tuple[int, int | None]]:
    """Start and end of each part of the capture windows after the last proven moment, nanoseconds UTC.

    The end is None for the window that is open now. `proven_ns` is None when nothing was ever captured;
    then only the open window counts.
    """
    current = open_window(now, window)
    begin = to_ns(current[0]) if current else to_ns(now)
    if proven_ns is None or proven_ns > to_ns(now):
        return [(begin, None)] if current else []
    since = max(from_ns(proven_ns), now - LOOK_BACK)
    if window == "always":
        return [(to_ns(since), None)]
    past = [
        (max(proven_ns, to_ns(a)), to_ns(b))
        for a, b in _windows(since, now, window)
        if b <= now and to_ns(b) > proven_ns
    ]
    return [*past, (max(proven_ns, begin), None)] if current else [*past]


def earliest_replay(schema: str, now: datetime) -> int:
    """The earliest instant from which the gateway replays a schema, nanoseconds UTC."""
    if schema not in WEEKLY:
        return to_ns(now - REPLAY + REPLAY_MARGIN)
    day = sessions.trade_date(now)
    return to_ns(sessions.sessions(day - timedelta(days=day.weekday()), day)[0].open)


def split_at_replay_limit(gaps: Iterable[Gap], limit_ns: int, new_id: str) -> list[Gap]:
    """The changed gaps when nothing before `limit_ns` can be replayed.

    A gap before the limit becomes unfillable. One across it is split; the lost part gets an ID that
    begins with `new_id`.
    """
    changed = []
    for number, gap in enumerate(g for g in gaps if g.state in UNRESOLVED and g.first_ns < limit_ns):
        if gap.last_ns is not None and gap.last_ns <= limit_ns:
            changed.append(gap.change(state="unfillable", reason=TOO_OLD))
            continue
        lost = replace(gap, gap_id=f"{new_id}-{number}", last_ns=limit_ns, state="unfillable", reason=TOO_OLD)
        changed += [replace(lost, revision=0), gap.change(first_ns=limit_ns, state="open")]
    return changed


@dataclass(slots=True)
class RecordCount:
    """Counts the records of one rtype within a span, by instrument.

    `last_ns` may be set during the count, before any record from there on was counted.
    """

    rtype: int
    first_ns: int
    last_ns: int | None = None
    by_instrument: Counter[int] = field(default_factory=Counter)

    def add(self, frame: Frame) -> None:
        if self.rtype not in frame.tallies:
            return
        records = frame.array(self.rtype)
        ts, last = records["ts_event"], UNDEF_TIMESTAMP if self.last_ns is None else self.last_ns
        within = records["instrument_id"][(ts >= np.uint64(self.first_ns)) & (ts < np.uint64(last))]
        ids, counts = np.unique(within, return_counts=True)
        for instrument, count in zip(ids.tolist(), counts.tolist(), strict=True):
            self.by_instrument[instrument] += count

    @property
    def total(self) -> int:
        return self.by_instrument.total()


def compare_counts(gap: Gap, brought: RecordCount, found: RecordCount) -> Gap:
    """The gap, verified if two replays hold as many records of every instrument, else open again."""
    counts = {"replayed": brought.total, "counted": found.total, "filled_by": LIVE_REPLAY}
    if brought.by_instrument == found.by_instrument:
        return gap.change(state="verified", reason="", **counts)
    instruments = brought.by_instrument.keys() | found.by_instrument.keys()
    differing = sum(brought.by_instrument[i] != found.by_instrument[i] for i in instruments)
    reason = (
        f"the replay brought {brought.total:,} records and the count found {found.total:,}; "
        f"{differing:,} instruments differ"
    )
    return gap.change(state="open", reason=reason, attempts=gap.attempts + 1, **counts)


def describe_difference(more: int, fewer: int) -> str:
    """How the lake's rows differ from the count that verified a gap; empty where they agree."""
    parts = [
        f"{more:,} more, which the gateway sent twice within one session" if more else "",
        f"{fewer:,} fewer, which stayed in the log" if fewer else "",
    ]
    found = " and ".join(filter(None, parts))
    return f"the lake has other rows than the count: {found}" if found else ""


def session_windows(session: sessions.Session, window: Window) -> list[tuple[datetime, datetime]]:
    """The parts of a session to capture; `always` counts the hours in which the market trades."""
    if window == "rth":
        return [session.rth] if session.rth else []
    return list(session.segments)


def _windows(since: datetime, until: datetime, window: Window) -> list[tuple[datetime, datetime]]:
    """The parts to capture of all sessions from one instant to another."""
    found = sessions.sessions(sessions.trade_date(since), sessions.trade_date(until))
    return [part for session in found for part in session_windows(session, window)]
