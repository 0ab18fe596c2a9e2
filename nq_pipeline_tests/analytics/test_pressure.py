"""Aggressors by window, against trades counted by hand and one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nq_pipeline.analytics.pressure import trade_pressure
from nq_pipeline.lake.schemas import INSTANT, TRADE_PRESSURE, conform

OPEN = datetime(2025, 6, 30, 14, 0, tzinfo=UTC)
HOUR = OPEN + timedelta(hours=1)


def trades(rows: Sequence[tuple[float, str, int]], kind: str = "option") -> pl.DataFrame:
    """Trades of one call, of (seconds after OPEN, side, size)."""
    at = [OPEN + timedelta(seconds=seconds) for seconds, _, _ in rows]
    return pl.DataFrame(
        {
            "ts_event": pl.Series(at, dtype=pl.Datetime("us", "UTC")).cast(INSTANT),
            "side": pl.Series([side for _, side, _ in rows], dtype=pl.String),
            "size": pl.Series([size for _, _, size in rows], dtype=pl.UInt32),
        }
    ).with_columns(
        environment=pl.lit("sandbox"),
        trade_date=pl.lit(date(2025, 6, 30)),
        action=pl.lit("T"),
        instrument_kind=pl.lit(kind),
        root=pl.lit("Q1B"),
        series=pl.lit("Q1B-2025-07-01"),
        contract_key=pl.lit("Q1B-2025-07-01-C-21330"),
        option_type=pl.lit("C"),
        strike=pl.lit(21_330.0),
    )


def test_a_window_has_its_volumes_by_aggressor_and_the_unknown_apart() -> None:
    rows = trade_pressure(trades([(0, "B", 6), (10, "A", 2), (299.9, "N", 40), (300, "A", 3)]), until=HOUR)
    first, second = rows.to_dicts()
    assert (first["window_start"], second["window_start"]) == (OPEN, OPEN + timedelta(minutes=5))
    assert (first["buy_volume"], first["sell_volume"], first["undefined_volume"]) == (6, 2, 40)
    assert (first["trades"], first["average_size"]) == (3, 16.0)
    assert (first["buy_sell_ratio"], first["imbalance"], first["dominant_side"]) == (3.0, 0.5, "B")
    assert (second["buy_sell_ratio"], second["imbalance"], second["dominant_side"]) == (0.0, -1.0, "A")


def test_without_known_aggressors_there_is_no_side_and_no_ratio() -> None:
    row = trade_pressure(trades([(0, "N", 5)]), until=HOUR).row(0, named=True)
    assert (row["buy_sell_ratio"], row["imbalance"], row["dominant_side"]) == (None, None, None)


def test_a_window_that_may_still_grow_is_left_out() -> None:
    made = trades([(0, "B", 1), (300, "B", 1)])
    assert trade_pressure(made, until=OPEN + timedelta(minutes=10)).height == 2
    assert trade_pressure(made, until=OPEN + timedelta(minutes=9, seconds=59)).height == 1


def test_futures_and_spreads_are_not_counted() -> None:
    assert trade_pressure(trades([(0, "B", 1)], kind="spread"), until=HOUR).is_empty()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1_799), st.sampled_from("BAN"), st.integers(1, 2**31)), max_size=30))
def test_every_contract_traded_is_in_one_window_on_one_side(made: list[tuple[int, str, int]]) -> None:
    rows = conform(
        TRADE_PRESSURE, trade_pressure(trades(made), until=HOUR).with_columns(run_id=pl.lit("run"))
    )
    for name, side in (("buy_volume", "B"), ("sell_volume", "A"), ("undefined_volume", "N")):
        assert rows[name].sum() == sum(size for _, at, size in made if at == side)
    assert rows["trades"].sum() == len(made)
    assert rows["average_size"].to_list() == pytest.approx(
        ((rows["buy_volume"] + rows["sell_volume"] + rows["undefined_volume"]) / rows["trades"]).to_list()
    )
