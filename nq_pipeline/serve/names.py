"""Whether the names that narrow a query exist: a misspelt one is an error, not an answer without rows."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from nq_pipeline.market.contracts import PRODUCT_OF, ROOTS, Series
from nq_pipeline.market.listing import list_month
from nq_pipeline.serve.queries import RowQuery
from nq_pipeline.sources.registry import SOURCE_NAMES

if TYPE_CHECKING:
    import duckdb

MOST_NEAR = 3


def check_names(connection: duckdb.DuckDBPyConnection, query: RowQuery) -> None:
    """Raise `HTTPException` (404) for a name that neither exists by itself nor is in the table.

    The table is read only for names that are in no list of ours: a vendor may list what our rules do not.
    """
    for column, name in query.names.items():
        listed = _listed(column, name)
        if name in listed:
            continue
        has = f"SELECT 1 FROM {query.table} WHERE {column} = $name LIMIT 1"
        if connection.sql(has, params={"name": name}).fetchall():
            continue
        stored = connection.sql(f"SELECT DISTINCT {column} FROM {query.table} WHERE {column} IS NOT NULL")
        known = {text.upper(): text for text in (*listed, *(text for (text,) in stored.fetchall()))}
        near = [known[match] for match in get_close_matches(name.upper(), sorted(known), MOST_NEAR)]
        remedy = f"near ones are {', '.join(near)}" if near else "leave it out to see those that exist"
        raise HTTPException(404, f"there is no {column} {name} here; {remedy}")


def _listed(column: str, name: str) -> tuple[str, ...]:
    """The names that exist whether or not the lake has rows of them; of series, those of the same month."""
    if column == "product":
        return tuple(dict.fromkeys(PRODUCT_OF.values()))
    if column == "source":
        return SOURCE_NAMES
    series = Series.parse(name)
    if series.root not in ROOTS:
        return ()
    month = series.expiration_date.year, series.expiration_date.month
    return tuple(one.key for one in list_month(ROOTS[series.root].product, *month))
