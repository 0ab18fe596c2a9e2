"""The rows of a priced chain: their keys, which of them belong together, and the forward of each series."""

from __future__ import annotations

import polars as pl

from nq_pipeline.market.contracts import PRODUCT_OF

SNAPSHOT = ("source", "environment", "snapshot_ts", "trade_date", "underlying_class")
SERIES = (*SNAPSHOT, "root", "series")
STRIKE = (*SERIES, "strike")
MARKET = (*SNAPSHOT, "product")

CALL = pl.col("option_type") == "C"
PRODUCT = pl.col("root").replace_strict(PRODUCT_OF, default=pl.col("root")).alias("product")
ONE_SERIES = ("source", "snapshot_ts", "series")
"""What tells one series of one snapshot from others; `SERIES` says more about it."""

CHAIN_COLUMNS = (
    *(*STRIKE, "contract_key"),
    *("expiration", "option_type", "multiplier", "open_interest", "volume", "underlying_price"),
)
"""The columns of `option_chain` that metrics use."""
_PRICING = ("valued_at", "price", "price_used", "forward", "years", "rate", "iv", "iv_uncertainty")


def priced_chain(chain: pl.DataFrame, pricing: pl.DataFrame) -> pl.DataFrame:
    """Join rows of `option_chain` with their `option_pricing`; `iv` is our volatility, not the vendor's.

    A contract that has expired by the time of the snapshot has no pricing here, even if an earlier
    settlement of it was priced.
    """
    key = ["source", "snapshot_ts", "contract_key"]
    # DuckDB returns instants in microseconds, the lake in nanoseconds.
    instant = pl.col("snapshot_ts").cast(pl.Datetime("ns", "UTC"))
    rows = chain.select(CHAIN_COLUMNS).with_columns(instant)
    computed = pricing.rename({"implied_volatility": "iv"}).select(*key, *_PRICING).with_columns(instant)
    joined = rows.join(computed, on=key, how="left", maintain_order="left")
    alive = pl.col("expiration") > pl.col("snapshot_ts")
    return joined.with_columns(pl.when(alive).then(pl.col(name)).alias(name) for name in _PRICING)


def of_one_moment(priced: pl.DataFrame) -> pl.DataFrame:
    """Rows valued at one moment: of a series with quotes the current ones, else its newest settlements.

    A strike without a quote may have the settlement of an earlier trade date, which belongs to another
    forward and a longer time to expiration.
    """
    settles = pl.col("price_used").eq_missing("settlement")
    about = priced.group_by(ONE_SERIES).agg(
        _quoted=(pl.col("price_used") == "mid").any(),
        _settled=settles.any(),
        _newest=pl.col("valued_at").filter(settles).max(),
    )
    current = settles & (pl.col("valued_at") == pl.col("_newest"))
    wanted = pl.when("_quoted").then(~settles).otherwise(current | ~pl.col("_settled"))
    rows = priced.join(about, on=ONE_SERIES, how="left", maintain_order="left").filter(wanted)
    return rows.drop("_quoted", "_settled", "_newest")


def series_forwards(current: pl.DataFrame) -> pl.DataFrame:
    """The expiration, years, forward and vendor's underlying price of every series.

    `current` are rows of one moment (`of_one_moment`).
    """
    return current.group_by(SERIES).agg(
        pl.col("expiration").first(),
        pl.col("years", "forward").median(),
        pl.col("underlying_price").drop_nulls().first(),
    )
