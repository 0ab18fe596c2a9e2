"""Sessions against a hand-typed table, against the library, and against what must hold at any instant."""

from __future__ import annotations

import csv
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pandas_market_calendars as mcal
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.clock import to_ns
from nq_pipeline.errors import NoSession
from nq_pipeline.market import sessions, trading_hours
from nq_pipeline_tests.market import sessions_golden

with sessions_golden.PATH.open() as file:
    GOLDEN = list(csv.DictReader(file))

instants = st.datetimes(datetime(2019, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))
windows = st.sampled_from(["rth", "globex", "always"])


def chicago(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=sessions.CHICAGO)


def as_row(s: sessions.Session) -> dict[str, str]:
    def text(t: datetime) -> str:
        return f"{t:%Y-%m-%dT%H:%MZ}"

    rth = tuple(map(text, s.rth)) if s.rth else ("", "")
    segments = " ".join(f"{text(a)}/{text(b)}" for a, b in s.segments)
    names = sessions_golden.COLUMNS[:-1]
    values = (s.trade_date.isoformat(), text(s.open), text(s.close), *rth, segments)
    return dict(zip(names, values, strict=True))


# ── the hand-typed table ────────────────────────────────────────────────────────────────────────


def test_golden_file_is_what_its_script_writes() -> None:
    assert sessions_golden.PATH.read_text() == sessions_golden.table()


def test_the_golden_file_has_twenty_sessions_a_year() -> None:
    per_year = Counter(row["trade_date"][:4] for row in GOLDEN if row["open_utc"])
    assert set(per_year) == {str(year) for year in range(2019, 2028)}
    assert min(per_year.values()) >= 20
    assert all(row["source"] for row in GOLDEN)
    assert len({row["trade_date"] for row in GOLDEN}) == len(GOLDEN)


@pytest.mark.parametrize("year", range(2019, 2028))
def test_sessions_are_those_of_the_golden_file(year: int) -> None:
    for row in (r for r in GOLDEN if r["trade_date"].startswith(str(year))):
        day = date.fromisoformat(row["trade_date"])
        if row["open_utc"]:
            expected = {name: row[name] for name in sessions_golden.COLUMNS[:-1]}
            assert as_row(sessions.session(day)) == expected
        else:
            assert not sessions.is_trade_date(day)


def test_the_table_of_hours_is_what_the_calendar_library_has() -> None:
    table = list(trading_hours.tabulated_days(trading_hours.FIRST, trading_hours.LAST))
    assert table == list(trading_hours.library_days(trading_hours.FIRST, trading_hours.LAST))


def test_years_after_the_table_come_from_the_calendar_library() -> None:
    assert sessions.session(date(2040, 7, 3)).close == chicago("2040-07-03T12:15")


def test_differences_to_the_calendar_library_are_the_stated_ones() -> None:
    start, end = date(2019, 1, 1), date(2027, 12, 31)
    ours = {s.trade_date: s for s in sessions.sessions(start, end)}

    dates = set(mcal.get_calendar("CME_TradeDate").valid_days(start, end).date)
    assert {str(day) for day in ours.keys() ^ dates} == {
        "2021-04-02",
        "2023-04-07",
        "2025-01-09",
        "2026-04-03",
    }

    hours = mcal.get_calendar("CME Globex Equity").schedule(start, end)
    edges = {(o.to_pydatetime(), c.to_pydatetime()) for o, c in hours[["market_open", "market_close"]].values}
    pause = timedelta(minutes=15)
    joined = set()
    for s in ours.values():
        spans = list(s.segments)
        for a, b in zip(s.segments, s.segments[1:], strict=False):
            if b[0] - a[1] == pause:
                spans.remove(a)
                spans[spans.index(b)] = (a[0], b[1])
        joined.update(spans)
    assert {f"{close:%Y-%m-%d %H:%M}" for _, close in joined - edges} == {"2025-01-09 14:30"}
    assert {f"{close:%Y-%m-%d %H:%M}" for _, close in edges - joined} == {
        "2024-03-29 13:15",
        "2025-01-09 22:00",
        "2025-04-18 13:15",
        "2027-03-26 13:15",
    }


def test_the_afternoon_pause_ends_with_june_2021() -> None:
    assert not sessions.is_open(chicago("2021-06-25 15:20"))
    assert sessions.is_open(chicago("2021-06-28 15:20"))


