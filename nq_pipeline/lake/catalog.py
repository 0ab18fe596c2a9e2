"""The DuckDB catalog: the lake's tables as views over explicit lists of files.

A view over a glob cannot follow a manifest, so every view names its files. `connect` resolves
the newest manifests at that moment; `publish` writes the same views to `nq.duckdb` for other
tools, which should open it read-only and open it anew to see what came later.

Instants are shown as TIMESTAMPTZ, cut to microseconds, because DuckDB can neither compare nor
bucket nanoseconds with a zone; `<name>_ns` beside each holds the exact BIGINT, UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.lake.files import locked, make_folder, put_in_place, temporary_for
from nq_pipeline.lake.lake import Lake
from nq_pipeline.lake.manifest import Manifest
from nq_pipeline.lake.schemas import (
    DECISIONS,
    INSTANT,
    OPTION_CHAIN,
    OPTION_PRICING,
    PARTITION,
    SPEND,
    TABLES,
    USD,
    Column,
    Table,
)

if TYPE_CHECKING:
    import duckdb

NAME = "nq.duckdb"
LATEST = "option_chain_latest"
PRICED = "option_chain_priced"
SPEND_DAILY = "spend_daily"

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
}

_LATEST_SQL = f"""
WITH winner AS (
    SELECT series, source, snapshot_ts_ns, decided_at_ns
    FROM {DECISIONS.name}
    WHERE won AND trade_date = (SELECT max(trade_date) FROM {DECISIONS.name} WHERE won)
    QUALIFY row_number() OVER (PARTITION BY series ORDER BY decided_at_ns DESC, rank) = 1
), chain AS (
    SELECT rows.*, winner.decided_at_ns
    FROM {OPTION_CHAIN.name} AS rows JOIN winner USING (series, source, snapshot_ts_ns)
    WHERE rows.trade_date = (SELECT max(trade_date) FROM {DECISIONS.name} WHERE won)
)
SELECT * EXCLUDE (decided_at_ns) FROM chain
QUALIFY underlying_class = 'future'
    OR decided_at_ns > coalesce(max(decided_at_ns) FILTER (WHERE underlying_class = 'future') OVER (), 0)
"""
# A proxy's series has another name than the one it stood in for, so no later decision on it
# comes; it leaves the view as soon as a native source has won in a later run.

_LATEST_MEANING = (
    "The current chain: for every series of the newest trade date the rows its newest decision chose, "
    "one row per contract. Rows of a proxy show only while no native source has won since."
)

_GREEKS = ("implied_volatility", "delta", "gamma", "theta", "vega")
_COMPUTED = {column.name: column for column in OPTION_PRICING.columns if column.name in _GREEKS}
_ADDED = tuple(column for column in OPTION_PRICING.columns if column.name not in OPTION_CHAIN.schema)
_PRICED_COLUMNS = (
    *(_COMPUTED.get(column.name, column) for column in OPTION_CHAIN.columns),
    Column("iv_source", pl.String(), "whose the volatility and the Greeks are: computed, else vendor"),
    Column("vendor_implied_volatility", pl.Float64(), "the vendor's, as a fraction, used or not"),
    *_ADDED,
)
_WHOSE = ", ".join(
    f"CASE WHEN priced.model IS NULL THEN chain.{name} ELSE priced.{name} END AS {name}" for name in _GREEKS
)
_PRICED_SQL = f"""
SELECT
    chain.* REPLACE ({_WHOSE}),
    CASE WHEN priced.model IS NOT NULL THEN 'computed'
         WHEN chain.implied_volatility IS NOT NULL THEN 'vendor' END AS iv_source,
    chain.implied_volatility AS vendor_implied_volatility,
    {", ".join(f"priced.{column.name}" for column in _ADDED)},
    {", ".join(f"priced.{column.name}_ns" for column in _ADDED if column.dtype == INSTANT)}
FROM {OPTION_CHAIN.name} AS chain LEFT JOIN {OPTION_PRICING.name} AS priced
    ON priced.trade_date = chain.trade_date AND priced.snapshot_ts_ns = chain.snapshot_ts_ns
    AND priced.source = chain.source AND priced.contract_key = chain.contract_key
"""
# Volatility and Greeks of a row come from one hand, or they would contradict each other.

_PRICED_MEANING = (
    "The chosen rows with implied volatility and Greeks: ours where the row could be priced, else the "
    "vendor's; iv_source says whose, unpriced why not ours."
)

_SPEND_DAILY_SQL = f"""
SELECT
    day,
    vendor,
    coalesce(purpose, 'plan') AS purpose,
    sum(spent_usd) AS spent_usd,
    sum(reserved_usd) AS reserved_usd,
    count(*) FILTER (kind = 'reserved') AS requests,
    count(*) FILTER (kind = 'refused') AS refused,
    sum(sum(spent_usd)) OVER (PARTITION BY date_trunc('month', day) ORDER BY day) AS month_usd,
    zone
