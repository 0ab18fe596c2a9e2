"""Whether a tick of a schedule runs: pure decisions, each skip with its reason.

`orchestration/schedules.py` applies them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from nq_pipeline.capture.gaps import session_windows
from nq_pipeline.capture.quality import last_opened
from nq_pipeline.market import sessions
from nq_pipeline.market.sessions import CHICAGO, Window, in_chicago

CADENCE = timedelta(minutes=5)
"""The interval between chain snapshots while the window is open."""
SCHEDULED = "nq/scheduled"
"""Run tag with the scheduled instant of the tick (ISO 8601); the age of answers counts from it."""
LATE_TRADES = timedelta(hours=1)
"""How long the pressure is computed again after a window closed, because gap filling may still bring trades.
Gaps of a closed window are also filled by the next capture, so it is computed once more this long after the
next window opened. A capture itself ends earlier (`capture.supervisor.MAX_OVERTIME`)."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The decision of a tick: the trade date to run, or None and the reason."""

    trade_date: date | None
    reason: str = ""


def chain_tick(scheduled: datetime, now: datetime, *, window: Window, pinned: datetime | None = None) -> Tick:
    """Run at each tick while the market is open within the window.

    A scheduler that was down catches up on missed ticks, but no vendor has the quotes of an hour ago, so a
    tick `scheduled` long before `now` (the machine's time) is skipped. The window `always` counts as
    `globex`, because nothing changes while the market is closed. `pinned` is the instant of a pinned clock.
    """
    if pinned is not None:
        return Tick(None, _pinned(pinned))
    if late := _too_late(scheduled, now):
        return Tick(None, late)
    window = "globex" if window == "always" else window
    if sessions.is_open(scheduled, window):
        return Tick(sessions.trade_date(scheduled))
    opens = in_chicago(sessions.next_open(scheduled, window))
    return Tick(
        None, f"{sessions.describe_closure(scheduled, window)}; the next window ({window}) opens {opens}"
    )


def first_tick(
    now: datetime, *, environment: str, chosen: bool, window: Window, pinned: datetime | None = None
) -> Tick:
    """Take one snapshot on an instance of the sandbox that has never chosen a chain, at any hour."""
    if chosen:
        return Tick(None, "there is a chain; the schedules fetch the next ones")
    if environment != "sandbox":
        return Tick(None, f"the first chain is fetched when NQ_CHAIN_WINDOW ({window}) is open")
    if pinned is not None:
        return Tick(None, _pinned(pinned))
    return Tick(sessions.current_session(now).trade_date)


def reference_tick(scheduled: datetime, now: datetime, *, pinned: datetime | None = None) -> Tick:
    """Run for settlements and open interest: once on each trade date, for the session of that moment."""
    tick = trade_date_tick(scheduled, pinned=pinned)
    if tick.trade_date is None:
        return tick
    if late := _too_late(scheduled, now):
        return Tick(None, late)
    return Tick(sessions.trade_date(scheduled))


def trade_date_tick(scheduled: datetime, *, pinned: datetime | None = None) -> Tick:
    """Run if the calendar day of the tick in Chicago is a trade date."""
    if pinned is not None:
        return Tick(None, _pinned(pinned))
    day = scheduled.astimezone(CHICAGO).date()
    if sessions.is_trade_date(day):
        return Tick(day)
    return Tick(None, f"no trade date ended: {sessions.describe_closed_day(day)}")


@dataclass(frozen=True, slots=True)
class PressureTick:
    """The trade dates whose pressure is due, or none and the reason."""

    trade_dates: tuple[date, ...] = ()
    reason: str = ""


def pressure_tick(
    now: datetime, captured: Collection[date], *, window: Window, pinned: datetime | None = None
) -> PressureTick:
    """Compute at each tick while trades may arrive, and early in the next session once more.

    `now` is the capture's clock, which may differ from the machine's in the sandbox; `captured` are the trade
    dates with captured trades.
    """
    if pinned is not None:
        return PressureTick(reason=_pinned(pinned))
    day = last_opened(now, window)
    spans = session_windows(sessions.session(day), window)
    opens, closes = spans[0][0], spans[-1][1]
    due = [day] if now < closes + LATE_TRADES else []
    if LATE_TRADES <= now - opens < LATE_TRADES + CADENCE:
        due.append(
            max(s.trade_date for s in sessions.sessions(day - timedelta(days=12), day - timedelta(days=1)))
        )
    if not due:
        return PressureTick(reason=f"the window ({window}) of {day} has closed")
    if traded := tuple(d for d in due if d in captured):
        return PressureTick(traded)
    return PressureTick(reason=f"no trade of {due[0]} was captured")


def _too_late(scheduled: datetime, now: datetime) -> str:
    """Why a chain is no longer taken for a scheduled instant; empty within one interval of `CADENCE`."""
    late = now - scheduled
    if late <= CADENCE:
        return ""
    return f"this tick is {late.total_seconds() / 60:.0f} min late, and vendors show only the current chain"


def scheduled_for(tag: str | None, now: datetime) -> datetime | None:
    """The scheduled instant in a run's tag; None when there is none or the run is late.

    A run that waited in the queue, or that repeats an old one, fetches the current chain.
    """
    scheduled = datetime.fromisoformat(tag) if tag else None
    return None if scheduled is None or _too_late(scheduled, now) else scheduled


def _pinned(instant: datetime) -> str:
    return (
        f"NQ_NOW holds the clock at {in_chicago(instant)} and schedules follow the real one; "
        "unset it, or launch the run by hand"
    )
