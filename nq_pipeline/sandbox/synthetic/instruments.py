"""The instruments of a trade date, and which of them a symbol means.

Symbols are raw symbols, instrument ids, parents (`NQ.OPT`) or continuous contracts. `NQ.c.0` is the
nearest NQ future that has not expired when a UTC day begins, `NQ.c.1` the one after. In this market
the nearest future also has the most volume and open interest, so `NQ.v.0` and `NQ.n.0` mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import date, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.sandbox.synthetic.market import AnyMarket
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS
from nq_pipeline.sandbox.synthetic.profiles import PROFILES

if TYPE_CHECKING:
    from polars.expr.datetime import ExprDateTimeNameSpace

STYPES = {"instrument_id": 0, "raw_symbol": 1, "continuous": 3, "parent": 4}
"""The symbol types a request may use, with DBN's numbers."""
ALL_SYMBOLS = "ALL_SYMBOLS"
PRODUCT_OF_ROOT = {code: root.product.code for code, root in ROOTS.items()}
_CONTINUOUS = re.compile(r"([A-Z0-9]+)\.[cvn]\.(\d{1,2})")


def sessions_between(start: int, end: int) -> list[sessions.Session]:
    """The sessions that trade in [start, end), nanoseconds UTC."""
    first, last = from_ns(start).date(), from_ns(end).date()
    return [
        s
        for s in sessions.sessions(first - timedelta(1), last + timedelta(4))
        if any(to_ns(opens) < end and to_ns(closes) > start for opens, closes in s.segments)
    ]


@lru_cache(maxsize=8)
def universe(market: AnyMarket, trade_date: date) -> pl.DataFrame:
    """Options, futures and one user-defined spread per root of a trade date.

    Columns: instrument_id, raw_symbol, parent, instrument_class (DBN's letter), product, root, strike,
    expiration, exercise_style, underlying, underlying_id.
    """
    options = market.listed(trade_date).select(
        pl.col("instrument_id").cast(pl.Int64),
        "raw_symbol",
        (pl.col("root") + ".OPT").alias("parent"),
        pl.col("option_type").alias("instrument_class"),
        pl.col("root").replace_strict(PRODUCT_OF_ROOT).alias("product"),
        "root",
        "strike",
        "expiration",
        "exercise_style",
        "underlying",
    )
    futures = market.futures(sessions.session(trade_date).open).select(
        future_ids(pl.col("product"), pl.col("expiration").dt).alias("instrument_id"),
        pl.col("symbol").alias("raw_symbol"),
        (pl.col("product") + ".FUT").alias("parent"),
        pl.lit("F").alias("instrument_class"),
        "product",
        pl.col("product").alias("root"),
        pl.lit(None, pl.Float64).alias("strike"),
        "expiration",
        pl.lit("").alias("exercise_style"),
        pl.lit("").alias("underlying"),
    )
    numbers = pl.col("root").replace_strict(list(ROOTS), range(len(ROOTS))) + 2_900_001
    spreads = (
        options.group_by("parent", maintain_order=True)
        .first()
        .with_columns(
            numbers.cast(pl.Int64).alias("instrument_id"),
            pl.concat_str(pl.lit("UD:1V: VT "), numbers).alias("raw_symbol"),
            pl.lit("T").alias("instrument_class"),
            pl.lit(None, pl.Float64).alias("strike"),
        )
        .select(options.columns)
    )
    ids = futures.select(underlying="raw_symbol", underlying_id="instrument_id")
    instruments = pl.concat([options, futures, spreads])
    return instruments.join(ids, on="underlying", how="left", maintain_order="left")


def future_ids(product: pl.Expr, expires: ExprDateTimeNameSpace) -> pl.Expr:
    """Ids of futures: year and month of expiration, offset by the first id of the product."""
    first = product.replace_strict({code: profile.first_id for code, profile in PROFILES.items()})
    return first + expires.year().cast(pl.Int64) * 100 + expires.month()


def select_instruments(
    instruments: pl.DataFrame, symbols: Collection[str], stype_in: str, at: int
) -> pl.DataFrame:
    """The rows of `universe` that symbols mean at an instant, with `stype_in_symbol`, the symbol used."""
    if ALL_SYMBOLS in symbols:
        return instruments.with_columns(stype_in_symbol="raw_symbol")
    if stype_in == "continuous":
        return _rank_futures(instruments, symbols, at)
    named = instruments.with_columns(stype_in_symbol=pl.col(stype_in).cast(pl.String))
    return named.filter(pl.col("stype_in_symbol").is_in(pl.Series(list(symbols)).implode()))


def resolve_symbols(
    market: AnyMarket, symbols: Collection[str], stype_in: str, start: int, end: int
) -> pl.DataFrame:
    """The instruments that symbols mean in [start, end), over all sessions the span touches.

    Adds `stype_in_symbol` and the UTC days `start_date` to `end_date` (excluded) on which it means the
    instrument.
    """
    first, until = from_ns(start).date(), from_ns(end - 1).date() + timedelta(days=1)
    if stype_in == "continuous" and ALL_SYMBOLS not in symbols:
        return _roll_continuous(market, symbols, start // DAY_NS * DAY_NS, end, until)
    days = [session.trade_date for session in sessions_between(start, end)]
    instruments = pl.concat([universe(market, day) for day in days]) if days else _no_instruments(market)
    return (
        select_instruments(instruments, symbols, stype_in, start)
        .unique("instrument_id", keep="last", maintain_order=True)
        .with_columns(start_date=pl.lit(first), end_date=pl.lit(until))
    )


def _no_instruments(market: AnyMarket) -> pl.DataFrame:
    return universe(market, date(2025, 6, 10)).clear()


def _rank_futures(instruments: pl.DataFrame, symbols: Collection[str], at: int) -> pl.DataFrame:
    matches = [(symbol, found) for symbol in symbols if (found := _CONTINUOUS.fullmatch(symbol))]
    wanted = pl.DataFrame(
        [(symbol, found[1], int(found[2])) for symbol, found in matches],
        schema={"stype_in_symbol": pl.String, "product": pl.String, "rank": pl.Int64},
        orient="row",
    )
    futures = instruments.filter(pl.col("instrument_class") == "F", pl.col("expiration").cast(pl.Int64) > at)
    ranked = futures.sort("expiration").with_columns(rank=pl.int_range(pl.len()).over("product"))
    return ranked.join(wanted, on=["product", "rank"]).drop("rank")


def _roll_continuous(
    market: AnyMarket, symbols: Collection[str], start: int, end: int, until: date
) -> pl.DataFrame:
    """The runs of days on which each continuous symbol means the same instrument."""
    days = [_rank_futures(_no_instruments(market), symbols, start).with_columns(start_date=pl.lit(until))]
    for midnight in range(start, end, DAY_NS):
        if trading := sessions_between(midnight, midnight + DAY_NS):
            ranked = _rank_futures(universe(market, trading[0].trade_date), symbols, midnight)
            days.append(ranked.with_columns(start_date=pl.lit(from_ns(midnight).date())))
    daily = pl.concat(days).sort("stype_in_symbol", "start_date")
    new = pl.col("instrument_id") != pl.col("instrument_id").shift().over("stype_in_symbol")
    runs = daily.filter(new.fill_null(True))
    following = pl.col("start_date").shift(-1).over("stype_in_symbol")
    return runs.with_columns(end_date=following.fill_null(until))
