"""DBN, Databento's binary encoding, to columns: no Python object per record.

A body is an optional zstd frame around a head (what was asked, and which symbol had which id on
which days) and fixed-size little-endian records. The head is read by databento_dbn, the records
are seen in place as one structured array in the layout databento_dbn names for the version.
Everything is checked that a damaged answer could get wrong: the end of the compressed frame, the
version, the schema, the length and kind of every record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import zstandard

from nq_pipeline.clock import to_ns
from nq_pipeline.errors import BadPayload

LAYOUTS = {
    "definition": ("InstrumentDefMsg", 19),
    "statistics": ("StatMsg", 24),
    "trades": ("TradeMsg", 0),
    "bbo-1s": ("BBOMsg", 195),
    "bbo-1m": ("BBOMsg", 196),
    "ohlcv-1s": ("OHLCVMsg", 32),
    "ohlcv-1m": ("OHLCVMsg", 33),
    "ohlcv-1h": ("OHLCVMsg", 34),
    "ohlcv-1d": ("OHLCVMsg", 35),
}
"""Schema to the record's name in databento_dbn and its rtype."""

UNDEF_PRICE = np.iinfo(np.int64).max
UNDEF_SIZE = np.iinfo(np.uint32).max
UNDEF_QUANTITY = {1: np.iinfo(np.int32).max, 2: np.iinfo(np.int32).max, 3: np.iinfo(np.int64).max}
"""By version of DBN; the keys are the versions this program knows."""
LATEST_NS = np.uint64(to_ns(datetime.fromisoformat("2200-01-01T00:00:00Z")))
"""Timestamps from here on, the undefined one among them, are no instants."""

INSTANT = pl.Datetime("ns", "UTC")
MAX_DECODED_BYTES = 512 * 1024 * 1024
BITE = 4096

Array = npt.NDArray[Any]


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
    import databento_dbn

    if version not in UNDEF_QUANTITY:
        raise KeyError(version)
    structs = getattr(databento_dbn, f"v{version}")
    return np.dtype(list(getattr(structs, LAYOUTS[schema][0])._dtypes))


def decode(body: bytes, schema: str) -> Records:
    """Decode an answer of one schema, compressed or not.

    Raises
    ------
    BadPayload
        The body is no DBN, is cut off, is of another schema, or its records are not of its
        version's layout.
    """
    import databento_dbn

    raw = _decompressed(body, schema)
    if len(raw) < 8 or raw[:3] != b"DBN":
        raise BadPayload(f"{schema}: expected DBN, got something else of {len(body)} bytes")
    version, start = raw[3], 8 + int.from_bytes(raw[4:8], "little")
    try:
        head = databento_dbn.Metadata.decode(
            raw[:start],
            upgrade_policy=databento_dbn.VersionUpgradePolicy.AS_IS,  # type: ignore[arg-type]
        )
    except Exception as error:  # DBNError, ValueError: whatever the compiled part makes of damage
        raise BadPayload(f"{schema}: the head of the DBN cannot be read ({type(error).__name__})") from None
    try:
        dtype = layout(schema, version)
    except KeyError:
        raise BadPayload(f"{schema}: DBN version {version} is unknown to this program") from None
    if str(head.schema) != schema:
        raise BadPayload(f"{schema}: the answer is of schema {head.schema}")
    count, rest = divmod(len(raw) - start, dtype.itemsize)
    if count < 0 or rest:
        raise BadPayload(f"{schema}: the answer ends within a record")
    array = np.frombuffer(raw, dtype, count, start)
    if not ((array["length"] == dtype.itemsize // 4) & (array["rtype"] == LAYOUTS[schema][1])).all():
        raise BadPayload(f"{schema}: records of another kind among the answer")
    return Records(schema, version, array, _intervals(head.mappings), head.end)


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


def _decompressed(body: bytes, schema: str) -> bytes:
    """The plain bytes; `BadPayload` when a frame has no end, or when they are more than is honest."""
    if not body.startswith(zstandard.FRAME_HEADER):
        return body
    parts: list[bytes] = []
    size, frame = 0, zstandard.ZstdDecompressor().decompressobj()
    try:
        # In small bites, so that a bomb is noticed before it fills the memory.
        for at in range(0, len(body), BITE):
            bite = body[at : at + BITE]
            while bite:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                parts.append(frame.decompress(bite))
                size += len(parts[-1])
                bite = frame.unused_data if frame.eof else b""
            if size > MAX_DECODED_BYTES:
                raise BadPayload(f"{schema}: an answer larger than {MAX_DECODED_BYTES >> 20} MiB was refused")
    except zstandard.ZstdError:
        raise BadPayload(f"{schema}: the compressed answer is damaged") from None
    if not frame.eof:
        raise BadPayload(f"{schema}: the compressed answer is cut off")
    return b"".join(parts)


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
