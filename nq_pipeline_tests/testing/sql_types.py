"""How DuckDB shows the types of the tables' columns."""

from __future__ import annotations

import polars as pl

from nq_pipeline.lake.tables import INSTANT, USD

SQL_TYPES = {
    pl.String(): "VARCHAR",
    pl.Float64(): "DOUBLE",
    pl.Int64(): "BIGINT",
    pl.Int32(): "INTEGER",
    pl.UInt64(): "UBIGINT",
    pl.UInt32(): "UINTEGER",
    pl.UInt16(): "USMALLINT",
    pl.UInt8(): "UTINYINT",
    pl.Boolean(): "BOOLEAN",
    pl.Date(): "DATE",
    USD: "DECIMAL(18,9)",
    INSTANT: "TIMESTAMP WITH TIME ZONE",
}
