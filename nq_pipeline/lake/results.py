"""Formats the result of a query as CSV or JSON, within limits of time and memory.

DuckDB has values that polars and Python lack: intervals of months, infinite instants, dates BC, unions,
maps with any key. DuckDB formats what CSV and JSON cannot express: lists, structs, maps and unions as
JSON, the rest as text. Results are read in batches and kept only as text, so they take little more memory
than the output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Literal, TypeVar

import polars as pl

from nq_pipeline.errors import LakeError

if TYPE_CHECKING:
    import duckdb

OutputFormat = Literal["csv", "json"]
T = TypeVar("T")

BATCH_ROWS = 2_048
_MIB = 1024 * 1024
_AS_IS = {
    "boolean", "tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint",
    "float", "double", "decimal", "varchar", "null",
}  # fmt: skip
_INSTANTS = {"date", "timestamp", "timestamp_s", "timestamp_ms", "timestamp with time zone"}
_NESTED = {"list", "array", "struct", "map", "union", "variant"}
_USUAL = "BETWEEN '0001-01-01' AND '9999-12-31 23:59:59'"
"""The instants that Python can represent."""


def run_within_limits(
    connection: duckdb.DuckDBPyConnection,
    work: Callable[[], T],
    *,
    seconds: float,
    memory_mb: int,
) -> T:
    """Run `work` and return its result; Ctrl-C interrupts its query. Nothing else may use the connection.

    Parameters
    ----------
    seconds
        Timeout of the query; 0 for none.
    memory_mb
        The memory limit of the connection, for the error message.

    Raises
    ------
    LakeError
        The query exceeded a limit.
    """
    import duckdb

    # In a thread, because DuckDB does not handle signals while a query runs.
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        try:
            wait([running], timeout=seconds or None)
        finally:
            late = not running.done()
            while not running.done():  # repeatedly, because an interrupt between two batches is lost
                connection.interrupt()
                wait([running], timeout=0.05)
    if late:
        raise too_slow(seconds)
    try:
        return running.result()
    except duckdb.OutOfMemoryException:
        raise too_large(memory_mb) from None


def too_slow(seconds: float) -> LakeError:
    """The error of a query that takes too long."""
    return LakeError(
        f"it takes longer than NQ_SQL_TIMEOUT_S allows ({seconds:g} s); "
        "read fewer columns or trade dates, or raise the setting"
    )


def format_result(relation: duckdb.DuckDBPyRelation, form: OutputFormat, *, memory_mb: int) -> Iterator[str]:
    """The result as parts to print in order; first collect them all, because the query can fail halfway.

    Raises
    ------
    LakeError
        The text is larger than `memory_mb` MiB.
    duckdb.Error
        DuckDB's own error.
    """
    names = _names(relation.columns)
    nested = [name for name, kind in zip(names, relation.types, strict=True) if kind.id in _NESTED]
    shown, size = relation.project(", ".join(_columns(relation))), 0
    with shown.to_arrow_reader(BATCH_ROWS) as reader:
        if form == "csv":
            yield _frame(pl.from_arrow(reader.schema.empty_table()), names, nested).write_csv()
        for batch in reader:
            frame = _frame(pl.from_arrow(batch), names, nested)
            if form == "csv":
                part = frame.write_csv(include_header=False)
            elif frame.height:
                part = ("," if size else "[") + _json(frame, nested)
            else:
                continue
            size += len(part)
            if size > memory_mb * _MIB:
                raise too_large(memory_mb)
            yield part
    if form == "json":
        yield "\n]\n" if size else "[]\n"


def too_large(memory_mb: int) -> LakeError:
    """The error of a result that is too large."""
    return LakeError(
        f"it needs more memory than NQ_SQL_MEMORY_MB allows ({memory_mb} MB); "
        "read fewer columns or trade dates, or raise the setting"
    )


def _json(frame: pl.DataFrame, nested: Sequence[str]) -> str:
    """The objects of a JSON array, without its brackets."""
    import orjson

    rows = frame.to_dicts()
    for row in rows:
        row.update({name: orjson.Fragment(row[name]) for name in nested if row[name] is not None})
    return orjson.dumps(rows, default=str, option=orjson.OPT_INDENT_2).decode()[1:-2]


def _columns(relation: duckdb.DuckDBPyRelation) -> Iterator[str]:
    """The expressions for column `#n`: `vn`, and for instants also `on`, the text of odd values."""
    for i, kind in enumerate(relation.types):
        column, name = f"#{i + 1}", kind.id
        if name in _NESTED:
            yield f"to_json({column})::VARCHAR AS v{i}"
        elif name in _INSTANTS:
            yield f"CASE WHEN {column} {_USUAL} THEN {column} END AS v{i}"
            yield f"CASE WHEN NOT {column} {_USUAL} THEN {column}::VARCHAR END AS o{i}"
        else:
            yield f"{column}{'' if name in _AS_IS else '::VARCHAR'} AS v{i}"


def _frame(batch: pl.DataFrame | pl.Series, names: Sequence[str], nested: Sequence[str]) -> pl.DataFrame:
    """A batch under the result's names, with odd instants and nested values as text."""
    assert isinstance(batch, pl.DataFrame)
    columns = []
    for i, name in enumerate(names):
        values = batch[f"v{i}"].alias(name)
        if name in nested:
            values = values.map_elements(_strict, pl.String)
        elif f"o{i}" in batch.columns and (odd := batch[f"o{i}"]).count():
            usual = values.dt.to_string("iso:strict")
            values = usual.zip_with(usual.is_not_null(), odd)
        columns.append(values)
    return pl.DataFrame(columns)


def _strict(value: str) -> str:
    """DuckDB's JSON, with null for NaN and infinities, which strict JSON lacks."""
    import orjson

    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return json.dumps(json.loads(value, parse_constant=lambda name: None), ensure_ascii=False)
    return value


def _names(columns: list[str]) -> list[str]:
    """The column names, numbered where they repeat."""
    names = list[str]()
    for column in columns:
        name, number = column, 0
        while name in names:
            number += 1
            name = f"{column}_{number}"
        names.append(name)
    return names