FROM {SPEND.name}
WHERE vendor IS NOT NULL
GROUP BY day, vendor, purpose, zone
"""
# A reservation's lines all carry its day, so that what is held nets to zero when it is closed.

_SPEND_DAILY_MEANING = (
    "The spend ledger by day, vendor and purpose (`plan`: the monthly fee): USD paid and still reserved, "
    "requests, refusals, and what the month had come to at the end of the day."
)


def connect(environment_root: Path, *, guarded: bool = False) -> duckdb.DuckDBPyConnection:
    """An in-memory connection with a view of every table, as of the newest manifests.

    Neither waits for writers nor makes them wait. The views name the files of this moment, which
    stay for an hour at least; connect again for newer rows.

    Parameters
    ----------
    environment_root
        `<data>/<environment>`.
    guarded
        For SQL that somebody typed: such a connection reaches no file but those of the views and
        cannot be talked out of it. Run the SQL through `query`, which refuses to write to those.
    """
    import duckdb

    manifests = _resolve(environment_root)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(_views_sql(environment_root, manifests))
    if guarded:
        files = [path for name in manifests for path in _paths(environment_root, manifests[name])]
        connection.execute(f"SET allowed_paths = {_list(files)}")
        connection.execute("SET temp_directory = ''")
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    return connection


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """The result of one reading statement: SELECT, FROM, DESCRIBE, SUMMARIZE, SHOW.

    EXPLAIN is none of them, because EXPLAIN ANALYZE carries out what it explains.

    Raises
    ------
    LakeError
        The SQL is not one statement that only reads.
    duckdb.Error
        DuckDB's own message about the statement.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise LakeError(f"the SQL holds {len(statements)} statements; write one")
    if (kind := statements[0].type.name) != "SELECT":
        raise LakeError(f"the catalog is read-only and {kind} is not a query; write SELECT, DESCRIBE or SHOW")
    return connection.query(sql)


def publish(environment_root: Path) -> Path:
    """Write `nq.duckdb` anew and put it in the place of the old one.

    Whoever has the old file open keeps reading it and is in nobody's way. Call it after the
    tables were written and before `Lake.collect_garbage`.
    """
    import duckdb

    path = environment_root / NAME
    make_folder(environment_root)
    with locked(environment_root / ".catalog.lock"), temporary_for(path) as temporary:
        with duckdb.connect(temporary) as connection:
            connection.execute(_views_sql(environment_root, _resolve(environment_root)))
        # A reader that did not open the old file read-only may have left a log, which DuckDB
        # would replay into the new file.
        path.with_name(f"{NAME}.wal").unlink(missing_ok=True)
        put_in_place(temporary, path)
    return path


def _resolve(environment_root: Path) -> dict[str, Manifest]:
    """The newest manifest of every table.

    Decisions are written last and so resolved first: whatever they refer to is then there.
    """
    lake = Lake(environment_root / "lake")
    tables = sorted(TABLES.values(), key=lambda table: table is not DECISIONS)
    return {table.name: lake.manifest(table) for table in tables}


def _views_sql(environment_root: Path, manifests: Mapping[str, Manifest]) -> str:
    """One script that makes all views with their comments."""
    label = "Synthetic data of the sandbox. " if environment_root.name == "sandbox" else ""
    script = ["BEGIN"]
    for name, manifest in manifests.items():
        table = TABLES[name]
        script.append(f"CREATE VIEW {name} AS {_view_sql(table, environment_root, manifest)}")
        script.extend(_comments_sql(name, label + table.meaning, table.columns))
    script.append(f"CREATE VIEW {LATEST} AS {_LATEST_SQL}")
    script.extend(_comments_sql(LATEST, label + _LATEST_MEANING, OPTION_CHAIN.columns))
    script.append(f"CREATE VIEW {PRICED} AS {_PRICED_SQL}")
    script.extend(_comments_sql(PRICED, label + _PRICED_MEANING, _PRICED_COLUMNS))
    script.append(f"CREATE VIEW {SPEND_DAILY} AS {_SPEND_DAILY_SQL}")
    script.append(f"COMMENT ON VIEW {SPEND_DAILY} IS {_text(label + _SPEND_DAILY_MEANING)}")
    return ";\n".join([*script, "COMMIT"])


def _view_sql(table: Table, environment_root: Path, manifest: Manifest) -> str:
    shown, exact = [], []
    for column in table.columns:
        if column.dtype == INSTANT:
            shown.append(f"make_timestamptz(epoch_ns({column.name}) // 1000) AS {column.name}")
            exact.append(f"epoch_ns({column.name}) AS {column.name}_ns")
        else:
            shown.append(f'"{column.name}"')
    return f"SELECT {', '.join(shown + exact)} FROM ({_rows_sql(table, environment_root, manifest)})"


def _rows_sql(table: Table, environment_root: Path, manifest: Manifest) -> str:
    columns = ", ".join(f'NULL::{_TYPES[column.dtype]} AS "{column.name}"' for column in table.columns)
    nothing = f"SELECT {columns} WHERE false"
    if not manifest.files:
        return nothing
    older = any(file.schema_version != table.version for file in manifest.files)
    rows = (
        f"SELECT * FROM read_parquet({_list(_paths(environment_root, manifest))}, "
        f"hive_partitioning = true, hive_types = {{'{PARTITION}': DATE}}, union_by_name = {older})"
    )
    return f"{nothing} UNION ALL BY NAME {rows}" if older else rows


def _paths(environment_root: Path, manifest: Manifest) -> list[str]:
    folder = Lake(environment_root.resolve() / "lake").root / manifest.table
    return [str(folder / file.path) for file in manifest.files]


def _comments_sql(view: str, meaning: str, columns: tuple[Column, ...]) -> Iterator[str]:
    yield f"COMMENT ON VIEW {view} IS {_text(meaning)}"
    for column in columns:
        yield f'COMMENT ON COLUMN {view}."{column.name}" IS {_text(column.meaning)}'
        if column.dtype == INSTANT:
            exact = _text(f"{column.name} in nanoseconds since 1970-01-01 UTC")
            yield f"COMMENT ON COLUMN {view}.{column.name}_ns IS {exact}"


def _list(paths: list[str]) -> str:
    return f"[{', '.join(_text(path) for path in paths)}]"


def _text(value: str) -> str:
    """A SQL literal."""
    return "'" + value.replace("'", "''") + "'"
