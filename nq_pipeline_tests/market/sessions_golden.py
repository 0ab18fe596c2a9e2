"""Writes `sessions_golden.csv`: what CME's sessions were, typed by hand from what CME and others say.

Nothing here comes from the program under test, from the calendar library or from a time zone
database: hours are typed in Chicago time, and become UTC by the law in force since 2007
(daylight time from the second Sunday of March to the first Sunday of November). A row's
`source` says where its hours come from; rows of a kind share one.

    python -m nq_pipeline_tests.market.sessions_golden      rewrites the file

A row with empty times is a weekday that is no trade date.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path

PATH = Path(__file__).with_suffix(".csv")
COLUMNS = ("trade_date", "open_utc", "close_utc", "rth_open_utc", "rth_close_utc", "segments", "source")

HOURS = "CME contract specifications: Sunday to Friday 17:00-16:00 CT"
PAUSE = HOURS + "; CME: the pause 15:15-15:30 CT ended with trade date 2021-06-28"
HALT = "CME holiday hours: halt 12:00 CT, trades of the holiday clear on the next trade date (CME_TradeDate)"
JUNETEENTH = "CME holiday hours from 2022: halt 12:00 CT on Juneteenth (pandas_market_calendars #464)"
THANKSGIVING = HALT + "; Friday early close 12:15 CT (pandas_market_calendars #464)"
EVE = "CME holiday hours: early close 12:15 CT (CME Globex Equity in pandas_market_calendars)"
PAYROLLS = (
    "CME practice: Good Friday with payrolls closes 08:15 CT (2015, 2021, 2023, 2026); own date: our rule"
)
GOOD_FRIDAY = "CME practice: Good Friday without payrolls is closed (2018, 2022; inferred for later years)"
MOURNING = "CME press release: early close 08:30 CT on 2025-01-09; own trade date: our rule"
CLOSED = "CME holiday calendar: closed"
ROLLED = "CME_TradeDate in pandas_market_calendars: the holiday itself is no trade date"

# Ordinary sessions: year ends, both sides of each change of the clocks, days around holidays,
# quarterly third Fridays, a leap day.
REGULAR = """
2019-01-02 2019-01-18 2019-03-08 2019-03-11 2019-03-15 2019-04-18 2019-04-22 2019-06-21 2019-07-02 2019-08-14
2019-09-20 2019-11-01 2019-11-04 2019-11-27 2019-12-20 2019-12-26 2019-12-31
2020-01-02 2020-02-28 2020-03-06 2020-03-09 2020-03-20 2020-04-09 2020-04-13 2020-06-19 2020-07-02 2020-08-12
2020-09-18 2020-10-30 2020-11-02 2020-11-25 2020-12-18 2020-12-28 2020-12-31
2021-01-04 2021-03-12 2021-03-15 2021-04-01 2021-04-05 2021-06-18 2021-06-24 2021-06-25 2021-06-28 2021-07-02
2021-08-11 2021-09-17 2021-11-05 2021-11-08 2021-12-17 2021-12-23 2021-12-27 2021-12-31
2022-01-03 2022-02-09 2022-03-11 2022-03-14 2022-03-18 2022-04-14 2022-04-18 2022-06-17 2022-07-01 2022-08-10
2022-09-16 2022-11-04 2022-11-07 2022-11-23 2022-12-16 2022-12-23 2022-12-27 2022-12-30
2023-01-03 2023-02-08 2023-03-10 2023-03-13 2023-03-17 2023-04-06 2023-04-10 2023-06-16 2023-08-09 2023-09-15
2023-11-03 2023-11-06 2023-11-22 2023-12-15 2023-12-22 2023-12-26 2023-12-29
2024-01-02 2024-02-29 2024-03-08 2024-03-11 2024-03-15 2024-03-28 2024-04-01 2024-06-18 2024-06-21 2024-08-14
2024-09-20 2024-11-01 2024-11-04 2024-11-27 2024-12-20 2024-12-26 2024-12-31
2025-01-02 2025-01-08 2025-01-10 2025-03-07 2025-03-10 2025-03-21 2025-04-17 2025-04-21 2025-06-18 2025-07-02
2025-08-13 2025-09-19 2025-10-31 2025-11-03 2025-11-26 2025-12-19 2025-12-26 2025-12-31
2026-01-02 2026-02-11 2026-03-06 2026-03-09 2026-03-20 2026-04-02 2026-04-06 2026-06-18 2026-07-02 2026-08-12
2026-09-18 2026-10-30 2026-11-02 2026-11-25 2026-12-18 2026-12-28 2026-12-31
2027-01-04 2027-02-10 2027-03-12 2027-03-15 2027-03-19 2027-03-25 2027-03-29 2027-06-17 2027-07-02 2027-08-11
2027-09-17 2027-11-05 2027-11-08 2027-11-24 2027-12-17 2027-12-23 2027-12-27 2027-12-31
"""

# Holidays that trade until noon, and the trade date their trades belong to.
HALTS = """
2019-01-21>2019-01-22 2019-02-18>2019-02-19 2019-05-27>2019-05-28 2019-07-04>2019-07-05 2019-09-02>2019-09-03
2020-01-20>2020-01-21 2020-02-17>2020-02-18 2020-05-25>2020-05-26 2020-07-03>2020-07-06 2020-09-07>2020-09-08
2021-01-18>2021-01-19 2021-02-15>2021-02-16 2021-05-31>2021-06-01 2021-07-05>2021-07-06 2021-09-06>2021-09-07
2022-01-17>2022-01-18 2022-02-21>2022-02-22 2022-05-30>2022-05-31 2022-07-04>2022-07-05 2022-09-05>2022-09-06
2023-01-16>2023-01-17 2023-02-20>2023-02-21 2023-05-29>2023-05-30 2023-07-04>2023-07-05 2023-09-04>2023-09-05
2024-01-15>2024-01-16 2024-02-19>2024-02-20 2024-05-27>2024-05-28 2024-07-04>2024-07-05 2024-09-02>2024-09-03
2025-01-20>2025-01-21 2025-02-17>2025-02-18 2025-05-26>2025-05-27 2025-07-04>2025-07-07 2025-09-01>2025-09-02
2026-01-19>2026-01-20 2026-02-16>2026-02-17 2026-05-25>2026-05-26 2026-07-03>2026-07-06 2026-09-07>2026-09-08
2027-01-18>2027-01-19 2027-02-15>2027-02-16 2027-05-31>2027-06-01 2027-07-05>2027-07-06 2027-09-06>2027-09-07
"""
JUNETEENTHS = """
2022-06-20>2022-06-21 2023-06-19>2023-06-20 2024-06-19>2024-06-20 2025-06-19>2025-06-20 2026-06-19>2026-06-22
2027-06-18>2027-06-21
"""
THANKSGIVINGS = """
2019-11-28>2019-11-29 2020-11-26>2020-11-27
2021-11-25>2021-11-26 2022-11-24>2022-11-25 2023-11-23>2023-11-24 2024-11-28>2024-11-29 2025-11-27>2025-11-28
2026-11-26>2026-11-27 2027-11-25>2027-11-26
"""

EVES = "2019-07-03 2019-12-24 2020-12-24 2023-07-03 2024-07-03 2024-12-24 2025-07-03 2025-12-24 2026-12-24"
GOOD_FRIDAYS_OPEN = "2021-04-02 2023-04-07 2026-04-03"
GOOD_FRIDAYS_CLOSED = "2019-04-19 2020-04-10 2022-04-15 2024-03-29 2025-04-18 2027-03-26"
ALL_DAY = """
2019-01-01 2019-12-25 2020-01-01 2020-12-25
2021-01-01 2021-12-24 2022-12-26 2023-01-02 2023-12-25 2024-01-01 2024-12-25 2025-01-01 2025-12-25 2026-01-01
2026-12-25 2027-01-01 2027-12-24
"""

EVENING, MORNING, AFTERNOON = time(17), time(8, 30), time(15)
LAST_PAUSE = date(2021, 6, 25)

Span = tuple[datetime, datetime]


def utc(day: date, at: time) -> datetime:
    """Chicago wall time to UTC, never asked for the hours in which the clocks change."""
    march, november = date(day.year, 3, 8), date(day.year, 11, 1)
    summer = (
        march + timedelta((6 - march.weekday()) % 7)
        <= day
        < november + timedelta((6 - november.weekday()) % 7)
    )
    return datetime.combine(day, at) + timedelta(hours=5 if summer else 6)


def spans(day: date, close: time) -> list[Span]:
    """From the evening before until the close, with the afternoon pause of old."""
    open_ = utc(day - timedelta(1), EVENING)
    if day <= LAST_PAUSE and close == time(16):
        return [(open_, utc(day, time(15, 15))), (utc(day, time(15, 30)), utc(day, close))]
    return [(open_, utc(day, close))]


def row(day: date, segments: list[Span], source: str) -> tuple[str, ...]:
    close = segments[-1][1]
    rth = utc(day, MORNING), min(utc(day, AFTERNOON), close)
    text = " ".join(f"{a:%Y-%m-%dT%H:%MZ}/{b:%Y-%m-%dT%H:%MZ}" for a, b in segments)
    edges = (segments[0][0], close, *(rth if rth[0] < rth[1] else (None, None)))
    return (day.isoformat(), *(f"{t:%Y-%m-%dT%H:%MZ}" if t else "" for t in edges), text, source)


def rows() -> Iterator[tuple[str, ...]]:
    for text in REGULAR.split():
        day = date.fromisoformat(text)
        yield row(day, spans(day, time(16)), PAUSE if day.isoformat()[:7] == "2021-06" else HOURS)
    for pairs, close, source in (
        (HALTS, time(16), HALT),
        (JUNETEENTHS, time(16), JUNETEENTH),
        (THANKSGIVINGS, time(12, 15), THANKSGIVING),
    ):
        for pair in pairs.split():
            holiday, day = (date.fromisoformat(text) for text in pair.split(">"))
            yield row(day, spans(holiday, time(12)) + spans(day, close), source)
            yield (holiday.isoformat(), "", "", "", "", "", ROLLED)
    for texts, close, source in (
        (EVES, time(12, 15), EVE),
        (GOOD_FRIDAYS_OPEN, time(8, 15), PAYROLLS),
        ("2025-01-09", time(8, 30), MOURNING),
    ):
        for text in texts.split():
            day = date.fromisoformat(text)
            yield row(day, spans(day, close), source)
    for texts, source in ((GOOD_FRIDAYS_CLOSED, GOOD_FRIDAY), (ALL_DAY, CLOSED)):
        for text in texts.split():
            yield (text, "", "", "", "", "", source)


def table() -> str:
    """The file's content."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(sorted(rows()))
    return out.getvalue()


if __name__ == "__main__":
    PATH.write_text(table())
