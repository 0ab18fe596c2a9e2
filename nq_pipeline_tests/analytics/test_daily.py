"""Bars of futures and changes of open interest: which data count, and when they are final."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nq_pipeline.analytics.daily import measure_days
from nq_pipeline.analytics.daily_quality import bars_consistent, bars_unbroken, figures_continue
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import (
    BACKFILLS,
    FUTURE_BARS,
    GAPS,
    OHLCV_1M,
    OPEN_INTEREST_CHANGE,
    SESSIONS,
    SOURCE_CHAIN,
    STATISTICS,
    TRADES,
    Table,
    conform,
)
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.bars import future_bars
from nq_pipeline_tests.testing.lake_samples import chain, trade

MONDAY, TUESDAY, WEDNESDAY = date(2025, 6, 30), date(2025, 7, 1), date(2025, 7, 2)
OPEN, CLOSE = datetime(2025, 7, 1, 13, 30, tzinfo=UTC), datetime(2025, 7, 1, 20, tzinfo=UTC)
SERIES = "Q1B-2025-07-08"
ORIGIN = {"environment": "sandbox", "run_id": "run"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return build_settings(data_dir=tmp_path)


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Workspace.of(settings).lake


def append(lake: Lake, table: Table, *rows: dict[str, Any]) -> None:
    lake.append(table, conform(table, pl.DataFrame(rows, infer_schema_length=None)), run_id="run")


def chains(lake: Lake, day: date, hour: int, interest: Sequence[int | None], **given: Any) -> None:
    """A chain requested at an hour in UTC (10:00 CT is 15:00), with the open interest of its contracts."""
    at = int(datetime(day.year, day.month, day.day, hour, tzinfo=UTC).timestamp()) * 10**9
    frame = chain(SOURCE_CHAIN, snapshot=at, day=day, contracts=len(interest), **{"series": SERIES, **given})
    lake.append(
        SOURCE_CHAIN, frame.with_columns(open_interest=pl.Series(interest, dtype=pl.Int64)), run_id="run"
    )


def changes(rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    found = rows.select(
        "source", "trade_date", "strike", "previous_open_interest", "open_interest", "open_interest_change"
    )
    return sorted(found.rows())


def test_open_interest_changes_between_settled_figures_of_one_vendor(settings: Settings, lake: Lake) -> None:
    chains(lake, TUESDAY, 14, [1, 1, 1])  # before 10:00 CT: still preliminary
    chains(lake, TUESDAY, 16, [8, 5, 7])
    chains(lake, TUESDAY, 20, [10, 5, None])  # restated
    chains(lake, TUESDAY, 20, [100, 100, 100], source="databento")
    chains(lake, WEDNESDAY, 15, [12, 2, 9])
    rows = measure_days(settings, run_id="r")["open_interest_change"]
    # Monday's figures are shown on Tuesday, Tuesday's on Wednesday.
    assert changes(rows) == [
        ("barchart", TUESDAY, 21_000.0, 10, 12, 2),
        ("barchart", TUESDAY, 21_010.0, 5, 2, -3),
    ]
    assert rows["previous_trade_date"].to_list() == [MONDAY] * 2
    assert rows["figure"].unique().to_list() == ["chain"]
    assert rows["known_at"].unique().to_list() == [datetime(2025, 7, 2, 15, tzinfo=UTC)]


def test_before_ten_there_is_no_change(settings: Settings, lake: Lake) -> None:
    chains(lake, TUESDAY, 16, [10])
    chains(lake, WEDNESDAY, 14, [12])
    assert measure_days(settings, run_id="r")["open_interest_change"].is_empty()


def test_a_chain_of_the_weekend_does_not_count(settings: Settings, lake: Lake) -> None:
    thursday, friday = date(2025, 6, 26), date(2025, 6, 27)
    chains(lake, thursday, 16, [10])
    chains(lake, friday, 21, [12])
    chains(lake, friday, 22, [99])  # 17:00 CT: no session opens, and a vendor may show Friday's own figure
    assert changes(measure_days(settings, run_id="r")["open_interest_change"]) == [
        ("barchart", thursday, 21_000.0, 10, 12, 2)
    ]


def test_a_later_chain_adds_the_series_that_the_first_one_lacked(settings: Settings, lake: Lake) -> None:
    other = "Q1C-2025-07-09"
    for day, interest in ((TUESDAY, [10]), (WEDNESDAY, [12])):
        chains(lake, day, 16, interest)
    measure_days(settings, run_id="r")
    chains(lake, TUESDAY, 17, [30], series=other)
    chains(lake, WEDNESDAY, 17, [31], series=other)
    chains(lake, WEDNESDAY, 17, [99])  # what is written stays
    rows = measure_days(settings, run_id="r")["open_interest_change"]
    assert changes(rows) == [("barchart", TUESDAY, 21_000.0, 30, 31, 1)]
    assert lake.scan(OPEN_INTEREST_CHANGE).collect().height == 2


def statistic(day: date, about: date, quantity: int, hour: int) -> dict[str, Any]:
    return ORIGIN | {
        "trade_date": day, "publisher_id": 1, "instrument_id": 7, "stat_type": 9, "quantity": quantity,
        "ts_recv": datetime(day.year, day.month, day.day, hour, tzinfo=UTC),
        "ts_ref": datetime(about.year, about.month, about.day, tzinfo=UTC),
        "sequence": 1, "channel_id": 0, "update_action": 1, "stat_flags": 0, "ordinal": 0,
        "underlying_class": "future", "root": "Q1B", "series": SERIES, "option_type": "C",
        "strike": 21_000.0, "contract_key": f"{SERIES}-C-21000",
    }  # fmt: skip


def bought(schema: str, day: date) -> dict[str, Any]:
    return {
        "run_id": "run", "changed_at": CLOSE, "trade_date": day, "environment": "sandbox",
        "dataset": "GLBX.MDP3", "schema": schema, "symbols": "NQ.FUT", "first_ts": OPEN, "last_ts": CLOSE,
        "state": "complete", "records": 1, "rows": 1, "known": 0, "dropped": 0, "bytes": 1, "cost_usd": 0,
    }  # fmt: skip


def test_bought_statistics_count_by_their_last_figure(settings: Settings, lake: Lake) -> None:
    append(lake, STATISTICS, statistic(TUESDAY, MONDAY, 40, 2), statistic(TUESDAY, MONDAY, 41, 14))
    append(lake, STATISTICS, statistic(WEDNESDAY, TUESDAY, 45, 14), statistic(WEDNESDAY, MONDAY, 1, 15))
    append(lake, BACKFILLS, bought("statistics", WEDNESDAY))
    assert measure_days(settings, run_id="r")["open_interest_change"].is_empty(), "Tuesday was not bought"
    append(lake, BACKFILLS, bought("statistics", TUESDAY))
    rows = measure_days(settings, [TUESDAY], run_id="r")["open_interest_change"]
    assert changes(rows) == [("databento", TUESDAY, 21_000.0, 41, 45, 4)]
    assert rows["figure"].to_list() == ["statistics"]


def ticks(last: datetime = CLOSE - timedelta(seconds=1)) -> list[dict[str, Any]]:
    """Trades of two futures in regular hours; before and after them other prices."""
    moments = [(OPEN - timedelta(seconds=1), 1.0), (OPEN, 100.0), (OPEN, 99.0), (last, 103.0), (CLOSE, 500.0)]
    rows = []
    for symbol, ahead in (("NQU5", 0.0), ("NQZ5", 10.0)):
        for sequence, (at, price) in enumerate(moments):
            seconds = at.timestamp() - datetime(2025, 7, 1, 12, tzinfo=UTC).timestamp()
            one = trade(seconds, symbol, price + ahead, size=2)
            rows.append(one | {"sequence": sequence, "instrument_kind": "future", "root": "NQ"})
    return rows


def ohlc(rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    return sorted(rows.select("made_from", "raw_symbol", "open", "high", "low", "close", "volume").rows())


TWO_BARS = [
    ("trades", "NQU5", 100.0, 103.0, 99.0, 103.0, 6),
    ("trades", "NQZ5", 110.0, 113.0, 109.0, 113.0, 6),
]


def test_bars_of_captured_trades_are_those_of_regular_hours(settings: Settings, lake: Lake) -> None:
    append(lake, TRADES, *ticks())
    rows = measure_days(settings, run_id="r")["future_bars"]
    assert ohlc(rows) == TWO_BARS
    assert rows["expiration"].unique().sort().to_list() == [
        datetime(2025, 9, 19, 13, 30, tzinfo=UTC),
        datetime(2025, 12, 19, 14, 30, tzinfo=UTC),
    ]
    assert set(rows["previous_trade_date"]) == {MONDAY}
    assert measure_days(settings, run_id="r")["future_bars"].is_empty(), "they are written once"


def gap(state: str, revision: int = 0, schema: str = "trades", **more: Any) -> dict[str, Any]:
    return ORIGIN | {
        "gap_id": "g", "revision": revision, "changed_at": CLOSE, "trade_date": TUESDAY,
        "dataset": "GLBX.MDP3", "schema": schema, "cause": "cut", "first_ts": OPEN,
        "last_ts": OPEN + timedelta(minutes=1), "state": state, "attempts": 0, "cost_usd": 0, **more,
    }  # fmt: skip


def test_hours_with_an_unfilled_gap_have_no_bar(settings: Settings, lake: Lake) -> None:
    append(lake, TRADES, *ticks())
    append(lake, GAPS, gap("open"))
    assert measure_days(settings, run_id="r")["future_bars"].is_empty()
    append(lake, GAPS, gap("verified", 1))
    append(lake, GAPS, gap("open", schema="mbo") | {"gap_id": "options"})  # of options only
    assert ohlc(measure_days(settings, run_id="r")["future_bars"]) == TWO_BARS


def test_hours_whose_end_was_not_captured_have_no_bar(settings: Settings, lake: Lake) -> None:
    append(lake, TRADES, *[row for row in ticks(OPEN + timedelta(hours=2)) if row["price"] < 400])
    assert measure_days(settings, run_id="r")["future_bars"].is_empty()
    session = ORIGIN | {
        "session_key": "s", "trade_date": TUESDAY, "dataset": "GLBX.MDP3", "started_at": OPEN,
        "ended_at": CLOSE, "schemas": "trades", "records": 1, "bytes": 1, "ended": "closed",
        "proven_ts": CLOSE,
    }  # fmt: skip
    append(lake, SESSIONS, session)
    assert ohlc(measure_days(settings, run_id="r")["future_bars"]) == TWO_BARS


def test_bars_of_bought_minutes_agree_with_those_of_trades(settings: Settings, lake: Lake) -> None:
    append(lake, TRADES, *ticks())
    minutes = [
        ORIGIN | {
            "trade_date": TUESDAY, "publisher_id": 1, "instrument_id": 3, "ts_event": at, "open": prices[0],
            "high": max(prices), "low": min(prices), "close": prices[-1], "volume": 2 * len(prices),
            "ordinal": 0, "raw_symbol": "NQU5", "instrument_kind": "future", "root": "NQ",
        }
        for at, prices in (
            (OPEN - timedelta(minutes=1), [1.0]), (OPEN, [100.0, 99.0]),
            (CLOSE - timedelta(minutes=1), [103.0]), (CLOSE, [500.0]),
        )
    ]  # fmt: skip
    append(lake, OHLCV_1M, *minutes)
    assert {row[0] for row in ohlc(measure_days(settings, run_id="r")["future_bars"])} == {"trades"}
    append(lake, BACKFILLS, bought("ohlcv-1m", TUESDAY))
    rows = measure_days(settings, [TUESDAY], run_id="r")["future_bars"]
    assert ohlc(rows) == [("ohlcv-1m", *TWO_BARS[0][1:])]


def test_checks_find_missing_and_impossible_bars(lake: Lake) -> None:
    assert bars_consistent(lake, TUESDAY) is None and bars_unbroken(lake, TUESDAY) is None
    good, bad = (100.0, 103.0, 99.0, 101.0, 5), (100.0, 103.0, 99.0, 104.0, 5)
    lake.append(FUTURE_BARS, future_bars("NQU5", {date(2025, 6, 27): good, TUESDAY: bad}), run_id="run")
    consistent, unbroken = bars_consistent(lake, TUESDAY), bars_unbroken(lake, TUESDAY)
    assert consistent and not consistent.passed and consistent.numbers == {"bars": 1, "wrong": 1}
    assert unbroken and not unbroken.passed and unbroken.numbers == {"missing": 1, "trade_dates": 3}
    assert unbroken.table is not None and unbroken.table["trade_date"].to_list() == [MONDAY]


def test_a_check_finds_figures_that_were_corrected(settings: Settings, lake: Lake) -> None:
    days = (TUESDAY, WEDNESDAY, date(2025, 7, 3))
    for day, interest in zip(days, ([10, 10], [12, 12], [15, 15]), strict=True):
        chains(lake, day, 16, interest)
        measure_days(settings, run_id="r")
    found = figures_continue(lake, WEDNESDAY)
    assert found and found.passed and found.numbers == {"differ": 0, "contracts": 2}
    assert figures_continue(lake, TUESDAY) is None
