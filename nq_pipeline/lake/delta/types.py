"""A table's rows in the types of a Delta table.

Delta's instants have microseconds and its integers have signs. A file has an instant twice: `ts` in
microseconds for people, and `ts_ns` with the exact nanoseconds. An unsigned integer is stored in the next
wider signed type.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import orjson
import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.lake.tables import INSTANT, USD, Column, Table

EXACT = "_ns"
"""Suffix of the column with exact nanoseconds."""
MICROS = pl.Datetime("us", "UTC")
_SIGNED: dict[pl.DataType, pl.DataType] = {
    pl.UInt8(): pl.Int16(),
    pl.UInt16(): pl.Int32(),
    pl.UInt32(): pl.Int64(),
    pl.UInt64(): pl.Int64(),
}
_DELTA: dict[pl.DataType, str] = {
    pl.String(): "string",
    pl.Float64(): "double",
    pl.Int64(): "long",
    pl.Int32(): "integer",
    pl.Int16(): "short",
    pl.Int8(): "byte",
    pl.Boolean(): "boolean",
    pl.Date(): "date",
    MICROS: "timestamp",
    USD: "decimal(18,9)",
}


@lru_cache(maxsize=64)
def stored_table(table: Table) -> Table:
    """The table as its files have it: microseconds beside exact nanoseconds, and no unsigned types."""
    columns: list[Column] = []
    for column in table.columns:
        if column.dtype == INSTANT:
            exact = f"{column.name} in nanoseconds since 1970-01-01 UTC"
            columns.append(replace(column, dtype=MICROS))
            columns.append(Column(column.name + EXACT, pl.Int64(), exact, column.nullable))
        else:
            was = column.was and _SIGNED.get(column.was, column.was)
            columns.append(replace(column, dtype=_SIGNED.get(column.dtype, column.dtype), was=was))
    exact_names = {column.name: column.name + EXACT for column in table.columns if column.dtype == INSTANT}
    return replace(
        table,
        columns=tuple(columns),
        key=tuple(exact_names.get(name, name) for name in table.key),
        order=tuple(exact_names.get(name, name) for name in table.order),
        pruning_column=exact_names[table.pruning_column],
    )


def encode(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of the table in the types of its files.

    Raises
    ------
    LakeError
        An unsigned integer is too large for a signed one; it never wraps.
    """
    try:
        return frame.select(_encoded(table))
    except pl.exceptions.InvalidOperationError:
        raise LakeError(
            f"rows for {table.name} have an unsigned number of 2**63 or more, which Delta has no type for"
        ) from None


@lru_cache(maxsize=64)
def column_names(table: Table) -> tuple[str, ...]:
    """The columns of the files, in order."""
    return tuple(column.name for column in stored_table(table).columns)


@lru_cache(maxsize=64)
def _encoded(table: Table) -> list[pl.Expr]:
    columns = []
    for column in table.columns:
        value = pl.col(column.name)
        if column.dtype == INSTANT:
            columns.append(value.cast(MICROS))
            columns.append(value.to_physical().alias(column.name + EXACT))
        elif signed := _SIGNED.get(column.dtype):
            columns.append(value.cast(signed, strict=True))
        else:
            columns.append(value)
    return columns


@lru_cache(maxsize=64)
def decoded(table: Table) -> list[pl.Expr]:
    """Expressions for the table's columns over the columns of its files."""
    columns = []
    for column in table.columns:
        if column.dtype == INSTANT:
            columns.append(pl.col(column.name + EXACT).cast(INSTANT).alias(column.name))
        elif column.dtype in _SIGNED:
            columns.append(pl.col(column.name).cast(column.dtype))
        else:
            columns.append(pl.col(column.name))
    return columns


@lru_cache(maxsize=64)
def delta_schema(table: Table) -> str:
    """The schema of the Delta table, as its log has it."""
    fields = [
        {
            "name": column.name,
            "type": _DELTA[column.dtype],
            "nullable": column.nullable,
            "metadata": {"comment": column.meaning},
        }
        for column in stored_table(table).columns
    ]
    return orjson.dumps({"type": "struct", "fields": fields}).decode()
