"""Which instruments a symbol means: by raw symbol, by id, by parent, or as a continuous contract.

`NQ.c.0` is the nearest future of NQ that has not expired when a UTC day begins, `NQ.c.1` the one
after. The nearest one of this market also has the most volume and open interest, so that `NQ.v.0`
and `NQ.n.0` are the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import date, timedelta

import polars as pl

from nq_pipeline.clock import from_ns
from nq_pipeline.sandbox.synthetic.globex import DAY_NS, sessions_of, universe
from nq_pipeline.sandbox.synthetic.market import AnyMarket

STYPES = {"instrument_id": 0, "raw_symbol": 1, "continuous": 3, "parent": 4}
"""What can be asked by, with DBN's numbers."""
ALL = "ALL_SYMBOLS"
_CONTINUOUS = re.compile(r"([A-Z0-9]+)\.[cvn]\.(\d{1,2})")


def meant(listed: pl.DataFrame, symbols: Collection[str], stype_in: str, at: int) -> pl.DataFrame:
    """The rows of `universe` that symbols mean at an instant, each with the symbol it was `asked` by."""
    if ALL in symbols:
        return listed.with_columns(asked="raw_symbol")
    if stype_in == "continuous":
        return _ranked(listed, symbols, at)
    named = listed.with_columns(asked=pl.col(stype_in).cast(pl.String))
    return named.filter(pl.col("asked").is_in(pl.Series(list(symbols)).implode()))


def meant_in(
    market: AnyMarket, symbols: Collection[str], stype_in: str, start: int, end: int
) -> pl.DataFrame:
    """The instruments that symbols mean in [start, end), of all sessions the span touches.

    `first` and `until` (excluded) are the days, UTC, on which `asked` means the instrument.
    """
    first, until = from_ns(start).date(), from_ns(end - 1).date() + timedelta(days=1)
    if stype_in == "continuous" and ALL not in symbols:
        return _rolled(market, symbols, start // DAY_NS * DAY_NS, end, until)
    days = [session.trade_date for session in sessions_of(start, end)]
    listed = pl.concat([universe(market, day) for day in days]) if days else universe(market, None)
    return (
        meant(listed, symbols, stype_in, start)
        .unique("instrument_id", keep="last", maintain_order=True)
        .with_columns(first=pl.lit(first), until=pl.lit(until))
    )


def _ranked(listed: pl.DataFrame, symbols: Collection[str], at: int) -> pl.DataFrame:
    matches = [(symbol, found) for symbol in symbols if (found := _CONTINUOUS.fullmatch(symbol))]
    asked = pl.DataFrame(
        [(symbol, found[1], int(found[2])) for symbol, found in matches],
        schema={"asked": pl.String, "product": pl.String, "rank": pl.Int64},
        orient="row",
    )
    futures = listed.filter(pl.col("instrument_class") == "F", pl.col("expiration").cast(pl.Int64) > at)
    ranked = futures.sort("expiration").with_columns(rank=pl.int_range(pl.len()).over("product"))
    return ranked.join(asked, on=["product", "rank"]).drop("rank")


def _rolled(market: AnyMarket, symbols: Collection[str], start: int, end: int, until: date) -> pl.DataFrame:
    """The runs of days on which each continuous symbol means the same instrument."""
    days = [_ranked(universe(market, None), symbols, start).with_columns(first=pl.lit(until))]
    for midnight in range(start, end, DAY_NS):
        if trading := sessions_of(midnight, midnight + DAY_NS):
            listed = universe(market, trading[0].trade_date)
            day = from_ns(midnight).date()
            days.append(_ranked(listed, symbols, midnight).with_columns(first=pl.lit(day)))
    whole = pl.concat(days).sort("asked", "first")
    new = pl.col("instrument_id") != pl.col("instrument_id").shift().over("asked")
    runs = whole.filter(new.fill_null(True))
    return runs.with_columns(until=pl.col("first").shift(-1).over("asked").fill_null(until))
