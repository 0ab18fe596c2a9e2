"""How long a cached answer may be served.

The lifetime depends on whether the market is open (NQ_CACHE_OPEN_S, NQ_CACHE_CLOSED_S), and no answer
is served past the next opening or closing. Its age counts from the scheduled time of the run, so a
schedule with an interval of NQ_CACHE_OPEN_S gets a new answer at every tick.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from nq_pipeline.clock import Clock, real_now
from nq_pipeline.market import sessions


class Keep(Enum):
    """How long an answer may be cached, as the vendor's source asks for it."""

    NEVER = "never"
    MARKET = "market"  # `Lifetime.open_s` or `closed_s`
    TRADE_DATE = "trade_date"  # until the next trade date's session opens


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The market-aware lifetime.

    An answer is served for `open_s` or `closed_s` seconds, by whether the market is open when it is
    requested.
    """

    clock: Clock
    open_s: int
    closed_s: int

    def expires(self, keep: Keep, scheduled: datetime) -> datetime | None:
        """When an answer requested at `scheduled` expires (UTC, real time); None when it is never cached.

        Under a pinned clock the market's state is that of the frozen instant, no boundary comes, and the age
        runs in real time.
        """
        if keep is Keep.NEVER:
            return None
        market_now = self.clock.pinned or scheduled
        born = real_now() if self.clock.pinned else scheduled
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
