"""Aggressors by window, against trades counted by hand and one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.analytics.pressure import measure_pressure
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.tables import GAPS, INSTANT, TRADE_PRESSURE, TRADES, conform
from nq_pipeline.lake.views import VIEWS
from nq_pipeline.workspace import Workspace

OPEN = datetime(2025, 6, 30, 14, 0, tzinfo=UTC)
DAY = date(2025, 6, 30)
Trades = Sequence[tuple[float, str, int]]
"""Seconds after OPEN, side, size."""


def trades(rows: Trades, kind: str = "option") -> pl.DataFrame:
    """Trades of one call."""
    at = [OPEN + timedelta(seconds=seconds) for seconds, _, _ in rows]
    return pl.DataFrame(
        {
            "ts_event": pl.Series(at, dtype=pl.Datetime("us", "UTC")),
            "side": pl.Series([side for _, side, _ in rows], dtype=pl.String),
            "size": pl.Series([size for _, _, size in rows], dtype=pl.UInt32),
        }
    ).with_columns(
        ts_recv=pl.col("ts_event"),
        is_misdated=pl.lit(None, pl.Boolean),
        environment=pl.lit("sandbox"),
        trade_date=pl.lit(DAY),
        action=pl.lit("T"),
        instrument_kind=pl.lit(kind),
        root=pl.lit("Q1B"),
        series=pl.lit("Q1B-2025-07-01"),
        contract_key=pl.lit("Q1B-2025-07-01-C-21330"),
        option_type=pl.lit("C"),
        strike=pl.lit(21_330.0),
    )


@cache
def duck() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": 1})
    connection.register("gaps", GAPS.empty().cast({INSTANT: pl.Datetime("us", "UTC")}))
    connection.execute("CREATE MACRO product_of(root) AS root")
    return connection


def pressure(*captured: pl.DataFrame, ended_at: Iterable[datetime] = ()) -> pl.DataFrame:
    """The view over these trades and nothing else."""
    (sql,) = [view.sql for view in VIEWS if view.name == "pressure"]
    duck().register("trades", pl.concat(captured))
    ends = pl.DataFrame({"ended_at": list(ended_at)}, schema={"ended_at": pl.Datetime("us", "UTC")})
    duck().register("sessions", ends.with_columns(trade_date=pl.lit(DAY)))
    duck().execute(sql.replace("CREATE VIEW", "CREATE OR REPLACE VIEW"))
    rows: pl.DataFrame = duck().sql("FROM pressure ORDER BY window_start").pl()
    return rows


def test_window_has_volume_by_aggressor() -> None:
    rows = pressure(trades([(0, "B", 6), (10, "A", 2), (299.9, "N", 40), (300, "A", 3)]))
    first, second = rows.to_dicts()
    assert (first["window_start"], second["window_start"]) == (OPEN, OPEN + timedelta(minutes=5))
    assert (first["buy_volume"], first["sell_volume"], first["undefined_volume"]) == (6, 2, 40)
    assert (first["trades"], first["average_size"]) == (3, 16.0)
    assert (first["buy_sell_ratio"], first["imbalance"], first["dominant_side"]) == (3.0, 0.5, "B")
    assert (second["buy_sell_ratio"], second["imbalance"], second["dominant_side"]) == (0.0, -1.0, "A")


def test_unknown_aggressors_give_no_side_and_no_ratio() -> None:
    row = pressure(trades([(0, "N", 5)])).row(0, named=True)
    assert (row["buy_sell_ratio"], row["imbalance"], row["dominant_side"]) == (None, None, None)


def test_window_is_whole_once_the_capture_went_past_it() -> None:
    made, future = trades([(0, "B", 1), (301, "B", 1)]), trades([(600, "B", 1)], kind="future")
    assert pressure(made)["is_whole"].to_list() == [True, False]
    assert pressure(made, future)["is_whole"].to_list() == [True, True]
    early, late = (OPEN + timedelta(seconds=seconds) for seconds in (599, 600))
    assert pressure(made, ended_at=[early])["is_whole"].to_list() == [True, False]
    assert pressure(made, ended_at=[early, late])["is_whole"].to_list() == [True, True]


def test_futures_and_spreads_are_not_counted() -> None:
    assert pressure(trades([(0, "B", 1)], kind="spread"), trades([(0, "B", 1)], kind="future")).is_empty()


@given(st.lists(st.tuples(st.integers(0, 1_799), st.sampled_from("BAN"), st.integers(1, 2**31)), max_size=30))
def test_every_trade_is_in_one_window_on_one_side(made: list[tuple[int, str, int]]) -> None:
    rows = pressure(trades(made))
    for name, side in (("buy_volume", "B"), ("sell_volume", "A"), ("undefined_volume", "N")):
        assert rows[name].sum() == sum(size for _, at, size in made if at == side)
    assert rows["trades"].sum() == len(made)
    assert rows["average_size"].to_list() == pytest.approx(
        ((rows["buy_volume"] + rows["sell_volume"] + rows["undefined_volume"]) / rows["trades"]).to_list()
    )


def test_only_windows_that_are_over_are_written(tmp_path: Path) -> None:
    settings = build_settings(data_dir=tmp_path)
    lake = Workspace.of(settings).lake
    made = trades([(0, "B", 1), (300, "B", 1)]).with_columns(
        pl.col("ts_event").alias("ts_recv"), pl.int_range(pl.len()).alias("sequence")
    )
    numbers = ("publisher_id", "instrument_id", "ordinal", "flags", "ts_in_delta", "log_session", "price")
    texts = {"raw_symbol": "Q1BN5 C21330", "source_schema": "trades", "run_id": "run"}
    rest: dict[str, object] = {**dict.fromkeys(numbers, 0), **texts}
    given = made.with_columns(**{name: pl.lit(value) for name, value in rest.items()})
    lake.append(TRADES, conform(TRADES, given), run_id="run")
    for seconds, windows in ((299, 0), (599, 1), (600, 2)):
        until = OPEN + timedelta(seconds=seconds)
        assert measure_pressure(settings, DAY, until=until, run_id="run").height == windows
        assert lake.scan(TRADE_PRESSURE).collect().height == windows
