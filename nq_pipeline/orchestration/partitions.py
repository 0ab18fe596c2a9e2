"""Partitions: one per CME trade date, weekends and exchange holidays left out."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

import dagster as dg

from nq_pipeline import first_dates
from nq_pipeline.market.sessions import sessions

FIRST = first_dates.ALL
LAST_KNOWN = date(datetime.now(UTC).year + 1, 12, 31)
"""Until here holidays are left out of the grid, from whichever year it is loaded in: keys of the past are
the same. No further, because Dagster writes the holidays into runs' events, a hundred bytes apiece."""

OPENING = "Etc/GMT-2"
"""Two hours east of UTC, midnight is 17:00 in Chicago in summer, when the session of the new day opens,
and 16:00 in winter, in the pause before it. So a day's key is the newest exactly as long as its trade
date is the current one, but for that hour and holidays without a session. Written as a zone, because
Dagster names a window after its beginning, which is the evening before in Chicago."""


def trade_dates(first: date = FIRST, last_known: date = LAST_KNOWN) -> dg.TimeWindowPartitionsDefinition:
    """The trade dates since `first`, up to the current one: *latest* in the UI is what vendors show.

    Windows begin on weekdays only, so that Friday's lasts over the weekend; of a holiday the next
    trade date's is there, whose session is open then.
    """
    traded = {session.trade_date for session in sessions(first, last_known)}
    days = [first + timedelta(days=n) for n in range((last_known - first).days + 1)]
    holidays = [datetime.combine(day, time()) for day in days if day.weekday() < 5 and day not in traded]
    return dg.TimeWindowPartitionsDefinition(
        start=datetime.combine(first, time()),
        fmt="%Y-%m-%d",
        timezone=OPENING,
        cron_schedule="0 0 * * 1-5",
        end_offset=1,
        exclusions=holidays,
    )


TRADE_DATES = trade_dates()
CHAIN_DATES = trade_dates(first_dates.given(first_dates.CHAINS))
"""For chains and what is computed from them. Nobody can fill a partition before the first one asked for."""
CAPTURE_DATES = trade_dates(first_dates.given(first_dates.CAPTURE))
