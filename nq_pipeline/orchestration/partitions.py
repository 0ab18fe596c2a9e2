"""Partitions: one per CME trade date, weekends and exchange holidays left out."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta

import dagster as dg

from nq_pipeline.clock import real_now
from nq_pipeline.market.sessions import sessions
from nq_pipeline.ui.first_partitions import CAPTURE, CHAINS, EARLIEST, first_partition

LAST_KNOWN = date(real_now().year + 1, 12, 31)
"""Holidays are left out up to here, so that past keys are the same in whichever year this is loaded. No
further, because Dagster writes the holidays into runs' events, a hundred bytes apiece."""

OPENING = "Etc/GMT-2"
"""Two hours east of UTC, midnight is 17:00 in Chicago in summer, when the session of the new day opens, and
16:00 in winter, in the pause before it. So a day's key is the newest exactly while its trade date is the
current one, except for that hour and holidays without a session. It is a time zone because Dagster names a
window after its beginning, which is the evening before in Chicago."""


def trade_dates(first: date = EARLIEST, last_known: date = LAST_KNOWN) -> dg.TimeWindowPartitionsDefinition:
    """The trade dates from `first` to the current one, so that *latest* in the UI is what vendors show.

    Windows begin on weekdays only, so Friday's lasts over the weekend. On a holiday the newest window is that
    of the next trade date, whose session is open then.
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
CHAIN_DATES = trade_dates(first_partition(CHAINS))
"""For chains and what is computed from them; nobody can fill the partitions before the first snapshot."""
CAPTURE_DATES = trade_dates(first_partition(CAPTURE))
