"""Clocks. Code that needs the time gets a `Clock` as an argument.

`now()` determines sessions, partitions, freshness and cache keys, and `NQ_NOW` can pin it. Timeouts,
backoff and deadlines use `monotonic()`, which always runs. What happens outside the market, such as a payment
or the writing of a file, is recorded in the machine's time, `real_now()`.
"""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

NS_PER_S = 1_000_000_000
FIRST_DAY, LAST_DAY = date(2019, 1, 1), date(2098, 12, 31)
"""The supported days. Earlier sessions were not checked (`market/sessions.py`); later ones are beyond the
holiday calendars."""


def real_now() -> datetime:
    """The machine's time in UTC. `NQ_NOW` does not pin it."""
    return datetime.now(UTC)


def real_ns() -> int:
    """The machine's time in nanoseconds since 1970-01-01 UTC. `NQ_NOW` does not pin it."""
    return time.time_ns()


class Clock(Protocol):
    """A source of time; `pinned` is the frozen instant or None."""

    pinned: datetime | None

    def now(self) -> datetime:
        """The current instant, timezone-aware in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that only ever grow, for measuring durations."""
        ...


class SystemClock:
    """The machine's clock."""

    pinned: datetime | None = None

    def now(self) -> datetime:
        return real_now()

    def monotonic(self) -> float:
        return time.monotonic()


class PinnedClock(SystemClock):
    """A clock whose `now()` stands still at one instant; durations still run."""

    def __init__(self, instant: datetime) -> None:
        if instant.tzinfo is None:
            raise ValueError("a pinned clock needs an instant with a time zone")
        self.pinned = instant.astimezone(UTC)

    def now(self) -> datetime:
        assert self.pinned is not None
        return self.pinned


class ShiftedClock(SystemClock):
    """A clock that starts at another instant and runs at `speed` times real time; it never goes back."""

    def __init__(self, start: datetime, speed: float = 1.0) -> None:
        if start.tzinfo is None or speed <= 0:
            raise ValueError("a shifted clock needs an instant with a time zone and a positive speed")
        self.start, self.speed = start.astimezone(UTC), speed
        self._since = time.monotonic()

    def now(self) -> datetime:
        return self.start + timedelta(seconds=(time.monotonic() - self._since) * self.speed)


def unsupported_day(day: date) -> str | None:
    """Why a day is not supported, as a sentence; None if it is supported."""
    if FIRST_DAY <= day <= LAST_DAY:
        return None
    return f"{day} is outside the session table; give a day from {FIRST_DAY} to {LAST_DAY}"


def to_ns(instant: datetime) -> int:
    """Nanoseconds since 1970-01-01 UTC of an aware datetime, computed exactly in integers."""
    delta = instant.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * NS_PER_S + delta.microseconds * 1_000


def from_ns(ns: int) -> datetime:
    """The aware UTC datetime of nanoseconds since 1970-01-01 (truncated to microseconds)."""
    seconds, rest = divmod(ns, NS_PER_S)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1_000)
