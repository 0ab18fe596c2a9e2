"""The views of the catalog: point in time, histories, trades with their underlying, shapes of other tools."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import nq_pipeline
from nq_pipeline.clock import NS_PER_S
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import LakeError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import (
    CONSTANT_MATURITY,
    DECISIONS,
    FUTURE_BARS,
    GAMMA_LEVELS,
    GAPS,
    INSTANT,
    IV_SMILE,
    OPTION_CHAIN,
    OPTION_PRICING,
    SERIES_METRICS,
    SOURCE_CHAIN,
    TRADES,
    Table,
    conform,
)
from nq_pipeline.lake.views import VIEWS
from nq_pipeline.lake.views.view import View
from nq_pipeline.market import sessions
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.bars import future_bars
from nq_pipeline_tests.testing.lake_samples import CALL, DAY, NOON, PUT, chain, decision, trade
from nq_pipeline_tests.testing.sql_types import SQL_TYPES

MINUTE = 60 * NS_PER_S
A, B = "Q1B-2025-07-08", "QN2-2025-07-11"
CALLS = {
    "option_chain_asof": "option_chain_asof('2025-07-01 12:30:00+00')",
    "chain_history": "chain_history('Q1B-2025-07-08-C-21000')",
    "bars": "bars(INTERVAL 5 MINUTES)",
}
TYPES = {
    **SQL_TYPES,
    pl.Datetime("us", "UTC"): "TIMESTAMP WITH TIME ZONE",
    pl.List(pl.String()): "VARCHAR[]",
    pl.Decimal(38, 9): "DECIMAL(38,9)",
}


@pytest.fixture(scope="module", params=["connect", "guarded", "nq.duckdb"])
def opened(
    request: pytest.FixtureRequest, stock: Lake, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[duckdb.DuckDBPyConnection]:
    """The catalog in the three ways it is read."""
    lake = Workspace(tmp_path_factory.mktemp("data") / "sandbox").lake
    shutil.copytree(stock.root, lake.root)
    if request.param == "nq.duckdb":
        connection = duckdb.connect(catalog.publish(lake), read_only=True)
        connection.execute("SET TimeZone = 'America/Chicago'")  # as another tool would have it
    else:
        connection = catalog.connect(lake, guarded=request.param == "guarded")
    with connection:
        yield connection


def snapshot(
    minute: int, series: str = A, *, table: Table = OPTION_CHAIN, day: date = DAY, **columns: Any
) -> pl.DataFrame:
    """Three calls of a series, 21,000 to 21,020, some minutes after noon; quotes ten minutes old."""
    at = NOON + minute * MINUTE
    expiration = pl.lit(f"{series[-10:]} 20:00").str.to_datetime(time_unit="ns", time_zone="UTC")
    given = {name: pl.lit(value) for name, value in columns.items()}
    frame = chain(table, snapshot=at, series=series, day=day)
    return frame.with_columns(expiration=expiration, underlying=pl.lit("NQU5")).with_columns(**given)


def append(lake: Lake, table: Table, frame: pl.DataFrame) -> None:
    lake.append(table, conform(table, frame), run_id="run")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Two snapshots, vendors that differ by half a point, and trades of a call, a put and the future."""
    lake = Lake(tmp_path_factory.mktemp("stock") / "lake")
    for minute in (0, 5):
        bid = 10.0 + minute
        append(
            lake, OPTION_CHAIN, snapshot(minute, bid=bid, ask=bid + 1, delta=0.5, underlying_price=21_010.0)
        )
        append(lake, SOURCE_CHAIN, snapshot(minute, table=SOURCE_CHAIN, bid=bid, ask=bid + 1))
        other: dict[str, Any] = {"bid": bid + 0.5, "ask": bid + 1.5}
        append(lake, SOURCE_CHAIN, snapshot(minute, table=SOURCE_CHAIN, source="databento", **other))
    won = decision(decided_at=NOON + 6 * MINUTE, snapshot=NOON + 5 * MINUTE, series=A)
    append(lake, DECISIONS, pl.DataFrame([won]))
    trades = [
        trade(1, "Q1BN5 C21000", 50.0, **CALL),
        trade(2, "NQU5", 21_010.0),
        trade(3, "Q1BN5 C21000", 51.0, side="A", size=3, **CALL),
        trade(4, "NQU5", 20_990.0, side="A", size=2),
        trade(4, "Q1BN5 P21000", 60.0, side="N", **PUT),
        trade(5, "NQZ5", 21_500.0),
        trade(400, "Q1BN5 C21000", 55.0, **CALL),
    ]
    append(lake, TRADES, pl.DataFrame(trades, infer_schema_length=None))
    _computed(lake)
    return lake


