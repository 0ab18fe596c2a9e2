"""The listed series, strikes and instrument ids of the synthetic market.

The strikes of a series span the closes since its listing and grow denser towards expiration, so a listed
strike stays listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import MONTH_CODES, Series
from nq_pipeline.market.listing import expirations, future_expiration, underlying_future
from nq_pipeline.market.products import NQ, PROXIES, Product
from nq_pipeline.market.symbology import contract_keys, globex_code, globex_symbols
from nq_pipeline.sandbox.synthetic.hashed_random import Floats
from nq_pipeline.sandbox.synthetic.profiles import PROFILES, Profile, Span

Closes = Callable[[date, date], Floats]
"""From two dates to the closes from the day before the first to the day before the second."""

LISTED_DAYS = 49
"""A weekly or end-of-month series is listed this many days before it expires."""
STANDARDS, STANDARD_DAYS = 4, 400
"""How many quarterly (or monthly) series are listed at any time, and for how many days each."""

_IDS_SINCE = date(2015, 1, 1)
_SLOTS = {"NDX": 2, "NDXP": 3, "QQQ": 4, "SPX": 2, "SPXW": 3, "SPY": 4}


def options_on_futures(product: Product, trade_date: date, closes: Closes) -> pl.DataFrame:
    """All options on the future that trade on a trade date, by expiration, root, side and strike."""
    profile = PROFILES[product.code]
    near = expirations(product.code, trade_date, trade_date + timedelta(LISTED_DAYS))
    far = [s for s in standards(product, trade_date, STANDARDS) if s not in near]
    futures = future_expirations(product, trade_date)
    every_close = closes(trade_date - timedelta(STANDARD_DAYS), trade_date)
    rows = []
    for series in [*near, *far]:
        standard = series.root_info.family.is_standard
        listed_on = series.expiration_date - timedelta(STANDARD_DAYS if standard else LISTED_DAYS)
        since_listed = every_close[-max((trade_date - listed_on).days, 0) - 1 :]
        strikes = _series_strikes(profile, since_listed, (series.expiration_date - trade_date).days)
        future = underlying_future(series)
        rows.append(
            _series_row(series, strikes, slot=0 if standard else 1, listed_on=listed_on)
            | {"underlying": future, "underlying_expiration": futures[future].astimezone(UTC)}
            | {"code": globex_code(series), "scale": 1.0}
        )
    key, side, strike = pl.col("series"), pl.col("option_type"), pl.col("strike")
    return _contracts(rows, _instrument_id(5.0, profile.first_id)).with_columns(
        contract_keys(key, side, strike).alias("contract_key"),
        globex_symbols(pl.col("code"), side, strike).alias("raw_symbol"),
    ).drop("code")  # fmt: skip


def options_on_proxy(underlying: str, trade_date: date, closes: Closes) -> pl.DataFrame:
    """All options on an index or fund: daily expirations for five weeks, monthly ones beyond."""
    proxy = PROXIES[underlying]
    profile, fund = PROFILES[proxy.stands_for], proxy.underlying_class == "etf"
    daily = [s.trade_date for s in sessions.sessions(trade_date, trade_date + timedelta(35)) if s.rth]
    monthly = _monthly_dates(trade_date, 4)
    roots = [family.roots[0] for family in proxy.families]
    if fund:
        listed = [(roots[0], day) for day in sorted({*daily, *monthly})]
    else:
        listed = [*((roots[1], day) for day in daily), *((roots[0], day) for day in monthly)]
    scale = profile.scale_of(underlying)
    spans = dict(profile.proxy_strikes)[underlying]
    strikes = _multiples(spans, closes(trade_date - timedelta(29), trade_date) * scale)
    rows = []
    for root, day in listed:
        listed_on = day - timedelta(60 if fund or root != roots[0] else STANDARD_DAYS)
        row = _series_row(Series(root, day), strikes, slot=_SLOTS[root], listed_on=listed_on)
        rows.append(
            row | {"underlying": underlying, "underlying_expiration": row["expiration"], "scale": scale}
        )
    thousandths = (pl.col("strike") * 1000).round().cast(pl.Int64).cast(pl.String).str.zfill(8)
    occ_date = pl.col("expiration_date").dt.strftime("%y%m%d")
    ticker = pl.concat_str(pl.lit("O:"), "root", occ_date, "option_type", thousandths)
    ids = _instrument_id(1.0 if fund else 5.0, profile.first_id)
    return _contracts(rows, ids).with_columns(ticker.alias("ticker"))


@lru_cache(maxsize=64)
def standards(product: Product, start: date, count: int) -> list[Series]:
    """The next quarterly (or monthly) series from a date on."""
    near = expirations(product.code, start, start + timedelta(100 * count))
    return [s for s in near if s.root_info.family.is_standard][:count]


@lru_cache(maxsize=64)
def futures(product: Product, start: date, count: int) -> list[tuple[str, datetime]]:
    """The next futures from a date on that options exercise into: symbol and expiration."""
    months = range(start.year * 12 + start.month - 1, start.year * 12 + start.month + 12 * count)
    found: list[tuple[str, datetime]] = []
    for year, month in ((m // 12, m % 12 + 1) for m in months):
        if month in product.future_months and len(found) < count:
            ends = future_expiration(product, year, month)
            if ends.date() >= start:
                found.append((f"{product.code}{MONTH_CODES[month - 1]}{year % 10}", ends))
    return found


def future_expirations(product: Product, day: date) -> dict[str, datetime]:
    """When the futures that are listed on a day expire, by symbol."""
    return dict(futures(product, day - timedelta(1), STANDARDS + 2))


def utc(*columns: str) -> pl.Expr:
    """Instants in UTC nanoseconds, as the lake writes them."""
    return pl.col(*columns).dt.convert_time_zone("UTC").dt.cast_time_unit("ns")


def _series_row(series: Series, strikes: Floats, *, slot: int, listed_on: date) -> dict[str, Any]:
    family = series.root_info.family
    return {
        "series": series.key,
        "root": series.root,
        "expiration": series.expiration.astimezone(UTC),
        "expiration_date": series.expiration_date,
        "settlement_style": family.settlement_style,
        "exercise_style": family.exercise_style,
        "strike": strikes.tolist(),
        "slot": slot,
        "listed_on": listed_on,
    }


def _contracts(rows: list[dict[str, Any]], instrument_id: pl.Expr) -> pl.DataFrame:
    """The calls and puts of series, by expiration, root, side and strike."""
    sides = pl.DataFrame({"option_type": ["C", "P"]})
    return (
        pl.DataFrame(rows)
        .explode("strike")
        .join(sides, how="cross")
        .with_columns(utc("expiration", "underlying_expiration"), instrument_id)
        .drop("slot")
        .sort("expiration", "root", "option_type", "strike", maintain_order=True)
    )


def _monthly_dates(start: date, count: int) -> list[date]:
    """The next third Fridays (or the trade dates before them), on which index and fund options expire."""
    near = expirations(NQ.code, start, start + timedelta(32 * count))
    days = {s.expiration_date for s in near if s.root == "QN3" or s.root_info.family.kind == "quarterly"}
    return sorted(days)[:count]


def _instrument_id(step: float, first: int) -> pl.Expr:
    """A stable id below 2**32, from `first` on: expiration date, slot, strike and side have their digits."""
    days = (pl.col("expiration_date") - pl.lit(_IDS_SINCE)).dt.total_days()
    strike = (pl.col("strike") / step).round().cast(pl.Int64)
    side = (pl.col("option_type") == "P").cast(pl.Int64)
    return (first + (days * 5 + pl.col("slot")) * 20_000 + strike * 2 + side).alias("instrument_id")


def _series_strikes(profile: Profile, span: Floats, days: int) -> Floats:
    """Strikes around the closes since a series was listed; near expiration strikes are added."""
    near = profile.near_strikes if days <= 14 else ()
    last = profile.last_strikes if days <= 6 else ()
    return _multiples((*profile.strikes, *near, *last), span)


def _multiples(spans: Sequence[Span], closes: Floats) -> Floats:
    """Multiples of each step from a share of the lowest close to a share of the highest."""
    low, high = closes.min(), closes.max()
    strikes = [
        step * np.arange(np.ceil(low * down / step), np.floor(high * up / step) + 1)
        for step, down, up in spans
    ]
    return np.asarray(np.unique(np.concatenate(strikes)), np.float64)
