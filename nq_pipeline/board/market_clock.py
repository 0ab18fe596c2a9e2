"""The market clock: whether the market is open, what changes next, and when it opens next."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from nq_pipeline.market import sessions


def read_market_clock(now: datetime) -> dict[str, Any]:
    """The state of the market at an aware instant.

    Returns
    -------
    `now`; `state`: `regular` (08:30 to 15:00 Chicago), `extended` (the rest of a session) or `closed`;
    `trade_date`, the CME session date in force; `change` and `changes_at`: what happens next, and when; and
    `next_open`, when the next session opens.

    Raises
    ------
    ValueError
        The instant is outside the session table.
    """
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
    return {
        "now": now,
        "state": state,
        "trade_date": session.trade_date,
        "change": change,
        "changes_at": at,
        "next_open": next_open,
    }