@pytest.fixture
def filled(lake: Lake, stock: Lake) -> Lake:
    """A lake of the test's own with the rows of `stock`."""
    shutil.copytree(stock.root, lake.root)
    return lake


def _computed(lake: Lake) -> None:
    """What is computed of the later snapshot, in outline."""
    given = {"source": "barchart", "snapshot_ts": NOON + 5 * MINUTE, "series": A, "root": "Q1B"}
    given |= {"underlying_class": "future", "environment": "sandbox", "trade_date": DAY, "run_id": "run"}
    call = given | CALL
    priced = {"valued_at": NOON, "parity_pairs": 0, "rate": 0.0, "years": 0.02, "delta": 0.5}
    smile = {"forward": 21_010.0, "log_moneyness": 0.0}
    days = [s.trade_date for s in sessions.sessions(date(2025, 6, 9), date(2025, 6, 20))]
    for symbol, volume, traded in (("NQM5", 9, days[:-1]), ("NQU5", 5, days)):
        bars = {day: (20_000.0 + day.day, 20_100.0, 19_900.0, 20_050.0 - day.day, volume) for day in traded}
        append(lake, FUTURE_BARS, future_bars(symbol, bars))
    for table, rows in {
        OPTION_PRICING: call | priced | {"model": "black76", "implied_volatility": 0.2},
        IV_SMILE: call | smile | {"years": 0.02, "implied_volatility": 0.2},
        SERIES_METRICS: given | {"expiration": NOON, "forward": 21_010.0, "years": 0.02, "atm_iv": 0.2},
        CONSTANT_MATURITY: given | {"product": "NQ", "days": 30, "atm_iv": 0.19},
        GAMMA_LEVELS: given | {"product": "NQ", "contracts": 1, "open_interest_left_out": 0},
    }.items():
        append(lake, table, pl.DataFrame([{k: v for k, v in rows.items() if k in table.schema}]))


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_view_returns_the_columns_it_documents(opened: duckdb.DuckDBPyConnection, view: View) -> None:
    name, columns = view.name, view.columns
    described = opened.execute(f"DESCRIBE FROM {CALLS.get(name, name)}").fetchall()
    exact = {f"{column.name}_ns": "BIGINT" for column in columns if column.dtype == INSTANT}
    assert {row[0]: row[1] for row in described} == {c.name: TYPES[c.dtype] for c in columns} | exact
    assert [row[0] for row in described if row[0] not in exact] == [column.name for column in columns]
    assert catalog.query(opened, f"FROM {CALLS.get(name, name)}").fetchall() or name == "spend_daily"


def test_views_and_macros_say_what_they_are(opened: duckdb.DuckDBPyConnection) -> None:
    rows = opened.execute(
        "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal "
        "UNION ALL SELECT function_name, comment FROM duckdb_functions() WHERE NOT internal"
    ).fetchall()
    said = dict(rows)
    assert {view.name: said[view.name] for view in VIEWS} == {
        view.name: f"Synthetic data of the sandbox. {view.meaning}" for view in VIEWS
    }


def test_history_joins_levels_front_series_and_maturities(opened: duckdb.DuckDBPyConnection) -> None:
    shown = "SELECT product, front_series, contracts, atm_iv, atm_iv_30, atm_iv_90 FROM market_history"
    assert opened.sql(shown).fetchall() == [("NQ", A, 1, 0.2, 0.19, None)]


def test_an_expired_series_is_not_the_front_of_the_market(filled: Lake) -> None:
    past = {"source": "barchart", "snapshot_ts": NOON + 5 * MINUTE, "series": "Q5A-2025-06-30", "root": "Q5A"}
    past |= {"underlying_class": "future", "environment": "sandbox", "trade_date": DAY, "run_id": "run"}
    past |= {"expiration": NOON - MINUTE, "years": -0.00001, "forward": 20_000.0}
    append(filled, SERIES_METRICS, pl.DataFrame([past]))
    with catalog.connect(filled) as connection:
        shown = connection.sql("SELECT front_series, atm_iv FROM market_history").fetchall()
    assert shown == [(A, 0.2)]


