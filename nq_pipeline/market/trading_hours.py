"""The days on which CME's equity-index futures trade, with their hours, as pandas_market_calendars has them.

Loading that library takes longer than most commands. So the years most used are in a table here, which a test
compares with the library day by day; other years come from the library. `sessions.py` corrects both.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

CHICAGO = ZoneInfo("America/Chicago")
SESSION_OPEN, SESSION_CLOSE = time(17, 0), time(16, 0)
FIRST, LAST = date(2017, 12, 1), date(2031, 1, 31)
"""The days of the table."""


class TradingDay(NamedTuple):
    """A day with trading; the instants are aware and in UTC."""

    day: date
    open: datetime
    close: datetime
    is_trade_date: bool


def trading_days(start: date, end: date) -> Iterator[TradingDay]:
    """The days from `start` to `end`, both included, on which the market trades, in order."""
    return tabulated_days(start, end) if start >= FIRST and end <= LAST else library_days(start, end)


def tabulated_days(start: date, end: date) -> Iterator[TradingDay]:
    """The days of the table; `start` and `end` are within it."""
    day = start
    while day <= end:
        closes, is_trade_date = _EXCEPTIONS.get(day, (SESSION_CLOSE, True))
        if closes and day.weekday() < 5:
            opens = in_utc(day - timedelta(days=1), SESSION_OPEN)
            yield TradingDay(day, opens, in_utc(day, closes), is_trade_date)
        day += timedelta(days=1)


def library_days(start: date, end: date) -> Iterator[TradingDay]:
    """The days as the library has them, in any year."""
    import pandas_market_calendars as mcal

    hours = mcal.get_calendar("CME Globex Equity").schedule(start, end)
    counted = set(mcal.get_calendar("CME_TradeDate").valid_days(start, end).date)
    for stamp, opens, closes in hours[["market_open", "market_close"]].itertuples():
        day, open_, close = stamp.date(), opens.to_pydatetime(), closes.to_pydatetime()
        yield TradingDay(day, open_.astimezone(UTC), close.astimezone(UTC), day in counted)


def in_utc(day: date, at: time) -> datetime:
    """A time of day in Chicago."""
    return datetime.combine(day, at, CHICAGO).astimezone(UTC)


_CLOSED = """
2017-12-25 2018-01-01 2018-03-30 2018-12-25 2019-01-01 2019-04-19 2019-12-25 2020-01-01 2020-04-10
2020-12-25 2021-01-01 2021-12-24 2022-04-15 2022-12-26 2023-01-02 2023-12-25 2024-01-01 2024-12-25
2025-01-01 2025-12-25 2026-01-01 2026-12-25 2027-01-01 2027-12-24 2028-12-25 2029-01-01 2029-12-25
2030-01-01 2030-12-25 2031-01-01
"""
_HOLIDAY_HALTS = """
2018-01-15 2018-02-19 2018-05-28 2018-07-04 2018-09-03 2018-11-22 2019-01-21 2019-02-18 2019-05-27
2019-07-04 2019-09-02 2019-11-28 2020-01-20 2020-02-17 2020-05-25 2020-07-03 2020-09-07 2020-11-26
2021-01-18 2021-02-15 2021-05-31 2021-07-05 2021-09-06 2021-11-25 2022-01-17 2022-02-21 2022-05-30
2022-06-20 2022-07-04 2022-09-05 2022-11-24 2023-01-16 2023-02-20 2023-05-29 2023-06-19 2023-07-04
2023-09-04 2023-11-23 2024-01-15 2024-02-19 2024-05-27 2024-06-19 2024-07-04 2024-09-02 2024-11-28
2025-01-20 2025-02-17 2025-05-26 2025-06-19 2025-07-04 2025-09-01 2025-11-27 2026-01-19 2026-02-16
2026-05-25 2026-06-19 2026-07-03 2026-09-07 2026-11-26 2027-01-18 2027-02-15 2027-05-31 2027-06-18
2027-07-05 2027-09-06 2027-11-25 2028-01-17 2028-02-21 2028-05-29 2028-06-19 2028-07-04 2028-09-04
2028-11-23 2029-01-15 2029-02-19 2029-05-28 2029-06-19 2029-07-04 2029-09-03 2029-11-22 2030-01-21
2030-02-18 2030-05-27 2030-06-19 2030-07-04 2030-09-02 2030-11-28 2031-01-20
"""
"""Trading until 12:00 that belongs to the next trade date."""
_EARLY_CLOSES = """
2018-07-03 2018-11-23 2018-12-24 2019-07-03 2019-11-29 2019-12-24 2020-11-27 2020-12-24 2021-11-26
2022-11-25 2023-07-03 2023-11-24 2024-07-03 2024-11-29 2024-12-24 2025-07-03 2025-11-28 2025-12-24
2026-11-27 2026-12-24 2027-11-26 2028-07-03 2028-11-24 2029-07-03 2029-11-23 2029-12-24 2030-07-03
2030-11-29 2030-12-24
"""
"""Trade dates until 12:15."""
_GOOD_FRIDAYS = """
2021-04-02 2023-04-07 2024-03-29 2025-04-18 2026-04-03 2027-03-26 2028-04-14 2029-03-30 2030-04-19
"""
"""Trading until 08:15, says the library; `sessions.py` knows better."""
_MOURNING = "2018-12-05 2025-01-09"
"""Whole days to the library's hours, and no trade dates."""

_EXCEPTIONS: dict[date, tuple[time | None, bool]] = {
    date.fromisoformat(day): (closes, is_trade_date)
    for days, closes, is_trade_date in (
        (_CLOSED, None, False),
        (_HOLIDAY_HALTS, time(12, 0), False),
        (_EARLY_CLOSES, time(12, 15), True),
        (_GOOD_FRIDAYS, time(8, 15), False),
        (_MOURNING, SESSION_CLOSE, False),
    )
    for day in days.split()
}
"""The close and whether it is a trade date, of weekdays that are not like others; None without trading."""
