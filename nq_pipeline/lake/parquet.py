"""Writes and reads the Parquet files of a table.

Files are compressed with zstd. Integers and instants are delta-encoded, texts dictionary-encoded. Row
groups have 122,880 rows, which DuckDB scans in parallel. The footer names the table, its schema version
and the runs that the rows came from. The partition column `trade_date` is only in the path (Hive
partitioning), so that DuckDB, polars and pyarrow can all read a folder of files.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson
import polars as pl

from nq_pipeline.lake.tables import PARTITION, Table

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_ROWS = 122_880
RUNS, TABLE, SCHEMA_VERSION = b"nq.runs", b"nq.table", b"nq.schema_version"
"""Keys of the footer."""
MAGIC = b"PAR1"
"""The last bytes of every Parquet file."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """The size of a written file; `since_min` and `since_max` as in `manifest.DataFile`."""

    rows: int
    bytes: int
    since_min: int
    since_max: int


def write(
    path: Path,
    table: Table,
    frames: Iterable[pl.DataFrame],
    runs: Sequence[str],
    *,
    group_rows: int = ROW_GROUP_ROWS,
) -> WrittenFile:
    """Write sorted frames of one trade date as one file with row groups of `group_rows`.

    The bytes depend only on the rows and the runs, not on how the rows are split into frames.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, lows, highs = 0, [], []
    remaining = iter(frames)
    first = next(remaining)
    schema = arrow_schema(table, first)
    numbers = [f.name for f in schema if pa.types.is_integer(f.type) or pa.types.is_timestamp(f.type)]
    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_dictionary(f.type)]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=texts,
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
        # One page per row group: its minimum and maximum are computed once.
        write_batch_size=ROW_GROUP_ROWS,
        max_rows_per_page=ROW_GROUP_ROWS,
        store_schema=False,  # readers see plain text, not the categories it was written from
    ) as writer:
        writer.add_key_value_metadata(
            {TABLE: table.name, SCHEMA_VERSION: str(table.version), RUNS: orjson.dumps(runs)}
        )
        rest = first.clear()
        for frame in chain([first], remaining):
            instants = frame[table.pruning_column].to_physical()
            lows.append(instants.min())
            highs.append(instants.max())
            rows += frame.height
            rest = pl.concat([rest, frame])
            whole = rest.height - rest.height % group_rows
            if whole:
                writer.write_table(_arrow(rest.head(whole), schema), row_group_size=group_rows)
                rest = rest.slice(whole)
        if rest.height:
            writer.write_table(_arrow(rest, schema), row_group_size=group_rows)
    return WrittenFile(rows, path.stat().st_size, min(lows), max(highs))  # type: ignore[type-var, arg-type]


def find_fault(path: str | Path, size: int, whole_at: int = 0) -> str:
    """What is wrong with a file that should have `size` bytes; empty if its size and end are right.

    A file that was whole at an instant (ns UTC) and did not change since is not opened.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path takes twice as long, and the catalog asks of every file)
        if status.st_size != size:
            return f"has {status.st_size:,} of its {size:,} bytes"
        if status.st_ctime_ns < whole_at:
            return ""
        with Path(path).open("rb") as file:
            end = os.pread(file.fileno(), len(MAGIC), max(0, size - len(MAGIC)))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if end == MAGIC else "is not a Parquet file"


def scan(
    table: Table, paths: Sequence[str], options: Mapping[str, str] | None = None, older: Collection[str] = ()
) -> pl.LazyFrame:
    """The rows of some files. Columns that an older file lacks are null; older types are cast.

    Parameters
    ----------
    paths
        Paths or URIs; for URIs, `options` say how to reach the object store.
    """
    if not paths:
        return table.empty().lazy()
    was = {column.name: column.was for column in table.columns if column.was is not None}
    if was and options is None:
        older = [path for path in paths if was.items() & pl.read_parquet_schema(path).items()]
    newer = [path for path in paths if path not in older]
    frames = [_scan(table.schema, newer, options)] if newer else []
    if older:
        then = _scan(pl.Schema({**table.schema, **was}), list(older), options)
        frames.append(then.with_columns(pl.col(name).cast(table.schema[name]) for name in was))
    return pl.concat(frames)


def _scan(schema: pl.Schema, paths: Sequence[str], options: Mapping[str, str] | None) -> pl.LazyFrame:
    return pl.scan_parquet(
        list(paths),
        storage_options=dict(options) if options else None,
        schema=schema,
        hive_partitioning=True,
        hive_schema={PARTITION: pl.Date()},
        missing_columns="insert",
        glob=False,
    ).select(schema.names())


def read_runs(paths: Iterable[Path]) -> list[str]:
    """The runs that the footers of some files name, sorted."""
    import pyarrow.parquet as pq

    footers = [pq.read_metadata(path).metadata or {} for path in paths]
    return sorted({run for footer in footers for run in orjson.loads(footer.get(RUNS, b"[]"))})


def arrow_schema(table: Table, frame: pl.DataFrame) -> pa.Schema:
    """The schema of a file: the table's columns without the partition; required ones are not nullable.

    Categorical columns of the frame are written as dictionaries.
    """
    import pyarrow as pa

    plain = _plain_schema(table)
    types = frame.clear().select(pl.col(pl.Enum)).to_arrow().schema
    return pa.schema(
        field.with_type(types.field(field.name).type) if field.name in types.names else field
        for field in plain
    )


@lru_cache(maxsize=64)
def _plain_schema(table: Table) -> pa.Schema:
    import pyarrow as pa

    types = table.empty().to_arrow().schema
    return pa.schema(
        pa.field(
            column.name,
            pa.string() if column.dtype == pl.String else types.field(column.name).type,
            nullable=column.nullable,
        )
        for column in table.columns
        if column.name != PARTITION
    )


def _arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    coded = [_as_first_used(column) for column in frame if isinstance(column.dtype, pl.Enum)]
    return frame.with_columns(coded).select(schema.names).to_arrow().cast(schema)


def _as_first_used(column: pl.Series) -> pl.Series:
    """Used categories in the order of first use, as Parquet writes text."""
    categories = column.dtype.categories  # type: ignore[attr-defined]
    null, codes = len(categories), column.to_physical()
    if codes.null_count():
        codes = codes.cast(pl.UInt32).fill_null(null)
    values = codes.to_numpy()
    runs = values[np.append(True, values[1:] != values[:-1])]
    first = np.full(null + 1, len(runs))
    first[runs[::-1]] = np.arange(len(runs) - 1, -1, -1)  # the last assignment to an index wins
    order = np.argsort(first[:null], kind="stable")[: np.count_nonzero(first[:null] < len(runs))]
    if np.array_equal(order, np.arange(null)):
        return column
    places = np.full(null + 1, len(order), np.uint32)
    places[order] = np.arange(len(order))
    texts = categories.gather(order)
    used: pl.Series = texts.cast(pl.Enum(texts)).extend_constant(None, 1)
    return used.gather(pl.Series(places[values])).alias(column.name)