def test_what_was_computed_shows_with_the_current_chain(opened: duckdb.DuckDBPyConnection) -> None:
    whose = "SELECT iv_source, count(*) FROM option_chain_latest_priced GROUP BY 1 ORDER BY 1"
    assert opened.sql(whose).fetchall() == [("computed", 1), (None, 2)]
    assert opened.sql("SELECT strike FROM smile").fetchall() == [(21_000.0,)]
    assert opened.sql("SELECT series FROM term_structure").fetchall() == [(A,)]


def test_a_window_beside_a_gap_that_is_not_filled_is_not_whole(filled: Lake) -> None:
    gap = {"gap_id": "g", "revision": 0, "changed_at": NOON, "trade_date": DAY, "environment": "sandbox"}
    gap |= {"dataset": "GLBX.MDP3", "schema": "trades", "cause": "cut off", "attempts": 0, "cost_usd": 0.0}
    gap |= {"first_ts": NOON + MINUTE, "last_ts": NOON + 2 * MINUTE, "state": "open", "run_id": "run"}

    def whole() -> list[tuple[str, bool]]:
        sql = "SELECT option_type, is_whole FROM pressure ORDER BY window_start, option_type"
        with catalog.connect(filled) as connection:
            return connection.sql(sql).fetchall()

    last = ("C", False)  # five minutes that nothing captured came after
    assert whole() == [("C", True), ("P", True), last]
    append(filled, GAPS, pl.DataFrame([gap]))
    assert whole() == [("C", False), ("P", False), last]
    append(filled, GAPS, pl.DataFrame([gap | {"revision": 1, "state": "verified"}]))
    assert whole() == [("C", True), ("P", True), last]


def asof(lake: Lake, minute: float, options: str = "") -> list[tuple[str, int, int]]:
    """Series, minute of the snapshot and rows of the chain as it stood some minutes after noon."""
    with catalog.connect(lake) as connection:
        moment = f"make_timestamptz({NOON // 1000 + round(minute * 60_000_000)})"
        return connection.execute(
            f"SELECT series, (snapshot_ts_ns - {NOON}) // {MINUTE}, count(*) "
            f"FROM option_chain_asof({moment}{options}) GROUP BY ALL ORDER BY ALL"
        ).fetchall()


def test_the_chain_as_of_a_moment_never_looks_ahead(lake: Lake) -> None:
    for minute in (0, 5, 10):
        append(lake, OPTION_CHAIN, snapshot(minute))
    moments = (-1, 0, 4.99, 5, 9.99, 10, 60)
    newest = [[row[1] for row in asof(lake, minute)] for minute in moments]
    assert newest == [[], [0], [0], [5], [5], [10], [10]]


def test_quotes_of_a_later_moment_than_asked_for_are_not_shown(lake: Lake) -> None:
    append(lake, OPTION_CHAIN, snapshot(0))
    late = snapshot(5).with_columns(as_of=pl.lit(NOON + 6 * MINUTE).cast(INSTANT))
    append(lake, OPTION_CHAIN, late)
    assert asof(lake, 5.5) == [(A, 0, 3)]
    assert asof(lake, 6) == [(A, 5, 3)]


def test_every_series_has_its_own_newest_snapshot(lake: Lake) -> None:
    append(lake, OPTION_CHAIN, snapshot(0, A))
    append(lake, OPTION_CHAIN, snapshot(0, B))
    append(lake, OPTION_CHAIN, snapshot(5, B))
    assert asof(lake, 6) == [(A, 0, 3), (B, 5, 3)]


def test_the_source_chosen_last_counts(lake: Lake) -> None:
    append(lake, OPTION_CHAIN, snapshot(0, source="barchart"))
    later = pl.lit(NOON + MINUTE).cast(INSTANT)
    append(lake, OPTION_CHAIN, snapshot(0, source="databento").with_columns(selected_at=later))
    with catalog.connect(lake) as connection:
        sql = "SELECT source, count(*) FROM option_chain_asof('2025-07-01 12:03:00+00') GROUP BY ALL"
        assert connection.execute(sql).fetchall() == [("databento", 3)]


