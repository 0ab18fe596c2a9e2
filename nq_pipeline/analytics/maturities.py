"""Volatility at constant maturities, between the expirations around each."""

from __future__ import annotations

import polars as pl

from nq_pipeline.analytics.priced import MARKET, PRODUCT
from nq_pipeline.market.black76 import DAYS_PER_YEAR

MATURITIES = (7, 14, 30, 60, 90)
"""Calendar days."""
_DAY = 86_400
"""Seconds."""
_LEVELS = ("atm_iv", "iv_25_call", "iv_25_put")


def constant_maturity(series: pl.DataFrame) -> pl.DataFrame:
    """Rows of `constant_maturity` from those of `series_metrics`: one per source, snapshot, product and days.

    Total variance σ²t is linear in time between the nearest expirations with an ATM volatility, one at or
    before the maturity and one at or after it; without both the values are null. The 25-delta volatilities
    are interpolated in the same way. The forward is linear in its logarithm.
    """
    # Whole seconds, because two computations of the same number of years may differ by rounding.
    seconds = (pl.col("years") * DAYS_PER_YEAR * _DAY).round().cast(pl.Int64)
    known = (
        series.filter(pl.col("atm_iv").is_not_null(), pl.col("years") > 0)
        .sort("expiration", "series")
        .select(*MARKET[:-1], PRODUCT, "years", "forward", *_LEVELS, seconds=seconds)
        .unique([*MARKET, "seconds"], keep="first", maintain_order=True)
        .sort("seconds")
    )
    markets = series.select(*MARKET[:-1], PRODUCT).unique(maintain_order=True)
    at = markets.join(pl.DataFrame({"days": MATURITIES}), how="cross").with_columns(
        at=pl.col("days") / DAYS_PER_YEAR, seconds=pl.col("days").cast(pl.Int64) * _DAY
    )
    columns = ("years", "forward", *_LEVELS)
    near, far = (known.rename({name: f"{side}_{name}" for name in columns}) for side in ("near", "far"))
    around = (
        at.sort("seconds")
        .join_asof(near, on="seconds", by=MARKET, strategy="backward", check_sortedness=False)
        .join_asof(far, on="seconds", by=MARKET, strategy="forward", check_sortedness=False)
    )
    values = {name: _interpolated(name) for name in _LEVELS}
    found = around.with_columns(weight=_weight()).with_columns(**values, forward=_forward())
    call, put = pl.col("iv_25_call"), pl.col("iv_25_put")
    return found.select(
        *MARKET,
        pl.col("days").cast(pl.Int64),
        "atm_iv",
        "forward",
        risk_reversal_25=call - put,
        butterfly_25=(call + put) / 2 - pl.col("atm_iv"),
    ).sort(*MARKET, "days")


def term_slope(fixed: pl.DataFrame) -> pl.DataFrame:
    """`term_slope` of every market, from rows of `constant_maturity`: ATM volatility at 30 less at 7 days."""
    at = {days: pl.col("atm_iv").filter(pl.col("days") == days).first() for days in (30, 7)}
    return fixed.group_by(MARKET).agg(term_slope=at[30] - at[7])


def _weight() -> pl.Expr:
    """The far expiration's weight; 0 where both are the same."""
    apart = pl.col("far_years") - pl.col("near_years")
    return pl.when(apart > 0).then((pl.col("at") - pl.col("near_years")) / apart).otherwise(apart)


def _interpolated(name: str) -> pl.Expr:
    near, far = (pl.col(f"{side}_{name}") ** 2 * pl.col(f"{side}_years") for side in ("near", "far"))
    return ((near + pl.col("weight") * (far - near)) / pl.col("at")).sqrt()


def _forward() -> pl.Expr:
    near, far = (pl.col(f"{side}_forward").log() for side in ("near", "far"))
    return (near + pl.col("weight") * (far - near)).exp()
