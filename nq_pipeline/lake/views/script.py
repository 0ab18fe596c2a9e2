"""The SQL of the catalog: its views with their comments, and the macros with the rows of its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache

import polars as pl

from nq_pipeline.lake.delta.types import MICROS, stored_table
from nq_pipeline.lake.tables import INSTANT, PARTITION, TABLES, USD, Table
from nq_pipeline.lake.views import VIEWS
from nq_pipeline.market.contracts import PRODUCT_OF

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


@dataclass(frozen=True, slots=True)
class ResolvedTable:
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


@cache
def views_script(label: str) -> str:
    """Create the views, on tables without rows; `label` begins every comment."""
    empty = {name: ResolvedTable() for name in TABLES}
    views = [*_macros_sql(empty), *_tables_sql(label), *_views_sql(label), *_column_comments_sql()]
    return ";\n".join(["BEGIN", *views, "COMMIT"])


def rows_script(tables: Mapping[str, ResolvedTable]) -> str:
    """Show the rows of these tables in the views: make the macros on which the views are.

    To replace a view takes longer, and its comments would go. DuckDB opens the files of a macro with rows, so
    that has only the first at that time: a table of many trade dates takes no longer than one of few.
    """
    return ";\n".join(["BEGIN", *_macros_sql(tables), "COMMIT"])


def _macros_sql(tables: Mapping[str, ResolvedTable]) -> Iterator[str]:
    for name, resolved in tables.items():
        files = f"CREATE OR REPLACE MACRO {name}_files() AS"
        yield f"{files} {_list(resolved.paths[:1])}"
        yield f"CREATE OR REPLACE MACRO {name}_rows() AS TABLE {_shown_sql(TABLES[name], resolved)}"
        yield f"{files} {_list(resolved.paths)}"


def _tables_sql(label: str) -> Iterator[str]:
    for name, table in TABLES.items():
        yield f"CREATE VIEW {name} AS FROM {name}_rows()"
        yield f"COMMENT ON VIEW {name} IS {literal(label + table.meaning)}"


def _views_sql(label: str) -> Iterator[str]:
    """The views on the tables, in an order in which each exists before it is used."""
    products = ", ".join(f"{literal(root)}: {literal(product)}" for root, product in PRODUCT_OF.items())
    yield f"CREATE MACRO product_of(root) AS coalesce(MAP {{{products}}}[root], root)"
    for view in VIEWS:
        yield view.sql.rstrip()
        kind = "MACRO TABLE" if view.is_macro else "VIEW"
        yield f"COMMENT ON {kind} {view.name} IS {literal(label + view.meaning)}"


def _shown_sql(table: Table, resolved: ResolvedTable) -> str:
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


def _stored_sql(table: Table, resolved: ResolvedTable) -> str:
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
        parts.append(f"SELECT {_nulls(table, of)} WHERE error({literal(sentence)}) IS NULL")
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
            yield f'COMMENT ON COLUMN {name}."{column.name}" IS {literal(column.meaning)}'
            if column.dtype == INSTANT:
                exact = literal(f"{column.name} in nanoseconds since 1970-01-01 UTC")
                yield f"COMMENT ON COLUMN {name}.{column.name}_ns IS {exact}"


def _list(paths: Sequence[str]) -> str:
    """A list in SQL, from one text: DuckDB takes longer for a text of each path."""
    between = "//\n"  # no path has this
    return f"string_split({literal(between.join(paths))}, {literal(between)})"


def literal(value: str) -> str:
    """A SQL literal."""
    return "'" + value.replace("'", "''") + "'"
