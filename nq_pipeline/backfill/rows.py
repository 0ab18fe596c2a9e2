"""From bought DBN files to rows of the lake.

Trades and orders become the very rows that the live capture would have made of them, by its own
code, so that the lake tells a record that was captured from one that was missed. Everything else
has tables of its own: Databento's columns, and the contract of each record's symbol on its day.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nq_pipeline.capture.gap_repair import NO_SESSION, read_frames
from nq_pipeline.capture.rows import Instruments, Origin, RowCounts, SessionRows
from nq_pipeline.dbn import stream as dbn
from nq_pipeline.dbn.decode import (
    UNDEF_QUANTITY,
    instants,
    masked,
    prices,
    texts,
)
from nq_pipeline.lake.tables import (
    BBO_1M,
    DEFINITION,
    INSTANT,
    OHLCV_1D,
    OHLCV_1M,
    STATISTICS,
    Table,
)

Array = npt.NDArray[Any]

TICKS = ("trades", "mbo")
"""Schemas of the tables that the live capture writes as well."""
TABLES = {
    "definition": DEFINITION,
    "statistics": STATISTICS,
    "ohlcv-1m": OHLCV_1M,
    "ohlcv-1d": OHLCV_1D,
    "bbo-1m": BBO_1M,
}
BATCH_BYTES = 16 << 20
"""Records of ticks made into rows at a time: what bounds the memory."""


def tick_rows(
    files: list[Path], *, environment: str, run_id: str, counts: RowCounts
) -> Iterator[tuple[Table, pl.DataFrame]]:
    """The rows of trades or orders, of files in the order of their records."""
    session = SessionRows(NO_SESSION)
    for file in files:
        for frame in read_frames(file):
            session.take(frame)
            if session.gathered >= BATCH_BYTES:
                yield from _given_out(session, environment, run_id, counts)
    yield from _given_out(session, environment, run_id, counts)


def table_rows(
    file: Path, schema: str, trade_date: date, *, environment: str, run_id: str
) -> pl.DataFrame | None:
    """The rows of a file of one of the schemas of `TABLES`; None when it holds no record."""
    table, parts = TABLES[schema], []
    with dbn.opened(file) as stream:
        instruments = Instruments(stream.symbols.names)
        for layout, batch in stream.batches():
            columns = [_column(table, layout, batch, name, stream.version) for name in _shared(table, layout)]
            codes = stream.symbols.find(batch["instrument_id"], batch[layout.index] // dbn.DAY_NS)
            described = _described(instruments, codes, trade_date).drop("underlying")
            if "raw_symbol" in layout.columns:
                described = described.drop("raw_symbol").with_columns(
                    texts(batch["raw_symbol"]).alias("raw_symbol")
                )
            parts.append(pl.DataFrame(columns).hstack(described))
    if not parts:
        return None
    return pl.concat(parts, how="vertical_relaxed").with_columns(
        pl.int_range(pl.len(), dtype=pl.UInt32)
        .over("publisher_id", "instrument_id", table.since)
        .alias("ordinal"),
        pl.lit(environment).alias("environment"),
        pl.lit(run_id).alias("run_id"),
    )


def _given_out(
    session: SessionRows, environment: str, run_id: str, counts: RowCounts
) -> Iterator[tuple[Table, pl.DataFrame]]:
    tables, more = session.rows(Origin(environment, run_id, 0))
    counts.add(more)
    for table, frame in tables:
        yield table, frame.with_columns(pl.lit(None, pl.Int64).alias("publish_latency_ns"))


def _described(instruments: Instruments, codes: npt.NDArray[np.int32], trade_date: date) -> pl.DataFrame:
    """The contract of each record; every symbol is looked at once."""
    unique, inverse = np.unique(codes, return_inverse=True)
    day = np.full(len(unique), np.datetime64(trade_date, "D"))
    facts = instruments.on(day, unique.astype(np.int32)).with_columns(pl.col(pl.Enum).cast(pl.String))
    return facts.select(pl.all().gather(pl.Series(inverse)))


def _shared(table: Table, layout: dbn.Layout) -> list[str]:
    """The columns of a table that its records have, the symbol aside."""
    return [name for name in table.schema.names() if name in layout.columns and name != "raw_symbol"]


def _column(table: Table, layout: dbn.Layout, batch: Array, name: str, version: int) -> pl.Series:
    """A field of DBN as the table's column; undefined is null."""
    values, dtype = batch[name], table.schema[name]
    if dtype == INSTANT:
        column = instants(values)
    elif name in layout.prices:
        column = prices(values)
    elif name == "quantity":
        column = masked(values.astype(np.int64), values != UNDEF_QUANTITY[version])
    elif values.dtype.kind == "S":
        column = texts(values)
    else:
        column = pl.Series(np.ascontiguousarray(values))
    return column.cast(dtype).alias(name)
