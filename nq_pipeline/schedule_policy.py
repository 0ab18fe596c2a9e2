"""Whether a schedule's tick is due: pure decisions, each skip with a reason in words.

No Dagster here; `schedules.py` wraps these.
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
"""How often a chain is asked for while its window is open."""
SCHEDULED = "nq/scheduled"
"""Run tag with the instant the tick stands for (ISO 8601): the age of answers counts from it."""
REPAIR = timedelta(hours=1)
"""For so long after a window, and until so long into the next one, gaps of the capture are filled."""


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick decided: run for a trade date, or don't (`trade_date` is None) and why."""

    trade_date: date | None
    reason: str = ""


def chain_tick(scheduled: datetime, now: datetime, *, window: Window, pinned: datetime | None = None) -> Tick:
    """Ask for chains at each tick while the market is open within the window.

    Parameters
    ----------
    scheduled
        The instant the tick stands for, aware.
    now
        The machine's time: a scheduler that was down makes up for missed ticks, but nobody can
        be asked for the quotes of an hour ago.
    window
        `always` counts as `globex`: nothing new comes while the market is closed.
    pinned
        The frozen instant of a pinned clock.
    """
    if pinned is not None:
        return Tick(None, _pinned(pinned))
    if (late := lateness(scheduled, now)) is not None:
        return Tick(None, f"this tick is {late:.0f} min late, and a chain can only be asked for as it is now")
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
    """Ask once on a new instance of the sandbox, at whatever hour, so that there is a chain to look at.

    Parameters
    ----------
    chosen
        Whether a chain was ever chosen on this instance.
    """
    if chosen:
        return Tick(None, "there is a chain; the schedules ask for the next ones")
    if environment != "sandbox":
        return Tick(None, f"vendors are asked for the first chain when NQ_CHAIN_WINDOW ({window}) is open")
    if pinned is not None:
        return Tick(None, _pinned(pinned))
    return Tick(sessions.current_session(now).trade_date)


def housekeeping_tick(scheduled: datetime, *, pinned: datetime | None = None) -> Tick:
    """Tidy up once for each trade date, in the evening of its day in Chicago."""
    if pinned is not None:
        return Tick(None, _pinned(pinned))
    day = scheduled.astimezone(CHICAGO).date()
    if sessions.is_trade_date(day):
        return Tick(day)
    return Tick(None, f"no trade date ended: {sessions.describe_closed_day(day)}")


@dataclass(frozen=True, slots=True)
class PressureTick:
    """The trade dates whose pressure is to be computed; none, and why."""

    trade_dates: tuple[date, ...] = ()
    reason: str = ""


def pressure_tick(
    now: datetime, captured: Collection[date], *, window: Window, pinned: datetime | None = None
) -> PressureTick:
    """Compute at each tick while trades may come, and early in the next session what was repaired since.

    Parameters
    ----------
    now
        By the capture's clock, which the sandbox's stand-in may have ahead of the machine's.
    captured
        Trade dates of which there are trades.
    pinned
        The frozen instant of a pinned clock.
    """
    if pinned is not None:
        return PressureTick(reason=_pinned(pinned))
    day = last_opened(now, window)
    spans = session_windows(sessions.session(day), window)
    opens, closes = spans[0][0], spans[-1][1]
    due = [day] if now < closes + REPAIR else []
    if REPAIR <= now - opens < REPAIR + CADENCE:
        due.append(
            max(s.trade_date for s in sessions.sessions(day - timedelta(days=12), day - timedelta(days=1)))
        )
    if not due:
        return PressureTick(reason=f"the window ({window}) of {day} has closed, and nothing comes any more")
    if traded := tuple(d for d in due if d in captured):
        return PressureTick(traded)
    return PressureTick(reason=f"no trade of {due[0]} was captured")


def lateness(scheduled: datetime, now: datetime) -> float | None:
    """Minutes by which a scheduled instant is too old to stand for now; None when it is not."""
    late = now - scheduled
    return late.total_seconds() / 60 if late > CADENCE else None


def scheduled_for(tag: str | None, now: datetime) -> datetime | None:
    """The instant of a run's tag, unless the run came too late to stand for it.

    A run that waited in the queue, or is launched again from an old one, asks for the present.
    """
    scheduled = datetime.fromisoformat(tag) if tag else None
    return None if scheduled is None or lateness(scheduled, now) is not None else scheduled


def _pinned(instant: datetime) -> str:
    return (
        f"NQ_NOW holds the clock at {in_chicago(instant)} and schedules follow the real one; "
        "unset it, or launch the run by hand"
    )
