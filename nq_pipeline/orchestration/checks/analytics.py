"""What a desk would want to know of our own numbers, judged in the step that computed them; none blocking.

A chain that cannot be priced is still a chain, and one series without a smile takes nothing from
the others. Most findings are warnings for that reason; an error says that there is nothing to
rely on.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
import polars as pl

from nq_pipeline.finding import Finding
from nq_pipeline.market.contracts import PRODUCT_OF
from nq_pipeline.market.products import PRODUCTS

PRICING = dg.AssetKey(["nq", "option_pricing"])
SMILE = dg.AssetKey(["nq", "iv_smile"])
PROFILE = dg.AssetKey(["nq", "strike_profile"])
SERIES = dg.AssetKey(["nq", "series_metrics"])
LEVELS = dg.AssetKey(["nq", "gamma_levels"])
PRESSURE = dg.AssetKey(["databento", "trade_pressure"])

# None of these is a setting: each is far from what a whole chain shows, so that no market makes one wrong.
LEAST_PRICED = 0.9
"""Out of the money any price has a time value; what has no volatility there has a wrong price or forward."""
LEAST_FORWARDS = 0.9
"""A series hours from its listing or its end may lack pairs; one in ten are a handful."""
LEAST_STRIKES = 5
"""To either side of the forward; fewer are points and no smile."""
MOST_ARBITRAGE = 0.01
"""Quotes of different moments cross now and then; a free lunch at every hundredth strike is a broken feed."""
MOST_LEFT_OUT = 0.25
"""Deep strikes without a bid or a time value hold a tenth of the open interest, and next to no gamma."""
MOST_UNDEFINED = 0.2
"""Trades of an auction have no aggressor; where more than these lack one, pressure says little."""

MEANINGS = {
    PRICING: {
        "quotes_priced": f"At least {LEAST_PRICED:.0%} of the out-of-the-money rows with a price and a "
        "forward have a volatility. Deep in the money many quotes have no time value and rightly none.",
        "forwards_agree": f"At least {LEAST_FORWARDS:.0%} of the series with a price have a forward by "
        "put-call parity, and it lies within NQ_PARITY_TOLERANCE of the vendor's underlying.",
    },
    SMILE: {
        "front_smile": "The first series to expire has a smile: at least "
        f"{LEAST_STRIKES} strikes on either side of the forward, and a volatility at it.",
        "no_butterfly_arbitrage": "No butterfly of neighbouring strikes could be bought for less than "
        f"nothing at the quotes; a warning up to {MOST_ARBITRAGE:.0%} of them.",
    },
    PROFILE: {"open_interest_known": "The vendor says of some strikes how many contracts are open."},
    SERIES: {"term_structure": "Every series that has a forward has a volatility at it."},
    LEVELS: {
        "exposure_complete": f"At most {MOST_LEFT_OUT:.0%} of the open contracts are left out of the gamma "
        "exposure, because their rows could not be priced.",
    },
    PRESSURE: {
        "windows_whole": "No window is touched by a gap of the capture that is not filled.",
        "aggressors_known": f"At most {MOST_UNDEFINED:.0%} of the volume has no known aggressor.",
    },
}


def specs(*keys: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The specifications of all checks of the assets."""
    return [
        dg.AssetCheckSpec(check, asset=key, description=text)
        for key in keys
        for check, text in MEANINGS[key].items()
    ]


def of_snapshot(
    chain: pl.DataFrame, measured: Mapping[str, pl.DataFrame], *, tolerance: float
) -> dict[dg.AssetKey, dict[str, Finding | None]]:
    """Everything there is to say about one snapshot's pricing and metrics.

    Parameters
    ----------
    measured
        Rows by name of table, as `price_and_measure` returns them.
    tolerance
        By what share a parity forward may differ from the vendor's underlying.

    Returns
    -------
    Findings by asset and name of the check; None where there was nothing to judge.
    """
    pricing, series = measured["option_pricing"], measured["series_metrics"]
    return {
        PRICING: {
            "quotes_priced": quotes_priced(chain, pricing),
            "forwards_agree": forwards_agree(pricing, tolerance),
        },
        SMILE: {
            "front_smile": front_smile(measured["iv_smile"], series),
            "no_butterfly_arbitrage": no_butterfly_arbitrage(chain),
        },
        PROFILE: {"open_interest_known": open_interest_known(measured["strike_profile"])},
        SERIES: {"term_structure": term_structure(series)},
        LEVELS: {"exposure_complete": exposure_complete(measured["gamma_levels"])},
    }


def quotes_priced(chain: pl.DataFrame, pricing: pl.DataFrame) -> Finding:
    """The share of out-of-the-money rows that have a volatility, and why rows of any kind have none."""
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
        sentence=f"{priced:,} of {outside.height:,} out-of-the-money rows with a price and a forward have a "
        f"volatility; {pricing['implied_volatility'].count():,} of all {pricing.height:,} rows have one.",
        numbers={"priced_share": share, "priced": priced, "rows": pricing.height},
        table=reasons if reasons.height else None,
    )


