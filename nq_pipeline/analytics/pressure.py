"""Who was the aggressor: trades of options in windows of five minutes, per contract."""

from __future__ import annotations

from datetime import date, datetime

import polars as pl

from nq_pipeline.lake.lake import Lake
from nq_pipeline.lake.schemas import TRADE_PRESSURE, TRADES, conform
from nq_pipeline.settings import Settings

WINDOW = "5m"
CONTRACT = ("root", "series", "contract_key", "option_type", "strike")
_READ = ("environment", "trade_date", "ts_event", "instrument_kind", "action", "side", "size", *CONTRACT)


def measure_pressure(settings: Settings, trade_date: date, *, until: datetime, run_id: str) -> pl.DataFrame:
    """Compute the pressure of a trade date's trades and append what is new of it to the lake.

    A window is written when it is over, and once more, with more trades, when a gap that touched
    it was filled. Publish the catalog afterwards, so that its views show the rows.

    Parameters
    ----------
    until
        UTC, by the capture's clock.

    Returns
    -------
    The rows of `trade_pressure` as they are now, one per window and contract.
    """
    lake = Lake(settings.environment_dir / "lake")
    trades = lake.scan(TRADES, [trade_date]).select(_READ).collect()
    rows = conform(TRADE_PRESSURE, trade_pressure(trades, until=until).with_columns(run_id=pl.lit(run_id)))
    lake.append(TRADE_PRESSURE, rows, run_id=run_id)
    return rows


def trade_pressure(trades: pl.DataFrame, *, until: datetime) -> pl.DataFrame:
    """Volume by aggressor of every contract and window that had a trade.

    Trades without an aggressor (side N) are counted in `undefined_volume` and never given to a side.

    Parameters
    ----------
    trades
        Rows of the lake's `trades`; of futures and spreads none is counted.
    until
        UTC. Windows that end later are left out, since they may still grow.

    Returns
    -------
    Rows of `trade_pressure` without `run_id`.
    """
    windowed = trades.filter(
        pl.col("instrument_kind") == "option", pl.col("action") == "T", pl.col("contract_key").is_not_null()
    ).with_columns(pl.col("size").cast(pl.Int64), window_start=pl.col("ts_event").dt.truncate(WINDOW))
    windows = (
        windowed.filter(pl.col("window_start").dt.offset_by(WINDOW) <= pl.lit(until))
        .group_by("environment", "trade_date", "window_start", *CONTRACT)
        .agg(
            buy_volume=_volume("B"),
            sell_volume=_volume("A"),
            undefined_volume=_volume("N"),
            trades=pl.len().cast(pl.Int64),
            average_size=pl.col("size").mean(),
        )
    )
    buy, sell = pl.col("buy_volume"), pl.col("sell_volume")
    return windows.with_columns(
        buy_sell_ratio=pl.when(sell > 0).then(buy / sell),
        imbalance=pl.when(buy + sell > 0).then((buy - sell) / (buy + sell)),
        dominant_side=pl.when(buy > sell).then(pl.lit("B")).when(sell > buy).then(pl.lit("A")),
    ).sort("window_start", "contract_key")


def _volume(side: str) -> pl.Expr:
    return pl.col("size").filter(pl.col("side") == side).sum()
