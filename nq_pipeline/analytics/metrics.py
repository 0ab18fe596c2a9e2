"""Metrics of a priced chain: smile, strike profile, metrics per series, gamma levels.

Every public function takes the chain joined with its pricing (`priced_chain`) and returns rows of one
table, without `run_id`. Sums never span sources or snapshots. A number that the vendor did not send is
null, not 0.

Gamma exposure assumes that dealers are long every open call and short every open put. No data here
confirms that. Formulas and their sources are in `docs/analytics.md`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from nq_pipeline.market import black76
from nq_pipeline.market.contracts import PRODUCT_OF

SNAPSHOT = ("source", "environment", "snapshot_ts", "trade_date", "underlying_class")
SERIES = (*SNAPSHOT, "root", "series")
STRIKE = (*SERIES, "strike")
MARKET = (*SNAPSHOT, "product")

GAMMA_RANGE = 0.10
"""The zero-gamma level is searched within this fraction of the forward, up and down."""
GAMMA_STEPS = 81
"""Levels at which the exposure is computed; two sign changes between neighbouring levels go unnoticed."""
BISECTIONS = 20
"""Bisections of a step; they give the level to a thousandth of a point."""

_CALL = pl.col("option_type") == "C"
_PRICING = ("valued_at", "price", "price_used", "forward", "years", "rate", "iv", "iv_uncertainty")


def priced_chain(chain: pl.DataFrame, pricing: pl.DataFrame) -> pl.DataFrame:
    """Join rows of `option_chain` with their `option_pricing`; `iv` is our volatility, not the vendor's."""
    key = ["source", "snapshot_ts", "contract_key"]
    # DuckDB returns instants in microseconds, the lake in nanoseconds.
    instant = pl.col("snapshot_ts").cast(pl.Datetime("ns", "UTC"))
    contract = ("expiration", "option_type", "multiplier", "open_interest", "volume")
    rows = chain.select(*STRIKE, "contract_key", *contract).with_columns(instant)
    computed = pricing.rename({"implied_volatility": "iv"}).select(*key, *_PRICING).with_columns(instant)
    return rows.join(computed, on=key, how="left", maintain_order="left")


def iv_smile(priced: pl.DataFrame) -> pl.DataFrame:
    """The volatility of each strike's out-of-the-money option: the put below the forward, else the call."""
    out = (
        pl.when(_CALL)
        .then(pl.col("strike") >= pl.col("forward"))
        .otherwise(pl.col("strike") < pl.col("forward"))
    )
    moneyness = (pl.col("strike") / pl.col("forward")).log()
    return (
        _of_one_moment(priced)
        .filter(out, pl.col("iv").is_not_null())
        .select(
            *STRIKE,
            "option_type",
            "forward",
            "years",
            log_moneyness=moneyness,
            deviations=moneyness / (pl.col("iv") * pl.col("years").sqrt()),
            implied_volatility="iv",
            iv_uncertainty="iv_uncertainty",
        )
    )


def strike_profile(priced: pl.DataFrame) -> pl.DataFrame:
    """Open interest, volume, payout at expiration and gamma exposure of every strike of a series."""
    rows = _with_exposure(priced)
    sides = {"call": _CALL, "put": ~_CALL}
    measures = ("open_interest", "volume", "gex_per_point", "gex_per_pct")
    profile = rows.group_by(STRIKE).agg(
        pl.col("multiplier").first(),
        *(
            pl.col(m).filter(is_side).first().alias(f"{side}_{m}")
            for side, is_side in sides.items()
            for m in measures
        ),
    )
    return (
        profile.sort(STRIKE)
        .with_columns(
            payout=_payout() * pl.col("multiplier"),
            gex_per_point=_sum("call_gex_per_point", "put_gex_per_point"),
            gex_per_pct=_sum("call_gex_per_pct", "put_gex_per_pct"),
        )
        .drop("multiplier")
    )


