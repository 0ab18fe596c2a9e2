"""How long a cached answer may be served.

Minutes while the market is open, half an hour while it is closed, never past the next opening
or closing. Age counts from the scheduled time, so that a tick of a five-minute schedule never
meets the entry of the tick before. Stale answers are never served.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from nq_pipeline.clock import Clock
from nq_pipeline.market import sessions


class Keep(Enum):
    """The class of lifetime that a vendor's client asks for."""

    NEVER = "never"
    MARKET = "market"  # minutes, by the market's state
    TRADE_DATE = "trade_date"  # until the next trade date's session opens


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The market-aware lifetime; `open_s` and `closed_s` in seconds."""

    clock: Clock
    open_s: int = 300
    closed_s: int = 1800

    def expires(self, keep: Keep, scheduled: datetime) -> datetime | None:
        """When an answer requested at `scheduled` expires (UTC, real time); None when it is never cached.

        Under a pinned clock the market's state is that of the frozen instant and no boundary
        comes, while the age runs in real time.
        """
        if keep is Keep.NEVER:
            return None
        market_now = self.clock.pinned or scheduled
        born = datetime.now(UTC) if self.clock.pinned else scheduled
        boundary = None if self.clock.pinned else sessions.next_boundary(market_now)
        if keep is Keep.TRADE_DATE:
            return born + (_next_session_open(market_now) - market_now)
        seconds = self.open_s if sessions.is_open(market_now) else self.closed_s
        end = born + timedelta(seconds=seconds)
        return min(end, boundary) if boundary else end


def _next_session_open(instant: datetime) -> datetime:
    day = sessions.current_session(instant).trade_date + timedelta(days=1)
    while not sessions.is_trade_date(day):
        day += timedelta(days=1)
    return sessions.session(day).open
