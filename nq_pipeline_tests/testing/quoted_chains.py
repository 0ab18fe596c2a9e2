"""Chains whose quotes lie around a known forward and a known volatility."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.lake.tables import OPTION_CHAIN
from nq_pipeline.market import american, black76
from nq_pipeline_tests.testing.lake_samples import chain

LAKE_NOON = to_ns(datetime(2025, 6, 30, 17, tzinfo=UTC))
LAKE_EXPIRATION = datetime(2025, 7, 1, 20, tzinfo=UTC)
LAKE_F, LAKE_RATE = 21_050.0, 0.03
GREEKS = ("implied_volatility", "delta", "gamma", "theta", "vega")

NOON = datetime(2025, 6, 10, 17, 0, tzinfo=UTC)
F, SIGMA = 21_000.0, 0.2
STRIKES = np.arange(19_000.0, 23_001.0, 100.0)


def lake_chain(snapshot: int = LAKE_NOON) -> pl.DataFrame:
    """A series quoted around one volatility, with a vendor's own numbers beside; one row has no quote."""
    calls = chain(OPTION_CHAIN, snapshot=snapshot, contracts=11)
    puts = calls.with_columns(
        option_type=pl.lit("P"), contract_key=pl.col("contract_key").str.replace("-C-", "-P-")
    )
    rows = pl.concat([calls, puts]).with_columns(
        as_of=pl.col("snapshot_ts"),
        expiration=pl.lit(LAKE_EXPIRATION).cast(pl.Datetime("ns", "UTC")),
        underlying_price=pl.lit(LAKE_F),
        **{name: pl.lit(9.0) for name in GREEKS},
    )
    years = (to_ns(LAKE_EXPIRATION) - snapshot) / (365 * 86_400 * NS_PER_S)
    is_call = (rows["option_type"] == "C").to_numpy()
    fair = black76.value(LAKE_F, rows["strike"].to_numpy(), years, SIGMA, is_call, LAKE_RATE).price
    silent = pl.col("contract_key") == "Q1B-2025-07-01-C-21000"
    return rows.with_columns(
        bid=pl.when(~silent).then(pl.Series(fair - 0.25)), ask=pl.when(~silent).then(pl.Series(fair + 0.25))
    )


def quoted_series(
    *,
    expiration: datetime = NOON + timedelta(days=30),
    rate: float = 0.04,
    half_width: float = 0.5,
    american_style: bool = False,
    strikes: Any = STRIKES,
    **columns: Any,
) -> pl.DataFrame:
    """The chain of one series whose quotes lie around one forward and one volatility."""
    k, call = np.tile(strikes, 2), np.repeat([True, False], len(strikes))
    years = (expiration - NOON).total_seconds() / (365 * 86_400)
    model = american if american_style else black76
    fair = model.value(F, k, years, SIGMA, call, rate).price
    frame = pl.DataFrame(
        {
            "strike": k,
            "option_type": np.where(call, "C", "P"),
            "bid": fair - half_width,
            "ask": fair + half_width,
            **dict.fromkeys(("quote_ts", "last", "last_ts")),
            "is_settlement": False,
            "settlement": None,
            "settlement_date": None,
        },
        schema_overrides={
            "last": pl.Float64,
            "settlement": pl.Float64,
            "settlement_date": pl.Date,
            **dict.fromkeys(("quote_ts", "last_ts"), pl.Datetime("ns", "UTC")),
        },
    )
    return frame.with_columns(
        source=pl.lit("barchart"),
        environment=pl.lit("sandbox"),
        snapshot_ts=pl.lit(NOON),
        as_of=pl.lit(NOON),
        trade_date=pl.lit(date(2025, 6, 10)),
        underlying_class=pl.lit("future"),
        underlying_price=pl.lit(F),
        root=pl.lit("QN2"),
        series=pl.lit("QN2-2025-07-10"),
        contract_key=pl.format("QN2-2025-07-10-{}-{}", "option_type", pl.col("strike").cast(pl.Int64)),
        expiration=pl.lit(expiration),
        exercise_style=pl.lit("american" if american_style else "european"),
    ).with_columns(**{name: pl.lit(value) for name, value in columns.items()})
