"""CME sessions: the only place where a trade date is computed.

A session opens 17:00 America/Chicago the evening before its trade date and closes 16:00.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

Window = Literal["rth", "globex", "always"]


@dataclass(frozen=True, slots=True)
class Session:
    """One trade date's trading, all instants aware in UTC.

    Attributes
    ----------
    segments
        The (open, close) spans in which the market trades, in order. More than one where a
        holiday halt rolls into the next trade date.
    rth
        08:30 to 15:00 Chicago cut to the session; None when nothing is left (2026-04-03).
    """

    trade_date: date
    segments: tuple[tuple[datetime, datetime], ...]
    rth: tuple[datetime, datetime] | None

    @property
    def open(self) -> datetime:
        return self.segments[0][0]

    @property
    def close(self) -> datetime:
        return self.segments[-1][1]


def session(trade_date: date) -> Session:
    """The session of a trade date; KeyError when the day is no trade date."""
    raise NotImplementedError


def sessions(start: date, end: date) -> list[Session]:
    """All sessions with start <= trade_date <= end, in order."""
    raise NotImplementedError


def is_trade_date(day: date) -> bool:
    raise NotImplementedError


def trade_date(instant: datetime) -> date:
    """The CME trade date an instant belongs to; pauses, halts' ends and weekends belong to the last session."""
    raise NotImplementedError


def current_session(instant: datetime) -> Session:
    """The session that is open at the instant, or the last one before it."""
    raise NotImplementedError


def is_open(instant: datetime, window: Window = "globex") -> bool:
    """Whether the market trades at the instant, within the window."""
    raise NotImplementedError


def next_open(instant: datetime, window: Window = "globex") -> datetime:
    """The first opening of the window strictly after the instant (or the instant's own segment's next)."""
    raise NotImplementedError


def next_boundary(instant: datetime) -> datetime:
    """The next instant at which the market opens or closes (any segment edge), strictly after."""
    raise NotImplementedError


def chain_moment(instant: datetime, window: Window = "rth") -> datetime:
    """The market moment a chain asked for at `instant` is about.

    The instant itself while the window of its session is open; before the window opens, the
    instant; after it closed, the window's close. (`rth` empty: the session's close.)
    """
    raise NotImplementedError


def expirations(product: str, start: date, end: date) -> list:
    """All series of a product (`market.contracts.Series`) that expire with start <= date <= end, in order."""
    raise NotImplementedError
