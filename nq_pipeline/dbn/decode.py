"""Answers in DBN, Databento's binary encoding, to columns.

`lake/dbn.py` reads them: the records of an answer are one structured array in the layout that
databento_dbn names for their version. What a damaged answer could get wrong is refused: the end of
the compressed frame, the version, the schema, the length and kind of every record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl

from nq_pipeline.clock import to_ns
from nq_pipeline.dbn import stream as dbn
from nq_pipeline.dbn.stream import UNDEF_PRICE, Array
from nq_pipeline.errors import BadPayload

LAYOUTS = (
    "definition",
    "statistics",
    "trades",
    "bbo-1s",
    "bbo-1m",
    "ohlcv-1s",
    "ohlcv-1m",
    "ohlcv-1h",
    "ohlcv-1d",
)
"""The schemas this program asks for."""

UNDEF_SIZE = np.iinfo(np.uint32).max
UNDEF_QUANTITY = {1: np.iinfo(np.int32).max, 2: np.iinfo(np.int32).max, 3: np.iinfo(np.int64).max}
"""By version of DBN; the keys are the versions this program knows."""
LATEST_NS = np.uint64(to_ns(datetime.fromisoformat("2200-01-01T00:00:00Z")))
"""Timestamps from here on, the undefined one among them, are no instants."""

INSTANT = pl.Datetime("ns", "UTC")
MAX_DECODED_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Records:
    """A decoded answer.

    Attributes
    ----------
    array
        Its records, as a structured array with the field names of databento_dbn.
    mappings
        Which symbol an id stood for: instrument_id, first, until (dates, until excluded),
        raw_symbol.
    end
        Where the question ended, nanoseconds UTC, exclusive; None where the head does not say.
    """

    schema: str
    version: int
    array: Array
    mappings: pl.DataFrame
    end: int | None = None

    @classmethod
    def none(cls, schema: str) -> Records:
        """No records at all."""
        return cls(schema, 3, np.empty(0, layout(schema, 3)), _intervals({}))


def layout(schema: str, version: int) -> np.dtype[Any]:
    """The record of a schema in a version of DBN; KeyError when either is unknown."""
    return dbn.layout(schema, version).dtype


def decode(body: bytes, schema: str) -> Records:
    """Decode an answer of one schema, compressed or not.

    Raises
    ------
    BadPayload
        The body is no DBN, is cut off, is of another schema, or its records are not of its
        version's layout.
    """
    if not body.startswith((dbn.ZSTD_MAGIC, b"DBN")):
        raise BadPayload(f"{schema}: expected DBN, got something else of {len(body)} bytes")
    try:
        with dbn.opened(BytesIO(body)) as stream:
            if stream.schema != schema:
                raise BadPayload(f"{schema}: the answer is of schema {stream.schema}")
            parts, size = [np.empty(0, stream.layout(schema).dtype)], 0
            for _, records in stream.batches():
                parts.append(records)
                size += records.nbytes
                if size > MAX_DECODED_BYTES:
                    raise BadPayload(
                        f"{schema}: an answer larger than {MAX_DECODED_BYTES >> 20} MiB was refused"
                    )
            head = stream.head
            return Records(schema, stream.version, np.concatenate(parts), _intervals(head.mappings), head.end)
    except dbn.TruncatedDbn as error:
        raise BadPayload(f"{schema}: the answer is cut off: {error}") from None
    except (dbn.DamagedDbn, dbn.UnsupportedDbn) as error:
        raise BadPayload(f"{schema}: {error}") from None


def prices(values: Array) -> pl.Series:
    """Prices in points, the integer divided by 1e9; undefined is null.

    One rounding, since a price below nine million points is an integer a float64 holds exactly.
    """
    return masked(values / 1e9, values != UNDEF_PRICE)


def sizes(values: Array) -> pl.Series:
    """Contracts; undefined is null."""
    return masked(values.astype(np.int64), values != UNDEF_SIZE)


def instants(values: Array) -> pl.Series:
    """Instants in UTC; undefined, or later than any market's, is null."""
    return masked(values.astype(np.int64), values < LATEST_NS).cast(INSTANT)


def texts(values: Array) -> pl.Series:
    """Fixed-width text; null where it is empty or not plain ASCII."""
    whole = np.ascontiguousarray(values)
    plain = (whole.view(np.uint8).reshape(len(whole), whole.dtype.itemsize) < 128).all(axis=1)
    text = pl.Series(np.where(plain, whole, b""), dtype=pl.Binary).cast(pl.String)
    return masked(text, plain & (whole != b""))


def masked(values: Array | pl.Series, kept: Array) -> pl.Series:
    """The values; null where they are not to be kept."""
    return pl.select(pl.when(pl.Series(kept, dtype=pl.Boolean)).then(pl.Series(values))).to_series()


def _intervals(mappings: Mapping[str, list[Any]]) -> pl.DataFrame:
    rows = [
        (span["symbol"], span["start_date"], span["end_date"], symbol)
        for symbol, spans in mappings.items()
        for span in spans
    ]
    columns = {"instrument_id": pl.String, "first": pl.Date, "until": pl.Date, "raw_symbol": pl.String}
    return (
        pl.DataFrame(rows, schema=columns, orient="row")
        .with_columns(pl.col("instrument_id").cast(pl.UInt32, strict=False))
        .drop_nulls()
        .sort("first", "instrument_id", "raw_symbol")  # the decoder's dictionary has no order
        .unique(["instrument_id", "first"], keep="last", maintain_order=True)
    )
