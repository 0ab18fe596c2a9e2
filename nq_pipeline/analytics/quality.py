"""Quality of pricing, metrics and trade pressure.

A chain that cannot be priced is still a chain, and one series without a smile does not spoil the others.
Most findings are therefore warnings; an error means that the numbers cannot be relied on.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from nq_pipeline.finding import Finding
from nq_pipeline.lake import tables
from nq_pipeline.market.contracts import PRODUCT_OF
from nq_pipeline.market.products import PRODUCTS

# These limits are not settings: each is so far from what a complete chain shows that it fits any market.
LEAST_PRICED = 0.9
"""Fraction of out-of-the-money rows. Their prices have a time value, so a row without a volatility has a
wrong price or forward."""
LEAST_FORWARDS = 0.9
"""Fraction of series. One that was just listed or is about to expire may lack put-call pairs."""
LEAST_STRIKES = 5
"""Strikes on either side of the forward; fewer do not make a smile."""
LEAST_WINGS = 0.9
"""Fraction of series. In its last minutes a series may have no strike as far out as 25 delta."""
MOST_ARBITRAGE = 0.01
"""Fraction of butterflies. Quotes of different moments may cross; more of it is a broken feed."""
LEAST_INSIDE = 0.95
"""Fraction of quotes. A surface that misses more of them does not describe the market."""
MOST_LEFT_OUT = 0.25
"""Fraction of open contracts. Deep strikes without a bid have a tenth of them and hardly any gamma."""
MOST_UNDEFINED = 0.2
"""Fraction of contracts traded. Auction trades have no aggressor; with more, pressure means little."""


_JUDGED = (
    *(tables.OPTION_PRICING, tables.IV_SMILE, tables.SURFACE_SLICES, tables.SURFACE_ARBITRAGE),
    *(tables.STRIKE_PROFILE, tables.SERIES_METRICS, tables.CONSTANT_MATURITY, tables.GAMMA_LEVELS),
)


def judge_snapshot(
    chain: pl.DataFrame, measured: Mapping[str, pl.DataFrame], *, tolerance: float
) -> dict[str, dict[str, Finding | None]]:
    """Judge what `price_and_measure` returned for one snapshot.

    `tolerance` is the largest difference between a parity forward and the vendor's underlying, as a fraction.
    Returns findings by the table's name and the check's name; None where there was nothing to judge.
    """
    pricing, smile, slices, arbitrage, profile, series, fixed, levels = (measured[t.name] for t in _JUDGED)
    findings: tuple[dict[str, Finding | None], ...] = (
        {
            "quotes_priced": quotes_priced(chain, pricing),
            "forwards_agree": forwards_agree(pricing, tolerance),
        },
        {"front_smile": front_smile(smile, series), "no_butterfly_arbitrage": no_butterfly_arbitrage(chain)},
        {"quotes_inside": quotes_inside(slices)},
        {"no_surface_arbitrage": no_surface_arbitrage(arbitrage, slices)},
        {"open_interest_known": open_interest_known(profile)},
        {"term_structure": term_structure(series), "wings_known": wings_known(series)},
        {"total_variance_rises": total_variance_rises(fixed)},
        {"exposure_complete": exposure_complete(levels)},
    )
    return {table.name: found for table, found in zip(_JUDGED, findings, strict=True)}


def quotes_priced(chain: pl.DataFrame, pricing: pl.DataFrame) -> Finding:
    """Check that out-of-the-money rows have an implied volatility; list why other rows have none."""
    from nq_pipeline.analytics.metrics import priced_chain

    rows = priced_chain(chain, pricing).filter(pl.col("price").is_not_null(), pl.col("forward").is_not_null())
    at = pl.col("strike") - pl.col("forward")
    outside = rows.filter(pl.when(pl.col("option_type") == "C").then(at >= 0).otherwise(at < 0))
    priced = outside["iv"].count()
    share = priced / outside.height if outside.height else 0.0
    reasons = pricing.group_by("unpriced").len("contracts").drop_nulls().sort("contracts", descending=True)
    return Finding(
        passed=share >= LEAST_PRICED,
        severity="warn" if priced else "error",
        sentence=f"{priced:,} of {outside.height:,} out-of-the-money rows with a price and a forward have "
        f"an implied volatility; {pricing['implied_volatility'].count():,} of all {pricing.height:,} do.",
        numbers={"priced_share": share, "priced": priced, "rows": pricing.height},
        table=reasons if reasons.height else None,
    )


def forwards_agree(pricing: pl.DataFrame, tolerance: float) -> Finding:
    """Check that priced series have a parity forward, and that it agrees with the vendor's underlying.

    Options on an index or a fund and settlements have no underlying price to compare with.
    """
    series = (
        pricing.filter(pl.col("price").is_not_null())
        .group_by("source", "series")
        .agg(
            by_parity=(pl.col("forward_source") == "parity").fill_null(False).any(),
            gap=(pl.col("parity_gap") / pl.col("parity_forward")).abs().max(),
            parity_gap=pl.col("parity_gap").first(),
            parity_spread=pl.col("parity_spread").first(),
        )
        .sort("series")
    )
    by_parity = int(series["by_parity"].sum())
    outside = series.filter("by_parity", pl.col("gap") > tolerance)
    share = by_parity / series.height if series.height else 0.0
    largest = series.filter("by_parity")["gap"].max()
    return Finding(
        passed=share >= LEAST_FORWARDS and outside.is_empty(),
        severity="warn" if by_parity else "error",
        sentence=f"{by_parity} of {series.height} series have a forward by parity; {outside.height} of them "
        f"lie more than {tolerance:.2%} from the vendor's underlying.",
        numbers={
            "by_parity": by_parity,
            "outside": outside.height,
            **({"largest_gap": float(largest)} if isinstance(largest, float) else {}),
        },
        table=outside.drop("by_parity") if outside.height else None,
    )


def front_series(series: pl.DataFrame) -> pl.DataFrame:
    """The row of `series_metrics` of the first series to expire that has a forward.

    With several products it is a series of the first one in the product table.
    """
    product = pl.col("root").replace_strict(PRODUCT_OF, default=None)
    order = product.replace_strict(list(PRODUCTS), range(len(PRODUCTS)), default=len(PRODUCTS))
    return series.filter(pl.col("forward").is_not_null()).sort(order, "expiration", "series").head(1)


def front_smile(smile: pl.DataFrame, series: pl.DataFrame) -> Finding:
    """Check that the front series' smile has enough strikes on either side of the forward."""
    first = front_series(series)
    if first.is_empty():
        return Finding(False, "No series has a forward, so there is no smile.")
    name = first.item(0, "series")
    drawn = smile.filter(series=name)
    puts, calls = (int((drawn["option_type"] == side).sum()) for side in "PC")
    at_forward = first.item(0, "atm_iv")
    return Finding(
        passed=min(puts, calls) >= LEAST_STRIKES and at_forward is not None,
        severity="warn",
        sentence=f"{name} has {puts} strikes below and {calls} above the forward, "
        + (
            "and no at-the-money volatility."
            if at_forward is None
            else f"and an at-the-money volatility of {at_forward:.2%}."
        ),
        numbers={"puts": puts, "calls": calls},
    )