# ── single instants ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("instant", "expected"),
    [
        ("2025-06-10 09:00", "2025-06-10"),
        ("2025-06-10 15:59:59.999999", "2025-06-10"),
        ("2025-06-10 16:30", "2025-06-10"),  # the daily pause
        ("2025-06-10 17:00", "2025-06-11"),
        ("2025-06-13 17:00", "2025-06-13"),  # Friday evening
        ("2025-06-15 16:59:59", "2025-06-13"),
        ("2025-06-15 17:00", "2025-06-16"),  # Sunday open
        ("2025-03-09 17:00", "2025-03-10"),  # the day the clocks go forward
        ("2025-11-02 17:00", "2025-11-03"),  # and back
        ("2025-01-20 09:00", "2025-01-21"),  # Martin Luther King
        ("2025-01-20 14:00", "2025-01-21"),  # in its halt
        ("2025-07-04 13:00", "2025-07-07"),
        ("2025-07-05 13:00", "2025-07-07"),  # a weekend inside the session of Monday
        ("2025-04-18 09:00", "2025-04-17"),  # Good Friday, closed
        ("2026-04-03 08:00", "2026-04-03"),  # Good Friday with payrolls
        ("2026-04-03 12:00", "2026-04-03"),
        ("2025-12-25 12:00", "2025-12-24"),
        ("2025-12-31 16:30", "2025-12-31"),
        ("2026-01-01 17:00", "2026-01-02"),
    ],
)
def test_trade_date_of(instant: str, expected: str) -> None:
    assert sessions.trade_date(chicago(instant)) == date.fromisoformat(expected)


@pytest.mark.parametrize(
    ("instant", "window", "expected"),
    [
        ("2025-06-10 10:00", "rth", "2025-06-10 10:00"),
        ("2025-06-10 06:00", "rth", "2025-06-10 06:00"),  # before the window
        ("2025-06-10 15:30", "rth", "2025-06-10 15:00"),
        ("2025-06-10 16:30", "rth", "2025-06-10 15:00"),
        ("2025-06-14 12:00", "rth", "2025-06-13 15:00"),
        ("2025-06-10 15:30", "globex", "2025-06-10 15:30"),
        ("2025-06-14 12:00", "globex", "2025-06-13 16:00"),
        ("2025-06-14 12:00", "always", "2025-06-14 12:00"),
        ("2025-07-03 14:00", "rth", "2025-07-03 12:15"),  # early close
        ("2025-11-27 10:00", "rth", "2025-11-27 10:00"),  # Thanksgiving, before Friday's window
        ("2025-11-27 14:00", "rth", "2025-11-27 12:00"),  # in its halt
        ("2025-11-27 14:00", "globex", "2025-11-27 12:00"),
        ("2026-04-03 10:00", "rth", "2026-04-03 08:15"),  # no regular hours at all
    ],
)
def test_chain_moment_of(instant: str, window: sessions.Window, expected: str) -> None:
    assert sessions.chain_moment(chicago(instant), window) == chicago(expected)


@pytest.mark.parametrize(
    ("instant", "window", "expected"),
    [
        ("2025-06-10 10:00", "globex", "2025-06-10 17:00"),
        ("2025-06-10 17:00", "globex", "2025-06-11 17:00"),
        ("2025-06-10 06:00", "rth", "2025-06-10 08:30"),
        ("2025-06-10 08:30", "rth", "2025-06-11 08:30"),
        ("2025-06-13 16:00", "globex", "2025-06-15 17:00"),
        ("2025-01-20 13:00", "globex", "2025-01-20 17:00"),
        ("2025-01-20 13:00", "rth", "2025-01-21 08:30"),
        ("2025-01-08 16:00", "rth", "2025-01-10 08:30"),  # over the day of mourning
        ("2025-12-31 16:30", "rth", "2026-01-02 08:30"),
    ],
)
def test_next_open_after(instant: str, window: sessions.Window, expected: str) -> None:
    assert sessions.next_open(chicago(instant), window) == chicago(expected)


def test_window_edges_hold_their_start_and_not_their_end() -> None:
    assert sessions.is_open(chicago("2025-06-10 08:30"), "rth")
    assert not sessions.is_open(chicago("2025-06-10 15:00"), "rth")
    assert sessions.is_open(chicago("2025-06-10 17:00"))
    assert not sessions.is_open(chicago("2025-06-10 16:00"))
    assert not sessions.is_open(chicago("2025-06-10 07:00"), "rth")
    assert not sessions.is_open(chicago("2025-01-20 09:00"), "rth")  # a holiday has no regular hours
    assert sessions.is_open(chicago("2025-06-14 12:00"), "always")


def test_an_instant_without_zone_or_session_is_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        sessions.trade_date(datetime(2025, 6, 10))
    with pytest.raises(ValueError, match="outside the session table"):
        sessions.trade_date(datetime(1999, 6, 10, tzinfo=UTC))
    with pytest.raises(NoSession, match=r"^2025-07-04 is not a CME trade date"):
        sessions.session(date(2025, 7, 4))
    with pytest.raises(NoSession, match="not a CME trade date"):
        sessions.session(date(1999, 7, 6))
    assert sessions.sessions(date(1999, 1, 1), date(2012, 12, 31)) == []


