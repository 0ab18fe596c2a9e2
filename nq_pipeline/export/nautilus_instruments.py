"""NautilusTrader's instruments: `OptionContract` and `FuturesContract`, one file each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.files import temporary_for
from nq_pipeline.market.contracts import MONTH_CODES, Series
from nq_pipeline.market.listing import future_expiration, underlying_future
from nq_pipeline.market.products import PRODUCTS, Product

Span = tuple[int, int]
"""First and last instant, nanoseconds UTC."""
VENUE = "GLBX"
"""The venue of every instrument, as in NautilusTrader's adapter for Databento."""
DIGITS = 2
"""Digits after the point of every price."""


def data_file(folder: Path, identifier: str, span: Span) -> Path:
    """The catalog's file for an instrument's data of a span."""
    first, last = (f"{from_ns(ns):%Y-%m-%dT%H-%M-%S}-{ns % 10**9:09d}Z" for ns in span)
    return folder / identifier / f"{first}_{last}.parquet"


def write_instruments(rows: Sequence[tuple[Any, ...]], folder: Path, day: date, span: Span) -> Iterator[Path]:
    """Write the instruments that the catalog lacks, a file each.

    Parameters
    ----------
    rows
        Tuples of raw symbol, root, and of an option series, type, strike and underlying.
    day
        The trade date on which they were seen.
    span
        Its first and last instant.
    """
    for symbol, root, series, option_type, strike, underlying in rows:
        kind = "futures_contract" if series is None else "option_contract"
        identifier = f"{symbol}.{VENUE}"
        path = data_file(folder / kind, identifier, (span[0], span[0]))
        if path.parent.exists():
            continue
        if series is None:
            product, own, schema = PRODUCTS[root], {"underlying": root}, _FUTURE
            tick, ends = product.ticks[-1][1], _future_ends(product, symbol, day)
        else:
            product, ends, future = _series(series)
            tick, schema = product.ticks[0][1], _OPTION
            own = {
                "underlying": underlying or future,
                "option_kind": "CALL" if option_type == "C" else "PUT",
                "strike_price": f"{strike:.{DIGITS}f}",
            }
        values = {
            "id": identifier,
            "raw_symbol": symbol,
            "asset_class": product.asset_class.upper(),
            "exchange": product.exchange,
            "currency": "USD",
            "activation_ns": 0,
            "expiration_ns": to_ns(ends),
            "price_precision": DIGITS,
            "size_precision": 0,
            "price_increment": f"{tick:.{DIGITS}f}",
            "size_increment": "1",
            "multiplier": f"{product.multiplier:g}",
            "lot_size": "1",
            **dict.fromkeys(("margin_init", "margin_maint", "maker_fee", "taker_fee"), "0"),
            "info": b"null",
            "ts_event": span[0],
            "ts_init": span[0],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_for(path) as temporary:
            table = pa.Table.from_pylist([values | own], schema)
            pq.write_table(table, temporary)
            temporary.replace(path)
        yield path


@lru_cache(maxsize=4096)
def _series(key: str) -> tuple[Product, datetime, str]:
    """The product, expiration and future of a series."""
    series = Series.parse(key)
    return series.root_info.product, series.expiration, underlying_future(series)


@lru_cache(maxsize=4096)
def _future_ends(product: Product, symbol: str, day: date) -> datetime:
    """When a future that trades on `day` ends: in the first such month from then on."""
    letter, digits = symbol[len(product.code)], symbol[len(product.code) + 1 :]
    month = MONTH_CODES.index(letter) + 1
    years = range(day.year, day.year + 10 ** len(digits) + 1)
    year = next(y for y in years if str(y).endswith(digits) and (y, month) >= (day.year, day.month))
    return future_expiration(product, year, month)


_8, _16, _64 = (pa.dictionary(index, pa.string()) for index in (pa.int8(), pa.int16(), pa.int64()))
_SHARED = {
    "id": _64,
    "raw_symbol": pa.string(),
    **dict.fromkeys(("underlying", "exchange", "currency"), _16),
    "asset_class": _8,
    **dict.fromkeys(("activation_ns", "expiration_ns"), pa.uint64()),
    **dict.fromkeys(("price_precision", "size_precision"), pa.uint8()),
    **dict.fromkeys(("price_increment", "size_increment", "multiplier", "lot_size"), _16),
    **dict.fromkeys(("margin_init", "margin_maint", "maker_fee", "taker_fee"), pa.string()),
    "info": pa.binary(),
    **dict.fromkeys(("ts_event", "ts_init"), pa.uint64()),
}
_FUTURE = pa.schema(_SHARED, metadata={"class": "FuturesContract"})
_OPTION = pa.schema(_SHARED | {"option_kind": _8, "strike_price": _64}, metadata={"class": "OptionContract"})