def no_butterfly_arbitrage(chain: pl.DataFrame) -> Finding | None:
    """Check for butterflies that cost less than nothing: wings bought at the ask, body sold at the bid.

    European and American option prices are convex in the strike, so such quotes are wrong. None when no
    butterfly is quoted.
    """
    side = ["source", "snapshot_ts", "series", "option_type"]
    quoted = chain.filter(pl.col("bid") > 0, pl.col("ask") >= pl.col("bid")).sort(*side, "strike")
    low, high = pl.col("strike").shift(1).over(side), pl.col("strike").shift(-1).over(side)
    weight = (high - pl.col("strike")) / (high - low)
    wings = weight * pl.col("ask").shift(1).over(side) + (1 - weight) * pl.col("ask").shift(-1).over(side)
    flies = quoted.select(*side, "strike", cost=wings - pl.col("bid")).drop_nulls("cost")
    if flies.is_empty():
        return None
    # A hundredth of the smallest tick allows for the rounding of sums.
    free = flies.filter(pl.col("cost") < -5e-4).sort("cost")
    share = free.height / flies.height
    return Finding(
        passed=free.is_empty(),
        severity="warn" if share <= MOST_ARBITRAGE else "error",
        sentence=f"{free.height} of {flies.height:,} butterflies cost less than nothing.",
        numbers={"negative": free.height, "butterflies": flies.height, "negative_share": share},
        table=free.select("series", "option_type", "strike", "cost") if free.height else None,
    )


def inside_share(slices: pl.DataFrame) -> float:
    """The share of all quotes between whose bid and ask the surface passes; rows of `surface_slices`."""
    weighted = (pl.col("inside_share") * pl.col("quotes")).sum() / pl.col("quotes").sum()
    return float(slices.select(weighted).item())


def quotes_inside(slices: pl.DataFrame) -> Finding | None:
    """Check that the surface passes between bid and ask of most quotes; None without a surface."""
    if slices.is_empty():
        return None
    share, quotes = inside_share(slices), int(slices["quotes"].sum())
    poor = slices.filter(pl.col("inside_share") < LEAST_INSIDE).select("source", "series", "inside_share")
    return Finding(
        passed=share >= LEAST_INSIDE,
        severity="warn",
        sentence=f"The surface passes between bid and ask of {share:.1%} of {quotes:,} quotes in "
        f"{slices.height} series.",
        numbers={"inside_share": share, "quotes": quotes, "series": slices.height},
        table=poor if poor.height else None,
    )


