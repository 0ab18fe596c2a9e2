"""DBN fields as columns, with one rule for nulls.

DBN marks a missing value by the highest value of the field's type: `UNDEF_PRICE` (int64),
`UNDEF_TIMESTAMP` (uint64), `UNDEF_ORDER_SIZE` (uint32), `UNDEF_STAT_QUANTITY` (int64; int32 before
version 3). Those are null here, and nothing else is, with two exceptions: nanoseconds that an int64
cannot hold (from 2262-04-12 on) are null, because the lake's type cannot express them, and so is text
that is empty or not ASCII. The official client treats prices and instants the same way; it leaves
undefined sizes and quantities as numbers.

`field_column` knows a field's kind by its layout. Callers that know it themselves use `prices`, `sizes`,
`instants`, `texts` and `letters`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nq_pipeline.dbn.layout import Array, RecordLayout

INSTANT = pl.Datetime("ns", "UTC")
LAST_INSTANT = np.iinfo(np.int64).max
"""Nanoseconds since 1970 of the last instant that a column can hold."""


def is_defined(values: Array) -> npt.NDArray[np.bool_]:
    """Whether each price, size or quantity is set."""
    return np.asarray(values != np.iinfo(values.dtype).max)


def is_instant(values: Array) -> npt.NDArray[np.bool_]:
    """Whether each timestamp (uint64) is set, and can be expressed in int64 nanoseconds."""
    return np.asarray(values <= LAST_INSTANT)


def to_points(values: Array) -> npt.NDArray[np.float64]:
    """Convert prices to points; undefined ones are not treated.

    The quotient is correctly rounded, which a product with 1e-9 is not.
    """
    return np.asarray(values / 1e9)


def field_column(layout: RecordLayout, name: str, values: Array) -> pl.Series:
    """Return a field that is not text as a column, named after it.

    Prices become points, and instants nanoseconds UTC. Other fields stay as they are: only a caller that
    knows a field as a size or quantity can treat its highest value as undefined.
    """
    if name in layout.instants:
        return instants(values).alias(name)
    if name in layout.prices:
        return prices(values).alias(name)
    return pl.Series(name, np.ascontiguousarray(values))


def prices(values: Array) -> pl.Series:
    """Prices in points (float64); null where undefined."""
    return nulled(to_points(values), is_defined(values))


def sizes(values: Array) -> pl.Series:
    """Contracts (int64), from order sizes or the quantities of statistics; null where undefined."""
    return nulled(values.astype(np.int64), is_defined(values))


def instants(values: Array) -> pl.Series:
    """Instants (nanoseconds, UTC); null where undefined or past what int64 holds."""
    return nulled(values.astype(np.int64), is_instant(values)).cast(INSTANT)


def texts(values: Array) -> pl.Series:
    """Fixed-width text (String); null where empty or not ASCII."""
    whole = np.ascontiguousarray(values)
    plain = (whole.view(np.uint8).reshape(len(whole), whole.dtype.itemsize) < 128).all(axis=1)
    text = pl.Series(np.where(plain, whole, b""), dtype=pl.Binary).cast(pl.String)
    return nulled(text, plain & (whole != b""))


def letters(values: Array) -> pl.Series:
    """Fields of one letter that DBN always sets, such as `action` (Enum)."""
    codes = np.ascontiguousarray(values).view(np.uint8)
    used = np.flatnonzero(np.bincount(codes, minlength=256))
    places = np.zeros(256, np.uint32)
    places[used] = np.arange(len(used))
    names = [chr(code) for code in used]
    return pl.Series(names, dtype=pl.Enum(names)).gather(pl.Series(places[codes]))


def nulled(values: Any, valid: npt.NDArray[np.bool_]) -> pl.Series:
    """Return the values as a column that is null where they are not valid."""
    column = pl.Series(values)
    return column if valid.all() else column.set(pl.Series(~valid, dtype=pl.Boolean), None)
