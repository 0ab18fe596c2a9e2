"""Implied volatility and Greeks of whole chains, and the forward of every series.

A row's price is the mid of its quote, or else its settlement (valued at the time of settlement), or else
a recent last trade. Quotes and trades are valued at `as_of`, or while the market is closed at its close. The
forward comes from put-call parity near the money, because those quotes are from the same moment as the
prices and always belong to the right month. With too few pairs, the price of the vendor's underlying future
is used. European rows are valued by Black-76, American ones on futures by `american.py`. `unpriced` says why
a row has no volatility.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from types import ModuleType

import numpy as np
import numpy.typing as npt
import polars as pl

from nq_pipeline.market import american, black76, sessions
from nq_pipeline.market.black76 import DAYS_PER_YEAR, Floats
from nq_pipeline.market.contracts import PROXY_ROOTS, ROOTS, roots_of
from nq_pipeline.market.products import PRODUCTS, PROXIES
from nq_pipeline.market.rates import RateCurve
from nq_pipeline.market.settlements import newest_published, settled_at

_KEYS = ("source", "environment", "snapshot_ts", "trade_date", "series", "contract_key")
_PRICE = ("valued_at", "price", "price_used", "price_age_s")
_FORWARD = ("forward", "forward_source", "parity_forward", "parity_spread", "parity_pairs", "parity_gap")
_MODEL = ("rate", "years", "model")
_GREEKS = ("delta", "gamma", "theta", "vega", "rho", "vanna", "charm", "volga")
PRICED = (*_KEYS, *_PRICE, *_FORWARD, *_MODEL, "implied_volatility", *_GREEKS, "iv_uncertainty", "unpriced")
"""The columns of `price_chain`."""

PARITY_STRIKES = 10
"""Strikes nearest the forward that the parity forward uses."""
MIN_PAIRS = 3
"""Put-call pairs that a parity forward needs."""
MAX_PARITY_SPREAD = 0.002
"""Largest interquartile range of the pairs' forwards, as a fraction of the forward."""
MAX_LAST_AGE_S = 900
"""Largest age of a last trade that is used as a price, seconds."""

_TERMS = ("forward", "strike", "years")
_INSTANT = pl.Datetime("ns", "UTC")
Rows = npt.NDArray[np.intp]
Sides = npt.NDArray[np.bool_]
_YEAR_NS = DAYS_PER_YEAR * 86_400 * 10**9
_QUOTE = ("bid", "ask", "quote_ts", "last", "last_ts", "is_settlement", "settlement", "settlement_date")
_CONTRACT = ("expiration", "exercise_style", "strike", "option_type")
INPUTS = (*_KEYS, "root", "as_of", "underlying_class", "underlying_price", *_CONTRACT, *_QUOTE)
"""The columns of a chain that `price_chain` uses."""
_FORWARD_OF = ("source", "snapshot_ts", "series", "_basis", "valued_at")
"""The key of a forward. It uses prices of one moment, so settlements of two trade dates have two forwards."""
_QUOTED = ("source", "snapshot_ts", "underlying_class", "as_of")
_SETTLEMENT = ("root", "as_of", "settlement_date")
_ROUNDING = 2e-15
"""Time value below this fraction of the price is rounding error."""


def price_chain(
    chain: pl.DataFrame, *, rate: float | RateCurve, max_last_age_s: float = MAX_LAST_AGE_S
) -> pl.DataFrame:
    """Price every row of a chain; one row per row, in its order.

    Parameters
    ----------
    chain
        Rows of `option_chain` or `source_chain`, of any number of sources and snapshots.
    rate
        Continuously compounded, per year: one for all expirations, or by the time to each.
    max_last_age_s
        A last trade that is this much older than the quotes, or of unknown time, is not used.

    Returns
    -------
    The columns of the lake's `option_pricing` without `run_id`. What does not apply is null.
    """
    rows = _add_price(chain, max_last_age_s)
    years = rows["years"].to_numpy()
    rates = rate.at(years) if isinstance(rate, RateCurve) else np.full(len(years), rate)
    rows = rows.with_columns(pl.Series("rate", rates, pl.Float64))
    rows = rows.join(
        _parity_forwards(rows), on=_FORWARD_OF, how="left", nulls_equal=True, maintain_order="left"
    )
    return _value_rows(_add_model(_add_forward(rows))).select(PRICED)


