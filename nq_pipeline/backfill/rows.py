"""Rows of the lake from purchased DBN files.

Trades and orders become rows by the code of the live capture. Their keys are then the same, so the lake adds
only the records that the capture missed. Every other schema has its own table, with Databento's columns and
the contract of each record's symbol on its day.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from nq_pipeline.capture.rows import Instruments, RowCounts, bought_rows
from nq_pipeline.dbn import columns
from nq_pipeline.dbn.layout import DAY_NS, Array, RecordLayout
from nq_pipeline.dbn.stream import open_dbn
from nq_pipeline.lake.tables import BBO_1M, DEFINITION, OHLCV_1D, OHLCV_1M, STATISTICS, Table

TICKS = ("trades", "mbo")
"""Schemas whose tables the live capture also writes."""
TABLES = {
    "definition": DEFINITION,
    "statistics": STATISTICS,
    "ohlcv-1m": OHLCV_1M,
    "ohlcv-1d": OHLCV_1D,
    "bbo-1m": BBO_1M,
}
SIZES = ("size", "bid_sz_00", "ask_sz_00", "quantity")


def history_rows(
    files: Sequence[Path], schema: str, trade_date: date, *, environment: str, run_id: str, counts: RowCounts
) -> Iterator[tuple[Table, pl.DataFrame]]:
    """Yield the rows of a trade date's files with their table; `counts` receives what was dropped.

    Raises `BadStream` or `LakeError` for a damaged file.
    """
    if schema in TICKS:
        yield from bought_rows(files, environment=environment, run_id=run_id, counts=counts)
        return
    table = TABLES[schema]
    for file in files:
        frame = _read_table(file, table, trade_date)
        if frame is not None:
            # The ordinal distinguishes records whose keys are otherwise equal.
            ordinal = pl.int_range(pl.len(), dtype=pl.UInt32)
            yield (
                table,
                frame.with_columns(
                    ordinal.over("publisher_id", "instrument_id", table.pruning_column).alias("ordinal"),
                    pl.lit(environment).alias("environment"),
                    pl.lit(run_id).alias("run_id"),
                ),
            )


def _read_table(file: Path, table: Table, trade_date: date) -> pl.DataFrame | None:
    """The records of a file with the table's columns and their contracts; None without records."""
    parts = []
    with open_dbn(file) as stream:
        instruments = Instruments(stream.symbols.names)
        for layout, batch in stream.batches():
            shared = [
                name for name in table.schema.names() if name in layout.columns and name != "raw_symbol"
            ]
            codes = stream.symbols.find(batch["instrument_id"], batch[layout.index] // DAY_NS)
            contracts = _contracts(instruments, codes, trade_date).drop("underlying")
            if "raw_symbol" in layout.columns:
                contracts = contracts.with_columns(raw_symbol=columns.texts(batch["raw_symbol"]))
            parts.append(
                pl.DataFrame([_column(table, layout, batch, name) for name in shared]).hstack(contracts)
            )
    return pl.concat(parts, how="vertical_relaxed") if parts else None


def _contracts(instruments: Instruments, codes: Array, trade_date: date) -> pl.DataFrame:
    """The contract of each record; every symbol is looked up once."""
    unique, inverse = np.unique(codes, return_inverse=True)
    day = np.full(len(unique), np.datetime64(trade_date, "D"))
    facts = instruments.on(day, unique.astype(np.int32)).with_columns(pl.col(pl.Enum).cast(pl.String))
    return facts.select(pl.all().gather(pl.Series(inverse)))


def _column(table: Table, layout: RecordLayout, batch: Array, name: str) -> pl.Series:
    """A field of DBN as the table's column."""
    values = batch[name]
    if name in SIZES:
        column = columns.sizes(values)
    elif values.dtype.kind == "S":
        column = columns.texts(values)
    else:
        column = columns.field_column(layout, name, values)
    return column.cast(table.schema[name]).alias(name)
