"""Barchart's quotes in the terms of the chain schema.

What the site's values mean was seen in recorded answers and holds there for every row:

- A price with an `s` is a settlement, one without is the last trade. The site forgets the `s` on the
  first call of every series: there `last` is as sent, but has no time.
- `tradeTime` is the time of a trade only where the row has a volume, or an opening price and a price
  without `s`; then it is `last_ts`. A settled row that traded has its session's date, at midnight UTC.
- The date of a settlement is that of the session `tradeTime` lies in. For a quiet row that may be the time
  of its last quote, so its settlement may be of an earlier session.
- `volume` is of the session `tradeTime` lies in, and null unless that is the requested session.
- Open, high, low and change are as sent, of the session of `tradeTime`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta

import polars as pl

from nq_pipeline.clock import from_ns
from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.listing import underlying_future
from nq_pipeline.market.settlements import newest_published
from nq_pipeline.market.symbology import contract_keys, globex_code, globex_symbols
from nq_pipeline.sources.base import ChainRequest, chain_frame
from nq_pipeline.sources.rows import request_columns, series_columns
from nq_pipeline.transport.vendor_session import Reply

SOURCE = "barchart"
FuturePrices = Mapping[str, tuple[float, int]]
"""Last price and its time (ns UTC) by the future's symbol with two digits of the year, `NQM25`."""


def chain_columns(table: pl.DataFrame, series: Series, trade_date: date) -> tuple[pl.DataFrame, date | None]:
    """The columns of `SOURCE_CHAIN` that an answer has, and the newest trade date among its times."""
    session = pl.Series("session", sessions.trade_dates(table["time"].fill_null(0).to_numpy()))
    price, volume = pl.col("lastPrice"), pl.col("volume")
    settled = price.is_not_null() & pl.col("settled")
    traded = volume.is_not_null() | (price.is_not_null() & ~settled & pl.col("openPrice").is_not_null())
    strike, side = pl.col("of_strike"), pl.col("of_option_type")
    marked = table.lazy().with_columns(session, is_settlement=settled.fill_null(False))
    rows = marked.select(
        "is_settlement",
        raw_symbol=globex_symbols(pl.lit(globex_code(series)), side, strike),
        vendor_symbol="symbol",
        contract_key=contract_keys(pl.lit(series.key), side, strike),
        strike=strike,
        option_type=side,
        bid="bidPrice",
        ask="askPrice",
        last=pl.when(~pl.col("is_settlement")).then(price),
        settlement=pl.when(pl.col("is_settlement")).then(price),
        settlement_date=pl.when(pl.col("is_settlement")).then("session"),
        last_ts=pl.when(traded).then(pl.col("time")).cast(INSTANT),
        open="openPrice",
        high="highPrice",
        low="lowPrice",
        change="priceChange",
        volume=pl.when(pl.col("session") == trade_date).then(volume),
        open_interest="openInterest",
    ).collect()
    newest = session.max()
    return rows, newest if isinstance(newest, date) else None


def chain_rows(
    rows: pl.DataFrame,
    series: Series,
    reply: Reply,
    request: ChainRequest,
    futures: FuturePrices,
    delay: timedelta,
) -> pl.DataFrame:
    """Rows of `SOURCE_CHAIN` from one series' columns; `delay` is how far the site's quotes lag."""
    published = newest_published(from_ns(reply.snapshot_ts), series.root_info.product)
    price, _ = futures.get(underlying_future(series, 2), (None, None))
    snapshot_ts = pl.lit(reply.snapshot_ts).cast(INSTANT)
    return chain_frame(
        rows.with_columns(
            **request_columns(SOURCE, request),
            **{name: pl.lit(value) for name, value in series_columns(series).items()},
            snapshot_ts=snapshot_ts,
            as_of=snapshot_ts - delay,
            underlying_class=pl.lit("future"),
            underlying=pl.lit(underlying_future(series)),
            underlying_price=pl.lit(price, pl.Float64),
            # The row's time may be that of a quote; no settlement is of a day that has none yet.
            settlement_date=pl.col("settlement_date").clip(upper_bound=pl.lit(published)),
            request_id=pl.lit(reply.request_id),
            raw_sha256=pl.lit(reply.sha256),
        )
    )
