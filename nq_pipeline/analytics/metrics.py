"""Metrics of a priced chain: smile, strike profile, metrics per series, constant maturities, gamma levels.

Every public function but `constant_maturity` takes the chain joined with its pricing (`priced_chain`) and
returns rows of one table, without `run_id`. `measure` computes all of them at once. Sums never span sources
or snapshots. A number that the vendor did not send is null, not 0.

Formulas and their sources are in `docs/analytics.md`.
"""

from __future__ import annotations

import polars as pl

from nq_pipeline.analytics import exposure
from nq_pipeline.analytics.maturities import constant_maturity as constant_maturity
from nq_pipeline.analytics.maturities import term_slope
from nq_pipeline.analytics.priced import (
    CALL,
    MARKET,
    ONE_SERIES,
    PRODUCT,
    SERIES,
    STRIKE,
    of_one_moment,
    series_forwards,
)
from nq_pipeline.analytics.priced import priced_chain as priced_chain
from nq_pipeline.analytics.smile import at_the_money, skew, smile_of, wings
from nq_pipeline.lake import tables


def measure(priced: pl.DataFrame) -> dict[tables.Table, pl.DataFrame]:
    """The rows of all tables, in the order of writing: the last table marks a snapshot as done."""
    current = of_one_moment(priced)
    forwards, smile = series_forwards(current), smile_of(current)
    rows = exposure.with_exposures(priced, forwards)
    profile = _strike_profile(rows)
    series = _series_metrics(rows, current, forwards, smile, profile)
    fixed = constant_maturity(series)
    return {
        tables.IV_SMILE: smile,
        tables.STRIKE_PROFILE: profile,
        tables.SERIES_METRICS: series,
        tables.CONSTANT_MATURITY: fixed,
        tables.GAMMA_LEVELS: _gamma_levels(rows, forwards, profile, fixed),
    }


def iv_smile(priced: pl.DataFrame) -> pl.DataFrame:
    """The volatility of each strike's out-of-the-money option: the put below the forward, else the call."""
    return smile_of(of_one_moment(priced))


def strike_profile(priced: pl.DataFrame) -> pl.DataFrame:
    """Open interest, volume, payout at expiration and gamma exposure of every strike of a series."""
    return measure(priced)[tables.STRIKE_PROFILE]


def series_metrics(priced: pl.DataFrame) -> pl.DataFrame:
    """One row per series: term structure, skew, expected move, put/call ratios, max pain, gamma exposure."""
    return measure(priced)[tables.SERIES_METRICS]


def gamma_levels(priced: pl.DataFrame) -> pl.DataFrame:
    """One row per source, snapshot and product: exposures of all series together, walls and zero gamma."""
    return measure(priced)[tables.GAMMA_LEVELS]


def _strike_profile(rows: pl.DataFrame) -> pl.DataFrame:
    sides = {"call": CALL, "put": ~CALL}
    measures = ("open_interest", "volume", "gex_per_point", "gex_per_pct")
    one = (*ONE_SERIES, "strike")
    profile = rows.group_by(one).agg(
        pl.col("multiplier", *(name for name in STRIKE if name not in one)).first(),
        *(
            pl.col(m).filter(is_side).first().alias(f"{side}_{m}")
            for side, is_side in sides.items()
            for m in measures
        ),
    )
    return (
        profile.sort(tables.STRIKE_PROFILE.total_order)
        .with_columns(
            payout=_payout() * pl.col("multiplier"),
            gex_per_point=_sum("call_gex_per_point", "put_gex_per_point"),
            gex_per_pct=_sum("call_gex_per_pct", "put_gex_per_pct"),
        )
        .drop("multiplier")
    )


def _series_metrics(
    rows: pl.DataFrame,
    current: pl.DataFrame,
    forwards: pl.DataFrame,
    smile: pl.DataFrame,
    profile: pl.DataFrame,
) -> pl.DataFrame:
    is_open = (_or_zero("call_open_interest") + _or_zero("put_open_interest")).sum().over(ONE_SERIES) > 0
    pain = (
        profile.filter(is_open)
        .group_by(ONE_SERIES)
        .agg(max_pain=pl.col("strike").sort_by("payout", "strike").first())
    )
    exposures = profile.group_by(ONE_SERIES).agg(_total("gex_per_point"), _total("gex_per_pct"))
    metrics = rows.group_by(SERIES).agg(_totals())
    parts = (
        forwards.drop("underlying_price", *(name for name in SERIES if name not in ONE_SERIES)),
        at_the_money(smile).select(*ONE_SERIES, "atm_iv"),
        wings(smile),
        _straddles(current),
        pain,
        exposures,
    )
    for part in parts:
        metrics = metrics.join(part, on=ONE_SERIES, how="left")
    return metrics.with_columns(
        *_ratios(), *skew(), expected_move_iv=pl.col("forward") * pl.col("atm_iv") * pl.col("years").sqrt()
    ).sort(SERIES)


