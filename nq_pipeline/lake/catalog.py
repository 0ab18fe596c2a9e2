"""The DuckDB catalog: the lake's tables as views over explicit file lists, and the views on them.

A view over a glob cannot follow a manifest, so every view names its files. `connect` resolves the newest
manifests; `publish` writes the same views to `nq.duckdb` for other tools, which open it read-only and
reopen it to see newer rows.

Views show instants as TIMESTAMPTZ in microseconds, because DuckDB can neither compare nor bucket
nanoseconds with a zone. `<name>_ns` holds the exact nanoseconds UTC as BIGINT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

import polars as pl
import zstandard

from nq_pipeline.clock import NS_PER_S, real_ns
from nq_pipeline.errors import LakeError
from nq_pipeline.files import locked, make_folder, rename_durably, temporary_for, write_atomically
from nq_pipeline.lake.objects import RemoteObjects
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import DECISIONS, OPTION_CHAIN, TABLES, Table, conform
from nq_pipeline.lake.views.script import ResolvedTable, literal, rows_script, views_script

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
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "empty.duckdb"
            path.write_bytes(_empty_views(lake))
            connection.execute(f"ATTACH {literal(str(path))} AS empty (READ_ONLY)")
            connection.execute("COPY FROM DATABASE empty TO memory")
            connection.execute("DETACH empty")
    except (OSError, duckdb.IOException):  # a full or read-only disk: it takes longer without
        connection.execute(views_script(_label(lake)))
    connection.execute(rows_script(tables))
    if memory_mb is not None:
        connection.execute(f"SET memory_limit = '{memory_mb}MiB'")
    if guarded:
        files = [literal(path) for resolved in tables.values() for path in resolved.paths]
        connection.execute(f"SET allowed_paths = [{', '.join(files)}]")
        connection.execute("SET temp_directory = ''")
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    return connection


class LiveCatalog:
    """One connection for many queries, whose views follow the tables; safe for threads.

    A new connection takes longer than most queries. Here only the views of changed tables are rebuilt.

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
        self._connection.execute(f"SET temp_directory = {literal(str(overflow))}")
        self._lock = Lock()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for one query at a time, as of now; of an object store, at most a second old."""
        with self._lock:
            if not self._lake.objects or monotonic() - self._read_at > RECHECK_S:
                self._read_at = monotonic()
                for name, version in self._read_versions():
                    if version != self._versions[name]:
                        state = {name: _resolved(self._lake, TABLES[name])}
                        self._connection.execute(rows_script(state))
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
    """The rows of `chain_relation` in the types of `option_chain`, sorted."""
    rows = chain_relation(connection, as_of, newest_per_contract=newest_per_contract).pl()
    exact = {name: pl.col(f"{name}_ns") for name in OPTION_CHAIN.schema if f"{name}_ns" in rows.columns}
    names = OPTION_CHAIN.schema.names()
    typed = conform(OPTION_CHAIN, rows.with_columns(**exact).select(names))
    return typed.with_columns(rows["product"]).sort(CHAIN_ORDER)


def chain_relation(
    connection: duckdb.DuckDBPyConnection, as_of: datetime | None, *, newest_per_contract: bool = False
) -> duckdb.DuckDBPyRelation:
    """The current chain, or the chain as of a moment, in the types of the views.

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
        # By the clock of the file system, which stamps the lake's files and may be another machine's.
        began, tables = temporary.stat().st_mtime_ns, _resolve(lake)
        with duckdb.connect(temporary) as connection:
            _reach(connection, lake)
            connection.execute(rows_script(tables))
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


def _resolve(lake: Lake) -> dict[str, ResolvedTable]:
    """The newest version of every table that has rows.

    Decisions are written last, so they are resolved first: the rows to which they refer then exist.
    """
    lake, whole_at = Lake(lake.root.resolve(), objects=lake.objects, delta=lake.delta), 0
    with suppress(FileNotFoundError):
        whole_at = _whole(lake).stat().st_mtime_ns
    if whole_at > real_ns():  # of a clock that was ahead: also damage since then is older
        whole_at = 0
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


def _resolved(lake: Lake, table: Table, whole_at: int = 0) -> ResolvedTable:
    stored = lake.table_files(table)
    try:
        files = stored.manifest().files
    except LakeError as error:
        return ResolvedTable(unreadable={None: str(error)})
    paths: list[str] = []
    unreadable: dict[date | None, str] = {}
    for file in files:
        if fault := stored.find_fault(file, whole_at):
            unreadable.setdefault(file.trade_date, str(stored.damaged(file, fault)))
        else:
            paths.append(stored.location(file))
    older = any(file.schema_version != table.version for file in files)
    return ResolvedTable(tuple(paths), older, stored.is_delta, unreadable)


def _label(lake: Lake) -> str:
    return "Synthetic data of the sandbox. " if lake.environment == "sandbox" else ""


def _kept(lake: Lake) -> Path:
    """The compressed file of `_empty_views`, for this version of the views and of DuckDB."""
    import duckdb

    script = duckdb.__version__ + views_script(_label(lake))
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
                    connection.execute(views_script(_label(lake)))
                _made[kept.name] = path.read_bytes()
    return _made[kept.name]


_made: dict[str, bytes] = {}