def series_metrics(priced: pl.DataFrame) -> pl.DataFrame:
    """One row per series: term structure, expected move, put/call ratios, max pain, gamma exposure."""
    by_strike = strike_profile(priced)
    is_open = (_or_zero("call_open_interest") + _or_zero("put_open_interest")).sum().over(SERIES) > 0
    pain = (
        by_strike.filter(is_open)
        .group_by(SERIES)
        .agg(max_pain=pl.col("strike").sort_by("payout", "strike").first())
    )
    exposure = by_strike.group_by(SERIES).agg(_total("gex_per_point"), _total("gex_per_pct"))
    metrics = priced.group_by(SERIES).agg(_totals())
    for part in (_forwards(priced), _at_the_money(priced), _straddles(priced), pain, exposure):
        metrics = metrics.join(part, on=SERIES, how="left")
    return metrics.with_columns(
        *_ratios(), expected_move_iv=pl.col("forward") * pl.col("atm_iv") * pl.col("years").sqrt()
    ).sort(SERIES)


def gamma_levels(priced: pl.DataFrame) -> pl.DataFrame:
    """One row per source, snapshot and product: all series together, and zero gamma."""
    product = pl.col("root").replace_strict(PRODUCT_OF, default=pl.col("root")).alias("product")
    rows = _with_exposure(priced).with_columns(product)
    nearest = rows.sort("expiration").group_by(MARKET).agg(pl.col("forward").drop_nulls().first())
    totals = (
        rows.group_by(MARKET)
        .agg(
            *_totals(),
            _total("gex_per_point"),
            _total("gex_per_pct"),
            pl.col("gex_per_point").count().alias("contracts"),
            open_interest_left_out=pl.col("open_interest").filter(pl.col("gex_per_point").is_null()).sum(),
        )
        .join(nearest, on=MARKET)
    )
    held = rows.filter(pl.col("gex_per_point").is_not_null(), pl.col("open_interest") > 0)
    parts = held.partition_by(MARKET, as_dict=True)
    shifts = [
        _zero_gamma_shift(parts[key]) if key in parts else None for key in totals.select(MARKET).iter_rows()
    ]
    return totals.with_columns(
        *_ratios(), zero_gamma=pl.col("forward") * pl.Series(shifts, dtype=pl.Float64)
    ).sort(MARKET)


def _of_one_moment(priced: pl.DataFrame) -> pl.DataFrame:
    """Rows valued at one moment: of a series with quotes the current ones, else its newest settlements.

    A strike without a quote may have the settlement of an earlier trade date, which belongs to another
    forward and a longer time to expiration.
    """
    settles = pl.col("price_used").eq_missing("settlement")
    quoted = (pl.col("price_used") == "mid").any().over(SERIES)
    newest = pl.when(settles).then("valued_at").max().over(SERIES)
    settled = settles & (pl.col("valued_at") == newest)
    return priced.filter(pl.when(quoted).then(~settles).otherwise(settled | ~settles.any().over(SERIES)))


def _forwards(priced: pl.DataFrame) -> pl.DataFrame:
    """The expiration, years to expiration and forward of every series."""
    of = _of_one_moment(priced).group_by(SERIES)
    return of.agg(pl.col("expiration").first(), pl.col("years", "forward").median())


def _with_exposure(priced: pl.DataFrame) -> pl.DataFrame:
    """Add gamma exposure: dollars of futures that dealers trade per point, and per 1 %, to stay hedged.

    Where it is positive, dealers sell as the market rises. `forward` and `years` become those of the
    series, so that a row priced by an earlier settlement keeps its volatility but uses the current forward.
    """
    rows = priced.drop("forward", "years").join(
        _forwards(priced).select(*SERIES, "forward", "years"), on=SERIES, how="left", maintain_order="left"
    )
    per_point = pl.Series("gex_per_point", _exposures(rows, 1.0)).fill_nan(None)
    return rows.with_columns(per_point).with_columns(
        gex_per_pct=pl.col("gex_per_point") * pl.col("forward") / 100
    )


def _exposures(rows: pl.DataFrame, shift: float) -> npt.NDArray[np.float64]:
    """Every contract's exposure per point with all forwards multiplied by `shift`; NaN where unknown.

    Contracts keep their volatility (sticky strike). Gamma, per point, is Black-76's for American options
    too, so that totals and the zero-gamma level come from one curve.
    """
    forward, strike, years, iv, rate, multiplier, held = (
        rows[name].cast(pl.Float64).to_numpy()
        for name in ("forward", "strike", "years", "iv", "rate", "multiplier", "open_interest")
    )
    is_call = (rows["option_type"] == "C").to_numpy()
    at = forward * shift
    gamma = black76.value(at, strike, years, iv, is_call, rate).gamma
    exposures: npt.NDArray[np.float64] = np.where(is_call, 1.0, -1.0) * held * multiplier * at * gamma
    return exposures


