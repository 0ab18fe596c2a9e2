"""What the rules list, against pages, definitions and press releases that vendors and CME showed."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.market.listing import (
    expiration_date,
    expirations,
    far_expirations,
    future_expiration,
    underlying_future,
)
from nq_pipeline.market.products import NQ, PRODUCTS
from nq_pipeline.market.symbology import Unparsed, parse_barchart_code, parse_globex


def listed(start: str, end: str) -> list[str]:
    return [s.key for s in expirations("NQ", date.fromisoformat(start), date.fromisoformat(end))]


def test_there_are_26_roots() -> None:
    weekdays = {f"Q{week}{day}" for week in range(1, 6) for day in "ABCD"}
    assert {code for code, root in ROOTS.items() if root.product is NQ} == weekdays | {
        "NQ",
        "QNE",
        "QN1",
        "QN2",
        "QN3",
        "QN4",
    }
    every = {s.root for s in expirations("NQ", date(2025, 1, 1), date(2026, 12, 31))}
    assert every == {code for code, root in ROOTS.items() if root.product is NQ}


@pytest.mark.parametrize(
    ("product", "after", "series"),
    [
        ("NQ", "2025-06-24", ["QNE-2025-06-30", "NQ-2025-09-19"]),
        ("NQ", "2025-06-16", ["NQ-2025-06-20", "QNE-2025-06-30", "NQ-2025-09-19"]),
        ("GC", "2025-06-24", ["OG-2025-06-25", "OG-2025-07-28"]),
    ],
)
def test_far_expirations_are_monthly_and_quarterly(product: str, after: str, series: list[str]) -> None:
    assert [s.key for s in far_expirations(product, date.fromisoformat(after))] == series


@pytest.mark.parametrize("product", PRODUCTS)
def test_two_weeks_and_far_expirations_bracket_30_days(product: str) -> None:
    for n in range(365):
        day = date(2026, 1, 1) + timedelta(n)
        near = expirations(product, day, day + timedelta(14))
        found = [*near, *far_expirations(product, day + timedelta(14))]
        days = [(s.expiration_date - day).days for s in found]
        assert min(days) <= 30 <= max(days), day


def test_june_2025_is_listed_day_by_day() -> None:
    assert listed("2025-06-01", "2025-07-03") == [
        "Q1A-2025-06-02", "Q1B-2025-06-03", "Q1C-2025-06-04", "Q1D-2025-06-05", "QN1-2025-06-06",
        "Q2A-2025-06-09", "Q2B-2025-06-10", "Q2C-2025-06-11", "Q2D-2025-06-12", "QN2-2025-06-13",
        "Q3A-2025-06-16", "Q3B-2025-06-17", "Q3C-2025-06-18", "NQ-2025-06-20", "QN3-2025-06-20",
        "Q4A-2025-06-23", "Q4B-2025-06-24", "Q4C-2025-06-25", "Q4D-2025-06-26", "QN4-2025-06-27",
        "QNE-2025-06-30", "Q1B-2025-07-01", "Q1C-2025-07-02", "Q1D-2025-07-03",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "series",
    [
        "NQ-2026-06-18",  # the third Friday is Juneteenth
        "QNE-2025-11-28",  # the last trade date of the month closes early
        "QNE-2024-03-28",  # Good Friday is the last weekday of the month
        "Q2D-2025-01-08",  # moved by the day of mourning
        "QN1-2026-06-05",  # this and the next four were seen live
        "Q2A-2026-06-08",
        "Q2B-2026-06-09",
        "Q2C-2026-06-10",
        "Q2D-2026-06-11",
    ],
)
def test_a_series_with_a_history_is_listed(series: str) -> None:
    wanted = Series.parse(series)
    day = wanted.expiration_date
    assert wanted in expirations("NQ", day, day)
    assert expiration_date(wanted.root, day.year, day.month) == day


@pytest.mark.parametrize(
    ("root", "year", "month"),
    [
        ("Q5A", 2025, 6),  # Monday the 30th is the end of the month
        ("Q5B", 2025, 6),  # there is no fifth Tuesday
        ("QN3", 2025, 4),  # Good Friday
        ("QN3", 2026, 6),  # Juneteenth
        ("Q3A", 2025, 1),  # Martin Luther King
        ("NQ", 2025, 7),
    ],
)
def test_a_root_without_its_day_is_not_listed(root: str, year: int, month: int) -> None:
    assert expiration_date(root, year, month) is None


def test_nothing_expires_on_a_good_friday_that_trades_until_0815() -> None:
    assert sessions.is_trade_date(date(2026, 4, 3))
    assert listed("2026-04-03", "2026-04-03") == []


def test_the_friday_weekly_of_the_quarterly_week_begins_in_2025() -> None:
    assert listed("2024-12-20", "2024-12-20") == ["NQ-2024-12-20"]
    assert listed("2025-12-19", "2025-12-19") == ["NQ-2025-12-19", "QN3-2025-12-19"]


@pytest.mark.parametrize(
    ("series", "future", "long"),
    [
        ("NQ-2025-06-20", "NQM5", "NQM25"),  # ends with the future and exercises into it
        ("QN3-2025-06-20", "NQU5", "NQU25"),  # the same Friday, after the future is gone
        ("Q3C-2025-06-18", "NQM5", "NQM25"),
        ("QNE-2025-06-30", "NQU5", "NQU25"),
        ("Q3D-2026-06-18", "NQU6", "NQU26"),
        ("QNE-2025-12-31", "NQH6", "NQH26"),
        ("Q1A-2029-12-31", "NQH0", "NQH30"),
    ],
)
def test_underlying_future_of(series: str, future: str, long: str) -> None:
    assert underlying_future(Series.parse(series)) == future
    assert underlying_future(Series.parse(series), year_digits=2) == long


def test_a_proxy_has_no_future() -> None:
    with pytest.raises(KeyError):
        underlying_future(Series.parse("NDX-2025-06-20"))


@pytest.mark.parametrize(
    ("series", "instant"),
    [
        ("NQ-2025-06-20", "2025-06-20T13:30Z"),
        ("Q1A-2025-01-06", "2025-01-06T21:00Z"),
        ("Q1B-2025-07-01", "2025-07-01T20:00Z"),
        ("Q1D-2025-07-03", "2025-07-03T17:15Z"),  # early close
        ("NDX-2025-06-20", "2025-06-20T13:30Z"),
        ("NDXP-2025-07-03", "2025-07-03T20:00Z"),
        ("QQQ-2025-01-17", "2025-01-17T21:00Z"),
        ("Q5A-1999-01-01", "1999-01-01T21:00Z"),  # a day the tables do not know
    ],
)
def test_trading_ends_at(series: str, instant: str) -> None:
    assert Series.parse(series).expiration == datetime.fromisoformat(instant)


# ── what vendors showed ─────────────────────────────────────────────────────────────────────────


def test_recorded_barchart_pages_agree_on_expirations(shared: Path) -> None:
    reads = json.loads((shared / "barchart" / "expiry_page_reads_20250627.json").read_text())
    results = [r for r in reads["detailed_results"] if r["result"]["success"]]
    assert results
    for entry in results:
        series = parse_barchart_code(entry["test_case"]["symbol"], on=date(2025, 6, 27))
        assert not isinstance(series, Unparsed)
        assert f"{series.expiration_date:%m/%d/%y}" == entry["result"]["actualDate"]


def test_barchart_drop_downs_mean_what_our_table_says(shared: Path) -> None:
    from bs4 import BeautifulSoup

    page = BeautifulSoup((shared / "barchart" / "page_MC6M25_20250602_rendered.html").read_text(), "lxml")
    kinds = {"Friday": 4, "Monday": 0, "Tuesday": 1, "Wednesday": 2, "Thursday": 3, "EOM": None, "Monthly": 4}
    options = page.select("select#bc-options-toolbar__dropdown-type option")
    assert len(options) == len(kinds)
    for option in options:
        future, _, rest = str(option["value"]).removeprefix("/futures/quotes/").partition("/options")
        series = parse_barchart_code(rest.strip("/") or future)
        assert not isinstance(series, Unparsed)
        assert series.root_info.family.weekday == kinds[option.text.split()[0]]
        assert underlying_future(series, year_digits=2) == future
    for option in page.select("select#bc-options-toolbar__dropdown-month option"):
        series = parse_barchart_code(str(option["value"]).rpartition("/")[2])
        assert not isinstance(series, Unparsed)
        assert option.text.strip() == f"Week {series.root_info.week}: {series.expiration_date:%b %Y}"


def test_exchange_definitions_agree_with_the_rules(shared: Path) -> None:
    """Real definitions, of E-mini S&P 500 for the most part, so that the rules meet data not their own."""
    import databento

    record: Any
    futures = options = 0
    for path in sorted((shared / "databento").glob("*definition*.dbn.zst")):
        for record in databento.DBNStore.from_file(path):
            expiration = datetime.fromtimestamp(record.expiration / 1e9, UTC)
            product = PRODUCTS.get(record.asset[:2])
            if record.instrument_class == "F" and product:
                assert future_expiration(product, expiration.year, expiration.month) == expiration
                futures += 1
            elif record.instrument_class in ("C", "P") and product:
                contract = parse_globex(record.raw_symbol, on=expiration.date() - timedelta(days=400))
                assert not isinstance(contract, Unparsed)
                assert contract.series.expiration == expiration
                assert contract.strike == record.strike_price / 1e9
                assert contract.option_type == record.instrument_class
                assert (contract.series.root, underlying_future(contract.series)) == (
                    record.asset,
                    record.underlying,
                )
                options += 1
    assert futures
    assert options
