"""The history Databento's stand-in has: records of a question, as arrays and as DBN.

All of it is of the tape, so that what was streamed and what is asked for later agree; only
definitions come as history has them, as a snapshot of each day.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import polars as pl

from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.globex import (
    DAY_NS,
    UNDEF_PRICE,
    UNDEF_TIME,
    Array,
    daily_definitions,
    quotes,
    statistics,
)
from nq_pipeline.sandbox.synthetic.market import AnyMarket
from nq_pipeline.sandbox.synthetic.symbols import ALL, meant_in
from nq_pipeline.sandbox.synthetic.tape import INTERVALS_NS, of_instruments, tape
from nq_pipeline.sandbox.vendors.databento_request import (
    DATASET,
    Question,
    RequestRefused,
    available_end,
)


def recorded(question: Question, world: Scenario) -> tuple[Array, pl.DataFrame]:
    """Records and the instruments they are of, as the world's fault lets them be."""
    # A bar that began within the question may end after it, but not after what there is.
    until = available_end(world) if question.schema.startswith("ohlcv") else question.end
    array, instruments = _records(world.market, question, until)
    if world.fault == "empty":
        return array[:0], instruments.clear()
    return (_malformed(question.schema, array) if world.fault == "malformed" else array), instruments


@lru_cache(maxsize=8)
def _records(market: AnyMarket, question: Question, until: int) -> tuple[Array, pl.DataFrame]:
    """Made once: the price is asked before the records are."""
    found = meant_in(market, question.symbols, question.stype_in, question.start, question.end)
    if found.is_empty():
        raise RequestRefused(422, "symbology_invalid_request", "None of the symbols could be resolved.")
    instruments = found.unique("instrument_id", keep="last", maintain_order=True)
    schema, span = question.schema, (question.start, question.end)
    if schema == "definition":
        array = daily_definitions(instruments, *span)
    elif schema == "statistics":
        array = statistics(market, instruments, *span)
    elif schema == "bbo-1m":
        array = quotes(market, instruments, *span)
    else:
        if schema.startswith("ohlcv"):
            step = INTERVALS_NS[schema]
            span = (question.start + step, min(question.end + step, until))
        array = of_instruments(tape(market).records(schema, *span), instruments["instrument_id"].sort())
    if question.stype_in == "continuous":
        array = _in_force(array, found)
    return array[: question.limit], found


def _in_force(array: Array, rolled: pl.DataFrame) -> Array:
    """The records of an instrument on the days on which a continuous symbol means it."""
    names = array.dtype.names or ()
    at = array["ts_recv" if "ts_recv" in names else "ts_event"] // np.uint64(DAY_NS)
    kept = np.zeros(len(array), bool)
    days = rolled.select("instrument_id", pl.col("first", "until").to_physical())
    for number, first, last in days.iter_rows():
        kept |= (array["instrument_id"] == number) & (at >= first) & (at < last)
    return array[kept]


def encoded(question: Question, world: Scenario) -> bytes:
    """Metadata and records, as DBN."""
    import databento_dbn as dbn

    array, instruments = recorded(question, world)
    found = set(instruments["parent" if question.stype_in == "parent" else "asked"])
    head = dbn.Metadata(
        dataset=DATASET,
        schema=dbn.Schema.from_str(question.schema),
        stype_in=dbn.SType.from_str(question.stype_in),
        stype_out=dbn.SType.from_str(question.stype_out),
        start=question.start,
        end=question.end,
        limit=question.limit,
        symbols=list(question.symbols),
        partial=[],
        not_found=[symbol for symbol in question.symbols if symbol not in found and symbol != ALL],
        mappings=[
            SimpleNamespace(
                raw_symbol=symbol,
                intervals=[
                    SimpleNamespace(start_date=first, end_date=until, symbol=text)
                    for first, until, text in spans
                ],
            )
            for symbol, spans in named(instruments, question.stype_in, question.stype_out).items()
        ],
    )  # fmt: skip
    return bytes(head.encode()) + array.tobytes()


def named(
    instruments: pl.DataFrame, stype_in: str, stype_out: str
) -> dict[str, list[tuple[date, date, str]]]:
    """What each symbol stands for, and on which days; a parent's instruments by their own symbols."""
    by = "raw_symbol" if stype_in == "parent" else "asked"
    rows = instruments.select(by, "first", "until", pl.col(stype_out).cast(pl.String).alias("text"))
    spans: dict[str, list[tuple[date, date, str]]] = {}
    for symbol, *span in rows.iter_rows():
        spans.setdefault(symbol, []).append(tuple(span))
    return spans


def _malformed(schema: str, array: Array) -> Array:
    """One record in twenty with nonsense in it, of four kinds."""
    a = array.copy()
    first, second, third = (slice(start, None, 80) for start in (3, 23, 43))
    a["instrument_id"][63::80] = 4_000_000_000
    if schema == "definition":
        a["strike_price"][first] = UNDEF_PRICE
        a["expiration"][second] = UNDEF_TIME
        a["raw_symbol"][third] = b"\xff\xfe?"
        a["instrument_class"][63::80] = b"?"
    else:
        bar = schema.startswith("ohlcv")
        a["ts_event" if bar else "ts_recv"][first] = UNDEF_TIME
        a["close" if bar else "price"][second] = UNDEF_PRICE
        a["ts_event"][third] = UNDEF_TIME
    return a
