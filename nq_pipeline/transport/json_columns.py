"""JSON from a vendor to typed columns, without a Python object per row.

polars rejects a whole body if one value has the wrong type. Only then it is decoded in Python, which makes
such values null and counts them. Both ways give the same columns.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import orjson
import polars as pl

from nq_pipeline.errors import BadPayload


def decode(body: bytes, shape: pl.DataType, dropped: Counter[str], *, what: str) -> pl.Series:
    """Decode one JSON document into a series of one value of `shape`.

    Members that are not in the shape are ignored, and missing ones are null. `dropped` counts
    `malformed_cell` for every node that had to become null. Every scalar of the shape is `pl.String`:
    `number()` casts later, so that one bad cell costs one cell. Raises `BadPayload`, which names `what`, when
    the body is not JSON or its outermost value is not of the shape.
    """
    try:
        text = body.decode()
        decoded = pl.Series([text]).str.json_decode(shape) if text.strip() else None
    except (UnicodeDecodeError, pl.exceptions.PolarsError):
        decoded = None
    if decoded is None or len(decoded) != 1:
        decoded = _tolerant(body, shape, dropped, what)
    if decoded.null_count():
        raise BadPayload(f"{what}: JSON, but not of the documented shape")
    return decoded


def texts(*names: str) -> pl.Struct:
    """The shape of an object whose members are scalars."""
    return pl.Struct(dict.fromkeys(names, pl.String()))


def number(name: str | pl.Expr, dtype: type[pl.DataType] = pl.Float64) -> pl.Expr:
    """A decoded scalar as a finite number; null where it is none.

    For an integer `dtype` a fraction is null, a whole number written as `8133.0` is not.
    """
    cell = pl.col(name) if isinstance(name, str) else name
    value = cell.cast(pl.Float64, strict=False)
    finite = pl.when(value.is_finite()).then(value)
    if dtype == pl.Float64:
        return finite
    whole = pl.when(finite == finite.round()).then(finite).cast(dtype, strict=False)
    return pl.coalesce(cell.cast(dtype, strict=False), whole)


def loads(body: bytes | str) -> Any:
    """The Python value of a JSON document; ValueError when it is not JSON, or nested too deeply.

    The fast decoder rejects a whole document for one number that no float64 holds, or for one half of a
    surrogate pair. Here only the value itself suffers: the number stays text, as do NaN and Infinity (not
    JSON, but common), and half a pair becomes a question mark.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body.decode("utf-8-sig") if isinstance(body, bytes) else body
    try:
        return _whole(json.loads(text, parse_float=_number, parse_int=_number, parse_constant=str))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole(value: Any) -> Any:
    """The value with all its texts encodable as UTF-8."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value


def _number(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _tolerant(body: bytes, shape: pl.DataType, dropped: Counter[str], what: str) -> pl.Series:
    try:
        value = loads(body)
    except ValueError:
        raise BadPayload(f"{what}: expected JSON, got {len(body)} bytes of something else") from None
    fitted = orjson.dumps(_fit(value, shape, dropped)).decode()
    return pl.Series([fitted]).str.json_decode(shape)


def _fit(value: Any, shape: pl.DataType, dropped: Counter[str]) -> Any:
    """The value with null for every node of the wrong shape."""
    if value is None:
        return None
    if isinstance(shape, pl.Struct) and isinstance(value, dict):
        return {f.name: _fit(value.get(f.name), _instance(f.dtype), dropped) for f in shape.fields}
    if isinstance(shape, pl.List) and isinstance(value, list):
        return [_fit(item, _instance(shape.inner), dropped) for item in value]
    if shape == pl.String and not isinstance(value, dict | list):
        return value
    dropped["malformed_cell"] += 1
    return None


def _instance(dtype: Any) -> pl.DataType:
    instance: pl.DataType = dtype() if isinstance(dtype, type) else dtype
    return instance
