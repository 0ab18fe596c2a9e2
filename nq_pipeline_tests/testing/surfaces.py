"""Chains with a surface: of the synthetic market, whose volatility is known, and recorded boards."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl

from nq_pipeline.analytics.metrics import priced_chain
from nq_pipeline.analytics.surface import surface_quotes
from nq_pipeline.market import american, black76
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.pricing import price_chain
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.surface import VolatilitySurface
from nq_pipeline.market.symbology import parse_barchart_code
from nq_pipeline.sandbox.synthetic.market import RATE, Market
from nq_pipeline.sources.barchart.parse import parse_chain
from nq_pipeline.sources.rows import series_columns

NOW = datetime(2025, 6, 10, 15, tzinfo=UTC)
BOARDS = {
    "chain_MC2M25_20250610T1449Z.json": ("MC2M5", datetime(2025, 6, 10, 14, 49, tzinfo=UTC)),
    "chain_MC4M25_20250612T1418Z.json": ("MC4M5", datetime(2025, 6, 12, 14, 18, tzinfo=UTC)),
    "chain_MC6N5_20250625.json": ("MC6N5", datetime(2025, 6, 25, 19, 22, tzinfo=UTC)),
    "chain_MC7M25_20250609T0532Z_expiry_eve.json": ("MC7M5", datetime(2025, 6, 9, 5, 32, tzinfo=UTC)),
    "chain_MQ4M25_20250627T0433Z.json": ("MQ4M5", datetime(2025, 6, 27, 4, 33, tzinfo=UTC)),
}
"""The recorded boards with quotes: the code of their rows, and when they were recorded."""


def market_chain(product: str = "NQ", now: datetime = NOW) -> pl.DataFrame:
    """The quoted contracts of the synthetic market; `implied_volatility` is the true one."""
    market = Market(7, PRODUCTS[product])
    futures = market.futures(now).select(underlying="symbol", underlying_price="last")
    quoted = market.chain(now).drop_nulls(["bid", "ask"])
    return _as_chain(quoted.join(futures, on="underlying", maintain_order="left"), now, now.date())


def recorded_chain(shared: Path, board: str) -> pl.DataFrame:
    """A recorded board of Barchart."""
    code, at = BOARDS[board]
    series = parse_barchart_code(code, on=at.date())
    assert isinstance(series, Series)
    body = (shared / "barchart" / board).read_bytes()
    rows = parse_chain(body, series, code, trade_date=at.date()).rows
    named = {name: pl.lit(value) for name, value in series_columns(series).items()}
    return _as_chain(rows.with_columns(**named, underlying_price=pl.lit(None, pl.Float64)), at, at.date())


def fit(chain: pl.DataFrame) -> VolatilitySurface:
    """The surface of a chain of one product."""
    return VolatilitySurface(surface_quotes(priced_chain(chain, price_chain(chain, rate=RATE))))


def inside_quotes(surface: VolatilitySurface, chain: pl.DataFrame) -> pl.DataFrame:
    """The fitted quotes with the chain's columns, and whether the model's price at the fitted volatility
    lies between bid and ask."""
    contract = ["series", "strike", "option_type"]
    rows = surface.quotes.join(
        chain.select(*contract, "bid", "ask", "exercise_style", true_volatility="implied_volatility"),
        on=contract,
    )
    given = [rows[name].to_numpy() for name in ("forward", "strike", "years", "fitted_volatility")]
    is_call = (rows["option_type"] == "C").to_numpy()
    european, early = (model.value(*given, is_call, RATE).price for model in (black76, american))
    price = pl.Series(np.where((rows["exercise_style"] == "american").to_numpy(), early, european))
    return rows.with_columns(is_inside=price.is_between(rows["bid"] - 1e-9, rows["ask"] + 1e-9))


def _as_chain(rows: pl.DataFrame, at: datetime, trade_date: date) -> pl.DataFrame:
    given = {
        "source": "barchart",
        "environment": "sandbox",
        "snapshot_ts": at,
        "as_of": at,
        "trade_date": trade_date,
        "underlying_class": "future",
        "multiplier": 20.0,
    }
    absent = {"is_settlement": False, "implied_volatility": None, "volume": None, "quote_ts": None}
    absent = {name: value for name, value in absent.items() if name not in rows.columns}
    return rows.with_columns(pl.lit(value).alias(name) for name, value in (given | absent).items())