def _zero_gamma_shift(rows: pl.DataFrame) -> float | None:
    """The `shift` nearest 1 at which net exposure changes sign; None if there is none within the range."""

    def net(shift: float) -> float:
        return float(np.sum(_exposures(rows, shift)))

    grid = np.linspace(1 - GAMMA_RANGE, 1 + GAMMA_RANGE, GAMMA_STEPS)
    exposure = np.array([net(shift) for shift in grid])
    changes = np.flatnonzero(exposure[:-1] * exposure[1:] < 0)
    if not changes.size:
        return None
    nearest = changes[np.argmin(np.abs((grid[changes] + grid[changes + 1]) / 2 - 1))]
    low, high = float(grid[nearest]), float(grid[nearest + 1])
    rises = exposure[nearest] < 0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if (net(middle) < 0) == rises:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _payout() -> pl.Expr:
    """Points that all open options pay if the series settles at the row's strike; strikes must ascend."""
    strike, calls, puts = pl.col("strike"), _or_zero("call_open_interest"), _or_zero("put_open_interest")
    paid_to_calls = strike * calls.cum_sum() - (calls * strike).cum_sum()
    paid_to_puts = (puts * strike).cum_sum(reverse=True) - strike * puts.cum_sum(reverse=True)
    return (paid_to_calls + paid_to_puts).over(SERIES)


def _at_the_money(priced: pl.DataFrame) -> pl.DataFrame:
    """The volatility at the forward, interpolated linearly between the strikes around it."""
    below = pl.col("strike") <= pl.col("forward")
    near = (
        iv_smile(priced)
        .sort("strike")
        .group_by(SERIES)
        .agg(
            pl.col("forward").median(),
            k0=pl.col("strike").filter(below).last(),
            k1=pl.col("strike").filter(~below).first(),
            v0=pl.col("implied_volatility").filter(below).last(),
            v1=pl.col("implied_volatility").filter(~below).first(),
        )
    )
    weight = (pl.col("forward") - pl.col("k0")) / (pl.col("k1") - pl.col("k0"))
    return near.select(*SERIES, atm_iv=pl.col("v0") + weight * (pl.col("v1") - pl.col("v0")))


def _straddles(priced: pl.DataFrame) -> pl.DataFrame:
    """The straddle of the strike nearest the forward where call and put have a quote or a settlement."""
    firm = _of_one_moment(priced).filter(pl.col("price_used") != "last", pl.col("forward").is_not_null())
    pairs = (
        firm.group_by(STRIKE)
        .agg(
            pl.col("forward").median(),
            call=pl.col("price").filter(_CALL).first(),
            put=pl.col("price").filter(~_CALL).first(),
        )
        .drop_nulls(["call", "put"])
    )
    distance = (pl.col("strike") - pl.col("forward")).abs()
    nearest = pairs.sort(distance, "strike").group_by(SERIES, maintain_order=True).first()
    return nearest.select(*SERIES, atm_strike="strike", expected_move_straddle=pl.col("call") + pl.col("put"))


def _totals() -> list[pl.Expr]:
    sides = {"call": _CALL, "put": ~_CALL}
    return [
        _total(measure, is_side).alias(f"{side}_{measure}")
        for side, is_side in sides.items()
        for measure in ("open_interest", "volume")
    ]


def _ratios() -> list[pl.Expr]:
    """Put/call ratios; null where calls are unknown or zero."""
    return [
        pl.when(pl.col(f"call_{m}") > 0).then(pl.col(f"put_{m}") / pl.col(f"call_{m}")).alias(f"put_call_{m}")
        for m in ("open_interest", "volume")
    ]


def _total(name: str, where: pl.Expr | None = None) -> pl.Expr:
    """A sum that is null, not 0, when all values are null."""
    column = pl.col(name) if where is None else pl.col(name).filter(where)
    return pl.when(column.count() > 0).then(column.sum()).alias(name)


def _sum(left: str, right: str) -> pl.Expr:
    """The sum of two columns; null only where both are null."""
    known = pl.col(left).is_not_null() | pl.col(right).is_not_null()
    return pl.when(known).then(pl.sum_horizontal(left, right))


def _or_zero(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Float64).fill_null(0.0)
