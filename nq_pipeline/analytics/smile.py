"""The volatility smile of every series: its strikes, the volatility at the forward, the wings by delta."""

from __future__ import annotations

import polars as pl
from scipy.special import ndtr, ndtri

from nq_pipeline.analytics.priced import CALL, ONE_SERIES, SERIES, STRIKE

WINGS = (25, 10)
"""Forward deltas of the wings, in hundredths."""


def smile_of(current: pl.DataFrame) -> pl.DataFrame:
    """Rows of `iv_smile`: the put below the forward, else the call, of every strike that has a volatility.

    `current` are rows of one moment (`of_one_moment`).
    """
    columns = ("option_type", "forward", "years", "log_moneyness", "deviations", "implied_volatility")
    return with_moneyness(current).filter("is_otm").select(*STRIKE, *columns, "iv_uncertainty")


def with_moneyness(current: pl.DataFrame) -> pl.DataFrame:
    """Rows with a volatility; adds `implied_volatility`, `log_moneyness`, `deviations` and `is_otm`."""
    above = pl.col("strike") >= pl.col("forward")
    moneyness = (pl.col("strike") / pl.col("forward")).log()
    return current.filter(pl.col("iv").is_not_null()).with_columns(
        implied_volatility="iv",
        log_moneyness=moneyness,
        deviations=moneyness / (pl.col("iv") * pl.col("years").sqrt()),
        is_otm=above == CALL,
    )


def at_the_money(smile: pl.DataFrame) -> pl.DataFrame:
    """`atm_iv` of every series: linear in strike between the two strikes around the forward."""
    below = pl.col("strike") <= pl.col("forward")
    near = (
        smile.sort("strike")
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


def wings(smile: pl.DataFrame) -> pl.DataFrame:
    """The volatilities of every series at the forward deltas of `WINGS`: `iv_25_call`, `iv_25_put`, …

    A strike's forward delta is N(d1) of the call, 1 − N(d1) of the put, with the strike's own volatility.
    The volatility is linear in delta between the first strike, outwards from the forward, whose delta is no
    larger than the wanted one, and the strike before it. Null where the strikes do not reach that far.
    """
    total_vol = smile["implied_volatility"] * smile["years"].sqrt()
    d1 = (total_vol / 2 - smile["log_moneyness"] / total_vol).to_numpy()
    rows = smile.select(*ONE_SERIES, "strike", CALL.alias("is_call"), iv="implied_volatility")
    rows = rows.with_columns(call=pl.Series(ndtr(d1)), put=pl.Series(ndtr(-d1))).sort(*ONE_SERIES, "strike")
    found = []
    for side, is_side, step in (("call", pl.col("is_call"), 1), ("put", ~pl.col("is_call"), -1)):
        delta, iv = pl.col(side), pl.col("iv")
        inner, inner_iv = delta.shift(step).over(ONE_SERIES), iv.shift(step).over(ONE_SERIES)
        for hundredths in WINGS:
            wanted = hundredths / 100
            at = iv + (inner_iv - iv) * (wanted - delta) / (inner - delta)
            crossed = is_side & (delta <= wanted) & (inner > wanted)
            found.append(pl.when(crossed).then(at).alias(f"iv_{hundredths}_{side}"))
    crossings = rows.select(*ONE_SERIES, *found)
    return crossings.group_by(ONE_SERIES).agg(
        pl.col("^iv_.*_call$").drop_nulls().first(), pl.col("^iv_.*_put$").drop_nulls().last()
    )


def skew() -> list[pl.Expr]:
    """Risk reversals, butterflies and the skew slope, of columns `iv_25_call` …, `atm_iv` and `years`."""
    found = []
    for hundredths in WINGS:
        call, put = pl.col(f"iv_{hundredths}_call"), pl.col(f"iv_{hundredths}_put")
        found += [
            (call - put).alias(f"risk_reversal_{hundredths}"),
            ((call + put) / 2 - pl.col("atm_iv")).alias(f"butterfly_{hundredths}"),
        ]
    # ln(K / F) at a forward delta of the call: σ²t / 2 − N⁻¹(delta) σ√t.
    z, root = float(ndtri(0.75)), pl.col("years").sqrt()
    call, put = pl.col("iv_25_call") * root, pl.col("iv_25_put") * root
    apart = (call**2 / 2 + z * call) - (put**2 / 2 - z * put)
    return [*found, ((pl.col("iv_25_call") - pl.col("iv_25_put")) / apart).alias("skew_slope")]
