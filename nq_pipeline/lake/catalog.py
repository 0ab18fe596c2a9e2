"""The DuckDB catalog: the lake's tables as views over explicit file lists, and the views on them.

A view over a glob cannot follow a manifest, so every view names its files. `connect` resolves the newest
manifests; `publish` writes the same views to `nq.duckdb` for other tools, which open it read-only and
reopen it to see newer rows.

Views show instants as TIMESTAMPTZ in microseconds, because DuckDB can neither compare nor bucket
nanoseconds with a zone. `<name>_ns` holds the exact nanoseconds UTC as BIGINT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import monotonic, time_ns
from typing import TYPE_CHECKING

import polars as pl
import zstandard

from nq_pipeline.clock import NS_PER_S
from nq_pipeline.errors import LakeError
from nq_pipeline.files import locked, make_folder, rename_durably, temporary_for, write_atomically
from nq_pipeline.lake.delta.types import MICROS, stored_table
from nq_pipeline.lake.objects import RemoteObjects
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import DECISIONS, INSTANT, OPTION_CHAIN, PARTITION, TABLES, USD, Table, conform
from nq_pipeline.lake.views import VIEWS
from nq_pipeline.market.contracts import PRODUCT_OF

if TYPE_CHECKING:
    import duckdb

NAME = "nq.duckdb"
RECHECK_S = 1.0
"""How long the versions of tables in an object store are believed."""
AT_ONCE = 8
"""Tables whose files are asked of an object store at the same time."""
LATEST = "option_chain_latest"
PRICED = "option_chain_priced"
CHAIN_ORDER = ["expiration", "root", "option_type", "strike", "snapshot_ts", "source"]
"""The sort order of a chain."""

_TYPES: dict[pl.DataType, str] = {
    pl.String(): "VARCHAR",
    pl.Float64(): "DOUBLE",
    pl.Int64(): "BIGINT",
    pl.Int32(): "INTEGER",
    pl.Int16(): "SMALLINT",
    pl.Int8(): "TINYINT",
    pl.UInt64(): "UBIGINT",
    pl.UInt32(): "UINTEGER",
    pl.UInt16(): "USMALLINT",
    pl.UInt8(): "UTINYINT",
    pl.Boolean(): "BOOLEAN",
    pl.Date(): "DATE",
    USD: "DECIMAL(18, 9)",
    INSTANT: "TIMESTAMPTZ_NS",
    MICROS: "TIMESTAMPTZ",
}


def connect(lake: Lake, *, guarded: bool = False, memory_mb: int | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory connection with a view of every table, as of the newest manifests.

    It neither waits for writers nor blocks them. The views name the current files, which stay for at least
    an hour; connect again for newer rows. A query that needs rows of a damaged file fails with an error
    that names the file; all other rows can be read.

    Parameters
    ----------
    guarded
        Restrict the connection to the files of the views, for SQL that a person typed. Run that SQL with
        `query`, which refuses writes.
    memory_mb
        DuckDB's memory limit in MiB; four fifths of the machine's memory by default.
    """
    import duckdb

    tables = _resolve(lake)
    connection = duckdb.connect()
    _reach(connection, lake)
    connection.execute("SET TimeZone = 'UTC'")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "empty.duckdb"
        path.write_bytes(_empty_views(lake))
        connection.execute(f"ATTACH {_text(str(path))} AS empty (READ_ONLY)")
        connection.execute("COPY FROM DATABASE empty TO memory")
        connection.execute("DETACH empty")
    _fill(connection, tables)
    if memory_mb is not None:
        connection.execute(f"SET memory_limit = '{memory_mb}MiB'")
    if guarded:
        files = [_text(path) for resolved in tables.values() for path in resolved.paths]
        connection.execute(f"SET allowed_paths = [{', '.join(files)}]")
        connection.execute("SET temp_directory = ''")
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    return connection


