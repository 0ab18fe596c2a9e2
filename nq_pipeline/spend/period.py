"""When "this month" and "today" begin. Neither a wrong clock nor a change of zone frees money.

- A period has a beginning and no end: every line booked after its beginning counts, also one that a
  wrong clock stamped later than now.
- No line is stamped earlier than the line before it.
- Within one boot no more time can have passed than the machine has been up, so a clock that jumps
  ahead does not start the next month.
- For two days after a change of zone, a day or a month has begun when it has begun in both zones.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

LEEWAY = timedelta(hours=1)
"""How far a clock may be set forward and still be trusted."""
ZONE_CHANGE = timedelta(days=2)
"""Longer than the dates of two zones can differ (26 hours)."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot of a machine and how long it has been up, suspended time included where the system counts it."""

    id: str
    uptime: timedelta


def this_boot() -> Boot | None:
    """The current boot; None where the system does not identify it (Linux does)."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return Boot(boot_id, timedelta(microseconds=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000))
    except (OSError, AttributeError):
        return None


def latest_provable(now: datetime, boot: Boot, anchor_at: datetime, anchor_uptime: timedelta) -> datetime:
    """The latest it can be, by the clock and by the uptime since `anchor_at` of the same boot."""
    return min(now, anchor_at + (boot.uptime - anchor_uptime) + LEEWAY)


def day_of(moment: datetime, zone: str) -> date:
    return moment.astimezone(ZoneInfo(zone)).date()


def day_began(moment: datetime, zones: Collection[str]) -> datetime:
    """When the day of `moment` began; the earliest beginning where there are several zones."""
    return min(_midnight(day_of(moment, zone), zone) for zone in zones)


def month_began(moment: datetime, zones: Collection[str]) -> datetime:
    """When the month of `moment` began; the earliest beginning where there are several zones."""
    return min(_midnight(day_of(moment, zone).replace(day=1), zone) for zone in zones)


def month_bounds(month: date, zone: str) -> tuple[datetime, datetime]:
    """The instants at which a calendar month begins and ends in a zone."""
    return _midnight(month, zone), _midnight(next_month(month), zone)


def next_month(month: date) -> date:
    return (month.replace(day=1) + timedelta(days=32)).replace(day=1)


def format_age(span: timedelta) -> str:
    """An age in minutes, hours or days, whichever suits."""
    minutes = max(0, round(span.total_seconds() / 60))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"


def _midnight(day: date, zone: str) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