def no_surface_arbitrage(arbitrage: pl.DataFrame, slices: pl.DataFrame) -> Finding | None:
    """Check the fitted surface for arbitrage that the width of the quotes does not explain.

    A butterfly of the curve counts only as information: `no_butterfly_arbitrage` judges the quotes. None
    without a surface.
    """
    if slices.is_empty():
        return None
    calendars = arbitrage.filter(kind="calendar")
    beyond = calendars.filter(pl.col("volatility_drop") > pl.col("iv_uncertainty"))
    butterflies = arbitrage.height - calendars.height
    return Finding(
        passed=beyond.is_empty(),
        severity="warn",
        sentence=f"{beyond.height} of {calendars.height} ranges of calendar arbitrage exceed the width of "
        f"the quotes; the density is negative in {butterflies} ranges of strikes.",
        numbers={"beyond": beyond.height, "calendars": calendars.height, "butterflies": butterflies},
        table=arbitrage.drop("environment", "snapshot_ts", "trade_date", "underlying_class", "run_id")
        if arbitrage.height
        else None,
    )


def open_interest_known(profile: pl.DataFrame) -> Finding:
    """Check that open interest is known for some strikes."""
    known = pl.col("call_open_interest").is_not_null() | pl.col("put_open_interest").is_not_null()
    strikes = profile.filter(known).height
    return Finding(
        passed=strikes > 0,
        severity="warn",
        sentence=f"{strikes:,} of {profile.height:,} strikes have open interest.",
        numbers={"known": strikes, "strikes": profile.height},
    )


def term_structure(series: pl.DataFrame) -> Finding:
    """Check that every series with a forward has an at-the-money volatility."""
    valued = series.filter(pl.col("forward").is_not_null())
    without = valued.filter(pl.col("atm_iv").is_null())
    return Finding(
        passed=valued.height > 0 and without.is_empty(),
        severity="warn" if valued.height > without.height else "error",
        sentence=f"{valued.height - without.height} of {valued.height} series with a forward have an "
        "at-the-money volatility.",
        numbers={"series": valued.height, "without": without.height},
        table=without.select("source", "series", "forward") if without.height else None,
    )


def wings_known(series: pl.DataFrame) -> Finding | None:
    """Check the fraction of series with a 25-delta put and call; None when none has an ATM volatility."""
    known = series.filter(pl.col("atm_iv").is_not_null())
    if known.is_empty():
        return None
    without = known.filter(pl.col("risk_reversal_25").is_null())
    share = 1 - without.height / known.height
    return Finding(
        passed=share >= LEAST_WINGS,
        severity="warn",
        sentence=f"{known.height - without.height} of {known.height} series with an at-the-money volatility "
        "have a 25-delta put and call.",
        numbers={"series": known.height, "without": without.height},
        table=without.select("source", "series", "forward") if without.height else None,
    )


def total_variance_rises(fixed: pl.DataFrame) -> Finding | None:
    """Check that total variance at the money rises with the maturity; None with fewer than two known."""
    market = ["source", "snapshot_ts", "product"]
    variance = pl.col("atm_iv") ** 2 * pl.col("days")
    steps = (
        fixed.drop_nulls("atm_iv")
        .sort(*market, "days")
        .select(*market, "days", "atm_iv", change=variance.diff().over(market))
        .drop_nulls("change")
    )
    if steps.is_empty():
        return None
    falls = steps.filter(pl.col("change") < 0)
    return Finding(
        passed=falls.is_empty(),
        severity="warn",
        sentence=f"Total variance at the money falls at {falls.height} of {steps.height} steps between "
        "maturities.",
        numbers={"falls": falls.height, "steps": steps.height},
        table=falls.select("source", "product", "days", "atm_iv") if falls.height else None,
    )


def exposure_complete(levels: pl.DataFrame) -> Finding | None:
    """Check the fraction of open contracts without gamma exposure; None when there are no open contracts."""
    sides = pl.sum_horizontal("call_open_interest", "put_open_interest").sum()
    held, left_out = levels.select(sides, pl.col("open_interest_left_out").sum()).row(0)
    if not held:
        return None
    share = left_out / held
    return Finding(
        passed=share <= MOST_LEFT_OUT,
        severity="warn",
        sentence=f"{left_out:,} of {held:,} open contracts ({share:.1%}) lack a gamma exposure.",
        numbers={"open_interest": held, "open_interest_left_out": left_out, "left_out_share": share},
    )


def judge_pressure(rows: pl.DataFrame, touched: int) -> dict[str, Finding]:
    """Judge the pressure windows of a trade date; `touched` of them overlap unfilled gaps."""
    windows = rows["window_start"].n_unique()
    sides = ("buy_volume", "sell_volume", "undefined_volume")
    volume = sum(int(rows[name].sum()) for name in sides)
    share = int(rows["undefined_volume"].sum()) / volume if volume else 0.0
    return {
        "windows_whole": Finding(
            passed=touched == 0,
            severity="warn",
            sentence=f"{touched} of {windows} windows overlap an unfilled gap.",
            numbers={"touched": touched, "windows": windows},
        ),
        "aggressors_known": Finding(
            passed=share <= MOST_UNDEFINED,
            severity="warn",
            sentence=f"{share:.1%} of {volume:,} contracts traded have no known aggressor.",
            numbers={"undefined_share": share, "volume": volume},
        ),
    }
