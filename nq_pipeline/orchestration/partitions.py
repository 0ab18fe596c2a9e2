"""Partitions: one per CME trade date, weekends and exchange holidays left out."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta

import dagster as dg

from nq_pipeline.market.sessions import sessions

FIRST = date(2025, 1, 2)
LAST_KNOWN = date(2027, 12, 31)
"""Until here holidays are left out of the grid. Fixed, so that every load gives the same grid, and
near, because Dagster writes the holidays into each run's events, a hundred bytes apiece. A later
holiday is a partition that stays empty."""


def trade_dates(first: date = FIRST, last_known: date = LAST_KNOWN) -> dg.DailyPartitionsDefinition:
    """The trade dates since `first`, up to the one of the session that is open now.

    A session opens 17:00 Chicago the evening before its trade date, so one key more than today's
    is needed from then on; it is there all day.
    """
    traded = {session.trade_date for session in sessions(first, last_known)}
    days = [first + timedelta(days=n) for n in range((last_known - first).days + 1)]
    holidays = [datetime.combine(day, time()) for day in days if day.weekday() < 5 and day not in traded]
    return dg.DailyPartitionsDefinition(
        start_date=datetime.combine(first, time()),
        timezone="America/Chicago",
        end_offset=2,
        exclusions=["0 0 * * 6", "0 0 * * 0", *holidays],
    )


TRADE_DATES = trade_dates()