def _add_price(chain: pl.DataFrame, max_last_age_s: float) -> pl.DataFrame:
    """Add the price of every row, which price that is, and the moment it is valued at."""
    instants = ("snapshot_ts", "as_of", "expiration", "last_ts", "quote_ts")
    rows = chain.select(INPUTS).with_columns(pl.col(name).cast(_INSTANT) for name in instants)
    rows = rows.join(_quote_instants(rows), on=_QUOTED, how="left", maintain_order="left")
    bid, ask, last, settlement = (pl.col(name) for name in ("bid", "ask", "last", "settlement"))
    has_bid, has_ask = _is_price(bid), _is_price(ask)
    age = (pl.col("_quoted_at") - pl.col("last_ts")).dt.total_microseconds() / 1e6
    ways = {
        "mid": (has_bid & has_ask & (bid <= ask), (bid + ask) / 2),
        "settlement": (pl.col("is_settlement") & _is_price(settlement), settlement),
        "last": (_is_price(last) & (age <= max_last_age_s), last),
    }
    rows = rows.with_columns(
        price_used=pl.coalesce(pl.when(usable).then(pl.lit(name)) for name, (usable, _) in ways.items()),
        price=pl.coalesce(pl.when(usable).then(price) for usable, price in ways.values()),
    )
    settles = pl.col("price_used").eq_missing("settlement")
    settled = _settlement_instants(rows.filter(settles))
    rows = rows.join(settled, on=_SETTLEMENT, how="left", nulls_equal=True, maintain_order="left")
    rows = rows.with_columns(
        valued_at=pl.when(settles).then("_settled_at").otherwise("_quoted_at"),
        _basis=pl.when(settles).then(pl.lit("settlement")).otherwise(pl.lit("quote")),
        # A price is known only to its tick, even where bid and ask are equal.
        _half_width=pl.when(price_used="mid").then(pl.max_horizontal(ask - bid, _tick(pl.col("price"))) / 2),
        _no_price=pl.when(has_bid & has_ask)
        .then(pl.lit("crossed"))
        .when(has_bid | has_ask)
        .then(pl.lit("one_sided"))
        .when(_is_price(last))
        .then(pl.lit("stale_last"))
        .otherwise(pl.lit("no_quote")),
    )
    made = pl.when(price_used="last").then("last_ts").otherwise("valued_at")
    age = (pl.col("as_of") - made).dt.total_microseconds() / 1e6
    return rows.with_columns(
        price_age_s=pl.when(pl.col("price_used").is_not_null()).then(age.clip(lower_bound=0.0)),
        years=(pl.col("expiration") - pl.col("valued_at")).dt.total_nanoseconds() / _YEAR_NS,
    )


def _quote_instants(rows: pl.DataFrame) -> pl.DataFrame:
    """The moment of a snapshot's quotes: `as_of`, but on a closed market its close or a later `quote_ts`."""
    which = rows.group_by(_QUOTED).agg(newest=pl.col("quote_ts").max())
    closes = [
        sessions.chain_moment(as_of, "globex") if underlying_class == "future" else as_of
        for underlying_class, as_of in which.select("underlying_class", "as_of").iter_rows()
    ]
    quoted = pl.min_horizontal(pl.max_horizontal(pl.Series(closes, dtype=_INSTANT), "newest"), "as_of")
    return which.select(_QUOTED, _quoted_at=quoted)


def _tick(price: pl.Expr) -> pl.Expr:
    """The tick of the row's product at a price; null for an unknown root."""
    tick: pl.Expr = pl.lit(None, pl.Float64)
    for product in (*PRODUCTS.values(), *PROXIES.values()):
        own = pl.col("root").is_in(list(roots_of([product])))
        for bound, size in reversed(product.ticks):
            tick = pl.when(own & (price <= bound)).then(size).otherwise(tick)
    return tick


def _is_price(column: pl.Expr) -> pl.Expr:
    return (column.is_finite() & (column > 0)).fill_null(False)


def _settlement_instants(rows: pl.DataFrame) -> pl.DataFrame:
    """When the settlements of these rows were determined, by root, `as_of` and `settlement_date`."""
    which = rows.select(_SETTLEMENT).unique()
    instants = [_settled_at(*row) for row in which.iter_rows()]
    return which.with_columns(pl.Series("_settled_at", instants, _INSTANT))


def _settled_at(root: str, as_of: datetime, day: date | None) -> datetime:
    """When a settlement was determined; without a trade date, the newest one published at `as_of`."""
    product = (ROOTS.get(root) or PROXY_ROOTS[root]).product
    if day is None or not sessions.is_trade_date(day):
        day = newest_published(as_of, product)
    return settled_at(day, product)


def _parity_forwards(rows: pl.DataFrame) -> pl.DataFrame:
    """The forward by put-call parity of each series, snapshot and kind of price (docs/pricing.md)."""
    terms = (*_FORWARD_OF, "strike")
    width = pl.col("_half_width").fill_null(0.0)
    usable = rows.lazy().filter((pl.col("price_used") != "last") & (pl.col("years") > 0))
    calls, puts = (usable.filter(pl.col("option_type") == side) for side in "CP")
    pairs = (
        calls.select(*terms, "years", "rate", call="price", call_width=width)
        .join(puts.select(*terms, put="price", put_width=width), on=terms)
        .collect()
    )
    apart = pl.col("call") - pl.col("put")
    near = pairs.sort(apart.abs()).group_by(_FORWARD_OF, maintain_order=True).head(PARITY_STRIKES)
    implied = near.select(
        *_FORWARD_OF,
        implied=pl.col("strike") + apart * (pl.col("rate") * pl.col("years")).exp(),
        weight=1 / (pl.col("call_width") + pl.col("put_width") + 0.05),
    ).sort("implied")
    below = pl.col("weight").cum_sum() < pl.col("weight").sum() / 2
    return implied.group_by(_FORWARD_OF).agg(
        parity_forward=pl.col("implied").get(below.sum()),
        parity_spread=pl.col("implied").quantile(0.75) - pl.col("implied").quantile(0.25),
        parity_pairs=pl.len().cast(pl.Int64),
    )