def forwards_agree(pricing: pl.DataFrame, tolerance: float) -> Finding:
    """Whether every series with prices has a forward by parity that the vendor's underlying bears out.

    The index and the funds have no forward to compare with, and settlements none of their moment.
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


def front(series: pl.DataFrame) -> pl.DataFrame:
    """The row of `series_metrics` that stands for the market: the first to expire that has a forward.

    Of several products that of the first in the product table.
    """
    product = pl.col("root").replace_strict(PRODUCT_OF, default=None)
    order = product.replace_strict(list(PRODUCTS), range(len(PRODUCTS)), default=len(PRODUCTS))
    return series.filter(pl.col("forward").is_not_null()).sort(order, "expiration", "series").head(1)


def front_smile(smile: pl.DataFrame, series: pl.DataFrame) -> Finding:
    """Strikes of the front series' smile on either side of its forward."""
    first = front(series)
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
        + ("and no volatility at it." if at_forward is None else f"and {at_forward:.2%} at it."),
        numbers={"puts": puts, "calls": calls},
    )


def no_butterfly_arbitrage(chain: pl.DataFrame) -> Finding | None:
    """Butterflies of neighbouring quoted strikes whose wings' asks cost less than the body's bids bring.

    Prices are convex in the strike, of European and American options alike. None without quotes
    for one.
    """
    side = ["source", "snapshot_ts", "series", "option_type"]
    quoted = chain.filter(pl.col("bid") > 0, pl.col("ask") >= pl.col("bid")).sort(*side, "strike")
    low, high = pl.col("strike").shift(1).over(side), pl.col("strike").shift(-1).over(side)
    weight = (high - pl.col("strike")) / (high - low)
    wings = weight * pl.col("ask").shift(1).over(side) + (1 - weight) * pl.col("ask").shift(-1).over(side)
    flies = quoted.select(*side, "strike", cost=wings - pl.col("bid")).drop_nulls("cost")
    if flies.is_empty():
        return None
    # A hundredth of the smallest tick: sums of decimal prices are off by their rounding.
    free = flies.filter(pl.col("cost") < -5e-4).sort("cost")
    share = free.height / flies.height
    return Finding(
        passed=free.is_empty(),
        severity="warn" if share <= MOST_ARBITRAGE else "error",
        sentence=f"{free.height} of {flies.height:,} butterflies could be bought for less than nothing.",
        numbers={"negative": free.height, "butterflies": flies.height, "negative_share": share},
        table=free.select("series", "option_type", "strike", "cost") if free.height else None,
    )


def open_interest_known(profile: pl.DataFrame) -> Finding:
    """How many strikes have open interest on either side."""
    known = pl.col("call_open_interest").is_not_null() | pl.col("put_open_interest").is_not_null()
    strikes = profile.filter(known).height
    return Finding(
        passed=strikes > 0,
        severity="warn",
        sentence=f"Open interest is known of {strikes:,} of {profile.height:,} strikes.",
        numbers={"known": strikes, "strikes": profile.height},
    )


def term_structure(series: pl.DataFrame) -> Finding:
    """Series with a forward that have no volatility at it: it lies outside their priced strikes."""
    valued = series.filter(pl.col("forward").is_not_null())
    without = valued.filter(pl.col("atm_iv").is_null())
    return Finding(
        passed=valued.height > 0 and without.is_empty(),
        severity="warn" if valued.height > without.height else "error",
        sentence=f"{valued.height - without.height} of {valued.height} series with a forward have a "
        "volatility at it.",
        numbers={"series": valued.height, "without": without.height},
        table=without.select("source", "series", "forward") if without.height else None,
    )


def exposure_complete(levels: pl.DataFrame) -> Finding | None:
    """The share of open contracts that the gamma exposure leaves out; None when none is known to be open."""
    sides = pl.sum_horizontal("call_open_interest", "put_open_interest").sum()
    held, left_out = levels.select(sides, pl.col("open_interest_left_out").sum()).row(0)
    if not held:
        return None
    share = left_out / held
    return Finding(
        passed=share <= MOST_LEFT_OUT,
        severity="warn",
        sentence=f"{left_out:,} of {held:,} open contracts ({share:.1%}) are not in the gamma exposure.",
        numbers={"open_interest": held, "open_interest_left_out": left_out, "left_out_share": share},
    )


def of_pressure(rows: pl.DataFrame, touched: int) -> dict[str, Finding]:
    """What there is to say about a trade date's windows; `touched` of them by gaps that are not filled."""
    windows = rows["window_start"].n_unique()
    sides = ("buy_volume", "sell_volume", "undefined_volume")
    volume = sum(int(rows[name].sum()) for name in sides)
    share = int(rows["undefined_volume"].sum()) / volume if volume else 0.0
    return {
        "windows_whole": Finding(
            passed=touched == 0,
            severity="warn",
            sentence=f"{touched} of {windows} windows are touched by a gap that is not filled.",
            numbers={"touched": touched, "windows": windows},
        ),
        "aggressors_known": Finding(
            passed=share <= MOST_UNDEFINED,
            severity="warn",
            sentence=f"{share:.1%} of {volume:,} contracts traded have no known aggressor.",
            numbers={"undefined_share": share, "volume": volume},
        ),
    }