class LiveCatalog:
    """One connection for many queries, whose views follow the tables; safe for threads.

    To connect anew takes longer than most queries. Here only the views of tables that changed are made again.

    Parameters
    ----------
    memory_mb
        DuckDB's memory limit in MiB, for all queries together.
    """

    def __init__(self, lake: Lake, *, memory_mb: int | None = None) -> None:
        self._lake = Lake(lake.root.resolve(), objects=lake.objects, delta=lake.delta)
        self._versions = dict(self._read_versions())
        self._read_at = monotonic()
        self._connection = connect(self._lake, memory_mb=memory_mb)
        overflow = self._lake.root.with_name("cache") / "duckdb"  # by default it is the working directory
        make_folder(overflow)
        self._connection.execute(f"SET temp_directory = {_text(str(overflow))}")
        self._lock = Lock()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for one query at a time, as of now; of an object store, at most a second old."""
        with self._lock:
            if not self._lake.objects or monotonic() - self._read_at > RECHECK_S:
                self._read_at = monotonic()
                for name, version in self._read_versions():
                    if version != self._versions[name]:
                        _fill(self._connection, {name: _resolved(self._lake, TABLES[name])})
                        self._versions[name] = version
            cursor = self._connection.cursor()
        cursor.execute("SET TimeZone = 'UTC'")
        return cursor

    @property
    def versions(self) -> str:
        """Text that changes with the tables; the last `cursor` shows at least this version of each."""
        with self._lock:
            return str(self._versions)

    def _read_versions(self) -> Iterator[tuple[str, object]]:
        """What changes with each version of a table; decisions first, as in `_resolve`."""
        for table in (DECISIONS, *(table for table in TABLES.values() if table is not DECISIONS)):
            try:
                yield table.name, self._lake.table_files(table).stamp()
            except LakeError as error:
                yield table.name, str(error)


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """Run one statement that only reads: SELECT, FROM, DESCRIBE, SUMMARIZE or SHOW.

    EXPLAIN is not allowed, because EXPLAIN ANALYZE executes the statement.

    Raises
    ------
    LakeError
        The SQL is not one statement that only reads.
    duckdb.Error
        DuckDB's own error.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise LakeError(f"the SQL holds {len(statements)} statements; write one")
    if (kind := statements[0].type.name) != "SELECT":
        raise LakeError(f"the catalog is read-only and {kind} is not a query; write SELECT, DESCRIBE or SHOW")
    return connection.query(sql)


def chain(
    connection: duckdb.DuckDBPyConnection,
    as_of: datetime | None = None,
    *,
    newest_per_contract: bool = False,
) -> pl.DataFrame:
    """The current chain, or the chain as of a moment, in the types of `option_chain`.

    Raises
    ------
    LakeError
        `as_of` has no time zone, or `newest_per_contract` is given without `as_of`.
    """
    rows = chain_relation(connection, as_of, newest_per_contract=newest_per_contract).pl()
    exact = {name: pl.col(f"{name}_ns") for name in OPTION_CHAIN.schema if f"{name}_ns" in rows.columns}
    names = OPTION_CHAIN.schema.names()
    typed = conform(OPTION_CHAIN, rows.with_columns(**exact).select(names))
    return typed.with_columns(rows["product"]).sort(CHAIN_ORDER)


def chain_relation(
    connection: duckdb.DuckDBPyConnection, as_of: datetime | None, *, newest_per_contract: bool = False
) -> duckdb.DuckDBPyRelation:
    """The rows of `chain` as a relation, in the types of the views.

    Raises
    ------
    LakeError
        `as_of` has no time zone, or `newest_per_contract` is given without `as_of`.
    """
    if as_of is None:
        if newest_per_contract:
            raise LakeError("newest_per_contract needs as_of; give both")
        return connection.sql(f"FROM {LATEST}")
    if as_of.tzinfo is None:
        raise LakeError(f"{as_of.isoformat()} has no time zone; pass an aware datetime as as_of")
    sql = "FROM option_chain_asof($as_of, newest_per_contract := $newest)"
    return connection.sql(sql, params={"as_of": as_of, "newest": newest_per_contract})


def publish(lake: Lake) -> Path:
    """Write a new `nq.duckdb` beside the lake and replace the old one; returns its path.

    Readers that have the old file open keep reading it. Publish after writing tables and before
    `Lake.collect_garbage`.
    """
    import duckdb

    path = lake.root.with_name(NAME)
    make_folder(path.parent)
    with locked(path.with_name(".catalog.lock")), temporary_for(path) as temporary:
        for leftover in path.parent.glob(f".{NAME}.*"):  # left by a killed process, with DuckDB's log
            leftover.unlink()
        empty, kept = _empty_views(lake), _kept(lake)
        if not kept.exists():
            for old in kept.parent.glob("views-*.duckdb.zst"):
                old.unlink(missing_ok=True)
            write_atomically(kept, zstandard.ZstdCompressor(write_checksum=True).compress(empty))
        temporary.write_bytes(empty)
        began, tables = time_ns(), _resolve(lake)
        with duckdb.connect(temporary) as connection:
            _reach(connection, lake)
            _fill(connection, tables)
        if any(resolved.unreadable for resolved in tables.values()):
            _whole(lake).unlink(missing_ok=True)
        else:
            _whole(lake).touch()
            os.utime(_whole(lake), ns=(began, began - NS_PER_S))
        # A reader that opened the old file for writing may have left a log, which DuckDB would replay
        # into the new file.
        path.with_name(f"{NAME}.wal").unlink(missing_ok=True)
        rename_durably(temporary, path)
    return path