def _add_forward(rows: pl.DataFrame) -> pl.DataFrame:
    """Add the forward: the parity forward where the pairs agree, else, for quotes, the future's price."""
    agreed = (pl.col("parity_pairs") >= MIN_PAIRS) & (
        pl.col("parity_spread") <= MAX_PARITY_SPREAD * pl.col("parity_forward")
    )
    quoted = (
        (pl.col("underlying_class") == "future")
        & (pl.col("_basis") == "quote")
        & _is_price(pl.col("underlying_price"))
    )
    source = pl.when(agreed).then(pl.lit("parity")).when(quoted).then(pl.lit("underlying"))
    rows = rows.with_columns(forward_source=source, parity_pairs=pl.col("parity_pairs").fill_null(0))
    return rows.with_columns(
        forward=pl.when(forward_source="parity")
        .then("parity_forward")
        .when(forward_source="underlying")
        .then("underlying_price"),
        parity_gap=pl.when(_basis="quote").then(pl.col("parity_forward") - pl.col("underlying_price")),
    )


def _add_model(rows: pl.DataFrame) -> pl.DataFrame:
    """Add the model that values a row, or in `unpriced` why none does."""
    early = (pl.col("exercise_style") == "american") & (pl.col("underlying_class") == "future")
    model = pl.when(early & (pl.col("rate") > 0)).then(pl.lit("kim")).otherwise(pl.lit("black76"))
    price, forward, strike = (pl.col(name) for name in ("price", "forward", "strike"))
    is_call = pl.col("option_type") == "C"
    # An American option is compared with its undiscounted exercise value.
    undiscounted = (
        pl.when(model == "kim").then(price).otherwise(price * (pl.col("rate") * pl.col("years")).exp())
    )
    intrinsic = pl.when(is_call).then(forward - strike).otherwise(strike - forward).clip(lower_bound=0.0)
    reason = (
        pl.when(price.is_null())
        .then("_no_price")
        .when(forward.is_null())
        .then(pl.lit("no_forward"))
        .when(undiscounted - intrinsic <= _ROUNDING * price)
        .then(pl.lit("below_intrinsic"))
        .when(undiscounted >= pl.when(is_call).then(forward).otherwise(strike))
        .then(pl.lit("above_bound"))
    )
    # A settlement of when the option was alive has a volatility if its series has a forward.
    over = reason.is_not_null() & (pl.col("expiration") <= pl.col("_quoted_at"))
    expired = over | (pl.col("years") <= 0)
    rows = rows.with_columns(model=model, unpriced=pl.when(expired).then(pl.lit("expired")).otherwise(reason))
    return rows.with_columns(pl.when(pl.col("unpriced").is_null()).then("model").alias("model"))


def greeks(rows: pl.DataFrame) -> list[pl.Series]:
    """The Greeks of rows that have a model and a volatility, by that model; null in other rows.

    `rows` are of `option_pricing`, with the contract's `strike` and `option_type`.
    """
    found = np.full((len(_GREEKS), rows.height), np.nan)
    for model, at, is_call, (vol, rate, *terms) in _by_model(rows, "implied_volatility", "rate", *_TERMS):
        of = model.value(*terms, vol, is_call, rate)
        for row, greek in enumerate(_GREEKS):
            found[row, at] = getattr(of, greek)
    return [pl.Series(name, values).fill_nan(None) for name, values in zip(_GREEKS, found, strict=True)]


def _by_model(rows: pl.DataFrame, *names: str) -> Iterator[tuple[ModuleType, Rows, Sides, list[Floats]]]:
    """For each model: the module, the places of its rows, which are calls, and these columns of them.

    `ju_zhong` is an approximation that valued American rows of older lakes.
    """
    columns = [rows[name].cast(pl.Float64).to_numpy() for name in names]
    is_call = (rows["option_type"] == "C").to_numpy()
    for name, model in (("black76", black76), ("kim", american), ("ju_zhong", american)):
        at = np.flatnonzero(rows["model"].eq_missing(name))
        if at.size:
            yield model, at, is_call[at], [column[at] for column in columns]


def _value_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """Add implied volatility and Greeks to every row that has a model."""
    volatilities = np.full(rows.height, np.nan)
    for model, at, is_call, (price, rate, *terms) in _by_model(rows, "price", "rate", *_TERMS):
        volatilities[at] = model.implied_volatility(price, *terms, is_call, rate)
    rows = rows.with_columns(pl.Series("implied_volatility", volatilities).fill_nan(None))
    rows = rows.with_columns(greeks(rows))
    failed = pl.col("model").is_not_null() & pl.col("implied_volatility").is_null()
    return rows.with_columns(
        unpriced=pl.when(failed).then(pl.lit("no_solution")).otherwise("unpriced"),
        model=pl.when(~failed).then("model"),
        iv_uncertainty=pl.when(pl.col("vega") > 0).then(pl.col("_half_width") / pl.col("vega")),
    )