def test_newest_per_contract_shows_contracts_left_out_later(
    lake: Lake,
) -> None:
    append(lake, OPTION_CHAIN, snapshot(0))
    append(lake, OPTION_CHAIN, snapshot(5).head(1))
    assert asof(lake, 6) == [(A, 5, 1)]
    assert asof(lake, 6, ", newest_per_contract := true") == [(A, 0, 2), (A, 5, 1)]


def test_a_native_source_replaces_a_proxy_as_of_a_moment(lake: Lake) -> None:
    proxy = "NDXP-2025-07-08"
    for minute, series in ((0, A), (5, proxy), (10, A), (15, proxy)):
        append(
            lake,
            OPTION_CHAIN,
            snapshot(minute, series, underlying_class="index" if series == proxy else "future"),
        )
    assert asof(lake, 6) == [(proxy, 5, 3), (A, 0, 3)]
    assert asof(lake, 11) == asof(lake, 14) == [(A, 10, 3)]
    assert asof(lake, 11, ", newest_per_contract := true") == [(A, 10, 3)]
    assert asof(lake, 16) == [(proxy, 15, 3), (A, 10, 3)]


def test_an_expired_series_is_not_in_the_chain(lake: Lake) -> None:
    append(lake, OPTION_CHAIN, snapshot(0, "Q1B-2025-07-01"))  # expires at 20:00, eight hours on
    assert asof(lake, 8 * 60 - 1) == [("Q1B-2025-07-01", 0, 3)]
    assert asof(lake, 8 * 60) == []


def test_a_weekend_shows_the_trade_date_before_it(lake: Lake) -> None:
    week = 7 * 24 * 60
    append(lake, OPTION_CHAIN, snapshot(0, A))
    append(lake, OPTION_CHAIN, snapshot(0, B))
    append(
        lake, OPTION_CHAIN, snapshot(11 * 60, B, day=DAY + timedelta(days=1))
    )  # the next session's evening
    assert asof(lake, 10 * 60) == [(A, 0, 3), (B, 0, 3)]
    assert asof(lake, 12 * 60) == [(B, 11 * 60, 3)]
    assert asof(lake, 3 * 24 * 60) == [(B, 11 * 60, 3)]
    assert asof(lake, week + 24 * 60 + 1, ", lookback := INTERVAL 3 DAYS") == []


def test_the_chain_as_of_a_moment_opens_only_its_days_files(lake: Lake) -> None:
    for i in range(30):
        append(lake, OPTION_CHAIN, snapshot(i * 24 * 60, B, day=DAY + timedelta(days=i)))
    with catalog.connect(lake) as connection:
        sql = "EXPLAIN FROM option_chain_asof('2025-07-01 12:30:00+00')"
        plan = connection.execute(sql).fetchall()[0][1]
    assert plan.count("Scanning Files: 5/30") == 2


def test_the_history_of_a_contract_is_in_order_of_time(opened: duckdb.DuckDBPyConnection) -> None:
    sql = "SELECT bid FROM chain_history('Q1B-2025-07-08-C-21010')"
    assert opened.execute(sql).fetchall() == [(10.0,), (15.0,)]
    assert opened.execute("FROM chain_history('no such contract')").fetchall() == []


def test_an_option_trade_has_its_futures_last_earlier_trade(
    opened: duckdb.DuckDBPyConnection,
) -> None:
    rows = opened.execute(
        "SELECT price, aggressor, underlying, underlying_price, in_the_money, "
        "(underlying_ts_ns - $1) / 1e9 FROM trades_enriched ORDER BY ts_event_ns, contract_key",
        [NOON],
    ).fetchall()
    assert rows == [
        (50.0, "buy", "NQU5", None, None, None),
        (51.0, "sell", "NQU5", 21_010.0, True, 2.0),
        (60.0, None, "NQU5", 20_990.0, True, 4.0),
        (55.0, "buy", "NQU5", 20_990.0, False, 4.0),
    ]
    moneyness = opened.execute(
        "SELECT max(moneyness) FROM trades_enriched WHERE option_type = 'P'"
    ).fetchone()
    assert moneyness == (21_000.0 / 20_990.0,)


