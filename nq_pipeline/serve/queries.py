"""The queries behind the endpoints: SQL and parameters, from what a client asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from nq_pipeline.lake.catalog import CHAIN_ORDER, LATEST
from nq_pipeline.lake.tables import TABLES
from nq_pipeline.lake.views import VIEWS
from nq_pipeline.market.contracts import Series

COLUMNS = {name: set(table.schema.names()) for name, table in TABLES.items()} | {
    view.name: {column.name for column in view.columns} for view in VIEWS if not view.is_macro
}
METRICS = tuple(
    sorted(
        name
        for name, columns in COLUMNS.items()
        if {"snapshot_ts", "source"} <= columns
        and name not in ("source_chain", "option_chain", "option_chain_latest", "fetches", "decisions")
    )
)
"""Tables and views of `/metrics/{name}`: those that are computed from snapshots."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a query: its type, and what it means."""

    name: str
    kind: type
    meaning: str

    def parse(self, text: str) -> Any:
        """The value; raises `ValueError` with a sentence for any other text."""
        try:
            if self.kind is datetime:
                moment = datetime.fromisoformat(text)
                if moment.tzinfo is None:
                    raise ValueError
                return moment
            if self.kind is bool:
                return {"true": True, "false": False}[text.lower()]
            if self.kind is int and not 0 <= int(text) < 1 << 63:
                raise ValueError
            if self.kind is Series:
                return Series.parse(text).key
            return date.fromisoformat(text) if self.kind is date else self.kind(text)
        except (ValueError, KeyError):
            raise ValueError(f"{self.name}={text}: write {FORMS[self.kind]}") from None


FORMS = {
    datetime: "an instant with its time zone like 2025-06-10T15:00:00Z",
    date: "a date like 2025-06-10",
    bool: "true or false",
    int: "a whole number, 0 or more",
    float: "a number",
    Series: "a root and an expiration date like Q1B-2025-07-01",
    str: "text",
}
AS_OF = Parameter("as_of", datetime, "only what was known at this instant")
FROM = Parameter("from", datetime, "rows from this instant on")
TO = Parameter("to", datetime, "rows before this instant")
LIMIT = Parameter("limit", int, "at most this many rows")
PRODUCT = Parameter("product", str, "only this product, such as NQ")
SERIES = Parameter("series", Series, "only this series")
SOURCE = Parameter("source", str, "only this vendor")
TRADE_DATE = Parameter("trade_date", date, "only this trade date")
NAMES = [parameter.name for parameter in (PRODUCT, SERIES, SOURCE)]
SAME = [*NAMES, TRADE_DATE.name]
"""Parameters that are columns."""


@dataclass(frozen=True, slots=True)
class RowQuery:
    """One SELECT and its parameters.

    Attributes
    ----------
    table
        What has every row that the query could answer, whatever narrows it: a table, view or subquery.
    names
        The values of `NAMES` that narrow it.
    """

    sql: str
    values: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    names: dict[str, str] = field(default_factory=dict)


Values = Mapping[str, Any]
Builder = Callable[[Values], RowQuery]


def _narrowed(
    source: str,
    values: Values,
    *more: str,
    order: str,
    table: str | None = None,
    **named: Any,
) -> RowQuery:
    """The rows of a source for which the given columns have the given values, and more conditions hold."""
    equal = {name: values[name] for name in SAME if name in values}
    conditions = [*(f"{name} = ${name}" for name in equal), *more] or ["true"]
    sql = f"SELECT * FROM {source} WHERE {' AND '.join(conditions)} ORDER BY {order}"
    limit = {"most": values["limit"]} if "limit" in values else {}
    return RowQuery(
        f"{sql} LIMIT $most" if limit else sql,
        {**equal, **named, **limit},
        table or source,
        {name: value for name, value in equal.items() if name in NAMES},
    )


def chain(values: Values) -> RowQuery:
    """The current chain, or the chain as of a moment."""
    if "as_of" not in values:
        if "newest_per_contract" in values:
            raise ValueError("newest_per_contract needs as_of")
        return _narrowed(LATEST, values, order=", ".join(CHAIN_ORDER), table=_CHAINS)
    named = {"as_of": values["as_of"], "newest": values.get("newest_per_contract", False)}
    source = "option_chain_asof($as_of, newest_per_contract := $newest)"
    return _narrowed(source, values, order=", ".join(CHAIN_ORDER), table=_CHAINS, **named)


_CHAINS = "(SELECT *, product_of(root) AS product FROM option_chain)"


def trades(values: Values) -> RowQuery:
    """Trades of a span, by default of the newest trade date."""
    source = "(SELECT *, coalesce(product_of(root), underlying) AS product FROM trades)"
    more, named = _within(values, "ts_event")
    if not more and "trade_date" not in values:
        more = ["trade_date = (SELECT max(trade_date) FROM trades)"]
    if "as_of" in values:
        more, named = [*more, "coalesce(ts_recv, ts_event) <= $as_of"], {**named, "as_of": values["as_of"]}
    return _narrowed(source, values, *more, order="ts_event_ns, sequence, ordinal", **named)


def gaps(values: Values) -> RowQuery:
    """The state of every gap, now or as of a moment."""
    known, named = "", {}
    if "as_of" in values:
        known, named = "WHERE changed_at <= $as_of", {"as_of": values["as_of"]}
    last = "QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY revision DESC) = 1"
    source = f"(SELECT * FROM gaps {known} {last})"
    return _narrowed(source, values, order="first_ts, gap_id", **named)


def metrics(name: str) -> Builder:
    """A computed table: its newest snapshot, the newest one as of a moment, or those of a span."""

    def build(values: Values) -> RowQuery:
        more, named = _within(values, "snapshot_ts")
        if not more:
            known = {"as_of": values["as_of"]} if "as_of" in values else {}
            until = "WHERE snapshot_ts <= $as_of" if known else ""
            more, named = [f"snapshot_ts = (SELECT max(snapshot_ts) FROM {name} {until})"], known
        elif "as_of" in values:
            raise ValueError("write as_of, or from and to")
        order = [c for c in ("snapshot_ts", "source", "product", "series", "strike") if c in COLUMNS[name]]
        return _narrowed(name, values, *more, order=", ".join(order), **named)

    return build


def _within(values: Values, column: str) -> tuple[list[str], dict[str, Any]]:
    conditions, named = [], {}
    for name, sign in (("from", ">="), ("to", "<")):
        if name in values:
            conditions.append(f"{column} {sign} ${name}_ts")
            named[f"{name}_ts"] = values[name]
    return conditions, named
