"""The market clock: whether the market is open, what changes next, and when it opens next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

from nq_pipeline.market import sessions


@dataclass(frozen=True, slots=True)
class MarketClock:
    """The state of the market at an instant. Instants are UTC.

    Attributes
    ----------
    state
        `regular` (08:30 to 15:00 Chicago), `extended` (the rest of a session), or `closed`.
    trade_date
        The CME session date in force.
    change, changes_at
        What happens next, and when.
    next_open, next_regular
        When the session and regular hours open next, after `now`.
    """

    now: datetime
    state: Literal["regular", "extended", "closed"]
    trade_date: date
    change: Literal["closes", "opens", "regular hours begin", "regular hours end"]
    changes_at: datetime
    next_open: datetime
    next_regular: datetime


def read_market_clock(now: datetime) -> MarketClock:
    """The market clock at an aware instant; `ValueError` for one outside the session table."""
    session, edge = sessions.current_session(now), sessions.next_boundary(now)
    next_open, next_regular = (sessions.next_open(now, window) for window in ("globex", "rth"))
    if sessions.is_open(now, "rth") and session.rth:
        ends = session.rth[1]
        state, change, at = "regular", "closes" if ends >= edge else "regular hours end", min(ends, edge)
    elif sessions.is_open(now):
        begins = next_regular < edge
        state, change, at = "extended", "regular hours begin" if begins else "closes", min(next_regular, edge)
    else:
        state, change, at = "closed", "opens", next_open
    return MarketClock(now, state, session.trade_date, change, at, next_open, next_regular)  # type: ignore[arg-type]