def test_the_days_definitions_name_an_options_future(lake: Lake) -> None:
    option = trade(3, "Q1BN5 C21000", 50.0, **CALL, underlying="NQU5")
    futures = [trade(1, "NQU5", 21_010.0), trade(2, "NQZ5", 21_200.0)]
    append(lake, TRADES, pl.DataFrame([option, *futures], infer_schema_length=None))

    def underlying() -> list[tuple[str, float]]:
        with catalog.connect(lake) as connection:
            return connection.sql("SELECT underlying, underlying_price FROM trades_enriched").fetchall()

    assert underlying() == [("NQU5", 21_010.0)]
    stated = snapshot(0, table=SOURCE_CHAIN, source="databento", underlying="NQZ5")
    append(lake, SOURCE_CHAIN, stated)
    assert underlying() == [("NQZ5", 21_200.0)]


def test_bars_hold_every_trade_once(opened: duckdb.DuckDBPyConnection) -> None:
    rows = opened.execute(
        "SELECT epoch(bar_start) - $1, open, high, low, close, volume, buy_volume, sell_volume, trades, vwap "
        "FROM bars(INTERVAL 5 MINUTES) WHERE raw_symbol = 'Q1BN5 C21000' ORDER BY bar_start",
        [NOON // NS_PER_S],
    ).fetchall()
    assert rows == [
        (0, 50.0, 51.0, 50.0, 51.0, 4, 1, 3, 2, 50.75),
        (300, 55.0, 55.0, 55.0, 55.0, 1, 1, 0, 1, 55.0),
    ]
    for width in ("1 second", "1 minute", "1 hour", "1 day"):
        whole = opened.execute(f"SELECT sum(volume), sum(trades) FROM bars(INTERVAL {width})").fetchone()
        assert whole == (10, 7)


def test_vendors_are_compared_on_their_newest_snapshots(opened: duckdb.DuckDBPyConnection) -> None:
    rows = opened.execute(
        "SELECT source, other_source, bid, other_bid, mid_gap, quotes_overlap, count(*) "
        "FROM source_agreement GROUP BY ALL"
    ).fetchall()
    assert rows == [("barchart", "databento", 15.0, 15.5, 0.5, True, 3)]


def test_settlements_of_two_trade_dates_are_not_compared(lake: Lake) -> None:
    days = [DAY, DAY - timedelta(days=1), None]
    settled: dict[str, Any] = {"is_settlement": True, "table": SOURCE_CHAIN}
    append(lake, SOURCE_CHAIN, snapshot(0, settlement=10.0, settlement_date=DAY, **settled))
    other = snapshot(0, source="databento", settlement=11.0, **settled)
    append(lake, SOURCE_CHAIN, other.with_columns(settlement_date=pl.Series(days, dtype=pl.Date)))
    with catalog.connect(lake) as connection:
        gaps = connection.sql("SELECT settlement_gap FROM source_agreement ORDER BY contract_key").fetchall()
    assert gaps == [(1.0,), (None,), (None,)]


def test_every_contract_is_listed_once(opened: duckdb.DuckDBPyConnection) -> None:
    rows = opened.execute(
        "SELECT contract_key, multiplier, underlying, last_seen - first_seen, sources "
        "FROM contracts ORDER BY contract_key"
    ).fetchall()
    listed = (20.0, "NQU5", timedelta(minutes=5), ["barchart", "databento"])
    assert rows == [(f"{A}-C-{strike}", *listed) for strike in (21_000, 21_010, 21_020)]


def test_every_root_belongs_to_its_product(lake: Lake) -> None:
    of = {"Q1B": "NQ", "EW": "ES", "OG1": "GC", "NDXP": "NDX", "ZZ": "ZZ"}
    series = {root: f"{root}-2025-07-08" for root in of}
    for at, (root, name) in enumerate(series.items()):
        append(lake, OPTION_CHAIN, snapshot(at, name, root=root))
        append(lake, SOURCE_CHAIN, snapshot(at, name, table=SOURCE_CHAIN, root=root))
        won = decision(decided_at=NOON + at, snapshot=NOON + at * MINUTE, series=name)
        append(lake, DECISIONS, pl.DataFrame([won]))
    with catalog.connect(lake) as connection:
        for view in ("option_chain_latest", CALLS["option_chain_asof"], "option_chain_priced", "contracts"):
            rows = connection.sql(f"SELECT DISTINCT root, product FROM {view}").fetchall()
            assert dict(rows) == of, view
        es = connection.sql("SELECT count(*) FROM option_chain_latest WHERE product = 'ES'").fetchall()
    assert es == [(3,)]
    latest = nq_pipeline.chain(settings=build_settings(data_dir=lake.root.parent.parent))
    assert dict(latest.select("root", "product").unique().iter_rows()) == of


def test_the_chain_for_openbb_is_the_latest(opened: duckdb.DuckDBPyConnection) -> None:
    rows = opened.execute(
        "SELECT underlying_symbol, contract_symbol, eod_date, expiration, dte, strike, option_type, "
        "contract_size, bid, ask, mark FROM openbb_chain ORDER BY strike LIMIT 1"
    ).fetchall()
    contract = (f"{A}-C-21000", DAY, date(2025, 7, 8), 7, 21_000.0, "call", 20.0)
    assert rows == [("NQU5", *contract, 15.0, 16.0, 15.5)]
    assert opened.execute("SELECT count(*) FROM openbb_chain").fetchone() == (3,)


def test_a_settlement_of_before_is_no_close_of_this_trade_date(lake: Lake) -> None:
    days = pl.Series([DAY, DAY - timedelta(days=1), None], dtype=pl.Date)
    append(lake, OPTION_CHAIN, snapshot(0, settlement=10.0).with_columns(settlement_date=days))
    append(lake, DECISIONS, pl.DataFrame([decision(decided_at=NOON, snapshot=NOON, series=A)]))
    with catalog.connect(lake) as connection:
        closes = connection.sql("SELECT close, prev_close FROM openbb_chain ORDER BY strike").fetchall()
    assert closes == [(10.0, None), (None, 10.0), (None, None)]


def test_the_chain_for_optopsy_has_one_complete_quote_a_day(opened: duckdb.DuckDBPyConnection) -> None:
    rows = opened.execute("SELECT * FROM optopsy_chain ORDER BY strike LIMIT 1").fetchall()
    quote = ("NQU5", "c", date(2025, 7, 8), DAY, 21_000.0, 15.0, 16.0, 0.5, 21_010.0)
    assert [row[:9] for row in rows] == [quote]
    assert opened.execute("SELECT count(*) FROM optopsy_chain").fetchone() == (3,)


def test_the_chain_in_python_has_table_types_and_exact_instants(lake: Lake) -> None:
    exact = snapshot(0).with_columns(snapshot_ts=pl.lit(NOON + 1).cast(INSTANT))
    append(lake, OPTION_CHAIN, exact)
    append(lake, OPTION_CHAIN, snapshot(5, bid=11.0))
    append(lake, DECISIONS, pl.DataFrame([decision(decided_at=NOON, snapshot=NOON + 5 * MINUTE, series=A)]))
    settings = build_settings(data_dir=lake.root.parent.parent)
    before = nq_pipeline.chain(datetime(2025, 7, 1, 12, 4, tzinfo=UTC), settings=settings)
    assert before.schema == {**OPTION_CHAIN.schema, "product": pl.String}
    assert_frame_equal(before.drop("product"), conform(OPTION_CHAIN, exact))
    latest = nq_pipeline.chain(settings=settings)
    assert latest["bid"].to_list() == [11.0, 11.0, 11.0]
    assert nq_pipeline.chain(datetime(2020, 1, 1, tzinfo=UTC), settings=settings).is_empty()


def test_a_moment_without_a_time_zone_is_refused(lake: Lake) -> None:
    settings = build_settings(data_dir=lake.root.parent.parent)
    lake.root.mkdir(parents=True, exist_ok=True)
    with pytest.raises(LakeError, match="has no time zone"):
        nq_pipeline.chain(datetime(2025, 7, 1, 12), settings=settings)
    with pytest.raises(LakeError, match="needs as_of"):
        nq_pipeline.chain(newest_per_contract=True, settings=settings)


REPOSITORY = Path(__file__).parents[2]
COOKBOOK = re.findall(r"^```sql\n(.*?)^```", (REPOSITORY / "docs" / "querying.md").read_text(), re.M | re.S)
TRADED = [
    query for query in COOKBOOK if re.search("from (trades_enriched|pressure|bars|optopsy_chain)", query)
]


@pytest.mark.parametrize("query", TRADED, ids=range(len(TRADED)))
def test_the_cookbooks_queries_on_trades_find_them(filled: Lake, query: str) -> None:
    with catalog.connect(filled, guarded=True) as connection:
        assert catalog.query(connection, query).fetchall()