def _reach(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """Let a connection read an object store, without an extension to download or a secret that SQL sees."""
    if isinstance(lake.objects, RemoteObjects):
        connection.register_filesystem(lake.objects.filesystem())


@dataclass(frozen=True, slots=True)
class _Resolved:
    """The readable files of a table, and the reasons why other rows cannot be read.

    Attributes
    ----------
    older
        Whether any file has an older version of the schema.
    is_delta
        Whether the files have rows as Delta stores them.
    unreadable
        The error for readers of a trade date; the key None means every trade date.
    """

    paths: tuple[str, ...] = ()
    older: bool = False
    is_delta: bool = False
    unreadable: Mapping[date | None, str] = field(default_factory=dict)


def _resolve(lake: Lake) -> dict[str, _Resolved]:
    """The newest version of every table that has rows.

    Decisions are written last, so they are resolved first: the rows to which they refer then exist.
    """
    lake, whole_at = Lake(lake.root.resolve(), objects=lake.objects, delta=lake.delta), 0
    with suppress(FileNotFoundError):
        whole_at = _whole(lake).stat().st_mtime_ns
    found = {DECISIONS.name: _resolved(lake, DECISIONS, whole_at)}
    others = [table for table in TABLES.values() if table is not DECISIONS]
    if lake.objects:
        written = lake.objects.folders()
        others = [table for table in others if table.name in written]
        with ThreadPoolExecutor(AT_ONCE) as threads:  # an object store takes its time for each
            resolved = list(threads.map(lambda table: _resolved(lake, table, whole_at), others))
    else:
        resolved = [_resolved(lake, table, whole_at) for table in others]
    found |= dict(zip([table.name for table in others], resolved, strict=True))
    return {name: table for name, table in found.items() if table.paths or table.unreadable}


def _resolved(lake: Lake, table: Table, whole_at: int = 0) -> _Resolved:
    stored = lake.table_files(table)
    try:
        files = stored.manifest().files
    except LakeError as error:
        return _Resolved(unreadable={None: str(error)})
    paths: list[str] = []
    unreadable: dict[date | None, str] = {}
    for file in files:
        if fault := stored.find_fault(file, whole_at):
            unreadable.setdefault(file.trade_date, str(stored.damaged(file, fault)))
        else:
            paths.append(stored.location(file))
    older = any(file.schema_version != table.version for file in files)
    return _Resolved(tuple(paths), older, stored.is_delta, unreadable)


def _fill(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, _Resolved]) -> None:
    """Show the rows of these tables in the views of `_empty_views`, in which no table has rows."""
    connection.execute(";\n".join(["BEGIN", *_rows_sql(tables), "COMMIT"]))


def _label(lake: Lake) -> str:
    return "Synthetic data of the sandbox. " if lake.environment == "sandbox" else ""


def _kept(lake: Lake) -> Path:
    """The compressed file of `_empty_views`, for this version of the views and of DuckDB."""
    import duckdb

    script = duckdb.__version__ + _script(_label(lake))
    return lake.root.with_name("cache") / f"views-{sha256(script.encode()).hexdigest()[:16]}.duckdb.zst"


def _whole(lake: Lake) -> Path:
    """A file whose time is when a publication found all files of the lake whole."""
    return lake.root.with_name("cache") / "whole"


def _empty_views(lake: Lake) -> bytes:
    """A DuckDB database of all views with their comments, whose tables have no rows.

    DuckDB takes half a second to make it, so a process makes it once, and `publish` keeps it on disk.
    """
    import duckdb

    kept = _kept(lake)
    if kept.name not in _made:
        try:
            _made[kept.name] = zstandard.decompress(kept.read_bytes())
        except (OSError, zstandard.ZstdError):
            with TemporaryDirectory() as folder:
                path = Path(folder) / NAME
                with duckdb.connect(path) as connection:
                    connection.execute(_script(_label(lake)))
                _made[kept.name] = path.read_bytes()
    return _made[kept.name]


_made: dict[str, bytes] = {}


@cache
def _script(label: str) -> str:
    empty = {name: _Resolved() for name in TABLES}
    views = [*_rows_sql(empty), *_tables_sql(label), *_views_sql(label), *_column_comments_sql()]
    return ";\n".join(["BEGIN", *views, "COMMIT"])