def _gamma_levels(
    rows: pl.DataFrame, forwards: pl.DataFrame, profile: pl.DataFrame, fixed: pl.DataFrame
) -> pl.DataFrame:
    rows = rows.with_columns(PRODUCT)
    unknown = pl.col("gex_per_point").is_null()
    expired = (pl.col("years") <= 0).fill_null(False)
    front = (
        forwards.with_columns(PRODUCT)
        .sort(expired, "expiration", "series")
        .group_by(MARKET)
        .agg(pl.col("forward", "underlying_price").drop_nulls().first())
    )
    totals = rows.group_by(MARKET).agg(
        *_totals(),
        *map(_total, exposure.EXPOSURES),
        pl.col("gex_per_point").count().alias("contracts"),
        open_interest_left_out=pl.col("open_interest").filter(unknown).sum(),
    )
    for part in (front, _walls(profile), term_slope(fixed)):
        totals = totals.join(part, on=MARKET, how="left")
    held = rows.filter(~unknown, pl.col("open_interest") > 0).partition_by(MARKET, as_dict=True)
    shifts = [
        exposure.zero_gamma_shift(held[key]) if key in held else None
        for key in totals.select(MARKET).iter_rows()
    ]
    net = pl.col("gex_per_pct")
    open_contracts = pl.sum_horizontal("call_open_interest", "put_open_interest")
    return totals.with_columns(
        *_ratios(),
        zero_gamma=pl.col("forward") * pl.Series(shifts, dtype=pl.Float64),
        gamma_regime=pl.when(net > 0).then(pl.lit("positive")).when(net < 0).then(pl.lit("negative")),
        open_interest_left_out_share=pl.when(open_contracts > 0).then(
            pl.col("open_interest_left_out") / open_contracts
        ),
    ).sort(MARKET)


def _walls(profile: pl.DataFrame) -> pl.DataFrame:
    """The strikes with the largest gamma exposure of calls and of puts, over all series of a market."""
    calls, puts = pl.col("call_gex_per_pct"), -pl.col("put_gex_per_pct")
    by_strike = profile.group_by(*MARKET[:-1], PRODUCT, "strike").agg(call=calls.sum(), put=puts.sum())
    return (
        by_strike.sort("strike")
        .group_by(MARKET)
        .agg(
            pl.when(pl.col(side).max() > 0)
            .then(pl.col("strike").get(pl.col(side).arg_max(), null_on_oob=True))
            .alias(f"{side}_wall")
            for side in ("call", "put")
        )
    )


def _payout() -> pl.Expr:
    """Points that all open options pay if the series settles at the row's strike; strikes must ascend."""
    strike, calls, puts = pl.col("strike"), _or_zero("call_open_interest"), _or_zero("put_open_interest")
    paid_to_calls = strike * calls.cum_sum() - (calls * strike).cum_sum()
    paid_to_puts = (puts * strike).cum_sum(reverse=True) - strike * puts.cum_sum(reverse=True)
    return (paid_to_calls + paid_to_puts).over(ONE_SERIES)


def _straddles(current: pl.DataFrame) -> pl.DataFrame:
    """The straddle of the strike nearest the forward where call and put have a quote or a settlement."""
    firm = current.filter(pl.col("price_used") != "last", pl.col("forward").is_not_null())
    pairs = (
        firm.group_by(*ONE_SERIES, "strike")
        .agg(
            pl.col("forward").median(),
            call=pl.col("price").filter(CALL).first(),
            put=pl.col("price").filter(~CALL).first(),
        )
        .drop_nulls(["call", "put"])
    )
    distance = (pl.col("strike") - pl.col("forward")).abs()
    nearest = pairs.sort(distance, "strike").group_by(ONE_SERIES, maintain_order=True).first()
    return nearest.select(
        *ONE_SERIES, atm_strike="strike", expected_move_straddle=pl.col("call") + pl.col("put")
    )


def _totals() -> list[pl.Expr]:
    sides = {"call": CALL, "put": ~CALL}
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