def test_the_first_day_still_has_a_session_before_it() -> None:
    """Nobody can ask about 2018, and yet a look back from the first instant ends well."""
    assert not sessions.is_open(datetime(2018, 12, 5, 18, tzinfo=UTC))
    assert sessions.trade_date(datetime(2018, 12, 5, 18, tzinfo=UTC)) == date(2018, 12, 5)
    current = sessions.current_session(datetime(2019, 1, 1, tzinfo=UTC))
    assert current == sessions.session(date(2018, 12, 31))
    before = sessions.current_session(current.open - timedelta(seconds=1))
    assert before.trade_date == date(2018, 12, 28)
    with pytest.raises(ValueError, match="give a day from 2019-01-01 to 2098-12-31"):
        sessions.trade_date(datetime(2017, 12, 31, tzinfo=UTC))


# ── any instant ─────────────────────────────────────────────────────────────────────────────────


@given(st.lists(instants, min_size=2, max_size=40))
def test_trade_dates_are_monotonic_and_agree_with_columns(moments: list[datetime]) -> None:
    moments.sort()
    dates = [sessions.trade_date(moment) for moment in moments]
    assert dates == sorted(dates)
    column = sessions.trade_dates(np.array([to_ns(moment) for moment in moments]))
    assert column.astype(object).tolist() == dates


@given(instants)
def test_a_trade_date_is_constant_from_its_open_to_the_next_open(moment: datetime) -> None:
    current = sessions.current_session(moment)
    assert current.open <= moment
    assert sessions.session(current.trade_date) == current
    assert sessions.trade_date(current.open) == current.trade_date
    assert sessions.trade_date(current.open - timedelta(microseconds=1)) < current.trade_date
    after = sessions.next_open(current.close)
    assert moment < after
    assert sessions.trade_date(after - timedelta(microseconds=1)) == current.trade_date
    assert sessions.trade_date(after) > current.trade_date


@given(instants)
def test_a_session_is_open_exactly_within_its_segments(moment: datetime) -> None:
    edges = [edge for span in sessions.current_session(moment).segments for edge in span]
    assert edges == sorted(set(edges))
    boundary = sessions.next_boundary(moment)
    assert moment < boundary
    before = boundary - timedelta(microseconds=1)
    assert sessions.is_open(before) == sessions.is_open(moment) != sessions.is_open(boundary)
    if not sessions.is_open(moment):
        assert boundary == sessions.next_open(moment)


@given(instants, windows)
def test_a_chain_moment_is_stable_within_its_session(moment: datetime, window: sessions.Window) -> None:
    chain = sessions.chain_moment(moment, window)
    assert chain <= moment
    assert sessions.chain_moment(chain, window) == chain
    assert sessions.trade_date(chain) == sessions.trade_date(moment)
    if sessions.is_open(moment, window):
        assert chain == moment
    elif window != "always":
        assert sessions.is_open(chain - timedelta(microseconds=1))


@given(instants, st.integers(-14, 14))
def test_the_zone_an_instant_is_written_in_does_not_matter(moment: datetime, hours: int) -> None:
    elsewhere = moment.astimezone(timezone(timedelta(hours=hours)))
    assert sessions.trade_date(elsewhere) == sessions.trade_date(moment)
    assert sessions.next_boundary(elsewhere) == sessions.next_boundary(moment)
    assert sessions.is_open(elsewhere, "rth") == sessions.is_open(moment, "rth")


def test_a_column_changes_trade_date_at_the_open() -> None:
    some = sessions.sessions(date(2024, 12, 1), date(2026, 1, 31))
    opens = np.array([to_ns(s.open) for s in some])
    dates = [s.trade_date for s in some]
    assert sessions.trade_dates(opens).astype(object).tolist() == dates
    assert sessions.trade_dates(opens[1:] - 1).astype(object).tolist() == dates[:-1]


def test_undefined_timestamps_have_no_trade_date() -> None:
    monday = to_ns(chicago("2025-06-09 10:00"))
    signed = np.array([monday, -1, 0, 2**63 - 1], dtype=np.int64)
    unsigned = np.array([monday, 2**64 - 1], dtype=np.uint64)
    assert sessions.trade_dates(signed).astype(object).tolist() == [date(2025, 6, 9), None, None, None]
    assert sessions.trade_dates(unsigned).astype(object).tolist() == [date(2025, 6, 9), None]
    assert sessions.trade_dates(np.array([], dtype=np.int64)).shape == (0,)


def test_columns_load_only_the_years_that_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single wrong instant must not load every year between it and the others."""
    loaded, year_of = list[int](), sessions._year

    def load_year(year: int) -> sessions._Year:
        loaded.append(year)
        return year_of(year)

    sessions._opens.cache_clear()
    monkeypatch.setattr(sessions, "_year", load_year)
    days = [date(2020, 6, 1), date(2029, 6, 1), date(2020, 6, 2)]
    noons = np.array([to_ns(datetime(day.year, day.month, day.day, 17, tzinfo=UTC)) for day in days])
    assert sessions.trade_dates(noons).astype(object).tolist() == days
    assert loaded == [2020, 2029]