def _rows_sql(tables: Mapping[str, _Resolved]) -> Iterator[str]:
    """The macros on which the views of tables are: the current files, and the rows in them.

    To replace a view takes longer, and its comments would go. DuckDB opens the files of a macro with rows, so
    that has only the first at that time: a table of many trade dates takes no longer than one of few.
    """
    for name, resolved in tables.items():
        files = f"CREATE OR REPLACE MACRO {name}_files() AS"
        yield f"{files} {_list(resolved.paths[:1])}"
        yield f"CREATE OR REPLACE MACRO {name}_rows() AS TABLE {_shown_sql(TABLES[name], resolved)}"
        yield f"{files} {_list(resolved.paths)}"


def _tables_sql(label: str) -> Iterator[str]:
    for name, table in TABLES.items():
        yield f"CREATE VIEW {name} AS FROM {name}_rows()"
        yield f"COMMENT ON VIEW {name} IS {_text(label + table.meaning)}"


def _views_sql(label: str) -> Iterator[str]:
    """The views on the tables, in an order in which each exists before it is used."""
    products = ", ".join(f"{_text(root)}: {_text(product)}" for root, product in PRODUCT_OF.items())
    yield f"CREATE MACRO product_of(root) AS coalesce(MAP {{{products}}}[root], root)"
    for view in VIEWS:
        yield view.sql.rstrip()
        kind = "MACRO TABLE" if view.is_macro else "VIEW"
        yield f"COMMENT ON {kind} {view.name} IS {_text(label + view.meaning)}"


def _shown_sql(table: Table, resolved: _Resolved) -> str:
    stored = stored_table(table) if resolved.is_delta else table
    schema, shown, exact = stored.schema, [], []
    for column in table.columns:
        name = column.name
        if column.dtype == INSTANT and resolved.is_delta:
            shown.append(name)
            exact.append(f"{name}_ns")
        elif column.dtype == INSTANT:
            shown.append(f"make_timestamptz(epoch_ns({name}) // 1000) AS {name}")
            exact.append(f"epoch_ns({name}) AS {name}_ns")
        elif schema[name] != column.dtype or column.was:  # always of one type
            shown.append(f'"{name}"::{_TYPES[column.dtype]} AS "{name}"')
        else:
            shown.append(f'"{name}"')
    return f"SELECT {', '.join(shown + exact)} FROM ({_stored_sql(stored, resolved)})"


def _stored_sql(table: Table, resolved: _Resolved) -> str:
    """The rows as they are stored; `table` has the types of the files."""
    parts = []
    if resolved.paths:
        parts.append(
            f"SELECT * FROM read_parquet({table.name}_files(), hive_partitioning = true, "
            f"hive_types = {{'{PARTITION}': DATE}}, union_by_name = {resolved.older})"
        )
    if resolved.older or not resolved.paths:
        parts.insert(0, f"SELECT {_nulls(table)} WHERE false")
    for day, sentence in resolved.unreadable.items():
        # A query that needs no row of that trade date does not evaluate the error.
        of = {PARTITION: f"DATE '{day}'"} if day else {}
        parts.append(f"SELECT {_nulls(table, of)} WHERE error({_text(sentence)}) IS NULL")
    return " UNION ALL BY NAME ".join(parts)


def _nulls(table: Table, given: Mapping[str, str] | None = None) -> str:
    """Every column of a table: the given expression, or a null of its type."""
    return ", ".join(
        f'{(given or {}).get(column.name, f"NULL::{_TYPES[column.dtype]}")} AS "{column.name}"'
        for column in table.columns
    )


def _column_comments_sql() -> Iterator[str]:
    # DuckDB stores no comments on the columns that a macro returns.
    shown = {table.name: table.columns for table in TABLES.values()}
    shown |= {view.name: view.columns for view in VIEWS if not view.is_macro}
    for name, columns in shown.items():
        for column in columns:
            yield f'COMMENT ON COLUMN {name}."{column.name}" IS {_text(column.meaning)}'
            if column.dtype == INSTANT:
                exact = _text(f"{column.name} in nanoseconds since 1970-01-01 UTC")
                yield f"COMMENT ON COLUMN {name}.{column.name}_ns IS {exact}"


def _list(paths: Sequence[str]) -> str:
    """A list in SQL, from one text: DuckDB takes longer for a text of each path."""
    between = "//\n"  # no path has this
    return f"string_split({_text(between.join(paths))}, {_text(between)})"


def _text(value: str) -> str:
    """A SQL literal."""
    return "'" + value.replace("'", "''") + "'"
