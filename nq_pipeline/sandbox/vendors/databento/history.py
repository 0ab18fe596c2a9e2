"""The history of Databento's stand-in: the records of a query, as arrays and as DBN.

All records come from the tape, so that what was streamed and what is bought later agree. Definitions
come as history has them, as a snapshot of each day.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from nq_pipeline.dbn.layout import UNDEF_PRICE, UNDEF_TIMESTAMP, Array
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.instruments import ALL_SYMBOLS, resolve_symbols
from nq_pipeline.sandbox.synthetic.market import AnyMarket
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS
from nq_pipeline.sandbox.synthetic.records import (
    daily_definition_records,
    minute_quote_records,
    statistics_records,
)
from nq_pipeline.sandbox.synthetic.tape import INTERVALS_NS, filter_instruments, tape
from nq_pipeline.sandbox.vendors.databento.request import DATASET, RangeQuery, RequestRefused, available_end

Intervals = dict[str, list[tuple[date, date, str]]]
"""By symbol: first day, end day (excluded), and what it means on them."""


def query_records(query: RangeQuery, scenario: Scenario) -> tuple[Array, pl.DataFrame]:
    """The records of a query and their instruments, with the scenario's fault applied."""
    # A bar that began within the query may end after it, but not after the data.
    until = available_end(scenario) if query.schema.startswith("ohlcv") else query.end
    array, instruments = _market_records(scenario.market, query, until)
    if scenario.fault == "empty":
        return array[:0], instruments.clear()
    return (_corrupt(query.schema, array) if scenario.fault == "malformed" else array), instruments


@lru_cache(maxsize=8)
def _market_records(market: AnyMarket, query: RangeQuery, until: int) -> tuple[Array, pl.DataFrame]:
    """Cached, because clients request the price before the records."""
    found = resolve_symbols(market, query.symbols, query.stype_in, query.start, query.end)
    if found.is_empty():
        raise RequestRefused(422, "symbology_invalid_request", "None of the symbols could be resolved.")
    instruments = found.unique("instrument_id", keep="last", maintain_order=True)
    schema, span = query.schema, (query.start, query.end)
    if schema == "definition":
        array = daily_definition_records(instruments, *span)
    elif schema == "statistics":
        array = statistics_records(market, instruments, *span)
    elif schema == "bbo-1m":
        array = minute_quote_records(market, instruments, *span)
    else:
        if schema.startswith("ohlcv"):
            step = INTERVALS_NS[schema]
            span = (query.start + step, min(query.end + step, until))
        array = filter_instruments(tape(market).records(schema, *span), instruments["instrument_id"].sort())
    if query.stype_in == "continuous":
        array = _filter_mapped_days(array, found)
    return array[: query.limit], found


def _filter_mapped_days(array: Array, mapping: pl.DataFrame) -> Array:
    """The records of an instrument on the days on which a continuous symbol means it."""
    names = array.dtype.names or ()
    at = array["ts_recv" if "ts_recv" in names else "ts_event"] // np.uint64(DAY_NS)
    wanted = np.zeros(len(array), bool)
    days = mapping.select("instrument_id", pl.col("start_date", "end_date").to_physical())
    for number, first, last in days.iter_rows():
        wanted |= (array["instrument_id"] == number) & (at >= first) & (at < last)
    return array[wanted]


def encode_dbn(query: RangeQuery, scenario: Scenario) -> bytes:
    """The metadata and records of a query, as DBN."""
    import databento_dbn as dbn

    array, instruments = query_records(query, scenario)
    found = set(instruments["parent" if query.stype_in == "parent" else "stype_in_symbol"])
    head = dbn.Metadata(
        dataset=DATASET,
        schema=dbn.Schema.from_str(query.schema),
        stype_in=dbn.SType.from_str(query.stype_in),
        stype_out=dbn.SType.from_str(query.stype_out),
        start=query.start,
        end=query.end,
        limit=query.limit,
        symbols=list(query.symbols),
        partial=[],
        not_found=[symbol for symbol in query.symbols if symbol not in found and symbol != ALL_SYMBOLS],
        mappings=[
            SimpleNamespace(
                raw_symbol=symbol,
                intervals=[
                    SimpleNamespace(start_date=first, end_date=until, symbol=text)
                    for first, until, text in intervals
                ],
            )
            for symbol, intervals in mapped_intervals(instruments, query).items()
        ],
    )
    return bytes(head.encode()) + array.tobytes()


def mapped_intervals(instruments: pl.DataFrame, query: RangeQuery) -> Intervals:
    """What the symbols of a query mean; the instruments of a parent appear under their own symbols."""
    by = "raw_symbol" if query.stype_in == "parent" else "stype_in_symbol"
    return symbol_intervals(instruments, by, query.stype_out)


def symbol_intervals(instruments: pl.DataFrame, by: str, stype_out: str) -> Intervals:
    """The (first day, end day, symbol out) of each value of a column of `resolve_symbols`."""
    out = pl.col(stype_out).cast(pl.String).alias("out")
    intervals: Intervals = {}
    for symbol, *interval in instruments.select(by, "start_date", "end_date", out).iter_rows():
        intervals.setdefault(symbol, []).append(tuple(interval))
    return intervals


def symbology_answer(
    intervals: Intervals, symbols: tuple[str, ...], stypes: tuple[str, str], first: date, end: date
) -> dict[str, Any]:
    """The answer of `symbology.resolve` for whole days from `first` to `end`, which is excluded."""
    missing = [symbol for symbol, found in intervals.items() if not found]
    status = 2 if len(missing) == len(intervals) else int(bool(missing))
    return {
        "result": {
            symbol: [{"d0": str(begin), "d1": str(until), "s": text} for begin, until, text in found]
            for symbol, found in intervals.items()
        },
        "symbols": list(symbols),
        "stype_in": stypes[0],
        "stype_out": stypes[1],
        "start_date": str(first),
        "end_date": str(end),
        "partial": [],
        "not_found": missing,
        "message": ("OK", "Partially resolved", "Not found")[status],
        "status": status,
    }


def _corrupt(schema: str, array: Array) -> Array:
    """Nonsense of four kinds in one record of twenty."""
    a = array.copy()
    first, second, third = (slice(start, None, 80) for start in (3, 23, 43))
    a["instrument_id"][63::80] = 4_000_000_000
    if schema == "definition":
        a["strike_price"][first] = UNDEF_PRICE
        a["expiration"][second] = UNDEF_TIMESTAMP
        a["raw_symbol"][third] = b"\xff\xfe?"
        a["instrument_class"][63::80] = b"?"
    else:
        bar = schema.startswith("ohlcv")
        a["ts_event" if bar else "ts_recv"][first] = UNDEF_TIMESTAMP
        a["close" if bar else "price"][second] = UNDEF_PRICE
        a["ts_event"][third] = UNDEF_TIMESTAMP
    return a
