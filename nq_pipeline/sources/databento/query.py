"""Queries of the historical API, their prices, and the four of one chain snapshot.

    definition   the contracts of the requested roots, once per trade date
    bbo-1m       quotes, of a bounded window before the requested moment
    statistics   settlements, open interest, cleared volume
    trades       last price, volume and range of the session so far

Trades are cheaper than OHLCV: by the vendor's price list a minute bar costs as much as three trades. Bars of
an hour or a day do not end with the session or the moment. Definitions and quotes include `NQ.FUT` for the
price of the underlying; trades do not, because it would be most of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.dbn.layout import DAY_NS
from nq_pipeline.errors import BadPayload
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.settlements import settled_at
from nq_pipeline.transport.lifetime import Keep

DEFINITION, QUOTES, STATISTICS, TRADES = "definition", "bbo-1m", "statistics", "trades"
SCHEMAS = (DEFINITION, QUOTES, STATISTICS, TRADES)
"""In the order of the requests: the most needed schema first."""


@dataclass(frozen=True, slots=True)
class Query:
    """A paid query for parents: `start` and `end` in nanoseconds UTC, `end` excluded."""

    dataset: str
    schema: str
    symbols: tuple[str, ...]
    start: int
    end: int

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the official client's methods."""
        return {
            "dataset": self.dataset,
            "schema": self.schema,
            "symbols": list(self.symbols),
            "stype_in": "parent",
            "start": self.start,
            "end": self.end,
        }


@dataclass(frozen=True, slots=True)
class Price:
    """The vendor's price of a query.

    `usd` is 0 where the plan includes it; `size` are the billed bytes, None where it costs nothing;
    `unit_usd` is the list price per GiB, None where the price is not size times that; `at` is when the vendor
    quoted it.
    """

    usd: Decimal
    size: int | None
    unit_usd: Decimal | None
    at: datetime


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """The paid queries of one snapshot, each with its price."""

    priced: tuple[tuple[Query, Price], ...]

    def __getitem__(self, schema: str) -> tuple[Query, Price]:
        return next((query, price) for query, price in self.priced if query.schema == schema)

    @property
    def total(self) -> Decimal:
        """USD."""
        return sum((price.usd for _, price in self.priced), Decimal())

    @property
    def end(self) -> int:
        """The end of the quotes, exclusive, nanoseconds UTC."""
        return self[QUOTES][0].end

    @property
    def day(self) -> date:
        """The UTC day of the definitions."""
        return from_ns(self[DEFINITION][0].start).date()

    def dumps(self) -> bytes:
        """Return the plan as JSON."""
        rows = [
            [
                [q.dataset, q.schema, list(q.symbols), q.start, q.end],
                [str(p.usd), p.size, None if p.unit_usd is None else str(p.unit_usd), to_ns(p.at)],
            ]
            for q, p in self.priced
        ]
        return orjson.dumps(rows)

    @classmethod
    def loads(cls, body: bytes) -> QueryPlan:
        """Read what `dumps` wrote; `BadPayload` for anything else."""
        try:
            plan = cls(
                tuple(
                    (
                        Query(dataset, schema, tuple(symbols), start, end),
                        Price(Decimal(usd), size, None if unit is None else Decimal(unit), from_ns(at)),
                    )
                    for (dataset, schema, symbols, start, end), (usd, size, unit, at) in orjson.loads(body)
                )
            )
            if [query.schema for query, _ in plan.priced] != list(SCHEMAS):
                raise ValueError
        except (TypeError, ValueError, InvalidOperation):
            raise BadPayload("the archived plan cannot be read; run this again with `--refresh`") from None
        return plan


def plan_queries(
    moment: datetime,
    requested_at: datetime,
    available_end: int,
    options: tuple[str, ...],
    futures: tuple[str, ...],
    *,
    dataset: str,
    window_s: int,
) -> tuple[Query, ...]:
    """Return the four queries about a moment, none of them beyond the available data.

    Quotes and trades end with the moment itself (a minute's row is stamped with the minute's end).
    Statistics reach from the settlement of the session before to the time of the request, so that a chain
    of the close has the settlement of that close. Definitions are those of the UTC day in which the quotes
    end. Raises `BadPayload` when the available data end outside the calendar.
    """
    end = min(to_ns(moment) + 1, available_end)
    try:
        session = sessions.current_session(from_ns(end - 1))
    except (ValueError, OverflowError):
        raise BadPayload("the vendor names an impossible end of its data") from None
    end = min(end, to_ns(session.close) + 1)
    before = sessions.current_session(session.open - timedelta(seconds=1))
    products = {ROOTS[symbol.removesuffix(".OPT")].product for symbol in options}
    settled = min((settled_at(before.trade_date, product) for product in products), default=before.close)
    opened = to_ns(session.open)
    day = (end - 1) // DAY_NS * DAY_NS
    return (
        Query(dataset, DEFINITION, (*options, *futures), day, end),
        Query(dataset, QUOTES, (*options, *futures), max(opened, end - window_s * NS_PER_S), end),
        Query(dataset, STATISTICS, options, to_ns(settled), min(to_ns(requested_at) + 1, available_end)),
        Query(dataset, TRADES, options, opened, end),
    )


def cache_key(plan: QueryPlan, query: Query) -> tuple[str, dict[str, str], Keep]:
    """Return the operation of a query, the parameters that identify its answer, and how long it is cached."""
    parameters = {"dataset": query.dataset, "schema": query.schema, "symbols": ",".join(query.symbols)}
    if query.schema == DEFINITION:
        return DEFINITION, parameters | {"day": plan.day.isoformat()}, Keep.TRADE_DATE
    return query.schema, parameters | {"start": str(query.start), "end": str(query.end)}, Keep.MARKET
